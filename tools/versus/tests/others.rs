//! What `docs/comparison.md` says of other crates, as far as a test can show it: it fails when a new release does better.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use cached::Cached as _;
use futures_lite::future::block_on;
use hitbox::offload::OffloadManager;
use hitbox::policy::{PolicyConfig, StalePolicy};
use hitbox::serde::{Deserialize, Deserializer, Serialize};
use hitbox_derive::CacheableResponse;
use hitbox_moka::MokaBackend;
use moka::sync::Cache;

const HANG: Duration = Duration::from_secs(30);

/// The old value is gone when a build of the new one begins: a reader that comes then waits, or has nothing.
#[test]
fn moka_has_no_old_value_while_it_rebuilds() {
    let cache: Cache<(), u32> = Cache::builder().time_to_live(Duration::from_millis(1)).build();
    cache.insert((), 1);
    while cache.get(&()).is_some() {
        thread::yield_now();
    }
    let found = cache.get_with((), || {
        assert_eq!(cache.get(&()), None, "the old value is served while a new one is built");
        2
    });
    assert_eq!(found, 2);
}

/// A listener is no finalizer: a reader may still hold the value that it is called for.
#[test]
fn moka_calls_its_eviction_listener_while_readers_hold_the_value() {
    let (told, listener) = channel();
    let told = Mutex::new(told);
    let cache: Cache<(), Arc<u32>> = Cache::builder()
        .eviction_listener(move |_, value: Arc<u32>, _| {
            told.lock().unwrap_or_else(PoisonError::into_inner).send(Arc::downgrade(&value)).unwrap();
        })
        .build();
    let reader = cache.get_with((), || Arc::new(1));
    cache.invalidate(&());
    cache.run_pending_tasks();
    let evicted = listener.recv_timeout(HANG).expect("the listener was not called");
    assert!(Arc::ptr_eq(&evicted.upgrade().expect("the reader holds it"), &reader));
}

/// The build began before the invalidation, so its value may be of the old state. It is kept all the same.
#[test]
fn moka_keeps_a_value_whose_build_began_before_an_invalidation() {
    let cache: Cache<(), u32> = Cache::new(1);
    cache.get_with((), || {
        cache.invalidate(&());
        1
    });
    assert_eq!(cache.get(&()), Some(1));
}

#[test]
fn quick_cache_does_not_keep_a_value_whose_build_began_before_a_removal() {
    let cache: quick_cache::sync::Cache<(), u32> = quick_cache::sync::Cache::new(1);
    let build = || {
        cache.remove(&());
        Ok::<_, ()>(1)
    };
    cache.get_or_insert_with(&(), build).unwrap();
    assert_eq!(cache.get(&()), None);
}

#[cached::macros::cached(ttl_secs = 3600)]
fn keyed(key: u32) -> u32 {
    let _none = KEYED.write().cache_remove(&key);
    key
}

#[test]
fn cached_keeps_a_value_whose_build_began_before_a_removal() {
    assert_eq!(keyed(1), 1);
    assert_eq!(KEYED.write().cache_get(&1), Some(&1));
}

/// A body that says that it runs, and ends when the test says so.
struct Body {
    began: Mutex<Option<Sender<()>>>,
    end: Mutex<Option<Arc<Mutex<Receiver<()>>>>>,
}

static BODY: Body = Body { began: Mutex::new(None), end: Mutex::new(None) };

#[cached::macros::once(ttl_secs = 3600)]
fn once() -> u32 {
    let began = BODY.began.lock().unwrap().clone();
    began.unwrap().send(()).unwrap();
    let end = BODY.end.lock().unwrap().clone().unwrap();
    let _ended = end.lock().unwrap().recv();
    7
}

/// `sync_writes = true` changes that, and lets readers wait.
#[test]
fn cached_runs_a_once_function_in_each_caller_by_default() {
    let (began, running) = channel();
    let (end, ended) = channel::<()>();
    *BODY.began.lock().unwrap() = Some(began);
    *BODY.end.lock().unwrap() = Some(Arc::new(Mutex::new(ended)));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| assert_eq!(once(), 7));
        }
        let both = (0..2).all(|_| running.recv_timeout(HANG).is_ok());
        drop(end);
        assert!(both, "one caller ran the function, the other one waited");
    });
}

