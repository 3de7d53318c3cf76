//! Nodes that share a store in memory and a clock that stands still.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dogpile::ManualClock;
use dogpile_fleet::{
    Acquire, Epoch, FleetCell, FleetPolicy, Hint, Invalidation, MemoryStore, Plain, Poll, Publication,
    Publish, RefreshStore, Request, StoreError, Subscription, Token, Version,
};

pub(crate) type Node = FleetCell<String, ManualClock>;

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const NAME: &str = "name";

/// Fresh for ten seconds, and stale for a hundred more. A caller waits for the store for as long as it takes, so that no
/// test depends on how fast the machine is.
pub(crate) const POLICY: FleetPolicy = FleetPolicy::ttl(Duration::from_secs(10))
    .stale_while_refresh(Duration::from_secs(100))
    .patience(Duration::from_secs(3600))
    .breaker(Duration::from_secs(1), Duration::from_secs(4))
    .no_poll();

pub(crate) struct Fleet {
    pub(crate) clock: ManualClock,
    pub(crate) store: Arc<MemoryStore<ManualClock>>,
}

impl Fleet {
    pub(crate) fn new() -> Self {
        let clock = ManualClock::new();
        clock.advance(Duration::from_secs(1000));
        Self { store: Arc::new(MemoryStore::with_clock(clock.clone())), clock }
    }

    pub(crate) fn node(&self, policy: FleetPolicy) -> Node {
        self.node_with(policy, Arc::clone(&self.store))
    }

    /// A node that is given no hints, so that it does nothing but what it is called for.
    pub(crate) fn quiet(&self, policy: FleetPolicy) -> Node {
        let (node, way) = self.disturbed(policy);
        way.hints.store(false, Ordering::SeqCst);
        node
    }

    pub(crate) fn node_with(&self, policy: FleetPolicy, store: impl RefreshStore + 'static) -> Node {
        FleetCell::with_clock(NAME, store, Plain, policy, self.clock.clone())
    }

    /// A node whose way to the store can be disturbed.
    pub(crate) fn disturbed(&self, policy: FleetPolicy) -> (Node, Arc<Disturbed>) {
        let store = Arc::new(Disturbed {
            store: Arc::clone(&self.store),
            down: AtomicBool::new(false),
            hints: AtomicBool::new(true),
            delay: AtomicU64::new(0),
            clock: self.clock.clone(),
            gate: Mutex::new(None),
            elected_gate: Mutex::new(None),
            poll_gate: Mutex::new(None),
            publication_gate: Mutex::new(None),
            invalidation_gate: Mutex::new(None),
            answer_gate: Mutex::new(None),
            panics: AtomicBool::new(false),
        });
        (self.node_with(policy, Arc::clone(&store)), store)
    }
}

/// A store that can be down, or keep an election waiting.
pub(crate) struct Disturbed {
    store: Arc<MemoryStore<ManualClock>>,
    pub(crate) down: AtomicBool,
    pub(crate) hints: AtomicBool,
    /// How many seconds the answer to a publication is on its way.
    pub(crate) delay: AtomicU64,
    clock: ManualClock,
    /// The next `acquire` reports here when it has begun, and then waits.
    gate: Gate,
    /// The next `acquire` reports here when it has its answer, and then waits.
    elected_gate: Gate,
    poll_gate: Gate,
    publication_gate: Gate,
    /// The next `invalidate` reports here when it has taken effect, and then waits.
    invalidation_gate: Gate,
    /// The next `poll` reports here when it has its answer, and then waits.
    answer_gate: Gate,
    /// The next `invalidate` panics when it has taken effect.
    pub(crate) panics: AtomicBool,
}

type Gate = Mutex<Option<(Sender<()>, Receiver<()>)>>;

fn close(gate: &Gate) -> (Receiver<()>, Sender<()>) {
    let (begun, has_begun) = channel();
    let (let_go, may_go) = channel();
    *gate.lock().unwrap() = Some((begun, may_go));
    (has_begun, let_go)
}

fn pass(gate: &Gate) {
    let gate = gate.lock().unwrap().take();
    if let Some((begun, may_go)) = gate {
        begun.send(()).unwrap();
        let _ = may_go.recv();
    }
}

impl Disturbed {
    /// The next `acquire` is held up. Returns where it says that it has begun, and where it is let go.
    pub(crate) fn hold_up(&self) -> (Receiver<()>, Sender<()>) {
        close(&self.gate)
    }

