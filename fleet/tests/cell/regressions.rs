//! Faults that were found by looking for them, each under the name of its symptom.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dogpile::{Freshness, ManualClock};
use dogpile_fleet::{
    Acquire, Backoff, BuildContext, FleetCell, FleetPolicy, FleetRefresher, Functions, RefreshError,
    RefreshStore, Refreshed, Request,
};

use crate::support::*;

/// Fresh for a thousand seconds; looks every second.
const LONG: FleetPolicy = FleetPolicy::ttl(Duration::from_secs(1000))
    .stale_while_refresh(Duration::from_secs(100))
    .patience(Duration::from_secs(3600))
    .breaker(Duration::from_secs(1), Duration::from_secs(4))
    .poll(SECOND);

/// Lets time pass until the node has looked into the store so many times; but not much faster than the node's thread gets a
/// turn, or values would expire by it.
fn looks(fleet: &Fleet, node: &Node, times: u64) {
    let before = node.stats().polls;
    passes(fleet, "it looks", || node.stats().polls >= before + times);
}

fn get(node: &Node) -> Option<String> {
    node.get().map(|value| value.to_string())
}

#[test]
fn what_a_node_built_for_itself_stayed_fresh_through_an_invalidation() {
    let fleet = Fleet::new();
    let writer = fleet.quiet(LONG);
    let (node, way) = fleet.disturbed(LONG);
    way.hints.store(false, Ordering::SeqCst);
    writer.get_or_refresh(|| text("shared"));
    assert_eq!(served(&node), "shared");
    looks(&fleet, &node, 2);
    way.down.store(true, Ordering::SeqCst);
    node.clear().unwrap_err();
    assert_eq!(*node.get_or_refresh(|| text("local")), "local");
    way.down.store(false, Ordering::SeqCst);
    looks(&fleet, &node, 3);
    assert_eq!(node.freshness(), Freshness::Fresh, "nothing has been invalidated since it was built");
    writer.invalidate().unwrap();
    passes(&fleet, "it finds out", || node.freshness() != Freshness::Fresh);
    assert!(!node.is_store_down());
    assert_eq!(*node.get_or_refresh(|| text("new")), "new");
    assert_eq!(node.stats().fleet_builds, 1);
}

#[test]
fn a_node_that_came_to_a_store_that_was_down_missed_what_was_invalidated_meanwhile() {
    let fleet = Fleet::new();
    let writer = fleet.quiet(LONG);
    let (node, way) = fleet.disturbed(LONG);
    way.down.store(true, Ordering::SeqCst);
    writer.get_or_refresh(|| text("shared"));
    fleet.clock.advance(SECOND);
    assert_eq!(*node.get_or_refresh(|| text("local")), "local");
    writer.invalidate().unwrap();
    way.down.store(false, Ordering::SeqCst);
    passes(&fleet, "it finds out", || node.freshness() == Freshness::Stale);
}

/// A build that was elected first may have read the source first, though it publishes last.
#[test]
fn a_node_went_back_to_a_build_that_had_begun_before_its_own() {
    let fleet = Fleet::new();
    let builder = fleet.quiet(LONG);
    let (node, way) = fleet.disturbed(LONG);
    way.hints.store(false, Ordering::SeqCst);
    builder.get_or_refresh(|| {
        let read = text("early");
        fleet.clock.advance(SECOND);
        way.down.store(true, Ordering::SeqCst);
        assert_eq!(*node.get_or_refresh(|| text("late")), "late");
        way.down.store(false, Ordering::SeqCst);
        fleet.clock.advance(SECOND);
        read
    });
    assert_eq!(get(&builder).as_deref(), Some("early"));
    looks(&fleet, &node, 5);
    assert_eq!(get(&node).as_deref(), Some("late"));
    // Nor does it when its own has become too old to be served: it has a new one built.
    let fast =
        FleetPolicy::ttl(10 * SECOND).stale_while_refresh(Duration::ZERO).patience(100 * SECOND).no_poll();
    let (node, way) = fleet.disturbed(fast);
    way.down.store(true, Ordering::SeqCst);
    assert_eq!(*node.get_or_refresh(|| text("late")), "late");
    way.down.store(false, Ordering::SeqCst);
    fleet.clock.advance(20 * SECOND);
    assert!(node.get().is_none());
    assert_eq!(*node.get_or_refresh(|| text("newest")), "newest");
    passes(&fleet, "the new value arrives", || get(&builder).as_deref() == Some("newest"));
}

