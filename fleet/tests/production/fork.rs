//! Processes that fork.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use dogpile::Freshness;
use dogpile_fleet::{
    FileStore, FleetCell, FleetPolicy, Plain, PostgresStore, RedisStore, RefreshStore, Refreshed,
};

use crate::servers::{Kind, server_or_skip};
use crate::{HANG, HOUR, another_process, cell, eventually, library, text};

pub(crate) const FORKS: &str = "DOGPILE_FLEET_FORKS";
pub(crate) const FORKS_AND_BUILDS: &str = "DOGPILE_FLEET_FORKS_AND_BUILDS";

/// Asking for the parent's id forks: 0 in the child, and in the parent the status with which the child has ended, plus 1.
const FORK: &str = "
#include <unistd.h>
#include <sys/wait.h>
pid_t getppid(void) {
    int status = -1;
    pid_t child = fork();
    if (child == 0) return 0;
    waitpid(child, &status, 0);
    return status + 1;
}
";

/// In a process of its own: see `a_fork_left_a_dead_cell`.
pub(crate) fn fork(address: &str) {
    let store: Arc<dyn RefreshStore> = if address.starts_with("redis:") {
        Arc::new(RedisStore::new(address).unwrap().timeout(HANG))
    } else {
        Arc::new(PostgresStore::new(address).unwrap().timeout(HANG))
    };
    let policy = FleetPolicy::ttl(HOUR).poll(Duration::from_millis(20)).patience(HOUR);
    let (node, builder) = (cell(Arc::clone(&store), policy), cell(Arc::clone(&store), policy));
    node.get_or_refresh(|| text("parent"));
    // The cell's thread holds the local lease, because another one builds.
    node.invalidate().unwrap();
    let mut ended = 0;
    builder.get_or_refresh(|| {
        assert_eq!(*node.get_or_refresh(|| panic!("another one builds")), "parent");
        let status = std::os::unix::process::parent_id();
        if status == 0 {
            let hints = node.stats().hints;
            node.after_fork();
            // What is built in the parent has nothing to do with this process any more.
            node.invalidate().unwrap();
            eventually("a value of its own", || *node.get_or_refresh(|| text("child")) == "child");
            assert_eq!(node.freshness(), Freshness::Fresh);
            assert!(node.snapshot().unwrap().version.is_some(), "it is in the store");
            // One comes without a change, when the child has begun to listen; another may have been on its way in the parent.
            eventually("hints in the child", || {
                store.invalidate("name", dogpile_fleet::Invalidation::Soft).unwrap();
                node.stats().hints > hints + 2
            });
            std::process::exit(0);
        }
        ended = status - 1;
        text("refused: the child has invalidated it")
    });
    println!("the child ended with {ended}");
    eventually("the child's invalidation", || node.freshness() == Freshness::Stale);
    eventually("a value", || *node.get_or_refresh(|| text("parent again")) == "parent again");
    println!("the parent goes on");
}

/// In a process of its own: see `what_a_child_built_first_was_not_published`.
pub(crate) fn fork_and_build(directory: &str) {
    let policy = FleetPolicy::ttl(HOUR).poll(HOUR).patience(HOUR);
    // With a stale value, and with nothing to serve.
    for (name, policy) in [("stale", policy), ("expired", policy.stale_while_refresh(Duration::ZERO))] {
        let store = Arc::new(FileStore::open(directory).unwrap());
        let node = || FleetCell::new(name, Arc::clone(&store), Plain, policy);
        let cell = node();
        let built = |value: &str, ttl| Ok::<_, &str>(Refreshed::NewFor(text(value), ttl));
        cell.try_get_with(|_| built("parent", Duration::from_millis(1))).unwrap();
        eventually("it is out of date", || cell.freshness() != Freshness::Fresh);
        let status = std::os::unix::process::parent_id();
        if status == 0 {
            // The thread that has forked is the only one here: a panic would end the process as if all was well.
            let built = catch_unwind(AssertUnwindSafe(|| {
                let mut builds = 0;
                eventually("a value of its own", || {
                    let value = cell.try_get_with(|_| {
                        builds += 1;
                        built("child", HOUR)
                    });
                    *value.unwrap() == "child"
                });
                assert_eq!((builds, cell.stats().acquires), (1, 2), "{:?}", cell.stats());
                assert_eq!(cell.freshness(), Freshness::Fresh, "{:?}", cell.stats());
                assert!(cell.snapshot().unwrap().version.is_some(), "it is known to be in the store");
            }));
            std::process::exit(i32::from(built.is_err()));
        }
        assert_eq!(status, 1, "the child has failed: {name}");
        assert_eq!(*node().get_or_refresh(|| panic!("it is in the store")), "child");
    }
    println!("both children have built");
}

#[test]
fn what_a_child_built_first_was_not_published() {
    let Some((_directory, library)) = library(FORK) else { return };
    let directory = tempfile::tempdir().unwrap();
    let said = another_process(FORKS_AND_BUILDS, directory.path().to_str().unwrap(), &library);
    assert!(said.contains("both children have built"), "{said}");
}

fn forks(address: &str) {
    let Some((_directory, library)) = library(FORK) else { return };
    let said = another_process(FORKS, address, &library);
    assert!(said.contains("the child ended with 0") && said.contains("the parent goes on"), "{said}");
}

#[test]
fn redis_a_fork_left_a_dead_cell() {
    let server = server_or_skip!(Kind::Redis);
    forks(&server.address());
}

#[test]
fn postgres_a_fork_left_a_dead_cell() {
    let server = server_or_skip!(Kind::Postgres);
    forks(&server.address());
}
