//! How the latest builds have failed. Beside an old value callers do not notice it, so these numbers are the sign.

use dogpile::{SharedError, Stats};
use metrics::{Gauge, gauge};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Exports the number of failures in a row, and the text of the latest error, of any kind of cell:
/// `export_errors("rates", &cell.stats(), cell.last_error())`.
///
/// The text is a label of a gauge that is 1 while this is the error of the latest build, and 0 afterwards. Each text is a
/// time series: if your errors contain ids or addresses, log them instead.
pub fn export_errors(name: &'static str, stats: &Stats, last_error: Option<SharedError>) {
    static SHOWN: Mutex<BTreeMap<&str, Gauge>> = Mutex::new(BTreeMap::new());

    let failures = u32::try_from(stats.consecutive_failures).unwrap_or(u32::MAX);
    gauge!("dogpile_consecutive_failures", "cell" => name).set(failures);
    let latest =
        last_error.map(|error| gauge!("dogpile_last_error", "cell" => name, "error" => error.to_string()));
    let mut shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(former) = shown.remove(name) {
        former.set(0);
    }
    if let Some(latest) = latest {
        latest.set(1);
        shown.insert(name, latest);
    }
}