/// The store says at each look that the value was cleared, until there is a new one.
#[test]
fn what_a_node_built_for_itself_after_a_clear_was_thrown_away_at_each_look() {
    let fleet = Fleet::new();
    let policy = LONG.retry_backoff(500 * SECOND, 500 * SECOND);
    let (other, node) = (fleet.quiet(policy), fleet.quiet(policy));
    other.get_or_refresh(|| text("old"));
    other.clear().unwrap();
    other.try_get_with(|_| Err("no")).unwrap_err();
    assert_eq!(*node.get_or_refresh(|| text("local")), "local");
    looks(&fleet, &node, 10);
    assert_eq!(get(&node).as_deref(), Some("local"));
    assert_eq!(node.stats().local_builds, 1);
    // The next one it obeys.
    other.clear().unwrap();
    passes(&fleet, "it looks", || get(&node).is_none());
}

#[test]
fn a_value_found_unchanged_was_fresh_here_for_longer_than_the_store_said() {
    let fleet = Fleet::new();
    let (node, way) = fleet.disturbed(POLICY);
    way.hints.store(false, Ordering::SeqCst);
    node.get_or_refresh(|| text("value"));
    fleet.clock.advance(11 * SECOND);
    way.delay.store(4, Ordering::SeqCst);
    node.try_get_with::<&str, _>(|_| Ok(Refreshed::NotModified)).unwrap();
    assert_eq!(node.freshness(), Freshness::Fresh);
    fleet.clock.advance(6 * SECOND + Duration::from_micros(1));
    assert_eq!(node.freshness(), Freshness::Stale);
}

#[test]
fn a_value_found_unchanged_elsewhere_was_fetched_once_more() {
    let fleet = Fleet::new();
    let (builder, other) = (fleet.quiet(POLICY), fleet.quiet(POLICY));
    builder.get_or_refresh(|| text("value"));
    assert_eq!(served(&other), "value");
    let before = other.get().unwrap();
    fleet.clock.advance(11 * SECOND);
    builder.try_get_with::<&str, _>(|_| Ok(Refreshed::NotModified)).unwrap();
    let operations = other.stats().store_operations;
    assert_eq!(served(&other), "value");
    assert!(Arc::ptr_eq(&other.get().unwrap(), &before), "the same value, and not another one like it");
    assert_eq!(other.stats().store_operations, operations + 1);
    assert_eq!(other.snapshot().unwrap().version, builder.snapshot().unwrap().version);
}

#[test]
fn a_node_that_does_not_poll_was_given_no_hints_until_it_built() {
    let fleet = Fleet::new();
    let (writer, other) = (fleet.node(POLICY), fleet.node(POLICY));
    writer.get_or_refresh(|| text("old"));
    assert_eq!(served(&other), "old");
    writer.invalidate().unwrap();
    eventually("a hint", || other.freshness() == Freshness::Stale);
}

#[test]
fn the_longest_durations_overflowed() {
    // Draws decide whether they do.
    for _ in 0..20 {
        use_the_longest_durations(&Fleet::new());
    }
}

fn use_the_longest_durations(fleet: &Fleet) {
    let max = Duration::MAX;
    let policy = FleetPolicy::ttl(max)
        .stale_while_refresh(max)
        .stale_if_error(max)
        .retry_backoff(max, max)
        .lease(max)
        .build_limit(max)
        .poll(max)
        .patience(max)
        .breaker(max, max);
    let (node, way) = fleet.disturbed(policy);
    way.hints.store(false, Ordering::SeqCst);
    node.get_or_refresh(|| text("value"));
    node.invalidate().unwrap();
    assert_eq!(*node.try_get_with(|_| Err("no")).unwrap(), "value");
    fleet.clock.advance(100 * SECOND);
    assert_eq!(*node.try_get_with::<&str, _>(|_| panic!("a pause runs")).unwrap(), "value");
    way.down.store(true, Ordering::SeqCst);
    node.clear().unwrap_err();
    assert_eq!(*at_once("a build", move || node.get_or_refresh(|| text("local"))), "local");
}

