//! The thread that deals with the store where no caller should have to: `dogpile-fleet`.
//!
//! It is started when there is first something for it to do: watching another node's build, prolonging a lease, looking
//! for invalidations. It sleeps until the next of these is due, a hint comes, or a job is handed to it, and ends with the
//! cell.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::Thread;
use std::time::Duration;

use dogpile::{Clock, Lease, Tick};

use super::node::{Caller, Delivered, Delivery, Late, Node, Step};
use super::reply::{Awaited, NoAnswer, Reply, reply};
use crate::access::Operation;
use crate::breaker::Kind;
use crate::draw;
use crate::store::{RefreshStore, Subscription, Token};

/// How often a node looks that is given hints, unless its policy says less often.
const SELDOM: Duration = Duration::from_secs(12);

/// The local lease, held while another node builds, a pause runs or the store is down.
pub(crate) struct Watch<T: 'static, C: Clock + 'static> {
    pub(crate) lease: Lease<'static, T, C>,
    /// When to look next.
    pub(crate) next: Tick,
    pub(crate) pause: Duration,
    /// Nobody builds: a pause runs, or this node has something newer than the store.
    pub(crate) is_idle: bool,
}

impl<T: 'static, C: Clock + 'static> Watch<T, C> {
    /// To be looked after soon, when `left` is over at the latest.
    pub(crate) fn new(lease: Lease<'static, T, C>, now: Tick, left: Duration, is_idle: bool) -> Self {
        Self { lease, next: now, pause: Duration::from_millis(2), is_idle }.later(now, left)
    }

    /// The same, to be looked after later, but when `left` is over at the latest.
    pub(crate) fn later(mut self, now: Tick, left: Duration) -> Self {
        let pause = draw::around(self.pause, 20).min(left.saturating_add(Duration::from_millis(1)));
        self.next = now.saturating_add(pause);
        self.pause = (self.pause * 2).min(Duration::from_secs(5));
        self
    }
}

/// A lease in the store to be prolonged.
pub(crate) struct Beat {
    pub(crate) token: Token,
    pub(crate) next: Tick,
    pub(crate) stop: Tick,
    pub(crate) done: Arc<AtomicBool>,
    pub(crate) lost: Arc<AtomicBool>,
}

#[cfg(feature = "async")]
type Task<T, C> = Box<dyn FnOnce(&Arc<Node<T, C>>) + Send>;

enum Job<T: 'static, C: Clock + 'static> {
    Watch(Watch<T, C>),
    Beat(Beat),
    /// An election, for a caller that may run out of patience.
    Elected(Lease<'static, T, C>, Caller, Reply<Step<T, C>>),
    /// A build to be published, whose caller may have gone when the answer is there.
    Deliver(Delivery, Arc<Late>, Reply<Delivered>),
    /// A build that has ended without a value.
    End(Token, Duration, Reply<()>),
    #[cfg(feature = "async")]
    Run(Task<T, C>),
    /// Somebody waits.
    Kick,
    /// Look at what is watched.
    Look,
}

/// What wakes the thread and ends it; knows nothing of the value.
#[derive(Default)]
pub(crate) struct Signals {
    /// And the process that it belongs to: a process that was forked inherits what is here, and no threads.
    thread: Mutex<Option<(u32, Thread)>>,
    hinted: AtomicBool,
    closed: AtomicBool,
    /// What else is to be woken when the cell ends: its refreshers.
    ends: Mutex<Vec<Weak<Wake>>>,
}

/// What wakes a thread that sleeps by the cell's clock.
#[derive(Debug, Default)]
pub(crate) struct Wake {
    thread: Mutex<Option<Thread>>,
    notified: AtomicBool,
}

impl Wake {
    pub(crate) fn notify(&self) {
        // Release: pairs with the Acquire in `take`: what the thread is woken for has happened.
        self.notified.store(true, Ordering::Release);
        if let Some(thread) = &*self.thread.lock().unwrap_or_else(PoisonError::into_inner) {
            thread.unpark();
        }
    }

