//! Rebuilds a value ahead of expiry, so that no caller builds.
//!
//! # States
//!
//! A refresher plans, and then *sleeps* until the tick that the plan names or until something changes (a publication here, an
//! invalidation, the end of the cell), or *asks* the store for the right to build ahead of expiry, or, where there is no fresh
//! value, does what a caller does. Each of these leads to a new plan.
//!
//! ```text
//!   fresh, not due ----> sleep until `ahead` before the end
//!   fresh, due --------> ask the store: build | taken over | sleep (another node builds, a pause, the store is down)
//!   stale or nothing --> as a caller: build | taken over | sleep (as above, or a caller of this node builds)
//! ```
//!
//! Nothing blocks it but its own builds, and the store for as long as its timeout. No lease is held between two plans. While this node builds, the local lease is held by the refresher, and readers are served
//! the value, fresh or stale. It is not the core's `Refresher`: the local cell's value is due when the store says so, and a
//! build that another node runs is no build here.

use std::any::Any;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use dogpile::{BoxError, Clock, Freshness, Hook, Lookup, Refreshed, SharedError, Tick};

use super::FleetCell;
use super::build::BuildContext;
use super::node::{Ahead, Caller, Node, Step, Ticket};
use super::worker::Wake;
use crate::draw;
use crate::policy::doubled;

/// The pause after a build that failed, which doubles, where the policy has none.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// How often what has gone out of date is looked at while another node deals with it, if the policy does not say it.
const LOOK: Duration = Duration::from_secs(1);

/// Rebuilds a cell's value before it expires, once in the whole fleet, so that callers neither build nor see a stale value.
///
/// Each node may have one. When the value has `ahead` left to live, or up to a quarter of that less (so that not all nodes come
/// at once), the refreshers ask the store, which lets one of them build. The others take the new value over, as usual: at a
/// hint, or when they poll. If the builder dies, another one is elected when its lease is over.
///
/// That holds as long as builds succeed and take less than three quarters of `ahead`. During a slower build, the old value is
/// served stale.
///
/// If there is no value or a stale one, the refresher does what a caller does: at the start, after an
/// [`invalidate`](FleetCell::invalidate), and while the store is down.
///
/// # Failures
///
/// A build that fails or panics leaves the value as it is. [`last_error`](FleetRefresher::last_error) shows the error. The next
/// attempt, of whatever node, starts after the policy's [`retry_backoff`](crate::FleetPolicy::retry_backoff), and on this node
/// after 100 ms at the earliest, twice as long after each failure in a row, up to 10 s.
///
/// # Dropping
///
/// Dropping a refresher stops it and joins its thread. If a build runs, the drop waits for it, and its value is published. A
/// drop inside the refresher's own build does not wait. A refresher does not keep the cell alive, and ends with it.
///
/// In a process that was forked there is no refresher: start another one.
///
/// # Examples
///
/// ```
/// use dogpile_fleet::{BuildContext, FleetCell, FleetPolicy, FleetRefresher, MemoryStore, Plain, Refreshed};
/// use std::io;
/// use std::time::Duration;
///
/// let policy = FleetPolicy::ttl(Duration::from_secs(60));
/// let page = FleetCell::new("page", MemoryStore::new(), Plain, policy);
///
/// let build = |_: &BuildContext<'_, String>| Ok::<_, io::Error>(Refreshed::from(String::from("<html>")));
/// let refresher = FleetRefresher::spawn(&page, Duration::from_secs(10), build)?;
/// assert!(refresher.wait_ready(Duration::from_secs(10)));
/// assert_eq!(*page.get().unwrap(), "<html>");
/// # Ok::<(), io::Error>(())
/// ```
#[must_use = "dropping it stops it at once; keep it in a variable with a name (`let _refresher`, not `let _`)"]
pub struct FleetRefresher {
    status: Arc<Status>,
    /// And the process that it runs in: a process that was forked has no such thread.
    thread: Option<(u32, JoinHandle<()>)>,
    _hook: Hook,
}

/// What the handle and the thread share.
#[derive(Default)]
struct Status {
    wake: Arc<Wake>,
    progress: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Default)]
struct Progress {
    stopped: bool,
    /// There has been a fresh value.
    ready: bool,
    ended: bool,
    last_error: Option<SharedError>,
}