/// The worker looks seldom by the time that the value becomes too old to be served.
#[test]
fn those_who_found_nothing_to_serve_in_a_pause_waited_for_the_next_look() {
    let fleet = Fleet::new();
    let policy = POLICY
        .stale_while_refresh(Duration::from_secs(200))
        .poll(3600 * SECOND)
        .retry_backoff(5000 * SECOND, 5000 * SECOND);
    let (one, node) = (fleet.quiet(policy), Arc::new(fleet.quiet(policy)));
    one.get_or_refresh(|| text("old"));
    assert_eq!(served(&node), "old");
    fleet.clock.advance(11 * SECOND);
    one.try_get_with(|_| Err("no")).unwrap_err();
    assert_eq!(served(&node), "old");
    // Its pauses grow to five seconds, a fifth more or less.
    let step = 6 * SECOND + Duration::from_millis(2);
    for _ in 0..31 {
        let before = node.stats().polls;
        fleet.clock.advance(step);
        eventually("it looks", || node.stats().polls > before);
    }
    assert_eq!(get(&node).as_deref(), Some("old"));
    // Once more, two seconds before the value's end; the next time is four seconds away at least.
    let left = 210 * SECOND - (11 * SECOND + 31 * step);
    assert!(left - 2 * SECOND > step, "{left:?}");
    let before = node.stats().polls;
    fleet.clock.advance(left - 2 * SECOND);
    eventually("it looks", || node.stats().polls > before);
    fleet.clock.advance(2 * SECOND + Duration::from_millis(1));
    let refused = at_once("an answer", move || node.try_get_with(|_| Err("built in a pause")));
    assert!(refused.as_ref().is_err_and(RefreshError::is::<Backoff>), "{refused:?}");
}

#[test]
fn after_a_clear_of_their_own_node_callers_waited_for_a_build_in_vain() {
    let fleet = Fleet::new();
    let (builder, node) = (fleet.quiet(POLICY), Arc::new(fleet.quiet(POLICY)));
    builder.get_or_refresh(|| text("old"));
    assert_eq!(served(&node), "old");
    fleet.clock.advance(11 * SECOND);
    builder.get_or_refresh(|| {
        assert_eq!(served(&node), "old");
        node.clear().unwrap();
        let node = Arc::clone(&node);
        let value = at_once("a value", move || node.get_or_refresh(|| text("new")));
        assert_eq!(*value, "new");
        text("refused")
    });
    assert_eq!(builder.stats().invalidated, 1);
}

#[test]
fn a_node_that_built_went_on_serving_what_was_cleared_elsewhere() {
    let fleet = Fleet::new();
    let policy = LONG.stale_while_refresh(Duration::MAX);
    let (other, node) = (fleet.quiet(policy), fleet.quiet(policy));
    other.get_or_refresh(|| text("old"));
    assert_eq!(served(&node), "old");
    fleet.clock.advance(1001 * SECOND);
    let own = node.get_or_refresh(|| {
        assert_eq!(get(&node).as_deref(), Some("old"));
        other.clear().unwrap();
        passes(&fleet, "it looks", || get(&node).is_none());
        text("refused")
    });
    assert_eq!(*own, "refused", "its own caller gets it");
    assert_eq!(get(&node), None);
}

#[test]
fn a_codec_that_panicked_kept_the_fleet_waiting() {
    let fleet = Fleet::new();
    let codec = Functions::new(|_: &String| panic!("as intended"), |_: &[u8]| Ok(String::new()));
    let policy = POLICY.lease(3600 * SECOND);
    let node: FleetCell<String, ManualClock> =
        FleetCell::with_clock(NAME, Arc::clone(&fleet.store), codec, policy, fleet.clock.clone());
    assert_eq!(*node.get_or_refresh(|| text("value")), "value");
    assert_eq!((node.stats().not_encoded, node.freshness()), (1, Freshness::Fresh));
    assert_eq!(fleet.store.entry(NAME).lease_until, 0, "others may build");
}

#[test]
fn a_value_was_taken_over_though_it_was_too_old_to_be_served() {
    let fleet = Fleet::new();
    let short = FleetPolicy::ttl(SECOND).stale_while_refresh(SECOND).patience(3600 * SECOND).no_poll();
    let (writer, node) = (fleet.quiet(short), fleet.quiet(LONG.poll(5 * SECOND)));
    node.get_or_refresh(|| text("long"));
    writer.invalidate().unwrap();
    writer.get_or_refresh(|| text("short"));
    fleet.clock.advance(100 * SECOND);
    looks(&fleet, &node, 2);
    assert_eq!((get(&node).as_deref(), node.freshness()), (Some("long"), Freshness::Stale));
}

