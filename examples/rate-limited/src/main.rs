//! Four threads read two hundred prices, fresh for a second, for three seconds. The source allows ten requests a second.
//! `cargo run --release -p rate-limited`

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dogpile::SystemClock;
use rate_limited::{Prices, Source};

const IDS: u32 = 200;

fn main() -> anyhow::Result<()> {
    let source = Source::start(10, SystemClock)?;
    let prices = Prices::new(&source.url(), Duration::from_secs(1), SystemClock)?;
    prices.get_many(&(0..IDS).collect::<Vec<_>>())?;
    let (reads, end) = (AtomicU64::new(0), Instant::now() + Duration::from_secs(3));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while Instant::now() < end {
                    for id in 0..IDS {
                        prices.get(id).expect("the first request has told all prices");
                    }
                    reads.fetch_add(u64::from(IDS), Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(1));
                }
            });
        }
    });
    let (asked, reads) = (source.asked(), reads.into_inner());
    println!(
        "{reads} reads of {IDS} prices were {} requests for {} ids, and {} that were refused.",
        asked.answered, asked.ids, asked.refused
    );
    Ok(())
}
