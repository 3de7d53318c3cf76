//! What scenarios are made of, and what runs them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Instant;

use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler};

/// What has happened, in all executions of a scenario.
static SEEN: Mutex<BTreeMap<&'static str, usize>> = Mutex::new(BTreeMap::new());

pub(crate) struct Scenario {
    /// Begins with the promises.
    pub(crate) name: &'static str,
    /// For each of the two schedulers.
    pub(crate) executions: usize,
    pub(crate) body: fn(),
    /// What [`saw`] has to have been told.
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

/// Wakes whoever polls.
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
