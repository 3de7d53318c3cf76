//! What the recorder is told, figure by figure, on a clock that the test moves.

#![allow(clippy::float_cmp)] // all of them are exact

use dogpile::{DogpileCell, Drain, Lookup, ManualClock, Policy, Refresher, Stats, SyncReaderCell};
use metrics_export::{export, export_refresher, export_stats, export_sync_reader};
use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);
const TTL: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(30);

/// All that is told meanwhile, as Prometheus would write it.
fn told(tell: impl FnOnce()) -> BTreeMap<String, f64> {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    metrics::with_local_recorder(&recorder, tell);
    let all = snapshotter.snapshot().into_vec();
    all.into_iter()
        .map(|(key, _, _, value)| {
            let labels: Vec<String> =
                key.key().labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
            let value = match value {
                DebugValue::Counter(count) => f64::from(u32::try_from(count).expect("a small number")),
                DebugValue::Gauge(value) => value.into_inner(),
                DebugValue::Histogram(values) => panic!("a histogram: {values:?}"),
            };
            (format!("{}{{{}}}", key.key().name(), labels.join(",")), value)
        })
        .collect()
}

fn cell(policy: Policy) -> (DogpileCell<u32, ManualClock>, ManualClock) {
    let clock = ManualClock::new();
    (DogpileCell::with_clock(policy, clock.clone()), clock)
}

/// The state of which it is told that it is so; there must be one.
#[track_caller]
fn state(told: &BTreeMap<String, f64>) -> &str {
    let state = |state: &str| told[&format!("dogpile_state{{cell=rates,state={state}}}")];
    let states = ["empty", "fresh", "stale", "expired"];
    assert!(states.iter().all(|name| [0.0, 1.0].contains(&state(name))), "{told:?}");
    let so: Vec<&str> = states.into_iter().filter(|name| state(name) > 0.0).collect();
    assert_eq!(so.len(), 1, "{told:?}");
    so[0]
}

#[test]
fn every_count_has_a_counter_of_its_own() {
    // Without `..`: a count that is added shall be told too.
    let stats = Stats {
        builds: 1,
        published: 2,
        failed: 3,
        panicked: 4,
        abandoned: 5,
        superseded: 6,
        fenced: 7,
        waits: 8,
        wait_timeouts: 9,
        last_build: Some(Duration::from_millis(1_500)),
    };
    let told = told(|| {
        // A second time changes nothing.
        export_stats("rates", &stats);
        export_stats("rates", &stats);
    });
    let expected = [
        ("dogpile_builds_total{cell=rates}", 1.0),
        ("dogpile_published_total{cell=rates}", 2.0),
        ("dogpile_failed_total{cell=rates}", 3.0),
        ("dogpile_panicked_total{cell=rates}", 4.0),
        ("dogpile_abandoned_total{cell=rates}", 5.0),
        ("dogpile_superseded_total{cell=rates}", 6.0),
        ("dogpile_fenced_total{cell=rates}", 7.0),
        ("dogpile_waits_total{cell=rates}", 8.0),
        ("dogpile_wait_timeouts_total{cell=rates}", 9.0),
        ("dogpile_last_build_seconds{cell=rates}", 1.5),
    ];
    assert_eq!(told, expected.into_iter().map(|(name, value)| (name.to_owned(), value)).collect());
}

#[test]
fn an_empty_cell_has_no_age_and_is_not_built() {
    let (cell, _) = cell(Policy::ttl(TTL));
    let told = told(|| export("rates", &cell));
    assert_eq!(state(&told), "empty");
    assert!(told["dogpile_age_seconds{cell=rates}"].is_nan());
    assert_eq!(told["dogpile_builds_total{cell=rates}"], 0.0);
    assert!(!told.contains_key("dogpile_last_build_seconds{cell=rates}"));
    assert_eq!(cell.stats(), Stats::default());
}

