//! What the recorder gets, figure by figure, on a clock that the test moves.

#![allow(clippy::float_cmp)] // all of them are exact

use dogpile::{DogpileCell, Drain, Lookup, ManualClock, Policy, Refresher, Stats, SyncReaderCell};
use metrics_export::{export, export_errors, export_refresher, export_stats, export_sync_reader};
use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);
const TTL: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(30);

/// All that `export` records, as Prometheus would write it.
fn recorded(export: impl FnOnce()) -> BTreeMap<String, f64> {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    metrics::with_local_recorder(&recorder, export);
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

/// The one state whose gauge is 1.
#[track_caller]
fn state(recorded: &BTreeMap<String, f64>) -> &str {
    let state = |state: &str| recorded[&format!("dogpile_state{{cell=rates,state={state}}}")];
    let states = ["empty", "fresh", "stale", "expired"];
    assert!(states.iter().all(|name| [0.0, 1.0].contains(&state(name))), "{recorded:?}");
    let so: Vec<&str> = states.into_iter().filter(|name| state(name) > 0.0).collect();
    assert_eq!(so.len(), 1, "{recorded:?}");
    so[0]
}

#[test]
fn every_count_has_a_counter_of_its_own() {
    let mut stats = Stats::default();
    stats.builds = 1;
    stats.published = 2;
    stats.failed = 3;
    stats.panicked = 4;
    stats.abandoned = 5;
    stats.superseded = 6;
    stats.fenced = 7;
    stats.served_stale_on_error = 8;
    stats.waits = 9;
    stats.wait_timeouts = 10;
    stats.consecutive_failures = 11;
    stats.last_build = Some(Duration::from_millis(1_500));
    let recorded = recorded(|| {
        // A second time changes nothing.
        export_stats("rates", &stats);
        export_stats("rates", &stats);
        export_errors("rates", &stats, None);
    });
    let expected = [
        ("dogpile_builds_total{cell=rates}", 1.0),
        ("dogpile_published_total{cell=rates}", 2.0),
        ("dogpile_failed_total{cell=rates}", 3.0),
        ("dogpile_panicked_total{cell=rates}", 4.0),
        ("dogpile_abandoned_total{cell=rates}", 5.0),
        ("dogpile_superseded_total{cell=rates}", 6.0),
        ("dogpile_fenced_total{cell=rates}", 7.0),
        ("dogpile_served_stale_on_error_total{cell=rates}", 8.0),
        ("dogpile_waits_total{cell=rates}", 9.0),
        ("dogpile_wait_timeouts_total{cell=rates}", 10.0),
        ("dogpile_consecutive_failures{cell=rates}", 11.0),
        ("dogpile_last_build_seconds{cell=rates}", 1.5),
    ];
    assert_eq!(recorded, expected.into_iter().map(|(name, value)| (name.to_owned(), value)).collect());
    // One that is added to `Stats` shall be exported too.
    let statistics = format!("{stats:?}").matches(": ").count();
    assert_eq!(statistics, recorded.len(), "{stats:?}");
}

#[test]
fn the_text_of_the_latest_error_is_a_label_until_a_build_succeeds() {
    let (cell, clock) = cell(Policy::ttl(TTL));
    cell.set(1);
    cell.invalidate();
    let mut seen = Vec::new();
    let recorded = recorded(|| {
        for error in [Some("no route to host"), Some("timed out"), None] {
            let value =
                cell.try_get_or_refresh(|| error.map_or(Ok(2), Err)).expect("the old value, or a new one");
            export_errors("text", &cell.stats(), cell.last_error());
            seen.push((*value, cell.stats().consecutive_failures));
            clock.advance(SECOND);
        }
    });
    assert_eq!(seen, [(1, 1), (1, 2), (2, 0)]);
    let expected = [
        ("dogpile_consecutive_failures{cell=text}", 0.0),
        ("dogpile_last_error{cell=text,error=no route to host}", 0.0),
        ("dogpile_last_error{cell=text,error=timed out}", 0.0),
    ];
    assert_eq!(recorded, expected.into_iter().map(|(name, value)| (name.to_owned(), value)).collect());
}

#[test]
fn the_text_of_the_latest_error_replaces_the_former_one() {
    let (cell, clock) = cell(Policy::ttl(TTL));
    let recorded = recorded(|| {
        for error in ["no route to host", "timed out", "timed out"] {
            cell.try_get_or_refresh(|| Err(error)).expect_err("there is no old value");
            export_errors("latest text", &cell.stats(), cell.last_error());
            clock.advance(SECOND);
        }
    });
    let of = |error: &str| recorded[&format!("dogpile_last_error{{cell=latest text,error={error}}}")];
    assert_eq!((of("no route to host"), of("timed out")), (0.0, 1.0));
    assert_eq!(recorded["dogpile_consecutive_failures{cell=latest text}"], 3.0);
}

#[test]
fn an_empty_cell_has_no_age_and_is_not_built() {
    let (cell, _) = cell(Policy::ttl(TTL));
    let recorded = recorded(|| export("rates", &cell));
    assert_eq!(state(&recorded), "empty");
    assert!(recorded["dogpile_age_seconds{cell=rates}"].is_nan());
    assert_eq!(recorded["dogpile_builds_total{cell=rates}"], 0.0);
    assert!(!recorded.contains_key("dogpile_last_build_seconds{cell=rates}"));
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
        let recorded = recorded(|| export("rates", &cell));
        assert_eq!(state(&recorded), expected);
        assert_eq!(recorded["dogpile_age_seconds{cell=rates}"], f64::from(age));
        assert_eq!(recorded["dogpile_last_build_seconds{cell=rates}"], 3.0);
    }
    cell.clear();
    let recorded = recorded(|| export("rates", &cell));
    assert_eq!(state(&recorded), "empty");
    assert!(recorded["dogpile_age_seconds{cell=rates}"].is_nan());
}