    /// From now on this thread is the one that is woken.
    pub(crate) fn wakes_this_thread(&self) {
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(std::thread::current());
    }

    fn take(&self) -> bool {
        // Acquire: pairs with the Release in `notify`.
        self.notified.swap(false, Ordering::Acquire)
    }

    /// Sleeps until it is notified, or until `until`.
    pub(crate) fn sleep<C: Clock>(&self, clock: &C, until: Option<Tick>) {
        while !self.take() {
            let now = clock.now();
            match until {
                None => std::thread::park(),
                Some(until) if until <= now => return,
                Some(until) => clock.park_until(until, now),
            }
        }
    }
}

impl Signals {
    fn lock(&self) -> MutexGuard<'_, Option<(u32, Thread)>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        if let Some((_, thread)) = &*self.lock() {
            thread.unpark();
        }
    }

    pub(crate) fn close(&self) {
        // Release: pairs with the Acquire in `run` and in `is_closed`.
        self.closed.store(true, Ordering::Release);
        self.wake();
        for end in self.ends.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            if let Some(end) = end.upgrade() {
                end.notify();
            }
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        // Acquire: pairs with the Release in `close`.
        self.closed.load(Ordering::Acquire)
    }

    /// Has the end of the cell wake a thread.
    pub(crate) fn wakes_at_end(&self, wake: &Arc<Wake>) {
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        ends.retain(|end| end.strong_count() > 0);
        ends.push(Arc::downgrade(wake));
    }
}

pub(crate) struct Worker<T: 'static, C: Clock + 'static> {
    pub(crate) signals: Arc<Signals>,
    jobs: Mutex<VecDeque<Job<T, C>>>,
    /// The node, for the thread to be started with.
    node: Mutex<Weak<Node<T, C>>>,
}