/// What a function under hitbox's `#[cached]` runs.
#[derive(Clone)]
struct Work(Arc<dyn Fn() -> u32 + Send + Sync>);

#[hitbox_derive::cached(skip(work))]
async fn through_hitbox(work: Work) -> u32 {
    (work.0)()
}

fn backend() -> MokaBackend {
    MokaBackend::builder().max_entries(1).build()
}

#[test]
fn hitbox_serves_the_old_value_while_a_task_makes_the_next_one() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let _entered = runtime.enter();
    let cache = hitbox_fn::Cache::builder()
        .backend(backend())
        .policy(
            PolicyConfig::builder()
                .stale(Duration::ZERO)
                .ttl(HANG)
                .stale_policy(StalePolicy::OffloadRevalidate)
                .build(),
        )
        .offload(OffloadManager::with_defaults())
        .build();
    let (began, running) = channel();
    let began = Mutex::new(began);
    let (end, ended) = channel::<()>();
    let ended = Mutex::new(ended);
    let first = Work(Arc::new(|| 1));
    assert_eq!(block_on(async { through_hitbox(first).cache(&cache).await }), 1);
    let second = Work(Arc::new(move || {
        began.lock().unwrap().send(()).unwrap();
        let _ended = ended.lock().unwrap().recv();
        2
    }));
    for _ in 0..3 {
        assert_eq!(block_on(async { through_hitbox(second.clone()).cache(&cache).await }), 1);
    }
    running.recv_timeout(HANG).expect("no task builds");
    assert!(running.try_recv().is_err(), "more than one task builds");
    drop(end);
}

/// `concurrency`, and a manager for it, change that.
#[test]
fn hitbox_runs_a_function_in_each_caller_by_default() {
    let cache = hitbox_fn::Cache::builder()
        .backend(backend())
        .policy(PolicyConfig::builder().ttl(HANG).build())
        .build();
    let (began, running) = channel();
    let began = Mutex::new(began);
    let (end, ended) = channel::<()>();
    let ended = Mutex::new(ended);
    let work = Work(Arc::new(move || {
        let sent = began.lock().unwrap().send(());
        sent.unwrap();
        let _ended = ended.lock().unwrap().recv();
        7
    }));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| block_on(async { through_hitbox(work.clone()).cache(&cache).await }));
        }
        let both = (0..2).all(|_| running.recv_timeout(HANG).is_ok());
        drop(end);
        assert!(both, "one caller ran the function, the other one waited");
    });
}

#[test]
fn hitbox_keeps_a_value_whose_build_began_before_a_removal() {
    let cache = hitbox_fn::Cache::builder()
        .backend(backend())
        .policy(PolicyConfig::builder().ttl(HANG).build())
        .build();
    let entries = cache.backend().cache().clone();
    let removes = Work(Arc::new(move || {
        entries.invalidate_all();
        1
    }));
    assert_eq!(block_on(async { through_hitbox(removes).cache(&cache).await }), 1);
    let again = Work(Arc::new(|| 2));
    assert_eq!(block_on(async { through_hitbox(again).cache(&cache).await }), 1);
}

static DECODED: AtomicU32 = AtomicU32::new(0);

#[derive(Clone, Serialize)]
#[serde(crate = "hitbox::serde")]
struct Counted(u32);

impl<'de> Deserialize<'de> for Counted {
    fn deserialize<D: Deserializer<'de>>(bytes: D) -> Result<Self, D::Error> {
        DECODED.fetch_add(1, Ordering::Relaxed);
        u32::deserialize(bytes).map(Self)
    }
}

#[derive(Clone, Serialize, Deserialize, CacheableResponse)]
#[serde(crate = "hitbox::serde")]
struct Answer {
    number: Counted,
}

#[hitbox_derive::cached]
async fn answer() -> Answer {
    Answer { number: Counted(42) }
}

#[test]
fn hitbox_decodes_the_value_at_each_read() {
    let cache = hitbox_fn::Cache::builder()
        .backend(backend())
        .policy(PolicyConfig::builder().ttl(HANG).build())
        .build();
    for reads in 0..3 {
        assert_eq!(block_on(async { answer().cache(&cache).await }).number.0, 42);
        assert_eq!(DECODED.load(Ordering::Relaxed), reads);
    }
}
