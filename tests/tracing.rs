//! The feature `tracing`: what a subscriber sees, when, and what it may do meanwhile.

use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dogpile::{DogpileCell, Drain, Lookup, ManualClock, Policy, SyncReaderCell};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

const TTL: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_nanos(1);

/// Writes down what it sees, and does something of its own each time.
#[derive(Clone, Default)]
struct Log {
    lines: Arc<Mutex<Vec<String>>>,
    spans: Arc<AtomicU64>,
    also: Option<Arc<dyn Fn() + Send + Sync>>,
    /// Panics when this is asked of it.
    refuses: Option<&'static str>,
}

impl Log {
    fn write(&self, line: String) {
        self.lines.lock().unwrap().push(line);
        if let Some(also) = &self.also {
            also();
        }
    }

    fn perhaps(&self, what: &'static str) {
        assert!(self.refuses != Some(what), "the disk is full");
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.lines.lock().unwrap())
    }

    fn while_it_listens<R>(&self, f: impl FnOnce() -> R) -> R {
        tracing::subscriber::with_default(self.clone(), f)
    }
}

struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => write!(self.0, " {value:?}").unwrap(),
            name => write!(self.0, " {name}={value:?}").unwrap(),
        }
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "dogpile"
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let id = self.spans.fetch_add(1, Ordering::Relaxed) + 1;
        let mut fields = Fields(format!("{id}: {}", attributes.metadata().name()));
        attributes.record(&mut fields);
        self.write(fields.0);
        Id::from_u64(id)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let span = event.parent().map_or(0, Id::into_u64);
        let mut fields = Fields(format!("{span}: {}", event.metadata().level()));
        event.record(&mut fields);
        self.write(fields.0);
    }

    fn enter(&self, span: &Id) {
        self.perhaps("enter");
        self.write(format!("{}: in", span.into_u64()));
    }

    fn exit(&self, span: &Id) {
        self.write(format!("{}: out", span.into_u64()));
        self.perhaps("exit");
    }

    fn clone_span(&self, id: &Id) -> Id {
        self.perhaps("clone");
        id.clone()
    }

    fn try_close(&self, _: Id) -> bool {
        self.perhaps("close");
        false
    }
}

fn cell(policy: Policy) -> (DogpileCell<u32, ManualClock>, ManualClock) {
    let clock = ManualClock::new();
    (DogpileCell::with_clock(policy, clock.clone()).named("rates"), clock)
}

#[test]
fn a_build_is_a_span_from_its_election_to_its_end() {
    let (log, (cell, clock)) = (Log::default(), cell(Policy::ttl(TTL)));
    log.while_it_listens(|| {
        cell.get_or_refresh(|| {
            clock.advance(Duration::from_millis(7));
            1
        });
        // A fresh read says nothing.
        cell.get_or_refresh(|| unreachable!());
    });
    let expected = [
        "1: build cell=\"rates\" generation=1 cause=\"first\"",
        "1: in",
        "1: out",
        "1: DEBUG duration=7ms published",
    ];
    let mut lines = log.take();
    // The message comes first or last, as `tracing` likes.
    lines[3] = lines[3].replace(" published duration=7ms", " duration=7ms published");
    assert_eq!(lines, expected);
}

#[test]
fn a_span_shows_the_cause_of_its_build() {
    let (log, (cell, clock)) = (Log::default(), cell(Policy::ttl(TTL)));
    cell.set(1);
    log.while_it_listens(|| {
        clock.advance(TTL + TICK);
        cell.get_or_refresh(|| 2);
        cell.invalidate();
        cell.get_or_refresh(|| 3);
        cell.request().no_cache().get(|| 4);
        drop(cell.clear());
        cell.get_or_refresh(|| 5);
    });
    let causes: Vec<String> = log
        .take()
        .into_iter()
        .filter_map(|line| line.split_once("generation=").map(|(_, end)| end.to_owned()))
        .collect();
    let expected = ["2 cause=\"ttl\"", "3 cause=\"invalidated\"", "4 cause=\"forced\"", "5 cause=\"first\""];
    assert_eq!(causes, expected);
}

#[test]
fn each_end_of_a_build_is_an_event() {
    let policy = Policy::ttl(TTL).lease_timeout(TTL).retry_backoff(Duration::ZERO, Duration::ZERO);
    let (log, (cell, clock)) = (Log::default(), cell(policy));
    let lease = || match cell.lookup() {
        Lookup::Elected(lease) => lease,
        other => panic!("{other:?}"),
    };
    log.while_it_listens(|| {
        drop(lease().fail("no route to host"));
        drop(lease());
        let panic =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| cell.get_or_refresh(|| panic!("no"))));
        assert!(panic.is_err());
        let invalidated = lease();
        cell.invalidate();
        invalidated.publish(1);
        let displaced = lease();
        cell.set(2);
        displaced.publish(3);
        cell.invalidate();
        let slow = lease();
        clock.advance(TTL + TICK);
        let quick = lease();
        slow.publish(4);
        quick.publish(5);
    });
    let lines = log.take();
    let events: Vec<&str> = lines
        .iter()
        .filter(|line| line.contains("duration=") || line.contains("supersedes"))
        .map(String::as_str)
        .collect();
    let expected = [
        ("1: WARN", "failed"),
        ("2: DEBUG", "abandoned"),
        ("3: WARN", "panicked"),
        ("4: DEBUG", "published as stale"),
        ("5: DEBUG", "not published: set, cleared or revoked meanwhile"),
        ("7: WARN", "supersedes a build"),
        ("6: WARN", "superseded: too late"),
        ("7: DEBUG", "published"),
    ];
    assert_eq!(events.len(), expected.len(), "{lines:#?}");
    for (event, (head, message)) in events.iter().zip(expected) {
        assert!(event.starts_with(head) && event.contains(message), "{head} {message}: {event}");
    }
    assert!(events[0].contains("error=no route to host"), "{lines:#?}");
}

