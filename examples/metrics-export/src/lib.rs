//! The pattern of `docs/monitoring.md`, as it stands there: what cells do, as metrics of the `metrics` facade.

mod errors;

use dogpile::{Clock, DogpileCell, Freshness, Refresher, Stats, SyncReaderCell};
use metrics::{counter, gauge};

pub use errors::export_errors;

/// Exports the counters and the state of a cell. It does not build and does not wait.
pub fn export<T, C: Clock>(name: &'static str, cell: &DogpileCell<T, C>) {
    export_stats(name, &cell.stats());
    let snapshot = cell.peek();
    // NaN if there is no value: no alert compares with it.
    let age = snapshot.as_ref().map_or(f64::NAN, |snapshot| snapshot.age.as_secs_f64());
    gauge!("dogpile_age_seconds", "cell" => name).set(age);
    let freshness = snapshot.map_or(Freshness::Empty, |snapshot| snapshot.freshness);
    export_state(name, freshness, cell.is_refreshing());
}

/// Exports the counters and the state of a `SyncReaderCell`, and the number of its readers.
pub fn export_sync_reader<T, C>(name: &'static str, cell: &SyncReaderCell<T, C>)
where
    T: Send + Sync + 'static,
    C: Clock,
{
    export_stats(name, &cell.stats());
    export_state(name, cell.freshness(), cell.is_refreshing());
    for (what, number) in [("dogpile_readers", cell.readers()), ("dogpile_retired", cell.retired())] {
        gauge!(what, "cell" => name).set(f64::from(u32::try_from(number).unwrap_or(u32::MAX)));
    }
}

/// Exports the state of a `Refresher`.
pub fn export_refresher(name: &'static str, refresher: &Refresher) {
    gauge!("dogpile_consecutive_failures", "cell" => name).set(refresher.consecutive_failures());
}

/// Exports the counters. They are `absolute`, since the cell itself counts.
pub fn export_stats(name: &'static str, stats: &Stats) {
    for (what, count) in [
        ("dogpile_builds_total", stats.builds),
        ("dogpile_published_total", stats.published),
        ("dogpile_failed_total", stats.failed),
        ("dogpile_panicked_total", stats.panicked),
        ("dogpile_abandoned_total", stats.abandoned),
        ("dogpile_superseded_total", stats.superseded),
        ("dogpile_fenced_total", stats.fenced),
        ("dogpile_served_stale_on_error_total", stats.served_stale_on_error),
        ("dogpile_waits_total", stats.waits),
        ("dogpile_wait_timeouts_total", stats.wait_timeouts),
    ] {
        counter!(what, "cell" => name).absolute(count);
    }
    if let Some(took) = stats.last_build {
        gauge!("dogpile_last_build_seconds", "cell" => name).set(took);
    }
}

/// Exports the freshness: one of the four gauges is 1.
fn export_state(name: &'static str, freshness: Freshness, is_refreshing: bool) {
    for (state, is_so) in [
        ("empty", freshness == Freshness::Empty),
        ("fresh", freshness == Freshness::Fresh),
        ("stale", freshness == Freshness::Stale),
        ("expired", freshness == Freshness::Expired),
    ] {
        gauge!("dogpile_state", "cell" => name, "state" => state).set(u8::from(is_so));
    }
    gauge!("dogpile_refreshing", "cell" => name).set(u8::from(is_refreshing));
}

/// The page's examples are compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/monitoring.md")]
struct Page;
