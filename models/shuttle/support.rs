//! The parts that scenarios share, and the loop that runs them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dogpile_under_test::Policy;

use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler};

/// The events of all executions of a scenario.
static SEEN: Mutex<BTreeMap<&'static str, usize>> = Mutex::new(BTreeMap::new());

pub(crate) struct Scenario {
    /// Begins with the promises.
    pub(crate) name: &'static str,
    /// For each of the two schedulers.
    pub(crate) executions: usize,
    pub(crate) body: fn(),
    /// What some execution has to pass to [`saw`].
    pub(crate) sees: &'static [&'static str],
}

/// Notes that an execution has come to this.
pub(crate) fn saw(what: &'static str) {
    *SEEN.lock().unwrap().entry(what).or_default() += 1;
}

/// A number below `end`, by the seed.
pub(crate) fn below(end: u64) -> u64 {
    thread_rng().gen_range(0..end)
}

impl Scenario {
    /// Runs it from `seed`, `times` as often as it says. Returns how many executions there were.
    pub(crate) fn check(&self, seed: u64, times: usize) -> usize {
        println!("{}", self.name);
        let begun = Instant::now();
        let executions = self.executions * times;
        let mut config = shuttle::Config::new();
        config.stack_size = 0x4_0000;
        config.silence_warnings = true;
        let random = RandomScheduler::new_from_seed(seed, executions);
        let mut done = shuttle::Runner::new(random, config.clone()).run(self.body);
        // Few changes of priority: finds what needs a long stop at an unlucky moment.
        let priorities = PctScheduler::new_from_seed(seed, 4, executions);
        done += shuttle::Runner::new(priorities, config).run(self.body);
        let reached = std::mem::take(&mut *SEEN.lock().unwrap());
        println!("    {done} executions, {:.1} s, {reached:?}", begun.elapsed().as_secs_f64());
        for what in self.sees {
            assert!(reached.contains_key(what), "no execution has come to: {what}");
        }
        done
    }
}

/// A thread with a handle of its own.
pub(crate) fn fork<H: Clone + Send + 'static>(
    handle: &H,
    work: impl FnOnce(H) + Send + 'static,
) -> shuttle::thread::JoinHandle<()> {
    let handle = handle.clone();
    shuttle::thread::spawn(move || work(handle))
}

pub(crate) fn join_all(threads: impl IntoIterator<Item = shuttle::thread::JoinHandle<()>>) {
    for thread in threads {
        thread.join().expect("shuttle stops at the first panic");
    }
}

/// Wakes the thread that polls.
struct Bell(shuttle::thread::Thread);

impl std::task::Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Polls a future until it is ready, or until it has been pending `patience` times: then it is dropped.
pub(crate) fn block_on<F: Future>(future: F, patience: Option<u64>) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    let mut pending = 0;
    loop {
        // Another one each time, so that the former has to be exchanged.
        let waker = std::task::Waker::from(Arc::new(Bell(shuttle::thread::current())));
        if let std::task::Poll::Ready(output) =
            future.as_mut().poll(&mut std::task::Context::from_waker(&waker))
        {
            return Some(output);
        }
        if patience == Some(pending) {
            return None;
        }
        pending += 1;
        shuttle::thread::park();
    }
}

/// The error of builds that fail.
#[derive(Debug)]
pub(crate) struct Failed;

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the build fails")
    }
}

impl std::error::Error for Failed {}

/// No failure begins a pause, which would outlast the scenario.
pub(crate) fn without_pauses(policy: Policy) -> Policy {
    policy.retry_backoff(Duration::ZERO, Duration::ZERO)
}

/// The builds that run. Two at a time are a fault, unless a `set`, `clear`, `revoke` or `reset` has displaced one of
/// them (G1).
#[derive(Default)]
pub(crate) struct Builders {
    /// By number: how many displacements had ended when the call began that runs the build.
    running: Mutex<BTreeMap<u64, u64>>,
    numbers: AtomicU64,
    begun: AtomicU64,
    ended: AtomicU64,
}

/// A build, as long as it lives.
pub(crate) struct Turn {
    builders: Arc<Builders>,
    number: u64,
}

impl Builders {
    /// How many displacements have ended: to be asked before the call that may be elected.
    pub(crate) fn displacements(&self) -> u64 {
        self.ended.load(SeqCst)
    }

    /// Calls `displace`, which displaces builds that run.
    pub(crate) fn displacing<R>(&self, displace: impl FnOnce() -> R) -> R {
        self.begun.fetch_add(1, SeqCst);
        let result = displace();
        self.ended.fetch_add(1, SeqCst);
        result
    }

    /// `before`: the number of [displacements](Builders::displacements) before the call.
    pub(crate) fn enter(self: &Arc<Self>, before: u64) -> Turn {
        let mut running = self.running.lock().unwrap();
        let begun = self.begun.load(SeqCst);
        for others in running.values() {
            assert!(begun > before.min(*others), "two leases at a time (G1)");
        }
        let number = self.numbers.fetch_add(1, SeqCst);
        running.insert(number, before);
        Turn { builders: Arc::clone(self), number }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Ok(mut running) = self.builders.running.lock() {
            running.remove(&self.number);
        }
    }
}
