//! Hints: one connection for all names of a store, whatever the number of cells.
//!
//! The hub is a task. It starts with the first subscription and ends with the last one. In between:
//!
//! ```text
//! connect --> listen for each name --> healthy: messages, pings, changes of the subscriptions
//!    ^                                    |
//!    +---- pause, which doubles ----------+ anything fails, or a ping is not answered
//! ```
//!
//! The pause after a failure starts at a quarter of a second and doubles up to 30 seconds, a quarter more or less. It
//! starts anew when a connection was healthy for longer than the pause. After each connect every listener is hinted, since
//! messages may have been missed.
//!
//! A hint reaches the cell after a random part of the *spread*, so that a thousand nodes do not ask the store at the same
//! instant. Hints for the same name within that time are one.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::draw;
use crate::policy::doubled;
use crate::store::{Hint, Silence, StoreError, Subscription};

/// How the hub connects.
pub(crate) trait Source: Send + Sync + 'static {
    type Listener: Listener;
    fn connect(&self) -> impl Future<Output = Result<Self::Listener, StoreError>> + Send;
}

/// A connection that hints arrive on.
pub(crate) trait Listener: Send {
    /// Begins to listen for a name.
    fn listen(&mut self, name: &str) -> impl Future<Output = Result<(), StoreError>> + Send;
    fn unlisten(&mut self, name: &str) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// The name of the next hint. Loses nothing if it is dropped.
    fn next(&mut self) -> impl Future<Output = Result<String, StoreError>> + Send;
    /// Comes back when the server has answered.
    fn ping(&mut self) -> impl Future<Output = Result<(), StoreError>> + Send;
}

pub(crate) struct Hub {
    state: Mutex<State>,
    /// The subscriptions have changed, or the connection is to be made anew.
    changed: Notify,
    /// The listener's connection is to be made anew: the other one has found that its server is not the right one.
    stale: AtomicBool,
    healthy: Arc<AtomicBool>,
    /// How many listen.
    members: Arc<AtomicU32>,
    silence: Arc<Silence>,
    /// How often it has tried to connect.
    attempts: AtomicU64,
}

#[derive(Default)]
struct State {
    listeners: HashMap<String, Vec<(u64, Weak<Hint>)>>,
    last: u64,
    runs: bool,
}

/// How the hub behaves.
#[derive(Clone, Copy)]
pub(crate) struct Settings {
    /// Of each step.
    pub(crate) timeout: Duration,
    pub(crate) spread: Duration,
}

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long the connection may be silent before the server is asked whether it is there.
const SILENCE: Duration = Duration::from_secs(5);

impl Hub {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            changed: Notify::new(),
            stale: AtomicBool::new(false),
            healthy: Arc::default(),
            members: Arc::default(),
            silence: Arc::default(),
            attempts: AtomicU64::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often the hub has tried to connect.
    pub(crate) fn attempts(&self) -> u64 {
        // Relaxed: a statistic orders nothing.
        self.attempts.load(Ordering::Relaxed)
    }

    /// The connection is to be made anew.
    pub(crate) fn reconnect(&self) {
        // Release: pairs with the Acquire in `serve`.
        self.stale.store(true, Ordering::Release);
        self.changed.notify_one();
    }

    /// The server does not pass on all hints: for `time` the cells poll as without them. Not to be called under a lock: if that was not
    /// known, all of them look at once.
    pub(crate) fn is_silent(&self, time: Duration, reason: impl FnOnce() -> StoreError) {
        if self.silence.begins(time, reason) {
            self.names().iter().for_each(|name| self.give(name));
        }
    }

    /// Why hints do not get through, if that is known.
    pub(crate) fn refusal(&self) -> Option<Arc<StoreError>> {
        self.silence.reason()
    }

    pub(crate) fn subscribe<S: Source>(
        self: &Arc<Self>,
        source: impl FnOnce() -> S,
        settings: Settings,
        name: &str,
        hint: Hint,
    ) -> Option<Subscription> {
        let hint = Arc::new(hint);
        let mut state = self.lock();
        state.last += 1;
        let number = state.last;
        state.listeners.entry(name.to_owned()).or_default().push((number, Arc::downgrade(&hint)));
        let starts = !std::mem::replace(&mut state.runs, true);
        drop(state);
        if starts {
            match crate::io::runtime() {
                Ok(runtime) => drop(runtime.spawn(Arc::clone(self).run(source(), settings))),
                Err(_) => {
                    // Without a thread there are no hints, and the cell polls.
                    self.lock().runs = false;
                    return None;
                }
            }
        } else {
            self.changed.notify_one();
        }
        // Relaxed: a number that only makes polls more or less frequent.
        self.members.fetch_add(1, Ordering::Relaxed);
        let healthy = Arc::clone(&self.healthy);
        let membership = Membership { hub: Arc::clone(self), name: name.to_owned(), number, _hint: hint };
        Some(
            Subscription::with_health(membership, healthy)
                .one_of(Arc::clone(&self.members), Arc::clone(&self.silence)),
        )
    }