impl<T, C> Worker<T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    pub(crate) fn new() -> Self {
        Self { signals: Arc::default(), jobs: Mutex::default(), node: Mutex::new(Weak::new()) }
    }

    pub(crate) fn attach(&self, node: &Arc<Node<T, C>>) {
        *self.node.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(node);
    }

    fn jobs(&self) -> MutexGuard<'_, VecDeque<Job<T, C>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the thread if it does not run yet. Returns whether it runs.
    pub(crate) fn start(&self, node: &Node<T, C>) -> bool {
        let process = std::process::id();
        let mut thread = self.signals.lock();
        if let Some((owner, _)) = &*thread {
            if *owner == process {
                return true;
            }
            // This process was forked. What the thread of its parent held is held by nobody here.
            *thread = None;
            drop(thread);
            let jobs = std::mem::take(&mut *self.jobs());
            drop(jobs);
            node.local.revoke();
            thread = self.signals.lock();
            if thread.is_some() {
                return true;
            }
        }
        let Some(node) = self.node.lock().unwrap_or_else(PoisonError::into_inner).upgrade() else {
            return false;
        };
        let started = std::thread::Builder::new().name("dogpile-fleet".to_owned()).spawn(move || run(&node));
        *thread = started.ok().map(|handle| (process, handle.thread().clone()));
        thread.is_some()
    }

    fn submit(&self, node: &Node<T, C>, job: Job<T, C>) {
        self.jobs().push_back(job);
        if self.start(node) {
            self.signals.wake();
        } else {
            // Without a thread nobody waits for another node: leases are given back, and each caller asks anew.
            let jobs = std::mem::take(&mut *self.jobs());
            drop(jobs);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub(crate) fn watch(&self, node: &Node<T, C>, watch: Watch<T, C>) {
        self.submit(node, Job::Watch(watch));
    }

    pub(crate) fn beat(&self, node: &Node<T, C>, beat: Beat) {
        self.submit(node, Job::Beat(beat));
    }

    /// In this process, or in one that this one was forked from.
    fn was_started(&self) -> bool {
        self.signals.lock().is_some()
    }

    /// Somebody has begun to wait.
    pub(crate) fn kick(&self, node: &Node<T, C>) {
        if self.was_started() && self.start(node) {
            self.jobs().push_back(Job::Kick);
            self.signals.wake();
        }
    }

    /// This node has changed what is in the store.
    pub(crate) fn look(&self, node: &Node<T, C>) {
        if self.was_started() && self.start(node) {
            self.jobs().push_back(Job::Look);
            self.signals.wake();
        }
    }

    /// Has the thread deal with an election. `None` if it took longer than `patience`; then whatever it comes to is kept for
    /// the next caller.
    pub(crate) fn elected(
        &self,
        node: &Arc<Node<T, C>>,
        lease: Lease<'static, T, C>,
        caller: Caller,
        patience: Duration,
    ) -> Option<Step<T, C>> {
        if !self.start(node) {
            return Some(node.elected(lease, caller));
        }
        let (reply, awaited) = reply();
        self.submit(node, Job::Elected(lease, caller, reply));
        match awaited.wait(patience) {
            Ok(step) => Some(step),
            Err(NoAnswer::Lost) => Some(Step::Again),
            Err(NoAnswer::TooLate) => None,
        }
    }

    /// The same for a task. Without `patience` it waits for as long as it takes.
    #[cfg(feature = "async")]
    pub(crate) async fn elected_async(
        &self,
        node: &Arc<Node<T, C>>,
        lease: Lease<'static, T, C>,
        caller: Caller,
        patience: Option<Duration>,
    ) -> Option<Step<T, C>> {
        if !self.start(node) {
            return Some(node.elected(lease, caller));
        }
        let (reply, awaited) = reply();
        let claim = Claim { node, awaited };
        self.submit(node, Job::Elected(lease, caller, reply));
        match patience {
            None => Some((&claim.awaited).await.unwrap_or(Step::Again)),
            Some(patience) => match claim.awaited.wait_async(patience).await {
                Ok(step) => Some(step),
                Err(NoAnswer::Lost) => Some(Step::Again),
                Err(NoAnswer::TooLate) => None,
            },
        }
    }

    /// Has the thread publish a build. Whatever the caller does meanwhile, it is published.
    pub(crate) fn deliver(
        &self,
        node: &Arc<Node<T, C>>,
        delivery: Delivery,
        late: &Arc<Late>,
    ) -> Awaited<Delivered> {
        let (reply, awaited) = reply();
        if self.start(node) {
            self.submit(node, Job::Deliver(delivery, Arc::clone(late), reply));
        } else {
            drop(reply.send(node.deliver_build(&delivery)));
        }
        awaited
    }

    /// Has the thread tell the store that a build has ended without a value.
    pub(crate) fn end(&self, node: &Arc<Node<T, C>>, token: Token, pause: Duration) -> Awaited<()> {
        let (reply, awaited) = reply();
        if self.start(node) {
            self.submit(node, Job::End(token, pause, reply));
        } else {
            node.end_build(token, pause);
            let _ = reply.send(());
        }
        awaited
    }

    /// Has the thread do something that talks to the store; where there is no thread, this one does it.
    #[cfg(feature = "async")]
    pub(crate) async fn run<R: Send + 'static>(
        &self,
        node: &Arc<Node<T, C>>,
        what: impl FnOnce(&Arc<Node<T, C>>) -> R + Send + 'static,
    ) -> R {
        if !self.start(node) {
            return what(node);
        }
        let (reply, awaited) = reply();
        self.submit(node, Job::Run(Box::new(move |node| drop(reply.send(what(node))))));
        match (&awaited).await {
            Some(result) => result,
            None => panic!("the cell's thread has panicked: see its message"),
        }
    }
}

/// A task that waits for the answer to its election. If it is dropped, what has come is kept for the next caller.
#[cfg(feature = "async")]
struct Claim<'a, T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    node: &'a Node<T, C>,
    awaited: Awaited<Step<T, C>>,
}