    pub(crate) fn hold_up_the_answer_of_an_election(&self) -> (Receiver<()>, Sender<()>) {
        close(&self.elected_gate)
    }

    pub(crate) fn hold_up_a_poll(&self) -> (Receiver<()>, Sender<()>) {
        close(&self.poll_gate)
    }

    pub(crate) fn hold_up_a_publication(&self) -> (Receiver<()>, Sender<()>) {
        close(&self.publication_gate)
    }

    pub(crate) fn hold_up_the_answer_of_a_poll(&self) -> (Receiver<()>, Sender<()>) {
        close(&self.answer_gate)
    }

    pub(crate) fn hold_up_an_invalidation(&self) -> (Receiver<()>, Sender<()>) {
        close(&self.invalidation_gate)
    }

    fn way(&self) -> Result<&MemoryStore<ManualClock>, StoreError> {
        if self.down.load(Ordering::SeqCst) { Err(StoreError::new("down")) } else { Ok(&self.store) }
    }
}

impl RefreshStore for Disturbed {
    fn poll(&self, name: &str, known: Option<Version>) -> Result<Poll, StoreError> {
        pass(&self.poll_gate);
        let answer = self.way()?.poll(name, known);
        pass(&self.answer_gate);
        answer
    }
    fn acquire(&self, name: &str, request: &Request) -> Result<Acquire, StoreError> {
        pass(&self.gate);
        let answer = self.way()?.acquire(name, request);
        pass(&self.elected_gate);
        answer
    }
    fn publish(
        &self,
        name: &str,
        token: &Token,
        publication: &Publication<'_>,
    ) -> Result<Publish, StoreError> {
        pass(&self.publication_gate);
        let answer = self.way()?.publish(name, token, publication);
        self.clock.advance(Duration::from_secs(self.delay.load(Ordering::SeqCst)));
        answer
    }
    fn unchanged(
        &self,
        name: &str,
        token: &Token,
        soft: Duration,
        hard: Duration,
    ) -> Result<Publish, StoreError> {
        let answer = self.way()?.unchanged(name, token, soft, hard);
        self.clock.advance(Duration::from_secs(self.delay.load(Ordering::SeqCst)));
        answer
    }
    fn fail(&self, name: &str, token: &Token, pause: Duration) -> Result<bool, StoreError> {
        self.way()?.fail(name, token, pause)
    }
    fn renew(&self, name: &str, token: &Token, lease: Duration) -> Result<bool, StoreError> {
        self.way()?.renew(name, token, lease)
    }
    fn invalidate(&self, name: &str, how: Invalidation) -> Result<Epoch, StoreError> {
        let epoch = self.way()?.invalidate(name, how)?;
        pass(&self.invalidation_gate);
        assert!(!self.panics.swap(false, Ordering::SeqCst), "as planned");
        Ok(epoch)
    }
    fn subscribe(&self, name: &str, hint: Hint) -> Option<Subscription> {
        self.hints.load(Ordering::SeqCst).then(|| self.store.subscribe(name, hint))?
    }
}

/// Waits, on the real clock, for something that another thread is about to do.
#[track_caller]
pub(crate) fn eventually(what: &str, condition: impl Fn() -> bool) {
    let hang = std::time::Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(std::time::Instant::now() < hang, "never: {what}");
        std::thread::yield_now();
    }
}

/// Lets time pass until something has happened; but not much faster than other threads get a turn, or values would expire by it.
#[track_caller]
pub(crate) fn passes(fleet: &Fleet, what: &str, condition: impl Fn() -> bool) {
    let advanced = std::cell::Cell::new(None::<std::time::Instant>);
    eventually(what, || {
        if advanced.get().is_none_or(|last| last.elapsed() > Duration::from_millis(20)) {
            fleet.clock.advance(SECOND / 10);
            advanced.set(Some(std::time::Instant::now()));
        }
        condition()
    });
}

/// Runs something that may hang.
#[track_caller]
pub(crate) fn at_once<R: Send + 'static>(what: &str, run: impl FnOnce() -> R + Send + 'static) -> R {
    let (done, is_done) = channel();
    std::thread::spawn(move || done.send(run()));
    match is_done.recv_timeout(Duration::from_secs(60)) {
        Ok(result) => result,
        Err(error) => panic!("{what}: {error}"),
    }
}

/// The node's value, without a build.
#[track_caller]
pub(crate) fn served(node: &Node) -> String {
    node.get_or_refresh(|| panic!("not to be built here")).to_string()
}

pub(crate) fn text(text: &str) -> String {
    text.to_owned()
}