#[cfg(feature = "async")]
#[test]
fn a_task_that_ended_with_its_cell_kept_the_fleet_waiting() {
    use std::future::Future;
    use std::task::{Context, Waker};

    for _ in 0..20 {
        let fleet = Fleet::new();
        let node = fleet.quiet(POLICY.lease(3600 * SECOND));
        {
            let begun = AtomicBool::new(false);
            let mut read = Box::pin(node.get_or_refresh_async(|| async {
                begun.store(true, Ordering::SeqCst);
                std::future::pending().await
            }));
            while !begun.load(Ordering::SeqCst) {
                assert!(read.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            }
        }
        drop(node);
        eventually("the lease is given back", || fleet.store.entry(NAME).lease_until == 0);
    }
}

/// The thread that would have taken it away was in an operation that did not come back.
#[test]
fn a_value_was_served_past_its_bound_while_an_operation_hung() {
    let fleet = Fleet::new();
    let builder = fleet.quiet(POLICY);
    builder.get_or_refresh(|| text("old"));
    fleet.clock.advance(60 * SECOND);
    // Another one builds for a long time.
    let request = Request::new(Duration::from_secs(3600));
    let won = fleet.store.acquire(NAME, &request).unwrap();
    assert!(matches!(won, Acquire::Won { .. }), "{won:?}");
    let (node, way) = fleet.disturbed(POLICY.poll(SECOND));
    way.hints.store(false, Ordering::SeqCst);
    // Fifty seconds before its end.
    assert_eq!(served(&node), "old");
    let (begun, let_go) = way.hold_up_a_poll();
    passes(&fleet, "its thread looks", || begun.try_recv().is_ok());
    fleet.clock.advance(40 * SECOND);
    assert_eq!(get(&node).as_deref(), Some("old"));
    fleet.clock.advance(20 * SECOND);
    assert_eq!((get(&node), node.freshness()), (None, Freshness::Expired));
    let_go.send(()).unwrap();
}

/// Taken over as fresh from a store that had not heard of it, or forgotten when the store was back.
#[test]
fn a_failed_invalidation_was_forgotten() {
    for hard in [false, true] {
        let fleet = Fleet::new();
        let other = fleet.quiet(LONG);
        let (node, way) = fleet.disturbed(LONG.no_poll());
        way.hints.store(false, Ordering::SeqCst);
        other.get_or_refresh(|| text("old"));
        assert_eq!(served(&node), "old");
        way.down.store(true, Ordering::SeqCst);
        if hard { node.clear() } else { node.invalidate() }.unwrap_err();
        node.invalidate().unwrap_err();
        way.down.store(false, Ordering::SeqCst);
        if hard {
            // Whoever asks the store delivers it first, unless the cell's own thread has done so.
            fleet.clock.advance(15 * SECOND);
            assert_eq!(*node.get_or_refresh(|| text("new")), "new");
        } else {
            passes(&fleet, "it is delivered", || node.stats().redelivered == 1);
            assert_eq!(fleet.store.entry(NAME).epoch, 1);
            assert_eq!(*node.get_or_refresh(|| text("new")), "new");
        }
        assert_eq!(fleet.store.entry(NAME).epoch, 1, "one for all of them");
        assert_eq!(node.stats().redelivered, 1);
        // It may have nothing by now, and then it takes a caller for it to ask.
        passes(&fleet, "it arrives", || *other.get_or_refresh(|| panic!("it is in the store")) == "new");
    }
}

#[test]
fn an_invalidation_that_was_owed_ended_with_the_cell() {
    let fleet = Fleet::new();
    let (node, way) = fleet.disturbed(LONG);
    node.get_or_refresh(|| text("old"));
    way.down.store(true, Ordering::SeqCst);
    node.invalidate().unwrap_err();
    way.down.store(false, Ordering::SeqCst);
    drop(node);
    eventually("it is delivered", || fleet.store.entry(NAME).epoch == 1);
}

/// Refreshed, invalidated meanwhile, published when nobody waited any more: what was served is stale.
#[test]
fn a_publication_that_is_refused_late_leaves_the_value_stale() {
    let fleet = Fleet::new();
    let (node, way) = fleet.disturbed(POLICY.patience(Duration::ZERO));
    way.hints.store(false, Ordering::SeqCst);
    let other = fleet.quiet(POLICY);
    let (begun, let_go) = way.hold_up_a_publication();
    assert_eq!(*node.get_or_refresh(|| text("early")), "early");
    begun.recv().unwrap();
    assert_eq!((node.freshness(), node.stats().early), (Freshness::Fresh, 1));
    other.invalidate().unwrap();
    let_go.send(()).unwrap();
    eventually("it is refused", || node.freshness() == Freshness::Stale);
    assert_eq!((node.stats().invalidated, node.stats().published), (1, 0));
    assert_eq!(get(&node).as_deref(), Some("early"));
}

/// An invalidation was counted twice if a look came before its acknowledgement, and then the store seemed to have gone back.
#[test]
fn a_look_during_an_invalidation_made_the_store_seem_to_have_gone_back() {
    let fleet = Fleet::new();
    let (node, way) = fleet.disturbed(POLICY);
    let tagged = |value: &'static str| {
        move |context: &BuildContext<'_, String>| {
            let tag = context.tag().map(str::to_owned);
            context.set_tag(value);
            Ok::<_, std::io::Error>(Refreshed::New(format!("{value} after {tag:?}")))
        }
    };
    assert_eq!(*node.try_get_with(tagged("v1")).unwrap(), "v1 after None");
    let (begun, let_go) = way.hold_up_an_invalidation();
    std::thread::scope(|scope| {
        let invalidation = scope.spawn(|| node.invalidate());
        begun.recv().unwrap();
        eventually("a hint makes it look", || node.freshness() == Freshness::Stale);
        let_go.send(()).unwrap();
        invalidation.join().unwrap().unwrap();
    });
    // A read that finds the cell's lock taken is served the old value.
    eventually("it is built", || *node.try_get_with(tagged("v2")).unwrap() == "v2 after Some(\"v1\")");
    assert_eq!(node.stats().gone_back, 0);
}