#[test]
fn a_drain_and_its_finalizer_are_events() {
    let log = Log::default();
    let cell =
        SyncReaderCell::with_policy(Policy::ttl(TTL), Drain::Wait(Duration::MAX), |_: u32| ()).named("file");
    log.while_it_listens(|| {
        cell.set(1);
        cell.set(2);
    });
    let lines = log.take();
    assert!(lines.iter().any(|line| line.contains("number=1") && line.contains("finalized")), "{lines:#?}");
    assert!(lines.iter().all(|line| line.contains("cell=\"file\"")), "{lines:#?}");
    // The event of the drain comes from the thread of the last reader.
    let reader = cell.get().unwrap();
    let cell = Arc::new(cell);
    let setter = {
        let (cell, log) = (Arc::clone(&cell), log.clone());
        std::thread::spawn(move || log.while_it_listens(|| drop(cell.set(3))))
    };
    while cell.retired() == 0 {
        std::thread::yield_now();
    }
    log.while_it_listens(|| drop(reader));
    setter.join().unwrap();
    let lines = log.take();
    let position =
        |word: &str| lines.iter().position(|line| line.contains(word) && line.contains("number=2"));
    assert!(position("drained").is_some() && position("drained") < position("finalized"), "{lines:#?}");
}

/// After a second on the cell's clock, and once.
#[test]
fn a_write_lock_that_waits_for_long_is_an_event() {
    const SECOND: Duration = Duration::from_secs(1);
    for is_slow in [true, false] {
        let (log, clock) = (Log::default(), ManualClock::new());
        let policy = Policy::ttl(TTL);
        let cell = SyncReaderCell::with_clock(policy, clock.clone(), Drain::Background, drop).named("file");
        cell.set(1);
        let (reader, other) = (cell.get().unwrap(), cell.get().unwrap());
        let waits = |log: &Log| {
            let lines = log.lines.lock().unwrap();
            lines.iter().filter(|line| line.contains("the write lock waits")).cloned().collect::<Vec<_>>()
        };
        let write = || {
            cell.request().no_cache().get_with_writer(|writer| {
                drop(writer.acquire_write_lock());
                2
            })
        };
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| *log.while_it_listens(write));
            while cell.get().is_some() {
                std::thread::yield_now();
            }
            if is_slow {
                while waits(&log).is_empty() {
                    clock.advance(SECOND);
                    std::thread::yield_now();
                }
                clock.advance(100 * SECOND);
            }
            drop((reader, other));
            assert_eq!(writer.join().unwrap(), 2);
        });
        let waits = waits(&log);
        assert_eq!(waits.len(), usize::from(is_slow), "{waits:#?}");
        for line in waits {
            assert!(line.contains(" WARN") && line.contains("cell=\"file\""), "{line}");
            assert!(line.contains("readers=2"), "{line}");
        }
    }
}

/// G9: no lock is held while a subscriber runs.
#[test]
fn g9_a_subscriber_may_use_the_cell() {
    let (cell, clock) = cell(Policy::ttl(TTL));
    let cell = Arc::new(cell);
    let also: Arc<dyn Fn() + Send + Sync> = {
        let cell = Arc::clone(&cell);
        Arc::new(move || {
            let _ = (cell.lookup(), cell.get(), cell.stats(), cell.snapshot());
            cell.invalidate();
        })
    };
    let log = Log { also: Some(also), ..Log::default() };
    // It is asked from inside the subscriber too, where `tracing` hears nothing.
    log.while_it_listens(|| {
        assert_eq!(*cell.get_or_refresh(|| 1), 1);
        clock.advance(TTL + TICK);
        assert_eq!(*cell.get_or_refresh(|| 2), 2);
    });
    assert!(log.take().len() >= 4);
    assert!(!cell.is_refreshing());
}

/// G5: a subscriber that panics costs no caller a value or the lease.
#[test]
fn g5_a_subscriber_may_panic() {
    let (cell, _clock) = cell(Policy::ttl(TTL));
    let log = Log { also: Some(Arc::new(|| panic!("the disk is full"))), ..Log::default() };
    let lease = log.while_it_listens(|| match cell.lookup() {
        Lookup::Elected(lease) => lease,
        other => panic!("{other:?}"),
    });
    assert_eq!(*log.while_it_listens(|| lease.publish(1)), 1);
    assert_eq!(cell.get().as_deref(), Some(&1));
    cell.invalidate();
    log.while_it_listens(|| match cell.lookup() {
        Lookup::Elected(lease) => drop(lease),
        other => panic!("{other:?}"),
    });
    assert!(!cell.is_refreshing());
    assert!(log.take().len() >= 3);
}

/// The same, wherever it does; also if the build panics too.
#[test]
fn g5_a_subscriber_may_panic_at_any_step() {
    for refuses in ["enter", "exit", "clone", "close"] {
        let (cell, _clock) = cell(Policy::ttl(TTL));
        let log = Log { refuses: Some(refuses), ..Log::default() };
        assert_eq!(*log.while_it_listens(|| cell.get_or_refresh(|| 1)), 1, "{refuses}");
        let build = || cell.request().no_cache().get(|| panic!("the build"));
        let result = log.while_it_listens(|| std::panic::catch_unwind(std::panic::AssertUnwindSafe(build)));
        assert!(result.is_err(), "{refuses}");
        assert!(!cell.is_refreshing(), "{refuses}");
        assert_eq!(cell.stats().panicked, 1, "{refuses}");
    }
}
