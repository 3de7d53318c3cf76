//! Nodes with maps, whose way to the store can be disturbed.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use dogpile::ManualClock;
use dogpile_fleet::{
    Acquire, BuildContext, Epoch, FleetKeys, FleetPolicy, FleetValue, Hint, Invalidation, MemoryStore, Plain,
    Poll, Publication, Publish, RefreshError, RefreshStore, Refreshed, Request, StoreError, Subscription,
    Token, Version,
};
use dogpile_map::DogpileMap;

pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// Fresh for ten seconds, looked after each second, stale for a hundred more. A caller waits for its publication for as long as it
/// takes, so that no test depends on how fast the host is.
pub(crate) const POLICY: FleetPolicy = FleetPolicy::ttl(Duration::from_secs(10))
    .stale_while_refresh(Duration::from_secs(100))
    .poll(SECOND)
    .patience(Duration::from_secs(3600))
    .breaker(SECOND, SECOND);

/// A store in memory, which can be down, or keep a publication waiting.
pub(crate) struct Way {
    pub(crate) store: MemoryStore<ManualClock>,
    pub(crate) down: AtomicBool,
    pub(crate) lists: AtomicU32,
    /// How often the store was told of an invalidation, or would have been.
    pub(crate) invalidations: AtomicU32,
    /// The next invalidation panics.
    pub(crate) panics: AtomicBool,
    /// The next publication panics.
    pub(crate) publication_panics: AtomicBool,
    /// The next publication reports here when it has begun, and then waits; and then tells when it is over.
    gate: Mutex<Option<Gate>>,
    /// The same for the next election.
    election: Mutex<Option<Gate>>,
    /// The same for the next invalidation.
    invalidation: Mutex<Option<Gate>>,
}

struct Gate {
    begun: Sender<()>,
    may_go_on: Receiver<()>,
    over: Sender<()>,
}

/// The test's side of a gate.
pub(crate) struct HeldUp {
    pub(crate) begun: Receiver<()>,
    go_on: Sender<()>,
    over: Receiver<()>,
}

impl HeldUp {
    /// Lets the operation go on, and waits for the store's answer.
    pub(crate) fn go_on(self) {
        self.go_on.send(()).unwrap();
        self.over.recv().unwrap();
    }
}

fn close(gate: &Mutex<Option<Gate>>) -> HeldUp {
    let ((begun, has_begun), (go_on, may_go_on), (over, is_over)) = (channel(), channel(), channel());
    *gate.lock().unwrap() = Some(Gate { begun, may_go_on, over });
    HeldUp { begun: has_begun, go_on, over: is_over }
}

fn pass<R>(gate: &Mutex<Option<Gate>>, operation: impl FnOnce() -> R) -> R {
    let gate = gate.lock().unwrap().take();
    let Some(Gate { begun, may_go_on, over }) = gate else { return operation() };
    begun.send(()).unwrap();
    // At the latest after a minute: a caller that waits for this is not to hang.
    let _ = may_go_on.recv_timeout(Duration::from_secs(60));
    let answer = catch_unwind(AssertUnwindSafe(operation));
    let _ = over.send(());
    answer.unwrap_or_else(|panic| resume_unwind(panic))
}

impl Way {
    pub(crate) fn hold_up_a_publication(&self) -> HeldUp {
        close(&self.gate)
    }

    pub(crate) fn hold_up_an_invalidation(&self) -> HeldUp {
        close(&self.invalidation)
    }

    pub(crate) fn hold_up_an_election(&self) -> HeldUp {
        close(&self.election)
    }

    fn way(&self) -> Result<&MemoryStore<ManualClock>, StoreError> {
        if self.down.load(Ordering::SeqCst) { Err(StoreError::new("down")) } else { Ok(&self.store) }
    }
}