/// What a node has taken over while it watches another one's build is what that build confirms: not what the node had before, and not
/// nothing.
#[test]
fn a_value_that_was_taken_over_stale_and_then_confirmed_was_lost() {
    // Whether the node had an older value.
    for had_one in [true, false] {
        let fleet = Fleet::new();
        let [node, second, third] = [0; 3].map(|_| fleet.quiet(POLICY));
        if had_one {
            node.get_or_refresh(|| text("v1"));
        }
        fleet.clock.advance(11 * SECOND);
        assert_eq!(*second.get_or_refresh(|| text("v2")), "v2");
        fleet.clock.advance(11 * SECOND);
        let confirmed = third.try_get_with(|_| {
            assert_eq!(served(&node), "v2");
            assert_eq!(node.freshness(), Freshness::Stale);
            Ok::<_, std::io::Error>(Refreshed::NotModified)
        });
        assert_eq!(*confirmed.unwrap(), "v2");
        passes(&fleet, "it is fresh", || node.freshness() == Freshness::Fresh);
        assert_eq!(get(&node).as_deref(), Some("v2"));
    }
}

#[test]
fn an_invalidation_whose_store_panicked_was_forgotten_and_so_was_each_that_failed_later() {
    let fleet = Fleet::new();
    let (node, way) = fleet.disturbed(POLICY);
    assert_eq!(*node.get_or_refresh(|| text("old")), "old");
    way.panics.store(true, Ordering::SeqCst);
    catch_unwind(AssertUnwindSafe(|| node.invalidate())).expect_err("as planned");
    assert_ne!(node.freshness(), Freshness::Fresh);
    eventually("it is delivered once more", || node.stats().redelivered == 1);

    way.down.store(true, Ordering::SeqCst);
    node.invalidate().unwrap_err();
    way.down.store(false, Ordering::SeqCst);
    passes(&fleet, "the later one is delivered", || node.stats().redelivered == 2);
}