#[test]
fn a_value_grows_older_and_goes_through_its_states() {
    let (cell, clock) = cell(Policy::ttl(TTL).stale_while_refresh(TTL));
    cell.get_or_refresh(|| {
        clock.advance(3 * SECOND);
        7
    });
    for (age, expected) in [(0, "fresh"), (4, "fresh"), (11, "stale"), (21, "expired")] {
        let now = cell.snapshot().expect("a value").age;
        clock.advance(age * SECOND - now);
        let told = told(|| export("rates", &cell));
        assert_eq!(state(&told), expected);
        assert_eq!(told["dogpile_age_seconds{cell=rates}"], f64::from(age));
        assert_eq!(told["dogpile_last_build_seconds{cell=rates}"], 3.0);
    }
    cell.clear();
    let told = told(|| export("rates", &cell));
    assert_eq!(state(&told), "empty");
    assert!(told["dogpile_age_seconds{cell=rates}"].is_nan());
}

#[test]
fn a_build_that_runs_shows() {
    let (cell, _) = cell(Policy::ttl(TTL));
    let Lookup::Elected(lease) = cell.lookup() else { panic!("expected to be elected") };
    assert_eq!(told(|| export("rates", &cell))["dogpile_refreshing{cell=rates}"], 1.0);
    lease.fail("no route to host");
    let told = told(|| export("rates", &cell));
    assert_eq!(told["dogpile_refreshing{cell=rates}"], 0.0);
    assert_eq!(told["dogpile_failed_total{cell=rates}"], 1.0);
}

#[test]
fn cells_are_told_apart_by_their_names() {
    let (rates, prices) = (cell(Policy::ttl(TTL)).0, cell(Policy::ttl(TTL)).0);
    rates.set(1);
    let told = told(|| {
        export("rates", &rates);
        export("prices", &prices);
    });
    assert_eq!(state(&told), "fresh");
    assert!(told["dogpile_state{cell=prices,state=empty}"] > 0.0);
}

#[test]
fn the_readers_of_a_replaced_value_show() {
    let cell =
        SyncReaderCell::with_clock(Policy::ttl(TTL), ManualClock::new(), Drain::Background, |_: u32| {});
    let numbers = || {
        let told = told(|| export_sync_reader("rates", &cell));
        (state(&told).to_owned(), told["dogpile_readers{cell=rates}"], told["dogpile_retired{cell=rates}"])
    };
    assert_eq!(numbers(), ("empty".to_owned(), 0.0, 0.0));
    cell.set(1);
    let reader = cell.get();
    assert_eq!(numbers(), ("fresh".to_owned(), 1.0, 0.0));
    cell.set(2);
    assert_eq!(numbers(), ("fresh".to_owned(), 1.0, 1.0));
    drop(reader);
    cell.synchronize();
    assert_eq!(numbers(), ("fresh".to_owned(), 0.0, 0.0));
}

#[test]
fn the_failures_of_a_refresher_show() {
    let policy = Policy::ttl(TTL).retry_backoff(SECOND, SECOND);
    let clock = ManualClock::new();
    let cell = Arc::new(DogpileCell::<u32, _>::with_clock(policy, clock.clone()));
    let refresher = Refresher::spawn(&cell, SECOND, |_| Err::<u32, _>("no route to host")).unwrap();
    let start = Instant::now();
    for expected in 1..=3 {
        while refresher.consecutive_failures() < expected {
            assert!(start.elapsed() < PATIENCE, "{expected} failures have not come to be");
            thread::yield_now();
        }
        let told = told(|| export_refresher("rates", &refresher));
        assert_eq!(told["dogpile_consecutive_failures{cell=rates}"], f64::from(expected));
        clock.advance(SECOND);
    }
}

#[test]
fn the_page_shows_what_is_tested_here() {
    let page = include_str!("../../../docs/monitoring.md");
    let source = include_str!("../src/lib.rs");
    let mut functions = 0;
    for function in source.split("\n\n").filter(|part| part.contains("fn export")) {
        assert!(page.contains(function), "docs/monitoring.md does not show:\n{function}");
        functions += 1;
    }
    assert_eq!(functions, 5);
}