#[cfg(feature = "async")]
impl<T, C> Drop for Claim<'_, T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    fn drop(&mut self) {
        if let Some(step) = self.awaited.give_up() {
            self.node.unclaimed(step);
        }
    }
}

/// What the thread looks after.
struct State<T: 'static, C: Clock + 'static> {
    watch: Option<Watch<T, C>>,
    beats: Vec<Beat>,
    next_look: Option<Tick>,
    /// A hint came while a caller had the local lease, who may hand it over to be watched.
    hinted_early: bool,
    subscription: Option<Subscription>,
}

fn run<T, C>(node: &Arc<Node<T, C>>)
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    let signals = &node.worker.signals;
    let _ended = Ended { node };
    let hint = {
        let signals = Arc::clone(signals);
        Box::new(move || {
            // Release: pairs with the Acquire in `run`: what the hint is about has happened.
            signals.hinted.store(true, Ordering::Release);
            signals.wake();
        })
    };
    let subscription = node.access.store.subscribe(&node.name, hint);
    // What happened before the store began to give hints.
    let mut unhinted = subscription.is_some();
    let mut state =
        State { watch: None, beats: Vec::new(), next_look: None, hinted_early: false, subscription };
    loop {
        loop {
            let job = node.worker.jobs().pop_front();
            match job {
                Some(job) => state.take(node, job),
                None => break,
            }
        }
        // Acquire: pairs with the Release in the hint.
        let hinted = signals.hinted.swap(false, Ordering::Acquire);
        if hinted {
            node.access.counters.hints.count();
        }
        // Acquire: pairs with the Release in `close`.
        if signals.closed.load(Ordering::Acquire) {
            node.give_back();
            return;
        }
        let next = state.tick(node, hinted || std::mem::take(&mut unhinted));
        // Last of all: what has come meanwhile has left its token, which may have been consumed since.
        if !node.worker.jobs().is_empty()
            || signals.hinted.load(Ordering::Acquire)
            || signals.closed.load(Ordering::Acquire)
        {
            continue;
        }
        let now = node.clock.now();
        match next {
            None => std::thread::park(),
            Some(next) if next <= now => {}
            Some(next) => node.clock.park_until(next, now),
        }
    }
}