#[test]
fn a_build_that_runs_shows() {
    let (cell, _) = cell(Policy::ttl(TTL));
    let Lookup::Elected(lease) = cell.lookup() else { panic!("expected to be elected") };
    assert_eq!(recorded(|| export("rates", &cell))["dogpile_refreshing{cell=rates}"], 1.0);
    lease.fail("no route to host");
    let recorded = recorded(|| export("rates", &cell));
    assert_eq!(recorded["dogpile_refreshing{cell=rates}"], 0.0);
    assert_eq!(recorded["dogpile_failed_total{cell=rates}"], 1.0);
}

#[test]
fn each_cell_has_metrics_of_its_own() {
    let (rates, prices) = (cell(Policy::ttl(TTL)).0, cell(Policy::ttl(TTL)).0);
    rates.set(1);
    let recorded = recorded(|| {
        export("rates", &rates);
        export("prices", &prices);
    });
    assert_eq!(state(&recorded), "fresh");
    assert!(recorded["dogpile_state{cell=prices,state=empty}"] > 0.0);
}

#[test]
fn the_readers_of_a_replaced_value_show() {
    let cell =
        SyncReaderCell::with_clock(Policy::ttl(TTL), ManualClock::new(), Drain::Background, |_: u32| {});
    let numbers = || {
        let recorded = recorded(|| export_sync_reader("rates", &cell));
        (
            state(&recorded).to_owned(),
            recorded["dogpile_readers{cell=rates}"],
            recorded["dogpile_retired{cell=rates}"],
        )
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
            assert!(start.elapsed() < PATIENCE, "there are not yet {expected} failures");
            thread::yield_now();
        }
        let recorded = recorded(|| export_refresher("rates", &refresher));
        assert_eq!(recorded["dogpile_consecutive_failures{cell=rates}"], f64::from(expected));
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
    let (_, function) = include_str!("../src/errors.rs").split_once("\n\n///").expect("a function");
    assert!(function.contains("pub fn export_errors"));
    assert!(page.contains(function), "docs/monitoring.md does not show:\n{function}");
}
