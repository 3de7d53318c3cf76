//! How many requests there are. Time is a manual clock; real time is a guard against hangs.

use std::thread;
use std::time::{Duration, Instant};

use dogpile::{ManualClock, Policy};
use dogpile_map::DogpileMap;
use rate_limited::{Asked, BATCH, PAUSE, Prices, Source, TTL};

const LIMIT: u64 = 10;
/// Two batches.
const IDS: u32 = 100;

fn wait_until(condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it does not happen");
        thread::yield_now();
    }
}

fn all() -> Vec<u32> {
    (0..IDS).collect()
}

/// With all prices known, and stale.
fn stale() -> (Source, Prices<ManualClock>, ManualClock) {
    let clock = ManualClock::new();
    let source = Source::start(LIMIT, clock.clone()).unwrap();
    let prices = Prices::new(&source.url(), TTL, clock.clone()).unwrap();
    assert!(prices.get_many(&all()).unwrap().iter().all(Option::is_some));
    assert_eq!(source.asked(), Asked { answered: 1, refused: 0, ids: IDS.into() });
    source.raise_prices();
    clock.advance(TTL + PAUSE);
    (source, prices, clock)
}

fn old(id: u32) -> u64 {
    10 * u64::from(id)
}

#[test]
fn a_hundred_stale_prices_are_two_requests() {
    assert_eq!(usize::try_from(IDS), Ok(2 * BATCH));
    let (source, prices, _clock) = stale();
    // The callers get the old prices. Each id is noted once.
    for id in all() {
        let price = *prices.get(id).unwrap();
        assert!(price == old(id) || price == old(id) + 1);
    }
    wait_until(|| source.asked().answered == 3);
    wait_until(|| all().into_iter().all(|id| *prices.get(id).unwrap() == old(id) + 1));
    assert_eq!(source.asked(), Asked { answered: 3, refused: 0, ids: 2 * u64::from(IDS) });
}

#[test]
fn a_refusal_leaves_the_old_prices_and_the_source_alone() {
    let (source, prices, clock) = stale();
    source.set_limit(0);
    let read_all = || {
        for id in all() {
            assert_eq!(*prices.get(id).unwrap(), old(id));
        }
    };
    read_all();
    wait_until(|| prices.stats().failures == u64::from(IDS));
    // In the pause; the batches that these are noted for ask for nothing.
    read_all();
    source.set_limit(LIMIT);
    clock.advance(2 * PAUSE);
    // Each id is noted once more, so that the batches are full: a window would not end on this clock.
    for id in all() {
        prices.get(id).unwrap();
    }
    wait_until(|| source.asked().ids == 2 * u64::from(IDS));
    wait_until(|| all().into_iter().all(|id| *prices.get(id).unwrap() == old(id) + 1));
    let asked = source.asked();
    assert_eq!((asked.refused, asked.ids), (2, 2 * u64::from(IDS)));
}

#[test]
fn an_id_without_a_price_is_none() {
    let (source, prices, _clock) = stale();
    assert_eq!(prices.get_many(&[123_456]).unwrap(), [None]);
    assert!(prices.get(123_456).is_err());
    assert_eq!(source.asked().answered, 3);
}

/// What the batches are for: one request for each stale price would be refused but for the first ones.
#[test]
fn without_batches_most_requests_are_refused() {
    let clock = ManualClock::new();
    let source = Source::start(LIMIT, clock.clone()).unwrap();
    let (agent, url) = (ureq::Agent::new_with_defaults(), source.url());
    let prices = DogpileMap::<u32, u64>::builder(Policy::ttl(TTL)).clock(clock).build();
    for id in all() {
        prices.set(id, 0);
        prices.invalidate(&id);
        let fetch = |id: &u32| agent.get(&url).query("ids", id.to_string()).call().map(|_| 1);
        prices.try_get_or_refresh(&id, fetch).unwrap();
    }
    assert_eq!(source.asked(), Asked { answered: LIMIT, refused: u64::from(IDS) - LIMIT, ids: LIMIT });
}