impl RefreshStore for Way {
    fn poll(&self, name: &str, known: Option<Version>) -> Result<Poll, StoreError> {
        self.way()?.poll(name, known)
    }
    fn acquire(&self, name: &str, request: &Request) -> Result<Acquire, StoreError> {
        pass(&self.election, || self.way()?.acquire(name, request))
    }
    fn publish(
        &self,
        name: &str,
        token: &Token,
        publication: &Publication<'_>,
    ) -> Result<Publish, StoreError> {
        pass(&self.gate, || {
            assert!(!self.publication_panics.swap(false, Ordering::SeqCst), "as planned: a publication");
            self.way()?.publish(name, token, publication)
        })
    }
    fn unchanged(
        &self,
        name: &str,
        token: &Token,
        soft: Duration,
        hard: Duration,
    ) -> Result<Publish, StoreError> {
        self.way()?.unchanged(name, token, soft, hard)
    }
    fn fail(&self, name: &str, token: &Token, pause: Duration) -> Result<bool, StoreError> {
        self.way()?.fail(name, token, pause)
    }
    fn renew(&self, name: &str, token: &Token, lease: Duration) -> Result<bool, StoreError> {
        self.way()?.renew(name, token, lease)
    }
    fn invalidate(&self, name: &str, how: Invalidation) -> Result<Epoch, StoreError> {
        self.invalidations.fetch_add(1, Ordering::SeqCst);
        assert!(!self.panics.swap(false, Ordering::SeqCst), "as planned: an invalidation");
        pass(&self.invalidation, || self.way()?.invalidate(name, how))
    }
    fn subscribe(&self, name: &str, hint: Hint) -> Option<Subscription> {
        self.lists.fetch_add(1, Ordering::SeqCst);
        self.store.subscribe(name, hint)
    }
}

pub(crate) struct Fleet {
    pub(crate) clock: ManualClock,
    pub(crate) way: Arc<Way>,
}

pub(crate) struct Node {
    pub(crate) keys: FleetKeys<String, ManualClock>,
    pub(crate) map: DogpileMap<u64, FleetValue<String>, ManualClock>,
}

impl Fleet {
    pub(crate) fn new() -> Self {
        let clock = ManualClock::new();
        clock.advance(1000 * SECOND);
        let store = MemoryStore::with_clock(clock.clone());
        let way = Way {
            store,
            down: AtomicBool::new(false),
            lists: AtomicU32::new(0),
            invalidations: AtomicU32::new(0),
            panics: AtomicBool::new(false),
            publication_panics: AtomicBool::new(false),
            gate: Mutex::new(None),
            election: Mutex::new(None),
            invalidation: Mutex::new(None),
        };
        Self { way: Arc::new(way), clock }
    }

    pub(crate) fn node(&self, policy: FleetPolicy) -> Node {
        let keys = FleetKeys::with_clock("users", Arc::clone(&self.way), Plain, policy, self.clock.clone());
        let map = DogpileMap::builder(keys.policy()).clock(self.clock.clone()).max_entries(1000).build();
        Node { keys, map }
    }
}

impl Node {
    pub(crate) fn try_read<E: Into<dogpile::BoxError>>(
        &self,
        id: u64,
        build: impl FnOnce(&BuildContext<'_, String>) -> Result<Refreshed<String>, E>,
    ) -> Result<Arc<FleetValue<String>>, RefreshError> {
        let load = |id: &u64, previous: Option<Arc<FleetValue<String>>>| {
            self.keys.load_with(&id.to_string(), previous, build)
        };
        self.map.request(&id).try_get_with(load)
    }

    #[track_caller]
    pub(crate) fn read(&self, id: u64, value: &str) -> String {
        let value = self.try_read(id, |_| Ok::<_, io::Error>(Refreshed::from(value.to_owned()))).unwrap();
        value.value().to_string()
    }

    #[track_caller]
    pub(crate) fn served(&self, id: u64) -> String {
        self.try_read::<io::Error>(id, |_| panic!("not to be built here")).unwrap().value().to_string()
    }
}

#[track_caller]
pub(crate) fn eventually(what: &str, condition: impl Fn() -> bool) {
    let hang = std::time::Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(std::time::Instant::now() < hang, "never: {what}");
        thread::yield_now();
    }
}
