//! Loads: elections, takings-over, failures, losses.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use dogpile_fleet::{
    Backoff, BuildContext, FleetKeys, FleetPolicy, Functions, Invalidation, MemoryStore, Plain, Publication,
    RefreshStore, Refreshed, Token,
};

use crate::support::*;

#[test]
fn each_key_is_built_once_in_the_fleet_and_fresh_reads_ask_nobody() {
    let fleet = Fleet::new();
    let (a, b) = (fleet.node(POLICY), fleet.node(POLICY));
    for id in 0..100 {
        a.read(id, &format!("user {id}"));
        assert_eq!(b.served(id), format!("user {id}"));
    }
    let operations = b.keys.stats().store_operations;
    for id in 0..100 {
        assert_eq!((a.served(id), b.served(id)), (format!("user {id}"), format!("user {id}")));
    }
    assert_eq!(b.keys.stats().store_operations, operations);
    assert_eq!((a.keys.stats().fleet_builds, b.keys.stats().fleet_builds), (100, 0));
    let before = b.map.get(&7).unwrap().version();
    // Looked after, and found unchanged; then out of date, and built once.
    fleet.clock.advance(2 * SECOND);
    assert_eq!((a.served(7), b.served(7)), ("user 7".into(), "user 7".into()));
    assert_eq!(b.map.get(&7).unwrap().version(), before);
    fleet.clock.advance(9 * SECOND);
    assert_eq!(b.read(7, "newer"), "newer");
    assert_eq!(a.served(7), "newer");
    assert!(b.map.get(&7).unwrap().version().unwrap().number > before.unwrap().number);
}

#[test]
fn while_another_node_builds_the_old_value_is_served_and_without_one_callers_wait() {
    let fleet = Fleet::new();
    let (a, b) = (fleet.node(POLICY), fleet.node(POLICY));
    a.read(7, "old");
    b.served(7);
    fleet.clock.advance(11 * SECOND);
    let build = |_: &BuildContext<'_, String>| {
        assert_eq!(b.served(7), "old");
        fleet.clock.advance(SECOND);
        assert_eq!(b.served(7), "old");
        Ok::<_, io::Error>(Refreshed::from(String::from("new")))
    };
    assert_eq!(**a.try_read(7, build).unwrap().value(), "new");
    eventually("it is taken over after the pause", || {
        fleet.clock.advance(SECOND / 10);
        b.served(7) == "new"
    });

    let waits = Barrier::new(2);
    let (end, may_end) = channel();
    thread::scope(|scope| {
        let (a, waits) = (&a, &waits);
        scope.spawn(move || {
            let build = |_: &BuildContext<'_, String>| {
                waits.wait();
                may_end.recv().unwrap();
                Ok::<_, io::Error>(Refreshed::from(String::from("first")))
            };
            a.try_read(8, build).unwrap();
        });
        waits.wait();
        let waiter = scope.spawn(|| b.served(8));
        eventually("it waits, by the store's hints", || fleet.way.lists.load(Ordering::SeqCst) == 1);
        assert!(!waiter.is_finished());
        end.send(()).unwrap();
        assert_eq!(waiter.join().unwrap(), "first");
    });
}

#[test]
fn an_invalidation_is_noticed_at_the_next_look_and_fences_the_build_that_runs() {
    let fleet = Fleet::new();
    let (a, b) = (fleet.node(POLICY), fleet.node(POLICY));
    a.read(7, "old");
    b.served(7);
    a.keys.invalidate("7").unwrap();
    a.map.invalidate(&7);
    fleet.clock.advance(2 * SECOND);
    assert_eq!(b.read(7, "new"), "new");
    assert_eq!(a.served(7), "new");

    fleet.clock.advance(11 * SECOND);
    let build = |context: &BuildContext<'_, String>| {
        assert_eq!(*context.previous().unwrap(), "new");
        b.keys.invalidate("7").unwrap();
        Ok::<_, io::Error>(Refreshed::from(String::from("from before")))
    };
    a.try_read(7, build).unwrap();
    assert_eq!(a.keys.stats().invalidated, 1);
    fleet.clock.advance(SECOND / 100);
    assert_eq!(a.read(7, "from after"), "from after");
    assert_eq!(fleet.node(POLICY).served(7), "from after");

    b.keys.clear("7").unwrap();
    assert!(fleet.way.store.entry("users:7").cleared);
}

