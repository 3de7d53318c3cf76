//! How many threads cells use, and that those of one store do not hold up those of another.

#![cfg(target_os = "linux")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dogpile_fleet::{
    Acquire, Breaker, BuildContext, Epoch, FleetCell, FleetKeys, FleetPolicy, Hint, Invalidation,
    MemoryStore, Plain, Poll, Publication, Publish, RefreshStore, Request, StoreError, Subscription, Token,
    Version,
};

const HOUR: Duration = Duration::from_secs(3600);
/// What `fleet/docs/production.md` says.
const MOST: usize = 4;

/// The threads of the process are counted: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn threads() -> usize {
    threads_whose_name(|name| name.starts_with("dogpile"))
}

fn threads_whose_name(is_so: impl Fn(&str) -> bool) -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| is_so(name.trim_end())).count()
}

#[track_caller]
fn eventually(what: &str, condition: impl Fn() -> bool) {
    let hang = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < hang, "never: {what}");
        std::thread::yield_now();
    }
}

fn cell(name: String, store: &Arc<Held>, policy: FleetPolicy) -> FleetCell<String> {
    FleetCell::new(name, Arc::clone(store), Plain, policy)
}

/// A store whose looks can be held up.
#[derive(Default)]
struct Held {
    store: MemoryStore,
    breaker: Option<Breaker>,
    holds: Mutex<bool>,
    let_go: Condvar,
    waiting: AtomicU64,
    renewals: AtomicU64,
}

impl Held {
    fn hold(&self, hold: bool) {
        *self.holds.lock().unwrap() = hold;
        self.let_go.notify_all();
    }
}

impl RefreshStore for Held {
    fn poll(&self, name: &str, known: Option<Version>) -> Result<Poll, StoreError> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        drop(self.let_go.wait_while(self.holds.lock().unwrap(), |held| *held).unwrap());
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        self.store.poll(name, known)
    }
    fn acquire(&self, name: &str, request: &Request) -> Result<Acquire, StoreError> {
        self.store.acquire(name, request)
    }
    fn publish(
        &self,
        name: &str,
        token: &Token,
        publication: &Publication<'_>,
    ) -> Result<Publish, StoreError> {
        self.store.publish(name, token, publication)
    }
    fn unchanged(
        &self,
        name: &str,
        token: &Token,
        soft: Duration,
        hard: Duration,
    ) -> Result<Publish, StoreError> {
        self.store.unchanged(name, token, soft, hard)
    }
    fn fail(&self, name: &str, token: &Token, pause: Duration) -> Result<bool, StoreError> {
        self.store.fail(name, token, pause)
    }
    fn renew(&self, name: &str, token: &Token, lease: Duration) -> Result<bool, StoreError> {
        self.renewals.fetch_add(1, Ordering::SeqCst);
        self.store.renew(name, token, lease)
    }
    fn invalidate(&self, name: &str, how: Invalidation) -> Result<Epoch, StoreError> {
        self.store.invalidate(name, how)
    }
    fn subscribe(&self, name: &str, hint: Hint) -> Option<Subscription> {
        self.store.subscribe(name, hint)
    }
    fn breaker(&self) -> Option<&Breaker> {
        self.breaker.as_ref()
    }
}

#[test]
fn each_cell_had_a_thread_of_its_own() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let store = Arc::new(Held::default());
    let policy = FleetPolicy::ttl(HOUR).poll(Duration::from_millis(5)).patience(HOUR);
    let cells: Vec<FleetCell<String>> =
        (0..100).map(|number| cell(format!("cell {number}"), &store, policy)).collect();
    assert_eq!(threads(), 0, "not before there is something to look after");
    for cell in &cells {
        cell.get_or_refresh(|| String::from("value"));
        assert!(threads() <= MOST, "{} threads", threads());
    }
    for cell in &cells {
        let (polls, hints) = (cell.stats().polls, cell.stats().hints);
        cell.invalidate().unwrap();
        cell.get_or_refresh(|| String::from("newer"));
        eventually("it is looked after", || cell.stats().polls > polls + 2 && cell.stats().hints > hints);
        assert!(threads() <= MOST, "{} threads", threads());
    }
    drop(cells);
    eventually("without cells there are no threads", || threads() == 0);
}

#[test]
fn a_loader_had_a_thread_of_its_own() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let store = Arc::new(Held::default());
    let policy = FleetPolicy::ttl(HOUR).lease(Duration::from_millis(30));
    let loaders: Vec<FleetKeys<String>> = (0..20)
        .map(|number| FleetKeys::new(format!("keys {number}"), Arc::clone(&store), Plain, policy))
        .collect();
    let is_prolonged = |_: &BuildContext<'_, String>| {
        let renewals = store.renewals.load(Ordering::SeqCst);
        eventually("a lease is prolonged", || store.renewals.load(Ordering::SeqCst) > renewals + 60);
        Ok::<_, std::io::Error>(dogpile::Refreshed::New(String::from("value")))
    };
    std::thread::scope(|scope| {
        for loader in &loaders {
            scope.spawn(|| loader.load_with("key", None, is_prolonged).unwrap());
        }
    });
    let shared = threads_whose_name(|name| name == "dogpile-fleet");
    assert!((1..=MOST).contains(&shared), "{shared} threads");
    // The others publish, and rest for a while; each of these loaders has published once.
    assert!(threads() <= shared + loaders.len(), "{} threads", threads());
    drop(loaders);
    eventually("without loaders there are no threads", || threads() == 0);
}

#[test]
fn cells_whose_store_hung_held_up_those_of_other_stores() {
    a_store_hangs(|| Arc::new(Held { breaker: Some(Breaker::new()), ..Held::default() }));
}

#[test]
fn cells_whose_store_hung_held_up_those_of_other_stores_if_it_had_no_breaker() {
    a_store_hangs(|| Arc::new(Held::default()));
}

fn a_store_hangs(store: impl Fn() -> Arc<Held>) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (hanging, working) = (store(), store());
    let policy = FleetPolicy::ttl(HOUR).poll(Duration::from_millis(5)).patience(HOUR);
    let hung: Vec<FleetCell<String>> =
        (0..10).map(|number| cell(format!("hung {number}"), &hanging, policy)).collect();
    let polling = cell("polling".to_owned(), &working, policy);
    let building = cell("building".to_owned(), &working, policy.lease(Duration::from_millis(30)));
    for cell in hung.iter().chain([&polling]) {
        cell.get_or_refresh(|| String::from("value"));
    }
    hanging.hold(true);
    eventually("all threads that they can have hang", || hanging.waiting.load(Ordering::SeqCst) == 3);
    let polls = polling.stats().polls;
    eventually("another cell looks", || polling.stats().polls > polls + 10);
    building.get_or_refresh(|| {
        eventually("its lease is prolonged", || working.renewals.load(Ordering::SeqCst) > 10);
        String::from("built")
    });
    assert!(building.snapshot().unwrap().version.is_some(), "it was published");
    assert_eq!(hanging.waiting.load(Ordering::SeqCst), 3);
    assert!(threads() <= MOST, "{} threads", threads());
    // The cells end, and wait for nothing.
    drop((hung, polling, building));
    hanging.hold(false);
    eventually("without cells there are no threads", || threads() == 0);
}