impl Status {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FleetRefresher {
    /// Starts a refresher on a thread of its own, `dogpile-refresher`, which also runs the builds.
    ///
    /// # Errors
    ///
    /// * [`io::ErrorKind::InvalidInput`] if `ahead` is not shorter than the policy's ttl, since every value would be due as soon
    ///   as it is published.
    /// * The system's error if the thread cannot be started.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{BuildContext, FleetCell, FleetPolicy, FleetRefresher, MemoryStore, Plain, Refreshed};
    /// use std::io;
    /// use std::time::Duration;
    ///
    /// fn build(_: &BuildContext<'_, String>) -> io::Result<Refreshed<String>> {
    ///     Ok(String::from("<html>").into())
    /// }
    ///
    /// let policy = FleetPolicy::ttl(Duration::from_secs(60));
    /// let page = FleetCell::new("page", MemoryStore::new(), Plain, policy);
    /// let too_long = FleetRefresher::spawn(&page, Duration::from_secs(60), build);
    /// assert_eq!(too_long.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    /// ```
    pub fn spawn<T, C, E, F>(cell: &FleetCell<T, C>, ahead: Duration, build: F) -> io::Result<Self>
    where
        T: Send + Sync + 'static,
        C: Clock + Clone + 'static,
        E: Into<BoxError>,
        F: FnMut(&BuildContext<'_, T>) -> Result<Refreshed<T>, E> + Send + 'static,
    {
        if ahead >= cell.node.policy.ttl {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "FleetRefresher: `ahead` must be shorter than the policy's ttl, or every value would be due as soon as it is \
                 published",
            ));
        }
        let status = Arc::new(Status::default());
        let wake = Arc::clone(&status.wake);
        let hook = cell.local.on_change(move |_| wake.notify());
        cell.node.worker.signals.wakes_at_end(&status.wake);
        let refreshing = Refreshing {
            node: Arc::downgrade(&cell.node),
            clock: cell.node.clock.clone(),
            ahead,
            build,
            status: Arc::clone(&status),
            spread: (0, Duration::ZERO),
            failures: 0,
            not_before: Tick::from_nanos(0),
        };
        let thread = std::thread::Builder::new().name("dogpile-refresher".to_owned());
        let thread = thread.spawn(move || refreshing.run())?;
        Ok(Self { status, thread: Some((std::process::id(), thread)), _hook: hook })
    }

    /// Waits until the cell has had a fresh value since the refresher was started, at most `time`. Returns whether it has.
    #[must_use]
    pub fn wait_ready(&self, time: Duration) -> bool {
        let waits = |progress: &mut Progress| !progress.ready && !progress.ended;
        let time = time.min(crate::LONGEST);
        let progress = self.status.changed.wait_timeout_while(self.status.lock(), time, waits);
        progress.unwrap_or_else(PoisonError::into_inner).0.ready
    }

    /// Why the latest build of this refresher failed, until one succeeds.
    ///
    /// # Examples
    ///
    /// ```
    /// use dogpile_fleet::{BuildContext, FleetCell, FleetPolicy, FleetRefresher, MemoryStore, Plain, Refreshed};
    /// use std::io;
    /// use std::time::Duration;
    ///
    /// let policy = FleetPolicy::ttl(Duration::from_secs(60));
    /// let page = FleetCell::new("page", MemoryStore::new(), Plain, policy);
    ///
    /// let build = |_: &BuildContext<'_, String>| Ok::<_, io::Error>(Refreshed::from(String::from("<html>")));
    /// let refresher = FleetRefresher::spawn(&page, Duration::from_secs(10), build)?;
    /// assert!(refresher.wait_ready(Duration::from_secs(10)));
    /// assert!(refresher.last_error().is_none());
    /// # Ok::<(), io::Error>(())
    /// ```
    #[must_use]
    pub fn last_error(&self) -> Option<SharedError> {
        self.status.lock().last_error.clone()
    }
}

impl Drop for FleetRefresher {
    fn drop(&mut self) {
        self.status.lock().stopped = true;
        self.status.wake.notify();
        if let Some((process, thread)) = self.thread.take()
            && process == std::process::id()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for FleetRefresher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetRefresher").finish_non_exhaustive()
    }
}

/// What the thread has.
struct Refreshing<T: 'static, C: Clock + 'static, F> {
    node: Weak<Node<T, C>>,
    clock: C,
    ahead: Duration,
    build: F,
    status: Arc<Status>,
    /// For which generation it was drawn, and how much later than `ahead` before its end that one is due.
    spread: (u64, Duration),
    /// In a row.
    failures: u32,
    /// Nothing is done before this tick.
    not_before: Tick,
}

