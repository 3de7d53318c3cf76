//! A price table whose source goes down: old prices instead of errors, pauses that grow between the attempts, and prices
//! again as soon as the source is back. Time is a `ManualClock`, so an hour takes no time.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use dogpile::{DogpileCell, ManualClock, Policy, RefreshError};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

const POLICY: Policy = Policy::ttl(MINUTE)
    .stale_if_error(Duration::from_secs(600))
    .retry_backoff(Duration::from_secs(1), Duration::from_secs(30));

struct Source {
    is_up: Cell<bool>,
    attempts: Cell<u32>,
    price: Cell<f64>,
}

impl Source {
    fn fetch(&self) -> io::Result<f64> {
        self.attempts.set(self.attempts.get() + 1);
        if self.is_up.get() { Ok(self.price.get()) } else { Err(io::Error::other("connection refused")) }
    }
}

fn main() {
    let clock = ManualClock::new();
    let prices = DogpileCell::with_clock(POLICY, clock.clone()).named("prices");
    let source = Source { is_up: Cell::new(true), attempts: Cell::new(0), price: Cell::new(9.5) };
    let price =
        || -> Result<Arc<f64>, RefreshError<io::Error>> { prices.try_get_or_refresh(|| source.fetch()) };
    assert_eq!(price().ok().as_deref(), Some(&9.5));

    source.is_up.set(false);
    println!("the source is killed; a request each second:");
    clock.advance(MINUTE);
    let (mut last, mut served) = (0, 0);
    for second in 1..=620 {
        clock.advance(SECOND);
        let before = source.attempts.get();
        let answer = price();
        served += u32::from(answer.is_ok());
        if source.attempts.get() != before {
            let outcome = answer.map_or_else(|error| error.to_string(), |price| format!("old price {price}"));
            if !(70..=590).contains(&second) {
                println!("{second:4} s: an attempt, {:2} s after the last one: {outcome}", second - last);
            }
            last = second;
        }
    }
    println!("{} attempts for 620 requests, {served} of which got a price", source.attempts.get() - 1);

    source.price.set(9.9);
    source.is_up.set(true);
    clock.advance(30 * SECOND);
    println!("the source is back: {}", price().expect("it answers again"));
}
