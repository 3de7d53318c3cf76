//! A write lock that is waited for longer than a second is reported (feature `tracing`).

use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use dogpile::{Clock, Drain, ManualClock, Policy, ReaderArc, SyncReaderCell, Tick};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::background;
use crate::support::eventually;

const SECOND: Duration = Duration::from_secs(1);

/// Writes the warnings down.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl Warnings {
    fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    fn of<R>(&self, f: impl FnOnce() -> R) -> R {
        tracing::subscriber::with_default(self.clone(), f)
    }
}

struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        write!(self.0, "{}={value:?};", field.name()).unwrap();
    }
}

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "dogpile" && *metadata.level() == Level::WARN
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields(String::new());
        event.record(&mut fields);
        self.0.lock().unwrap().push(fields.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// A clock that moves on to the end of each wait, up to a limit; there the readers leave, one in each wait.
struct Skipping {
    manual: ManualClock,
    limit: Duration,
    readers: Mutex<VecDeque<ReaderArc<u32>>>,
    /// How many warnings there were when each wait began.
    waits: Mutex<Vec<(Tick, usize)>>,
    warnings: Warnings,
}

impl Clock for Skipping {
    fn now(&self) -> Tick {
        self.manual.now()
    }

    fn park_until(&self, deadline: Tick, now: Tick) {
        self.waits.lock().unwrap().push((deadline, self.warnings.lines().len()));
        let left = deadline.saturating_duration_since(now);
        if now.saturating_duration_since(Tick::default()) + left < self.limit {
            self.manual.advance(left);
        } else {
            let reader = self.readers.lock().unwrap().pop_front();
            drop(reader);
            // The finalizer may have to run.
            thread::yield_now();
        }
    }
}

/// A build waits for the write lock, at most for `patience`; after `limit` the readers leave.
fn wait(
    patience: Duration,
    limit: Duration,
    name: Option<&'static str>,
) -> (Warnings, Vec<(Duration, usize)>) {
    let warnings = Warnings::default();
    let clock = Arc::new(Skipping {
        manual: ManualClock::new(),
        limit,
        readers: Mutex::default(),
        waits: Mutex::default(),
        warnings: warnings.clone(),
    });
    let policy = Policy::never_expires();
    let mut cell = SyncReaderCell::with_clock(policy, Arc::clone(&clock), Drain::Background, drop);
    if let Some(name) = name {
        cell = cell.named(name);
    }
    // One of an older value, which is waited for first, and two of the current one.
    let older = cell.set(0);
    let reader = cell.set(1);
    let readers = [older, reader.clone(), reader];
    clock.readers.lock().unwrap().extend(readers);
    warnings.of(|| {
        cell.request().no_cache().get_with_writer(|writer| {
            let _ = writer.acquire_write_lock_timeout(patience);
            2
        })
    });
    let waits = clock.waits.lock().unwrap().clone();
    let waits = waits.into_iter().map(|(at, lines)| (at.saturating_duration_since(Tick::default()), lines));
    let waits = waits.collect();
    clock.readers.lock().unwrap().clear();
    (warnings, waits)
}

#[test]
fn a_write_lock_that_waits_for_a_second_is_reported_once_with_the_number_of_readers() {
    let (warnings, waits) = wait(10 * SECOND, 5 * SECOND, Some("file"));
    let [line] = <[String; 1]>::try_from(warnings.lines()).unwrap();
    assert!(line.contains("cell=\"file\";") && line.contains("readers=3;"), "{line}");
    assert!(line.contains("waits for readers"), "{line}");
    // Not before the second was over, and at once then.
    assert_eq!(waits[..2], [(SECOND, 0), (10 * SECOND, 1)]);
}

#[test]
fn a_write_lock_that_waits_for_less_than_a_second_is_not_reported() {
    // The readers leave in time, or the time is over.
    for (patience, limit) in [(10 * SECOND, SECOND), (SECOND, 5 * SECOND), (SECOND / 2, 5 * SECOND)] {
        let (warnings, _) = wait(patience, limit, None);
        assert_eq!(warnings.lines(), Vec::<String>::new());
    }
}

/// Without a timeout as well, which has no deadline of its own.
#[test]
fn a_write_lock_without_a_timeout_is_reported_and_waits_on() {
    let (cell, clock, log) = background();
    let reader = cell.set(1);
    let warnings = Warnings::default();
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            warnings.of(|| {
                cell.request().no_cache().get_with_writer(|writer| {
                    assert_eq!(writer.acquire_write_lock().old(), Some(&mut 1));
                    2
                })
            })
        });
        eventually("it is reported", || {
            clock.advance(SECOND);
            !warnings.lines().is_empty()
        });
        for _ in 0..10 {
            clock.advance(SECOND);
        }
        assert!(!writer.is_finished());
        drop(reader);
        assert_eq!(*writer.join().unwrap(), 2);
    });
    let [line] = <[String; 1]>::try_from(warnings.lines()).unwrap();
    assert!(line.contains("cell=\"\";") && line.contains("readers=1;"), "{line}");
    assert_eq!(log.complete(&cell), [1]);
}