/// The answer to a look was judged by what this node had done since.
#[test]
fn an_invalidation_during_a_look_made_the_store_seem_to_have_gone_back() {
    let fleet = Fleet::new();
    let (node, way) = fleet.disturbed(POLICY);
    let other = fleet.quiet(POLICY);
    assert_eq!(*node.get_or_refresh(|| text("old")), "old");
    eventually("it listens", || {
        other.invalidate().unwrap();
        node.freshness() == Freshness::Stale
    });
    let (begun, let_go) = way.hold_up_the_answer_of_a_poll();
    assert_eq!(*other.get_or_refresh(|| text("new")), "new");
    begun.recv().unwrap();
    node.invalidate().unwrap();
    let_go.send(()).unwrap();
    let polls = node.stats().polls;
    eventually("it looks again", || {
        other.invalidate().unwrap();
        node.stats().polls > polls + 1
    });
    assert_eq!(node.stats().gone_back, 0);
}

/// While the answer to a look was on its way a refresher took something newer over, and the node went back to what the answer had.
#[test]
fn the_answer_to_a_look_replaced_what_was_taken_over_since() {
    let fleet = Fleet::new();
    let (node, way) = fleet.disturbed(POLICY);
    let other = fleet.quiet(POLICY);
    let build = |context: &BuildContext<'_, String>| {
        assert!(context.previous().is_none(), "what is newer is in the store");
        Ok::<_, &str>(Refreshed::New(text("v1")))
    };
    let refresher = FleetRefresher::spawn(&node, 3 * SECOND, build).unwrap();
    assert!(refresher.wait_ready(60 * SECOND));
    // A look whose answer is v2.
    let (begun, let_look) = way.hold_up_a_poll();
    other.invalidate().unwrap();
    begun.recv().unwrap();
    assert_eq!(*other.get_or_refresh(|| text("v2")), "v2");
    let (answered, let_answer) = way.hold_up_the_answer_of_a_poll();
    let_look.send(()).unwrap();
    answered.recv().unwrap();
    // The refresher is given v3.
    let (asked, let_acquire) = way.hold_up();
    fleet.clock.advance(8 * SECOND);
    asked.recv().unwrap();
    other.invalidate().unwrap();
    assert_eq!(*other.get_or_refresh(|| text("v3")), "v3");
    let_acquire.send(()).unwrap();
    eventually("it is taken over", || get(&node).as_deref() == Some("v3"));
    // The next look begins when that one has ended.
    let (begun, next) = way.hold_up_a_poll();
    let_answer.send(()).unwrap();
    begun.recv().unwrap();
    assert_eq!((get(&node).as_deref(), node.freshness()), (Some("v3"), Freshness::Fresh));
    drop(next);
}

/// A hint that came while a refresher was being told that another node builds was not followed: the value was there when that node's
/// lease would have ended.
#[test]
fn a_value_that_came_while_a_refresher_was_told_to_wait_was_not_looked_for() {
    let fleet = Fleet::new();
    let (node, way) = fleet.disturbed(POLICY);
    let other = fleet.quiet(POLICY);
    let refresher =
        FleetRefresher::spawn(&node, 3 * SECOND, |_| Ok::<_, &str>(Refreshed::New(text("v1")))).unwrap();
    assert!(refresher.wait_ready(60 * SECOND));
    let (asked, let_acquire) = way.hold_up();
    fleet.clock.advance(8 * SECOND);
    asked.recv().unwrap();
    other.invalidate().unwrap();
    let (is_told, let_refresher) = way.hold_up_the_answer_of_an_election();
    let mut look = None;
    other.get_or_refresh(|| {
        let_acquire.send(()).unwrap();
        is_told.recv().unwrap();
        look = Some(way.hold_up_the_answer_of_a_poll());
        text("v2")
    });
    let (answered, let_answer) = look.unwrap();
    answered.recv().unwrap();
    let_answer.send(()).unwrap();
    // Time for the look to end, most often. Whichever is first, the value comes, and the clock stands still.
    for _ in 0..1000 {
        std::thread::yield_now();
    }
    let_refresher.send(()).unwrap();
    eventually("it is taken over", || get(&node).as_deref() == Some("v2"));
}

/// While a refresher has the lease, or if something has come since, the answer to a look is left alone; but it may be the newer one, and
/// its hint is used up.
#[test]
fn a_look_that_came_too_early_or_too_late_is_made_again() {
    for is_early in [false, true] {
        a_look_is_made_again(is_early);
    }
}

