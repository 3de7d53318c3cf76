//! Builds whose result can no longer be published: they hold no lease (G1), and are never published over newer values (G4).

use std::sync::Arc;

use crate::support::{Model, NoonCell, cell, elect, fork, saw, stale_cell};

pub(crate) const MODELS: &[Model] = &[
    Model {
        name: "g1_a_reader_does_not_wait_for_a_build_that_a_clear_has_displaced",
        preemptions: Some(3),
        body: || a_reader_does_not_wait(&cell(), |cell| drop(cell.clear())),
        sees: &["built after a wait", "built at once"],
    },
    Model {
        name: "g1_a_reader_does_not_wait_for_a_build_that_was_revoked",
        preemptions: Some(3),
        body: || a_reader_does_not_wait(&cell(), |cell| assert!(cell.revoke(), "a build runs")),
        sees: &["built after a wait", "built at once"],
    },
    Model {
        name: "g1_a_reader_does_not_wait_for_a_build_that_a_reset_has_displaced",
        preemptions: Some(2),
        body: || a_reader_does_not_wait(&stale_cell(0), NoonCell::reset),
        sees: &["built at once", "served before"],
    },
    Model {
        name: "g1_a_reader_does_not_wait_for_a_build_that_a_set_has_displaced",
        preemptions: Some(3),
        body: a_reader_does_not_wait_for_a_build_that_a_set_has_displaced,
        sees: &["handed over", "begun after the call", "built at once"],
    },
    Model {
        name: "g4_a_build_that_a_clear_has_displaced_is_not_published_over_a_newer_one",
        preemptions: Some(3),
        body: || a_displaced_build_is_not_published(|cell| drop(cell.clear())),
        sees: &["its own value", "the newer value"],
    },
    Model {
        name: "g4_a_build_that_was_revoked_is_not_published_over_a_newer_one",
        preemptions: Some(3),
        body: || a_displaced_build_is_not_published(|cell| assert!(cell.revoke(), "a build runs")),
        sees: &["its own value", "the newer value"],
    },
    Model {
        name: "g4_a_build_that_a_set_has_displaced_is_not_published_over_a_newer_one",
        preemptions: Some(3),
        body: a_build_that_a_set_has_displaced_is_not_published_over_a_newer_one,
        sees: &["the value that was set", "the newer value"],
    },
    Model {
        name: "g5_a_displaced_build_that_fails_leaves_no_trace",
        preemptions: Some(3),
        body: a_displaced_build_that_fails_leaves_no_trace,
        sees: &["built after a wait", "built at once"],
    },
];

/// The build ends when the reader has its value, so a reader that waits for it waits for ever.
fn a_reader_does_not_wait(cell: &Arc<NoonCell<u32>>, displace: fn(&NoonCell<u32>)) {
    let lease = elect(cell);
    let displacer = fork(cell, move |cell| displace(&cell));
    let reader = fork(cell, |cell| *cell.get_or_refresh(|| 2));
    displacer.join().unwrap();
    match reader.join().unwrap() {
        // The value that was there before.
        0 => return saw("served before"),
        value => assert_eq!(value, 2),
    }
    // A `reset` forgets it.
    saw(if cell.stats().waits > 0 { "built after a wait" } else { "built at once" });
    assert!(lease.is_fenced() && !cell.is_refreshing());
    assert_eq!(*lease.publish(1), 2);
    assert_eq!(cell.get().as_deref(), Some(&2));
}

/// The same for a reader that needs a value whose build or `set` began after its call.
fn a_reader_does_not_wait_for_a_build_that_a_set_has_displaced() {
    let cell = cell();
    let lease = elect(&cell);
    let setter = fork(&cell, |cell| drop(cell.set(9)));
    let reader = fork(&cell, |cell| *cell.request().no_cache().get(|| 2));
    setter.join().unwrap();
    match reader.join().unwrap() {
        9 if cell.stats().waits > 0 => saw("handed over"),
        9 => saw("begun after the call"),
        value => {
            assert_eq!(value, 2);
            saw("built at once");
        }
    }
    assert!(lease.is_fenced() && !cell.is_refreshing());
    let current = cell.get().map(|value| *value);
    assert_eq!(Some(*lease.publish(1)), current);
    assert_eq!(cell.get().map(|value| *value), current);
}

fn a_displaced_build_is_not_published(displace: fn(&NoonCell<u32>)) {
    let cell = cell();
    let lease = elect(&cell);
    displace(&cell);
    let reader = fork(&cell, |cell| {
        assert_eq!(*cell.get_or_refresh(|| 2), 2, "the reader never waits for the build that was displaced");
        assert_eq!(cell.get().as_deref(), Some(&2));
    });
    match *lease.publish(1) {
        1 => saw("its own value"),
        value => {
            assert_eq!(value, 2);
            saw("the newer value");
        }
    }
    reader.join().unwrap();
    assert_eq!((cell.get().as_deref(), cell.generation()), (Some(&2), 1));
    assert!(!cell.is_refreshing());
}

fn a_build_that_a_set_has_displaced_is_not_published_over_a_newer_one() {
    let cell = cell();
    let lease = elect(&cell);
    cell.set(9);
    let reader = fork(&cell, |cell| {
        assert_eq!(*cell.request().no_cache().get(|| 2), 2);
        assert_eq!(cell.get().as_deref(), Some(&2));
    });
    match *lease.publish(1) {
        9 => saw("the value that was set"),
        value => {
            assert_eq!(value, 2);
            saw("the newer value");
        }
    }
    reader.join().unwrap();
    assert_eq!((cell.get().as_deref(), cell.generation()), (Some(&2), 2));
}

/// Its failure is neither shared with waiters nor recorded.
fn a_displaced_build_that_fails_leaves_no_trace() {
    let cell = cell();
    let lease = elect(&cell);
    let reader = fork(&cell, |cell| {
        let value = cell.try_get_or_refresh(|| Ok::<u32, String>(2)).map(|value| *value);
        (value.ok(), cell.stats().waits)
    });
    assert!(cell.revoke(), "a build runs");
    lease.fail("too late");
    let (value, waits) = reader.join().unwrap();
    assert_eq!((value, cell.get().as_deref()), (Some(2), Some(&2)));
    assert!(cell.last_error().is_none() && !cell.is_refreshing());
    saw(if waits > 0 { "built after a wait" } else { "built at once" });
}
