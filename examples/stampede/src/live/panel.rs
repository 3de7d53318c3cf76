//! The loads of the page, each with a source of its own, and what a frame shows of them.
//!
//! The source is simulated: a query waits in place of computing, so that four loads on one machine do not disturb each
//! other. As a database does, it runs only a few queries at a time; the others queue.

use crate::database::{Failure, Query};
use crate::report::Quantiles;
use crate::strategies::{Asker, Dogpile, MutexedCache, Refreshed, Strategy, TimedCache};
use anyhow::{Context, ensure};
use dogpile::Policy;
use serde::Serialize;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What a query takes, and how many of them the source runs at once.
pub(crate) const QUERY: Duration = Duration::from_millis(80);
pub(crate) const AT_ONCE: u32 = 2;
/// A slow source takes so many times as long.
const SLOW: u32 = 5;
/// A client gives up a request that is later than this.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

// Relaxed, wherever these and the counters below are used: nothing else is read on the strength of them.
#[derive(Default)]
pub(crate) struct Switches {
    pub(crate) failing: AtomicBool,
    pub(crate) slow: AtomicBool,
    pub(crate) stop: AtomicBool,
}

/// The simulated database of one load.
struct Source {
    switches: Arc<Switches>,
    free: Mutex<u32>,
    freed: Condvar,
    begun: AtomicU64,
    /// Queries that run or queue.
    running: AtomicU32,
}

impl Source {
    fn new(switches: &Arc<Switches>) -> Arc<Self> {
        Arc::new(Self {
            switches: Arc::clone(switches),
            free: Mutex::new(AT_ONCE),
            freed: Condvar::new(),
            begun: AtomicU64::new(0),
            running: AtomicU32::new(0),
        })
    }

    fn query(self: &Arc<Self>) -> Query {
        let source = Arc::clone(self);
        Box::new(move || source.run())
    }

    fn run(&self) -> Result<Vec<Vec<String>>, Failure> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.running.fetch_add(1, Ordering::Relaxed);
        *self
            .freed
            .wait_while(locked(&self.free), |free| *free == 0)
            .unwrap_or_else(PoisonError::into_inner) -= 1;
        let outcome = if self.switches.stop.load(Ordering::Relaxed) {
            Err(Failure::Stopped)
        } else {
            thread::sleep(if self.switches.slow.load(Ordering::Relaxed) { QUERY * SLOW } else { QUERY });
            if self.switches.failing.load(Ordering::Relaxed) {
                Err(Failure::Database("the source is down".into()))
            } else {
                Ok(Vec::new())
            }
        };
        *locked(&self.free) += 1;
        self.freed.notify_one();
        self.running.fetch_sub(1, Ordering::Relaxed);
        outcome
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What became of one request.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    latency: Duration,
    failed: bool,
    /// Its client ran the query for it, or was running the query when it fell due.
    own: bool,
}

/// One of the four loads.
struct Panel {
    strategy: Box<dyn Strategy>,
    source: Arc<Source>,
    start: Instant,
    /// Since the last frame.
    outcomes: Mutex<Vec<Outcome>>,
    /// For each client: since when its oldest request is due, in microseconds since the start; `NOT_WAITING` if none is.
    waiting: Vec<AtomicU64>,
}

const NOT_WAITING: u64 = u64::MAX;

/// The four loads, which run until they are dropped.
pub(crate) struct Loads {
    panels: Vec<Arc<Panel>>,
    /// For each of them, the queries that the last frame knew of.
    begun: Vec<u64>,
    clients: Vec<JoinHandle<()>>,
    switches: Arc<Switches>,
}

/// One moment of all loads, as the page gets it.
#[derive(Debug, Serialize)]
pub(crate) struct Frame {
    number: u32,
    viewers: usize,
    failing: bool,
    slow: bool,
    panels: Vec<Moment>,
}