impl<T, C> State<T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    fn take(&mut self, node: &Arc<Node<T, C>>, job: Job<T, C>) {
        match job {
            Job::Watch(mut watch) => {
                if std::mem::take(&mut self.hinted_early) {
                    watch.next = Tick::from_nanos(0);
                }
                self.watch = Some(watch);
            }
            Job::Beat(beat) => self.beats.push(beat),
            Job::Elected(lease, caller, reply) => {
                if let Some(step) = reply.send(node.elected(lease, caller)) {
                    node.unclaimed(step);
                }
            }
            Job::Deliver(delivery, late, reply) => {
                if let Some(delivered) = reply.send(node.deliver_build(&delivery)) {
                    node.answered_late(&late, delivered);
                }
            }
            Job::End(token, pause, reply) => {
                node.end_build(token, pause);
                let _ = reply.send(());
            }
            #[cfg(feature = "async")]
            Job::Run(run) => run(node),
            Job::Kick => {
                // While another node builds there is nothing to be done for those who wait but to wait.
                if let Some(watch) = &mut self.watch
                    && !node.can_serve()
                    && (watch.is_idle || node.open_until(Kind::Change, node.clock.now()).is_some())
                {
                    watch.next = Tick::from_nanos(0);
                }
            }
            Job::Look => {
                if let Some(watch) = &mut self.watch {
                    watch.next = Tick::from_nanos(0);
                }
            }
        }
    }

    /// Does what is due, and returns when the next thing is.
    fn tick(&mut self, node: &Arc<Node<T, C>>, hinted: bool) -> Option<Tick> {
        let now = node.clock.now();
        let owed = node.tidy_owed(now);
        // Relaxed: see `Running::stop_beat`.
        self.beats.retain(|beat| !beat.done.load(Ordering::Relaxed) && now < beat.stop);
        for beat in self.beats.iter_mut().filter(|beat| beat.next <= now) {
            let lease = node.policy.lease;
            let renew = |store: &dyn RefreshStore, name: &str| store.renew(name, &beat.token, lease);
            if node.ask(Operation::Renew, renew) == Some(false) {
                beat.lost.store(true, Ordering::Relaxed);
                beat.done.store(true, Ordering::Relaxed);
            }
            beat.next = now.saturating_add(lease / 3);
        }
        if let Some(watch) = self.watch.take() {
            self.watch = if hinted || watch.next <= now { node.watch_on(watch) } else { Some(watch) };
        }
        self.look(node, hinted, now);
        let stash = node.tidy_stash(now);
        let orphans = node.tidy_orphans(now);
        let bound = node.known().hard_end;
        if self.watch.is_none() && bound.is_some_and(|end| end <= now) && node.can_serve() {
            drop(node.local.clear());
        }
        let beats = self.beats.iter().filter(|beat| !beat.done.load(Ordering::Relaxed)).map(|beat| beat.next);
        let watch = self.watch.as_ref().map(|watch| watch.next);
        beats
            .chain(watch)
            .chain(self.next_look)
            .chain(stash)
            .chain(orphans)
            .chain(owed)
            .chain(bound.filter(|end| now < *end))
            .min()
    }

    /// Looks for what other nodes have done to a value that is fresh here.
    fn look(&mut self, node: &Arc<Node<T, C>>, hinted: bool, now: Tick) {
        if self.watch.is_some() {
            return;
        }
        let due = self.next_look.is_some_and(|next| next <= now);
        if hinted || due {
            node.look();
        }
        self.hinted_early = (self.hinted_early || hinted) && node.local.is_refreshing();
        if due || self.next_look.is_none() {
            self.next_look = node.policy.poll.map(|interval| {
                // What is certain to be hinted at need not be asked for so often.
                let hinted = self.subscription.as_ref().is_some_and(Subscription::is_healthy);
                let rare = interval.saturating_mul(12).min(SELDOM).max(interval);
                now.saturating_add(draw::around(if hinted { rare } else { interval }, 10))
            });
        }
    }
}

/// However the thread ends, nobody waits for it, and the next one who needs it starts another.
struct Ended<'a, T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    node: &'a Arc<Node<T, C>>,
}

impl<T, C> Drop for Ended<'_, T, C>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
{
    fn drop(&mut self) {
        let worker = &self.node.worker;
        *worker.signals.lock() = None;
        let jobs = std::mem::take(&mut *worker.jobs());
        drop(jobs);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{FleetCell, FleetPolicy, MemoryStore, Plain};

    /// As if no thread could be started, callers looked again and again, and neither built nor were served.
    #[test]
    fn without_a_thread_callers_hung() {
        let store = Arc::new(MemoryStore::new());
        let policy = FleetPolicy::ttl(Duration::from_secs(3600));
        let node = || FleetCell::new("name", Arc::clone(&store), Plain, policy);
        let (alone, other) = (node(), node());
        *alone.node.worker.node.lock().unwrap() = Weak::new();
        let (done, is_done) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut values = vec![alone.get_or_refresh(|| String::from("first"))];
            alone.invalidate().unwrap();
            values.push(alone.get_or_refresh(|| String::from("second")));
            other.get_or_refresh(|| panic!("it is in the store"));
            alone.invalidate().unwrap();
            other.invalidate().unwrap();
            other.get_or_refresh(|| {
                values.push(alone.get_or_refresh(|| panic!("another node builds")));
                String::from("third")
            });
            values.push(alone.get_or_refresh(|| panic!("it is in the store")));
            done.send(values).unwrap();
        });
        let values = is_done.recv_timeout(Duration::from_secs(60)).expect("nobody hangs");
        let values: Vec<&str> = values.iter().map(|value| value.as_str()).collect();
        assert_eq!(values, ["first", "second", "second", "third"]);
    }
}