#[test]
fn a_failed_build_throttles_the_fleet_and_takes_no_value_away() {
    let fleet = Fleet::new();
    let policy = POLICY.retry_backoff(5 * SECOND, 5 * SECOND);
    let (a, b) = (fleet.node(policy), fleet.node(policy));
    a.read(7, "old");
    b.served(7);
    fleet.clock.advance(11 * SECOND);
    let fails = |_: &BuildContext<'_, String>| Err(io::Error::other("no"));
    assert_eq!(**a.try_read(7, fails).unwrap().value(), "old");
    assert_eq!(b.served(7), "old");
    assert_eq!(b.keys.stats().backoffs, 1);

    let error = a.try_read(8, fails).unwrap_err();
    assert_eq!((error.to_string().as_str(), error.is::<io::Error>()), ("no", true));
    let error = b.try_read(8, fails).unwrap_err();
    assert!(error.is::<Backoff>(), "{error}");
    fleet.clock.advance(11 * SECOND);
    assert_eq!(b.read(8, "value"), "value");
}

#[test]
fn a_build_that_panics_gives_the_right_to_build_back() {
    let fleet = Fleet::new();
    let (a, b) = (fleet.node(POLICY), fleet.node(POLICY));
    let panics = || a.try_read::<io::Error>(7, |_| panic!("as planned"));
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).unwrap_err();
    assert_eq!(b.read(7, "value"), "value");
    assert_eq!(a.keys.stats().panicked, 1);
}

#[test]
fn without_the_store_old_values_are_served_then_each_node_builds_and_then_they_share_again() {
    let fleet = Fleet::new();
    let (a, b) = (fleet.node(POLICY), fleet.node(POLICY));
    a.read(7, "old");
    b.served(7);
    fleet.way.down.store(true, Ordering::SeqCst);
    fleet.clock.advance(11 * SECOND);
    assert_eq!((a.served(7), b.served(7)), ("old".into(), "old".into()));
    assert_eq!(a.keys.stats().store_errors, 1);
    assert_eq!(a.read(8, "alone"), "alone");
    assert!(a.map.get(&8).unwrap().version().is_none());
    assert_eq!(a.keys.stats().store_errors, 1, "the breaker is open");
    fleet.clock.advance(110 * SECOND);
    assert_eq!((a.read(7, "a's"), b.read(7, "b's")), ("a's".into(), "b's".into()));

    // Owed until the store is back, and then delivered before anything else.
    let epoch = fleet.way.store.entry("users:7").epoch;
    a.keys.invalidate("7").unwrap_err();
    a.map.invalidate(&7);
    fleet.way.down.store(false, Ordering::SeqCst);
    fleet.clock.advance(11 * SECOND);
    assert_eq!(a.read(7, "shared"), "shared");
    assert_eq!(fleet.way.store.entry("users:7").epoch, epoch + 1);
    eventually("it is counted", || a.keys.stats().redelivered == 1);
    eventually("b takes it over, as it was built after its own", || {
        fleet.clock.advance(SECOND / 10);
        b.served(7) == "shared"
    });
}

#[test]
fn what_another_node_began_before_this_ones_own_build_is_not_taken_over() {
    let fleet = Fleet::new();
    let (a, b) = (fleet.node(POLICY), fleet.node(POLICY));
    let build = |_: &BuildContext<'_, String>| {
        fleet.way.down.store(true, Ordering::SeqCst);
        fleet.clock.advance(SECOND);
        assert_eq!(b.read(7, "read later"), "read later");
        fleet.way.down.store(false, Ordering::SeqCst);
        Ok::<_, io::Error>(Refreshed::from(String::from("read before")))
    };
    a.try_read(7, build).unwrap();
    b.map.invalidate(&7);
    fleet.clock.advance(2 * SECOND);
    assert_eq!(b.read(7, "newest"), "newest");
}

#[test]
fn a_value_found_unchanged_keeps_its_version_and_its_tag_comes_back() {
    let fleet = Fleet::new();
    let (a, b) = (fleet.node(POLICY), fleet.node(POLICY));
    let tagged = |context: &BuildContext<'_, String>| {
        context.set_tag("v1");
        Ok::<_, io::Error>(Refreshed::New(String::from("value")))
    };
    a.try_read(7, tagged).unwrap();
    let version = a.map.get(&7).unwrap().version();
    fleet.clock.advance(11 * SECOND);
    let unchanged = |context: &BuildContext<'_, String>| {
        assert_eq!((context.tag(), context.fence().is_some()), (Some("v1"), true));
        Ok::<_, io::Error>(Refreshed::NotModified)
    };
    b.try_read(7, unchanged).unwrap();
    assert_eq!(b.map.get(&7).unwrap().version(), version);
    assert_eq!((a.served(7), a.map.get(&7).unwrap().version()), (String::from("value"), version));
}