/// One moment of one load. Times are in microseconds; they are those of the requests that were answered since the last
/// frame, and of those that wait.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Moment {
    name: &'static str,
    about: &'static str,
    half: u64,
    most: u64,
    /// Of clients that did not run the query, and of those that did.
    slowest: u64,
    slowest_of_own: u64,
    /// Since the last frame.
    requests: usize,
    errors: usize,
    queries: u64,
    /// Now.
    running: u32,
    waiting: usize,
}

impl Loads {
    pub(crate) fn start(clients: u32, rate: f64, ttl: Duration) -> anyhow::Result<Self> {
        let switches = Arc::new(Switches::default());
        let source = || Source::new(&switches);
        let ahead = source();
        let refresher = Refreshed::start(ttl, ahead.query(), false).context("cannot start a refresher")?;
        // Its first report is there when the requests begin.
        ensure!(refresher.wait_ready(PATIENCE), "the refresher has made no report within {PATIENCE:?}");
        let strategies: [(Box<dyn Strategy>, Arc<Source>); 4] = [
            (Box::new(TimedCache::new(ttl)), source()),
            (Box::new(MutexedCache::new(ttl)), source()),
            (Box::new(Dogpile::new(Policy::ttl(ttl))), source()),
            (Box::new(refresher), ahead),
        ];
        let start = Instant::now();
        let mut loads = Self { panels: Vec::new(), begun: Vec::new(), clients: Vec::new(), switches };
        for (strategy, source) in strategies {
            let waiting = (0..clients).map(|_| AtomicU64::new(NOT_WAITING)).collect();
            let panel = Arc::new(Panel { strategy, source, start, outcomes: Mutex::default(), waiting });
            for client in 0..clients {
                let (panel, switches) = (Arc::clone(&panel), Arc::clone(&loads.switches));
                let work = move || panel.client(client, clients, rate, &switches);
                let thread = thread::Builder::new()
                    .spawn(work)
                    .context("cannot start the clients: lower --clients")?;
                loads.clients.push(thread);
            }
            loads.begun.push(0);
            loads.panels.push(panel);
        }
        Ok(loads)
    }

    pub(crate) fn switches(&self) -> Arc<Switches> {
        Arc::clone(&self.switches)
    }

    /// What happened since the frame before.
    pub(crate) fn frame(&mut self, number: u32, viewers: usize) -> Frame {
        let panels = self.panels.iter().zip(&mut self.begun);
        Frame {
            number,
            viewers,
            failing: self.switches.failing.load(Ordering::Relaxed),
            slow: self.switches.slow.load(Ordering::Relaxed),
            panels: panels.map(|(panel, begun)| panel.moment(begun)).collect(),
        }
    }
}

impl Drop for Loads {
    fn drop(&mut self) {
        self.switches.stop.store(true, Ordering::Relaxed);
        for client in &self.clients {
            client.thread().unpark();
        }
        for client in self.clients.drain(..) {
            // One that has panicked has said so.
            let _ = client.join();
        }
    }
}

impl Panel {
    fn client(&self, client: u32, clients: u32, rate: f64, switches: &Switches) {
        let mut asker = Asker::new(client, self.start, self.source.query());
        let phase = f64::from(client) / f64::from(clients);
        let mut own_until = Duration::ZERO;
        for number in 0_u32.. {
            let due = Duration::from_secs_f64((f64::from(number) + phase) / rate);
            loop {
                if switches.stop.load(Ordering::Relaxed) {
                    return;
                }
                let left = (self.start + due).saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                thread::park_timeout(left);
            }
            let late = self.start.elapsed().saturating_sub(due);
            let outcome = if late > PATIENCE {
                Outcome { latency: PATIENCE, failed: true, own: false }
            } else {
                self.waiting[client as usize].store(micros(due), Ordering::Relaxed);
                let answer = self.strategy.report(&mut asker);
                self.waiting[client as usize].store(NOT_WAITING, Ordering::Relaxed);
                if matches!(answer, Err(Failure::Stopped)) {
                    return;
                }
                let now = self.start.elapsed();
                if asker.runs.drain(..).count() > 0 {
                    own_until = now;
                }
                Outcome { latency: now.saturating_sub(due), failed: answer.is_err(), own: due < own_until }
            };
            locked(&self.outcomes).push(outcome);
        }
    }

