//! The parts that models share, and the loop that runs them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dogpile_under_test::{Clock, DogpileCell, Lease, Lookup, Policy, Tick};

/// A program of at most three threads, and perhaps one that the cell starts. It keeps its promise in each of its
/// executions.
#[derive(Clone, Copy)]
pub(crate) struct Model {
    /// Begins with the promise.
    pub(crate) name: &'static str,
    /// The most switches of an execution away from a thread that could go on. `None`: any number.
    pub(crate) preemptions: Option<usize>,
    pub(crate) body: fn(),
    /// What some execution has to pass to [`saw`]; otherwise the model has shown nothing.
    pub(crate) sees: &'static [&'static str],
}

thread_local! {
    // Of the operating system's: all threads of a model are coroutines of one.
    static SEEN: RefCell<BTreeMap<&'static str, usize>> = const { RefCell::new(BTreeMap::new()) };
    static HAS_SPAWNED: Cell<bool> = const { Cell::new(false) };
    static BOUND: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The most preemptions of an execution of the model that runs. `None`: any number.
pub(crate) fn bound() -> Option<usize> {
    BOUND.get()
}

/// Notes that an execution has come to this.
pub(crate) fn saw(what: &'static str) {
    SEEN.with_borrow_mut(|seen| *seen.entry(what).or_default() += 1);
}

impl Model {
    /// Explores all executions within the bound, on this thread. Returns their number.
    ///
    /// `preemptions`: a larger bound than the model's own.
    pub(crate) fn check(&self, preemptions: Option<usize>) -> usize {
        let begun = Instant::now();
        let executions = Arc::new(AtomicUsize::new(0));
        let bound = self.preemptions.map(|own| own.max(preemptions.unwrap_or(0)));
        BOUND.set(bound);
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = bound;
        builder.max_threads = 4;
        // Of steps in one execution. The number of executions has no limit: none is left out.
        builder.max_branches = 20_000;
        (builder.max_permutations, builder.max_duration) = (None, None);
        builder.check({
            let (executions, body) = (Arc::clone(&executions), self.body);
            move || {
                executions.fetch_add(1, Ordering::Relaxed);
                body();
            }
        });
        assert!(HAS_SPAWNED.get(), "a model without threads shows nothing");
        let seen = SEEN.take();
        for what in self.sees {
            assert!(seen.contains_key(what), "no execution has come to: {what}; but to {seen:?}");
        }
        let executions = executions.load(Ordering::Relaxed);
        let bound = bound.map_or("any".into(), |bound| bound.to_string());
        let seconds = begun.elapsed().as_secs_f64();
        println!("{}: {bound} preemptions, {executions} executions, {seconds:.1} s, {seen:?}", self.name);
        executions
    }
}

/// A thread with a handle of its own.
pub(crate) fn fork<H: Clone + 'static, R: 'static>(
    handle: &H,
    work: impl FnOnce(H) -> R + 'static,
) -> loom::thread::JoinHandle<R> {
    let handle = handle.clone();
    has_spawned();
    loom::thread::spawn(move || work(handle))
}

/// The crate has started a thread.
pub(crate) fn has_spawned() {
    HAS_SPAWNED.set(true);
}

/// A clock that stands still, and costs a model no step.
#[derive(Clone, Copy)]
pub(crate) struct Noon;

impl Clock for Noon {
    fn now(&self) -> Tick {
        Tick::from_nanos(1_000_000)
    }
}

/// A clock that is moved before there are threads, and costs a model no step.
#[derive(Clone, Default)]
pub(crate) struct Still(Arc<AtomicU64>);

impl Still {
    pub(crate) fn advance(&self, by: Duration) {
        // Relaxed: of one thread.
        self.0.fetch_add(by.as_nanos().try_into().expect("a short time"), Ordering::Relaxed);
    }
}

impl Clock for Still {
    fn now(&self) -> Tick {
        Tick::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

pub(crate) type NoonCell<T> = DogpileCell<T, Noon>;

/// Values never expire, and no failure begins a pause, which would never end.
pub(crate) fn policy() -> Policy {
    Policy::never_expires().retry_backoff(Duration::ZERO, Duration::ZERO)
}

/// An empty cell whose values never expire.
pub(crate) fn cell<T>() -> Arc<NoonCell<T>> {
    Arc::new(DogpileCell::with_clock(policy(), Noon))
}

/// The same with a value that has been declared stale.
pub(crate) fn stale_cell<T>(value: T) -> Arc<NoonCell<T>> {
    let cell = cell();
    cell.set(value);
    cell.invalidate();
    cell
}

/// The lease of a cell that has something to build.
pub(crate) fn elect<T, C: Clock>(cell: &Arc<DogpileCell<T, C>>) -> Lease<'static, T, C> {
    match cell.lookup_owned() {
        Lookup::Elected(lease) => lease,
        other => panic!("{other:?}"),
    }
}