    async fn run<S: Source>(self: Arc<Self>, source: S, settings: Settings) {
        let mut failures = 0;
        loop {
            let start = Instant::now();
            // Relaxed: a statistic.
            self.attempts.fetch_add(1, Ordering::Relaxed);
            // What goes wrong here is no harm: the cells poll.
            let ended = self.serve(&source, settings, failures > 0).await;
            // Relaxed: it only makes polls more or less frequent.
            self.healthy.store(false, Ordering::Relaxed);
            if ended.is_ok() && self.has_ended() {
                return;
            }
            let pause = doubled(FIRST_PAUSE, LONGEST_PAUSE, failures);
            failures = if start.elapsed() > pause + settings.timeout { 1 } else { failures + 1 };
            let pause = draw::around(doubled(FIRST_PAUSE, LONGEST_PAUSE, failures), 25);
            crate::trace::hints_interrupted(pause, ended.as_ref().err());
            sleep(pause).await;
            if self.has_ended() {
                return;
            }
        }
    }

    /// Whether nobody listens any more; then the task ends, and the next subscription starts another.
    fn has_ended(&self) -> bool {
        let mut state = self.lock();
        state.runs = !state.listeners.is_empty();
        !state.runs
    }

    fn names(&self) -> HashSet<String> {
        self.lock().listeners.keys().cloned().collect()
    }

    /// One connection, from beginning to end. `Ok` if nobody listens any more.
    async fn serve<S: Source>(
        &self,
        source: &S,
        settings: Settings,
        is_again: bool,
    ) -> Result<(), StoreError> {
        let bound = settings.timeout;
        let late = |_| StoreError::slow(bound);
        // Acquire: pairs with the Release in `reconnect`.
        self.stale.swap(false, Ordering::Acquire);
        let mut connection = timeout(bound, source.connect()).await.map_err(late)??;
        let mut known = HashSet::new();
        let mut due: HashMap<String, Instant> = HashMap::new();
        loop {
            let names = self.names();
            if names.is_empty() {
                return Ok(());
            }
            for name in names.difference(&known) {
                timeout(bound, connection.listen(name)).await.map_err(late)?.inspect_err(|error| {
                    let reason = || {
                        StoreError::new(format!("hints cannot be listened for, so the node polls: {error}"))
                    };
                    self.is_silent(2 * LONGEST_PAUSE, reason);
                })?;
                // What happened before. A server that comes back is not asked by all nodes at the same instant.
                let spread = if is_again { settings.spread } else { Duration::ZERO };
                due.insert(name.clone(), Instant::now() + spread.mul_f64(draw::share()));
            }
            for name in known.difference(&names) {
                timeout(bound, connection.unlisten(name)).await.map_err(late)??;
            }
            known = names;
            // Relaxed: as above.
            self.healthy.store(true, Ordering::Relaxed);
            loop {
                let now = Instant::now();
                due.retain(|name, at| {
                    let is_due = *at <= now;
                    if is_due {
                        self.give(name);
                    }
                    !is_due
                });
                let next = due.values().min().copied().unwrap_or(now + Duration::from_secs(3600));
                tokio::select! {
                    name = connection.next() => {
                        let at = Instant::now() + settings.spread.mul_f64(draw::share());
                        due.entry(name?).or_insert(at);
                    }
                    () = sleep_until(next) => {}
                    () = self.changed.notified() => {
                        // Acquire: as above.
                        if self.stale.swap(false, Ordering::Acquire) {
                            return Err(StoreError::new("the server is not the one that takes writes any more"));
                        }
                        break;
                    }
                    () = sleep(SILENCE) => timeout(bound, connection.ping()).await.map_err(late)??,
                }
            }
        }
    }

    fn give(&self, name: &str) {
        let hints: Vec<Arc<Hint>> = match self.lock().listeners.get(name) {
            Some(listeners) => listeners.iter().filter_map(|(_, hint)| hint.upgrade()).collect(),
            None => return,
        };
        for hint in hints {
            hint();
        }
    }
}

/// Ends a subscription when it is dropped.
struct Membership {
    hub: Arc<Hub>,
    name: String,
    number: u64,
    _hint: Arc<Hint>,
}

impl Drop for Membership {
    fn drop(&mut self) {
        // Relaxed: as above.
        self.hub.members.fetch_sub(1, Ordering::Relaxed);
        let mut state = self.hub.lock();
        if let Some(listeners) = state.listeners.get_mut(&self.name) {
            listeners.retain(|(number, _)| *number != self.number);
            if listeners.is_empty() {
                state.listeners.remove(&self.name);
            }
        }
        drop(state);
        self.hub.changed.notify_one();
    }
}