/// What is to be done now.
enum Plan {
    Sleep(Option<Tick>),
    Ask,
    Look,
}

impl<T, C, E, F> Refreshing<T, C, F>
where
    T: Send + Sync + 'static,
    C: Clock + Clone + 'static,
    E: Into<BoxError>,
    F: FnMut(&BuildContext<'_, T>) -> Result<Refreshed<T>, E>,
{
    fn run(mut self) {
        let status = Arc::clone(&self.status);
        let _ended = Ended(&status);
        status.wake.wakes_this_thread();
        loop {
            let Some(node) = self.node.upgrade() else { return };
            if status.lock().stopped || node.worker.signals.is_closed() {
                return;
            }
            let until = match self.plan(&node) {
                Plan::Sleep(until) => until,
                plan => {
                    self.act(&node, &plan);
                    continue;
                }
            };
            drop(node);
            status.wake.sleep(&self.clock, until);
        }
    }

    fn plan(&mut self, node: &Node<T, C>) -> Plan {
        // Before the age is looked at: if this thread stands still in between, it wakes up too early, and not too late.
        let now = self.clock.now();
        let snapshot = node.local.snapshot();
        let fresh = snapshot.filter(|snapshot| snapshot.freshness == Freshness::Fresh);
        let (due, plan) = match fresh {
            None => (now, Plan::Look),
            Some(fresh) => {
                self.is_ready();
                if self.spread.0 != fresh.generation {
                    self.spread = (fresh.generation, self.ahead.mul_f64(draw::share() / 4.0));
                }
                // Never before half of its time has passed: a value that was taken over late is not due at once.
                let whole = fresh.age.saturating_add(fresh.fresh_for);
                let due = whole.saturating_sub(self.ahead).max(whole / 2).saturating_add(self.spread.1);
                (now.saturating_add(due.saturating_sub(fresh.age).min(fresh.fresh_for)), Plan::Ask)
            }
        };
        let due = due.max(self.not_before);
        if due <= now { plan } else { Plan::Sleep(Some(due)) }
    }

    fn act(&mut self, node: &Arc<Node<T, C>>, plan: &Plan) {
        // Where nothing says when to look again.
        let seldom = node.policy.poll.unwrap_or(LOOK).min(LOOK);
        let outcome = catch_unwind(AssertUnwindSafe(|| match plan {
            Plan::Ask => match node.elected_ahead(self.ahead) {
                Ahead::TakenOver => Ok(Duration::ZERO),
                Ahead::Later(pause) => Ok(pause),
                Ahead::Build(ticket) => self.build(node, ticket),
            },
            _ => match node.local.lookup_owned() {
                Lookup::Fresh(_) => Ok(Duration::ZERO),
                Lookup::Elected(lease) => match node.elected(lease, Caller::Tries) {
                    Step::Again => {
                        Ok(if node.local.freshness() == Freshness::Fresh { Duration::ZERO } else { seldom })
                    }
                    Step::Backoff(backoff) => Ok(backoff.left),
                    Step::Build(ticket) => self.build(node, ticket),
                },
                // Somebody deals with it. A publication ends the pause.
                _ => {
                    node.worker.kick(node);
                    Ok(seldom)
                }
            },
        }));
        let outcome = outcome.unwrap_or_else(|panic| Err(panicked(&*panic)));
        let now = self.clock.now();
        self.not_before = now.saturating_add(match outcome {
            Ok(pause) => {
                if pause.is_zero() {
                    self.failures = 0;
                    self.status.lock().last_error = None;
                }
                pause
            }
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                self.status.lock().last_error = Some(error);
                node.backoff_left(now).max(doubled(PAUSES.0, PAUSES.1, self.failures))
            }
        });
    }

    fn build(&mut self, node: &Arc<Node<T, C>>, ticket: Ticket<T, C>) -> Result<Duration, SharedError> {
        node.build(ticket, &mut self.build).map(|_| Duration::ZERO)
    }

    fn is_ready(&self) {
        let mut progress = self.status.lock();
        if !progress.ready {
            progress.ready = true;
            drop(progress);
            self.status.changed.notify_all();
        }
    }
}

fn panicked(panic: &(dyn Any + Send)) -> SharedError {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    SharedError::new(format!("the build panicked: {text}"))
}

/// However the thread ends, nobody waits for it.
struct Ended<'a>(&'a Status);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.changed.notify_all();
    }
}
