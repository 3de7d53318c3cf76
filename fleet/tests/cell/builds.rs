//! What builds may return, and note.

use std::sync::atomic::Ordering;
use std::time::Duration;

use dogpile::{BoxError, Freshness};
use dogpile_fleet::{BuildContext, RefreshError, Refreshed};

use crate::support::*;

fn builds_for(node: &Node, value: &str, ttl: Duration) {
    let build = |_: &BuildContext<'_, String>| Ok::<_, &str>(Refreshed::NewFor(text(value), ttl));
    assert_eq!(*node.try_get_with(build).unwrap(), value);
}

#[test]
fn the_age_that_a_build_returns_counts_on_all_nodes() {
    for (age, soft, hard) in [(4, 6, 106), (30, 0, 80)] {
        let fleet = Fleet::new();
        let (builder, other) = (fleet.quiet(POLICY), fleet.quiet(POLICY));
        let build = |_: &BuildContext<'_, String>| {
            Ok::<_, &str>(Refreshed::Aged { value: text("old"), age: age * SECOND, ttl: None })
        };
        assert_eq!(*builder.try_get_with(build).unwrap(), "old");
        let stored = fleet.store.entry(NAME).value.unwrap();
        assert_eq!(stored.hard_until - stored.soft_until, (hard - soft) * 1_000_000);
        if soft > 0 {
            assert_eq!(served(&other), "old");
            fleet.clock.advance(Duration::from_secs(soft));
            assert_eq!((builder.freshness(), other.freshness()), (Freshness::Fresh, Freshness::Fresh));
        }
        fleet.clock.advance(Duration::from_secs(hard - soft) - Duration::from_nanos(1));
        assert!(builder.get().is_some());
        fleet.clock.advance(Duration::from_nanos(2));
        eventually("it is not served any more", || builder.get().is_none() && other.get().is_none());
    }
}

#[test]
fn a_time_to_live_of_the_builds_own_counts_on_all_nodes() {
    let fleet = Fleet::new();
    let (builder, other) = (fleet.quiet(POLICY), fleet.quiet(POLICY));
    builds_for(&builder, "short", 3 * SECOND);
    let stored = fleet.store.entry(NAME).value.unwrap();
    assert_eq!(stored.hard_until - stored.soft_until, 100_000_000, "the policy's stale_while_refresh");
    assert_eq!(served(&other), "short");
    for (passed, freshness) in [(3, Freshness::Fresh), (1, Freshness::Stale), (100, Freshness::Expired)] {
        fleet.clock.advance(passed * SECOND);
        let found = (builder.freshness(), other.freshness());
        assert_eq!(found, (freshness, freshness), "after {passed} seconds more");
    }
    // Longer than the policy's as well.
    builds_for(&builder, "long", 30 * SECOND);
    assert_eq!(served(&other), "long");
    fleet.clock.advance(29 * SECOND);
    assert_eq!((builder.freshness(), other.freshness()), (Freshness::Fresh, Freshness::Fresh));
    assert_eq!(served(&fleet.quiet(POLICY)), "long");
    fleet.clock.advance(2 * SECOND);
    assert_eq!((builder.freshness(), other.freshness()), (Freshness::Stale, Freshness::Stale));
}

#[test]
fn a_time_to_live_of_the_builds_own_counts_without_the_store() {
    let fleet = Fleet::new();
    let (node, way) = fleet.disturbed(POLICY);
    way.down.store(true, Ordering::SeqCst);
    builds_for(&node, "alone", 2 * SECOND);
    assert_eq!(node.freshness(), Freshness::Fresh);
    fleet.clock.advance(2 * SECOND);
    assert_eq!(node.freshness(), Freshness::Stale);
}

#[test]
fn a_time_to_live_of_the_builds_own_counts_before_the_store_has_answered() {
    let fleet = Fleet::new();
    let (node, way) = fleet.disturbed(POLICY.patience(SECOND / 1000));
    let (begun, let_go) = way.hold_up_a_publication();
    builds_for(&node, "early", 2 * SECOND);
    begun.recv().unwrap();
    assert_eq!((node.stats().early, node.freshness()), (1, Freshness::Fresh));
    fleet.clock.advance(3 * SECOND);
    assert_eq!(node.freshness(), Freshness::Stale);
    let_go.send(()).unwrap();
}

#[test]
fn a_tag_stays_with_a_value_that_is_not_modified_unless_the_build_sets_another() {
    let fleet = Fleet::new();
    let (builder, other) = (fleet.quiet(POLICY), fleet.quiet(POLICY));
    let builds = |node: &Node, tag: Option<&str>, known: Option<&str>, build: fn() -> Refreshed<String>| {
        fleet.clock.advance(11 * SECOND);
        let built = node.try_get_with(|context| {
            assert_eq!(context.tag(), known);
            if let Some(tag) = tag {
                context.set_tag("overwritten");
                context.set_tag(tag);
                assert_eq!(context.tag(), known, "the previous value's");
            }
            Ok::<_, &str>(build())
        });
        assert_eq!(*built.unwrap(), "value");
        fleet.store.entry(NAME)
    };
    let new = || Refreshed::from(text("value"));
    let not_modified = || Refreshed::NotModified;
    let first = builds(&builder, Some("v1"), None, new);
    assert_eq!(first.value.unwrap().tag.as_deref(), Some("v1"));
    for tag in [None, Some("v1")] {
        let kept = builds(&other, tag, Some("v1"), not_modified);
        assert_eq!((kept.version, kept.value.unwrap().tag.as_deref()), (first.version, Some("v1")));
    }
    let retagged = builds(&builder, Some("v2"), Some("v1"), not_modified);
    assert_eq!(retagged.version, first.version + 1);
    assert_eq!(retagged.value.unwrap().tag.as_deref(), Some("v2"));
    // A new value has the tag of its own build only.
    assert_eq!(builds(&other, None, Some("v2"), new).value.unwrap().tag, None);
    builds(&builder, None, None, not_modified);
}

/// An error whose conversion reads the cell: it waited for itself.
#[test]
fn the_conversion_of_an_error_is_inside_the_build() {
    struct Reads(std::sync::Arc<Node>);
    impl From<Reads> for BoxError {
        fn from(Reads(node): Reads) -> Self {
            let read = node.try_get_with::<&str, _>(|_| panic!("inside of a build"));
            read.unwrap_err().into()
        }
    }
    let fleet = Fleet::new();
    let node = std::sync::Arc::new(fleet.quiet(POLICY));
    let error = at_once("the error", move || {
        let inner = std::sync::Arc::clone(&node);
        node.try_get_with(move |_| Err(Reads(inner))).unwrap_err()
    });
    assert!(matches!(error.downcast_ref(), Some(RefreshError::Reentrant)), "{error:?}");
}

/// As with the core's cells: what is named after nothing but the read takes a build of a plain value.
#[test]
fn a_build_of_a_plain_value_needs_no_context() {
    let fleet = Fleet::new();
    let node = fleet.node(POLICY);
    let build = |value: &'static str| move || Ok::<_, std::io::Error>(text(value));
    assert_eq!(*node.try_get_or_refresh(build("first")).unwrap(), "first");
    fleet.clock.advance(11 * SECOND);
    assert_eq!(*node.spawn_with(|job: dogpile::Job| job()).try_get(build("second")).unwrap(), "second");
    node.clear().unwrap();
    let error = node.try_get_or_refresh(|| Err("no")).unwrap_err();
    assert_eq!(error.to_string(), "no");
}
