//! The feature `tracing`: builds are spans with the map's name, and errors are shown.

use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dogpile::Policy;
use dogpile_map::DogpileMap;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Writes down what it sees.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<String>>);

struct Fields<'a>(&'a mut String);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        write!(self.0, " {field}={value:?}").unwrap();
    }
}

impl Subscriber for Log {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut log = self.0.lock().unwrap();
        write!(log, "\nspan {}", span.metadata().name()).unwrap();
        span.record(&mut Fields(&mut log));
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut log = self.0.lock().unwrap();
        log.push_str("\nevent");
        event.record(&mut Fields(&mut log));
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[test]
fn builds_are_spans_with_the_maps_name_and_hits_are_nothing() {
    let log = Log::default();
    tracing::subscriber::with_default(log.clone(), || {
        let map =
            DogpileMap::<u64, u64>::builder(Policy::ttl(Duration::from_secs(60))).name("numbers").build();
        map.get_or_refresh(&1, |key| *key);
        let after_build = log.0.lock().unwrap().clone();
        assert_eq!(after_build.matches("\nspan").count(), 1, "{after_build}");
        assert!(after_build.contains("numbers"), "{after_build}");
        // A hit, and a flight that is made and ends without a build, are not worth a line.
        map.get_or_refresh(&1, |key| *key);
        map.invalidate(&1);
        map.set(2, 2);
        assert_eq!(*log.0.lock().unwrap(), after_build);
        map.try_get_or_refresh(&3, |_| Err("no route to host")).unwrap_err();
        let after_error = log.0.lock().unwrap().clone();
        assert!(after_error.contains("no route to host"), "{after_error}");
    });
}
