//! Destructors that use the map: of values, of keys, and of a thread's variables.

use std::cell::{Cell, RefCell};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use dogpile::{Clock, Policy, Tick};
use dogpile_map::DogpileMap;

use crate::support::{MINUTE, does_not_hang, strict, wait_until};

static ASKED: OnceLock<DogpileMap<u64, Asks>> = OnceLock::new();

/// As it is dropped, it asks for that key.
struct Asks(Option<u64>);

impl Drop for Asks {
    fn drop(&mut self) {
        if let Some(key) = self.0 {
            ASKED.get().unwrap().get_or_refresh(&key, |_| Asks(None));
        }
    }
}

#[test]
fn a_value_that_a_batch_replaces_may_ask_for_another_key_of_the_batch() {
    let map = ASKED.get_or_init(|| DogpileMap::builder(strict()).build());
    map.set(1, Asks(Some(2)));
    map.invalidate(&1);
    does_not_hang(|| {
        let load = |due: &[u64]| {
            assert_eq!(due, [1, 2]);
            Ok::<_, String>([(1, Asks(None)), (2, Asks(None))])
        };
        map.get_many(&[1, 2], load).unwrap();
    });
    // What the batch does not publish, since another value was set meanwhile.
    map.invalidate(&1);
    map.invalidate(&2);
    does_not_hang(|| {
        let load = |_: &[u64]| {
            map.set(1, Asks(None));
            Ok::<_, String>([(1, Asks(Some(2))), (2, Asks(None))])
        };
        map.get_many(&[1, 2], load).unwrap();
    });
}

static LOOKED_AT: OnceLock<DogpileMap<Looks, u64>> = OnceLock::new();
static LOOKS: AtomicBool = AtomicBool::new(false);

thread_local! {
    static IS_LOOKING: Cell<bool> = const { Cell::new(false) };
}

/// A key that visits all shards of the map as it is dropped.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Looks(u64);

impl Drop for Looks {
    fn drop(&mut self) {
        if LOOKS.load(Ordering::SeqCst) && !IS_LOOKING.replace(true) {
            let _ = LOOKED_AT.get().unwrap().stats();
            IS_LOOKING.set(false);
        }
    }
}

#[test]
fn no_key_is_dropped_under_a_lock() {
    let map = LOOKED_AT.get_or_init(|| DogpileMap::builder(Policy::ttl(MINUTE)).build());
    does_not_hang(|| {
        LOOKS.store(true, Ordering::SeqCst);
        let key = Looks(1);
        map.request(&key).no_cache().get(|_| 1);
        map.get_or_refresh(&Looks(2), |_| 2);
        assert!(map.try_get_or_refresh(&Looks(3), |_| Err("down")).is_err());
        // In flight, with a value at rest and without one.
        for key in [Looks(1), Looks(4)] {
            map.request(&key).no_cache().get(|_| {
                map.invalidate(&key);
                map.set(key.clone(), 3);
                map.clear(&key);
                4
            });
        }
        map.invalidate(&Looks(5));
        assert!(!map.invalidate_if_current(&Looks(5), &map.set(Looks(2), 2)));
        map.clear(&Looks(1));
        LOOKS.store(false, Ordering::SeqCst);
    });
}

static CLOCKED: OnceLock<DogpileMap<u64, u64, Cloned>> = OnceLock::new();

/// A clock that visits all shards of the map as it is cloned and dropped.
struct Cloned;

impl Cloned {
    fn look() {
        if let Some(map) = CLOCKED.get() {
            let _ = map.stats();
        }
    }
}

impl Clone for Cloned {
    fn clone(&self) -> Self {
        Self::look();
        Self
    }
}

impl Drop for Cloned {
    fn drop(&mut self) {
        Self::look();
    }
}

impl Clock for Cloned {
    fn now(&self) -> Tick {
        Self::look();
        Tick::from_nanos(1)
    }
}

#[test]
fn no_clock_is_asked_cloned_or_dropped_under_a_lock() {
    let map = CLOCKED.get_or_init(|| DogpileMap::builder(Policy::ttl(MINUTE)).clock(Cloned).build());
    does_not_hang(|| {
        assert_eq!(*map.get_or_refresh(&1, |_| 10), 10);
        assert_eq!(*map.request(&1).no_cache().get(|key| *map.set(*key, 11)), 11);
        assert!(map.try_get_or_refresh(&2, |_| Err("down")).is_err());
        map.invalidate(&1);
        map.clear(&1);
        map.reset();
    });
}

static NOTED: OnceLock<DogpileMap<Remembers, u64>> = OnceLock::new();

/// A key that asks for another one, which is stale, as the thread that rebuilds in batches drops it.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Remembers(u64);

impl Drop for Remembers {
    fn drop(&mut self) {
        if thread::current().name() == Some("dogpile-map") && !IS_LOOKING.replace(true) {
            NOTED.get().unwrap().get_or_refresh(&Remembers(2), |_| 0);
            IS_LOOKING.set(false);
        }
    }
}

#[test]
fn no_key_of_a_batch_is_dropped_under_a_lock() {
    let map = NOTED.get_or_init(|| DogpileMap::builder(Policy::ttl(MINUTE)).build());
    does_not_hang(|| {
        for key in [1, 2] {
            map.set(Remembers(key), 0);
            map.invalidate(&Remembers(key));
        }
        let load =
            |due: &[Remembers]| Ok::<_, String>(due.iter().map(|key| (key.clone(), 1)).collect::<Vec<_>>());
        let batches = map.refresh_in_batches(1, Duration::ZERO, load).unwrap();
        wait_until(|| *map.get_or_refresh(&Remembers(1), |_| 2) == 1);
        drop(batches);
    });
}

static AT_END: OnceLock<DogpileMap<u64, u64>> = OnceLock::new();

struct Ends;

impl Drop for Ends {
    fn drop(&mut self) {
        let map = AT_END.get().unwrap();
        map.get_or_refresh(&2, |_| 20);
        map.get_many(&[3], |_| Ok::<_, String>([(3, 30)])).unwrap();
    }
}

thread_local! {
    static ENDS: RefCell<Option<Ends>> = const { RefCell::new(None) };
}

#[test]
#[ignore = "run by the test below, in a process of its own"]
fn the_variables_of_a_thread_end() {
    let map = AT_END.get_or_init(|| DogpileMap::builder(strict()).build());
    let thread = thread::spawn(|| {
        // Before the map's own variables, so that it is dropped after them.
        ENDS.set(Some(Ends));
        map.get_many(&[1], |_| Ok::<_, String>([(1, 10)])).unwrap();
    });
    thread.join().unwrap();
    let found = [1, 2, 3].map(|key| map.get(&key).map(|value| *value));
    assert_eq!(found, [Some(10), Some(20), Some(30)]);
}

#[test]
#[cfg_attr(miri, ignore = "starts a process")]
fn the_map_can_be_used_while_a_thread_ends() {
    let name = concat!(module_path!(), "::the_variables_of_a_thread_end");
    let name = name.split_once("::").unwrap().1;
    let mut child = Command::new(std::env::current_exe().unwrap());
    // A panic there would end the process.
    let output = child.args(["--ignored", "--exact", name]).output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && shown.contains("1 passed"), "{:?}\n{shown}", output.status);
}