fn a_look_is_made_again(is_early: bool) {
    let fleet = Fleet::new();
    let (node, way) = fleet.disturbed(POLICY);
    let other = fleet.quiet(POLICY);
    let mut number = 0;
    let numbered = move |_: &BuildContext<'_, String>| {
        number += 1;
        format!("v{number}")
    };
    let others = FleetRefresher::spawn(&other, SECOND, numbered).unwrap();
    assert!(others.wait_ready(60 * SECOND));
    let own =
        FleetRefresher::spawn(&node, 3 * SECOND, |_| -> String { panic!("it is in the store") }).unwrap();
    assert!(own.wait_ready(60 * SECOND));
    // Due here, and not there: the refresher of this node has the lease, and is given v2.
    let (asked, let_acquire) = way.hold_up();
    fleet.clock.advance(8 * SECOND);
    asked.recv().unwrap();
    let (answered, let_look) = way.hold_up_the_answer_of_a_poll();
    others.refresh_now();
    answered.recv().unwrap();
    // The look may be the first of all, from before that.
    eventually("v2 is in the store", || get(&other).as_deref() == Some("v2"));
    let (is_told, let_refresher) = way.hold_up_the_answer_of_an_election();
    let_acquire.send(()).unwrap();
    is_told.recv().unwrap();
    // The next look is given v3, by its only hint.
    let_look.send(()).unwrap();
    let (answered, let_look) = way.hold_up_the_answer_of_a_poll();
    others.refresh_now();
    answered.recv().unwrap();
    if is_early {
        let_look.send(()).unwrap();
        // Time for the look to end, most often.
        for _ in 0..1000 {
            std::thread::yield_now();
        }
        let_refresher.send(()).unwrap();
    } else {
        let_refresher.send(()).unwrap();
        eventually("the refresher takes over what it was given", || get(&node).as_deref() == Some("v2"));
        let_look.send(()).unwrap();
    }
    eventually("it looks once more", || get(&node).as_deref() == Some("v3"));
}

/// A value that is older than its ttl was served for the whole window from its publication on, unless the worker ended that.
#[test]
fn a_value_that_arrived_stale_was_served_for_too_long_while_the_store_hung() {
    let aged = |value: &str| Refreshed::Aged { value: text(value), age: 50 * SECOND, ttl: None };
    for is_down in [false, true] {
        let fleet = Fleet::new();
        let (node, way) = fleet.disturbed(POLICY.poll(SECOND));
        way.hints.store(false, Ordering::SeqCst);
        way.down.store(is_down, Ordering::SeqCst);
        let built = node.try_get_with(|_| Ok::<_, &str>(aged("value"))).unwrap();
        assert_eq!((built.as_str(), node.freshness()), ("value", Freshness::Stale));
        assert_eq!(get(&node), Some(text("value")));
        way.down.store(false, Ordering::SeqCst);
        let (begun, let_go) = way.hold_up_a_poll();
        passes(&fleet, "it looks", || begun.try_recv().is_ok());
        fleet.clock.advance(55 * SECOND);
        assert_eq!(get(&node), Some(text("value")), "it is not older than 110 s");
        fleet.clock.advance(5 * SECOND);
        assert_eq!(get(&node), None);
        drop(let_go);
    }
}

/// The store was asked before the bound was looked at.
#[test]
fn a_value_whose_time_was_over_was_served_while_the_store_hung() {
    let fleet = Fleet::new();
    let builder = fleet.quiet(POLICY);
    // It serves what is stale without limit, and the value may be served for 110 s.
    let (node, way) = fleet.disturbed(POLICY.stale_while_refresh(Duration::MAX).poll(SECOND));
    way.hints.store(false, Ordering::SeqCst);
    builder.get_or_refresh(|| text("value"));
    assert_eq!(served(&node), "value");
    // The look that is held up is the one after that: `polls` counts those that have begun.
    let (begun, let_go) = way.hold_up_a_poll();
    passes(&fleet, "it looks", || begun.try_recv().is_ok());
    let (_begun, the_next) = way.hold_up_a_poll();
    drop(let_go);
    fleet.clock.advance(110 * SECOND);
    eventually("it is gone", || get(&node).is_none());
    drop(the_next);
}
