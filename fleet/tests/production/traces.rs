//! What `tracing` is told.

use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use dogpile_fleet::RedisStore;

use crate::servers::{Kind, server_or_skip};
use crate::{HANG, PATIENT, cell};

/// Notes spans, what is recorded in them, and events, each as one line.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Vec<String>>>);

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        use std::fmt::Write as _;
        let _ = write!(self.0, " {}={value:?}", field.name());
    }
}

impl Notes {
    fn note(&self, mut line: Line, record: impl FnOnce(&mut Line)) {
        record(&mut line);
        self.0.lock().unwrap().push(line.0);
    }

    fn has(&self, parts: &[&str]) -> bool {
        self.0.lock().unwrap().iter().any(|line| parts.iter().all(|part| line.contains(part)))
    }
}

impl Subscriber for Notes {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "dogpile_fleet"
    }
    fn new_span(&self, span: &Attributes<'_>) -> Id {
        self.note(Line(format!("span {}", span.metadata().name())), |line| span.record(line));
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, values: &Record<'_>) {
        self.note(Line("recorded".to_owned()), |line| values.record(line));
    }
    fn event(&self, event: &Event<'_>) {
        self.note(Line(format!("event {}", event.metadata().level())), |line| event.record(line));
    }
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[test]
fn operations_are_spans_and_states_of_the_breaker_are_events() {
    let mut server = server_or_skip!(Kind::Redis);
    let notes = Notes::default();
    tracing::subscriber::with_default(notes.clone(), || {
        let node = cell(RedisStore::new(&server.address()).unwrap().timeout(HANG), PATIENT.no_poll());
        node.invalidate().unwrap();
        assert!(notes.has(&["span store", "operation=\"invalidate\"", "name=\"name\""]), "{:?}", notes.0);
        server.kill();
        node.check().unwrap_err();
        assert!(notes.has(&["recorded error=", "Connection refused"]), "{:?}", notes.0);
        assert!(notes.has(&["event WARN", "the store is left alone", "Connection refused"]), "{:?}", notes.0);
        server.run().unwrap();
        node.check().unwrap();
        assert!(notes.has(&["event INFO", "the store is used again"]), "{:?}", notes.0);
    });
}