    fn moment(&self, begun: &mut u64) -> Moment {
        let outcomes = std::mem::take(&mut *locked(&self.outcomes));
        let now = micros(self.start.elapsed());
        let since = self.waiting.iter().map(|since| since.load(Ordering::Relaxed));
        let waits: Vec<Duration> = since
            .filter(|since| *since != NOT_WAITING)
            .map(|since| Duration::from_micros(now.saturating_sub(since)))
            .collect();
        let queries = self.source.begun.load(Ordering::Relaxed);
        let moment = Moment {
            name: self.strategy.name(),
            about: self.strategy.about(),
            queries: queries - *begun,
            running: self.source.running.load(Ordering::Relaxed),
            ..summed_up(&outcomes, &waits)
        };
        *begun = queries;
        moment
    }
}

fn summed_up(outcomes: &[Outcome], waits: &[Duration]) -> Moment {
    let all = Quantiles::of(outcomes.iter().map(|outcome| outcome.latency).chain(waits.iter().copied()));
    let slowest = |own| {
        let outcomes = outcomes.iter().filter(move |outcome| outcome.own == own);
        outcomes.map(|outcome| outcome.latency).max().unwrap_or_default()
    };
    Moment {
        half: micros(all.at(500).unwrap_or_default()),
        most: micros(all.at(950).unwrap_or_default()),
        // One that waits does not know yet whether it will run the query.
        slowest: micros(slowest(false)),
        slowest_of_own: micros(slowest(true)),
        requests: outcomes.len(),
        errors: outcomes.iter().filter(|outcome| outcome.failed).count(),
        waiting: waits.len(),
        ..Moment::default()
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(NOT_WAITING - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_counts_what_was_answered_and_what_waits() {
        let outcome = |millis, failed, own| Outcome { latency: Duration::from_millis(millis), failed, own };
        let outcomes = [outcome(1, false, false), outcome(80, false, true), outcome(3, true, false)];
        let moment = summed_up(&outcomes, &[Duration::from_millis(500)]);
        let expected = Moment {
            half: 3_000,
            most: 500_000,
            slowest: 3_000,
            slowest_of_own: 80_000,
            requests: 3,
            errors: 1,
            waiting: 1,
            ..Moment::default()
        };
        assert_eq!(moment, expected);
        assert_eq!(summed_up(&[], &[]), Moment::default());
    }

    #[test]
    fn the_source_runs_a_few_queries_at_a_time_and_counts_all() {
        let source = Source::new(&Arc::default());
        let clients: Vec<_> = (0..6).map(|_| source.query()).collect();
        thread::scope(|scope| {
            for mut client in clients {
                scope.spawn(move || client().expect("it does not fail"));
            }
        });
        assert_eq!(source.begun.load(Ordering::Relaxed), 6);
        assert_eq!((source.running.load(Ordering::Relaxed), *locked(&source.free)), (0, AT_ONCE));
    }

    #[test]
    fn a_source_that_fails_costs_the_callers_of_a_cell_nothing() {
        let mut loads = Loads::start(2, 50.0, Duration::from_millis(50)).expect("threads");
        let mut errors_after = |failing: bool, frames: u32| {
            loads.switches.failing.store(failing, Ordering::Relaxed);
            let mut errors = [0; 4];
            let mut answered = [0; 4];
            let mut number = 0;
            // Until the loads have had their chance to fail: each source was asked a few times since.
            while number < frames || answered.iter().any(|answered| *answered < 20) {
                number += 1;
                thread::sleep(Duration::from_millis(20));
                for (panel, moment) in loads.frame(number, 0).panels.iter().enumerate() {
                    errors[panel] += moment.errors;
                    answered[panel] += moment.requests;
                }
            }
            errors
        };
        assert_eq!(errors_after(false, 20), [0; 4]);
        let [nothing, mutex, cell, refresher] = errors_after(true, 20);
        assert!(nothing > 0 && mutex > 0, "{nothing} {mutex}");
        assert_eq!((cell, refresher), (0, 0));
    }
}