#[test]
fn payloads_that_are_damaged_or_of_another_schema_are_built() {
    let fleet = Fleet::new();
    let a = fleet.node(POLICY);
    a.read(7, "value");
    let entry = fleet.way.store.entry("users:7");
    let token = Token {
        fence: dogpile_fleet::Fence { incarnation: entry.incarnation, number: entry.fence },
        epoch: entry.epoch,
    };
    let publication = Publication { payload: b"rubbish", tag: None, soft: 10 * SECOND, hard: 10 * SECOND };
    fleet.way.store.publish("users:7", &token, &publication).unwrap();
    fleet.clock.advance(2 * SECOND);
    assert_eq!(a.read(7, "again"), "again");
    assert!(a.keys.stats().damaged > 0);

    let codec = Functions::new(|n: &u64| Ok(n.to_le_bytes().to_vec()), |_| Ok(7)).schema(9);
    let other = FleetKeys::with_clock("users", Arc::clone(&fleet.way), codec, POLICY, fleet.clock.clone());
    let loaded = other.load_with("7", None, |_| Ok::<_, io::Error>(Refreshed::from(7))).unwrap();
    assert!(matches!(loaded, Refreshed::NewFor(value, _) if *value == 7 && value.version().is_none()));
    assert_eq!(fleet.node(POLICY).served(7), "again");
}

#[test]
fn a_key_that_no_store_can_keep_is_built_here_and_reported() {
    let fleet = Fleet::new();
    let reported = Arc::new(AtomicU32::new(0));
    let report = Arc::clone(&reported);
    let keys = FleetKeys::with_clock("users", Arc::clone(&fleet.way), Plain, POLICY, fleet.clock.clone())
        .on_error(move |error| {
            assert!(error.to_string().contains("at most 64 bytes"), "{error}");
            report.fetch_add(1, Ordering::SeqCst);
        });
    let long = "x".repeat(60);
    let loaded =
        keys.load_with(&long, None, |_| Ok::<_, io::Error>(Refreshed::from(String::from("value")))).unwrap();
    assert!(matches!(loaded, Refreshed::NewFor(value, _) if *value == "value"));
    keys.invalidate(&long).unwrap_err();
    assert_eq!(reported.load(Ordering::SeqCst), 2);
}

#[test]
fn a_long_build_keeps_its_lease_and_learns_that_it_has_become_pointless() {
    let store = Arc::new(MemoryStore::new());
    let policy = FleetPolicy::ttl(3600 * SECOND).lease(Duration::from_millis(60));
    let keys = FleetKeys::<String>::new("users", Arc::clone(&store), Plain, policy);
    let build = |context: &BuildContext<'_, String>| {
        let until = || store.entry("users:7").lease_until;
        let first = until();
        eventually("it is prolonged", || until() > first);
        let second = until();
        eventually("it is prolonged again", || until() > second);
        assert!(!context.is_superseded());
        store.invalidate("users:7", Invalidation::Soft).unwrap();
        eventually("it is told", || context.is_superseded());
        Ok::<_, io::Error>(Refreshed::from(String::from("late")))
    };
    let loaded = keys.load_with("7", None, build).unwrap();
    assert!(matches!(loaded, Refreshed::NewFor(value, Duration::ZERO) if *value == "late"));
    assert_eq!(store.entry("users:7").value, None);
}

#[test]
fn the_check_reports_what_is_wrong() {
    let fleet = Fleet::new();
    let node = fleet.node(POLICY);
    node.keys.check().unwrap();
    fleet.way.down.store(true, Ordering::SeqCst);
    assert!(node.keys.check().unwrap_err().to_string().ends_with("down"));
    assert!(node.keys.last_store_error().is_some());
}

/// What the documentation of `load` says of its blocking.
#[test]
fn while_the_store_is_asked_only_the_caller_that_runs_the_load_waits() {
    let fleet = Fleet::new();
    let Node { keys, map } = fleet.node(POLICY);
    let keys = Arc::new(keys);
    let load = || {
        let keys = Arc::clone(&keys);
        move |id: &u64, previous| {
            keys.load_with(&id.to_string(), previous, |_| {
                Ok::<_, io::Error>(Refreshed::from(String::from("new")))
            })
        }
    };
    map.request(&7).try_get_with(load()).unwrap();
    for is_spawned in [false, true] {
        fleet.clock.advance(2 * SECOND);
        let held_up = fleet.way.hold_up_an_election();
        thread::scope(|scope| {
            let elected = scope.spawn(|| {
                let request = map.request(&7);
                if is_spawned {
                    request.spawn_with(thread::spawn).try_get_with(load())
                } else {
                    request.try_get_with(load())
                }
            });
            held_up.begun.recv().unwrap();
            assert_eq!(map.request(&7).try_get_with(load()).unwrap().as_str(), "new");
            if is_spawned {
                assert_eq!(elected.join().unwrap().unwrap().as_str(), "new");
                held_up.go_on();
            } else {
                assert!(!elected.is_finished());
                held_up.go_on();
                assert_eq!(elected.join().unwrap().unwrap().as_str(), "new");
            }
        });
        eventually("the load is over", || map.stats().in_flight == 0);
    }
}
