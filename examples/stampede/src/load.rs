//! The load: clients that ask at fixed times, and a note of every request that fell due.
//!
//! The load is an open loop. A request falls due at its time whether or not the earlier ones are answered; a client
//! that is late asks for what is overdue without a pause. Latency counts from the moment when the request was due, so
//! a client that is held up for a second has a second's worth of late requests, not one.
//!
//! Nothing is left out at the end either. A request that was due within the window and has no answer when it closes
//! counts with the time that it has waited until then: less than it would have had to wait, never nothing.
//!
//! A client sleeps until its request is due; it does not spin. It writes down what happened into memory of its own;
//! what the progress bar shows comes from one counter for each client.

use crate::database::{Failure, Query};
use crate::strategies::{Asker, QueryRun, Strategy};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

/// How often the progress is shown, and how late at most a failure ends the run.
const TICK: Duration = Duration::from_millis(100);

/// Who asks, how often, and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) clients: u32,
    /// Requests per second of each client.
    pub(crate) rate: f64,
    pub(crate) window: Duration,
}

impl Plan {
    /// The times at which one client's requests are due; the clients take turns within the interval.
    fn due_times(self, client: u32) -> impl Iterator<Item = Duration> {
        let interval = 1.0 / self.rate;
        let phase = f64::from(client) / f64::from(self.clients);
        (0_u32..)
            .map(move |number| Duration::from_secs_f64((f64::from(number) + phase) * interval))
            .take_while(move |due| *due < self.window)
    }
}

/// One request; times count from the start of the window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) due: Duration,
    /// When the client asked; `None` if it had not come to it when the window closed.
    pub(crate) asked: Option<Duration>,
    /// When the answer was there, if that was within the window.
    pub(crate) answered: Option<Duration>,
    /// How long before that the answer's query had ended.
    pub(crate) age: Duration,
    /// The client slept until the request was due: what `asked` is late by is the machine's doing.
    pub(crate) slept: bool,
    /// The query ran for this request, in this client.
    pub(crate) ran_query: bool,
}

/// What one client did.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trace {
    /// In the order in which they fell due.
    pub(crate) requests: Vec<Request>,
    pub(crate) runs: Vec<QueryRun>,
}

/// How far a run has come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    pub(crate) elapsed: Duration,
    pub(crate) answered: u64,
}

impl Progress {
    #[expect(clippy::cast_precision_loss, reason = "a rate to be read by people")]
    pub(crate) fn answers_per_second(self) -> f64 {
        self.answered as f64 / self.elapsed.as_secs_f64().max(0.001)
    }
}

/// A counter on a cache line of its own.
#[repr(align(128))]
#[derive(Default)]
struct Counter(AtomicU64);

/// Lets one client for each of `queries` ask `strategy` for the report, until the window closes or a query fails.
///
/// The queries are expected to end early once `stop` is set.
pub(crate) fn run(
    strategy: &dyn Strategy,
    plan: Plan,
    queries: Vec<Query>,
    stop: &AtomicBool,
    mut show: impl FnMut(Progress),
) -> Result<Vec<Trace>, Failure> {
    assert_eq!(queries.len(), plan.clients as usize, "one query for each client");
    let counters: Vec<Counter> = queries.iter().map(|_| Counter::default()).collect();
    let failure = OnceLock::new();
    // Enough for all clients to be there before the first request is due; one that is not is late, and shows.
    let start = Instant::now() + Duration::from_millis(20) + Duration::from_micros(200) * plan.clients;

    let traces = thread::scope(|scope| {
        let threads: Vec<ScopedJoinHandle<'_, Trace>> = queries
            .into_iter()
            .zip(0..)
            .zip(&counters)
            .map(|((query, client), counter)| {
                let failure = &failure;
                scope.spawn(move || {
                    let client = Client {
                        strategy,
                        plan,
                        start,
                        stop,
                        asker: Asker::new(client, start, query),
                        counter,
                    };
                    client.work().unwrap_or_else(|failed| {
                        // The first one counts: what comes after it may be its consequence.
                        let _ = failure.set(failed);
                        stop.store(true, Ordering::Relaxed);
                        Trace::default()
                    })
                })
            })
            .collect();

        while !stop.load(Ordering::Relaxed) {
            let elapsed = Instant::now().saturating_duration_since(start);
            let answered = counters.iter().map(|counter| counter.0.load(Ordering::Relaxed)).sum();
            show(Progress { elapsed: elapsed.min(plan.window), answered });
            let left = (start + plan.window).saturating_duration_since(Instant::now());
            if left.is_zero() {
                stop.store(true, Ordering::Relaxed);
            }
            thread::sleep(left.min(TICK));
        }
        // Those who sleep until a request is due need not.
        for thread in &threads {
            thread.thread().unpark();
        }
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    failure.into_inner().map_or(Ok(traces), Err)
}

struct Client<'a> {
    strategy: &'a dyn Strategy,
    plan: Plan,
    start: Instant,
    stop: &'a AtomicBool,
    asker: Asker,
    counter: &'a Counter,
}

impl Client<'_> {
    /// Asks for all that falls due in the window. An error is a query that failed, not one that was cut off.
    fn work(mut self) -> Result<Trace, Failure> {
        let due_times = self.plan.due_times(self.asker.client);
        let expected = self.plan.window.as_secs_f64() * self.plan.rate;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a capacity, bounded by args"
        )]
        let mut requests = Vec::with_capacity(expected as usize + 1);
        for due in due_times {
            let request = self.request(due)?;
            requests.push(request);
            self.asker.due_before = Some(due);
        }
        Ok(Trace { requests, runs: self.asker.runs })
    }

    fn request(&mut self, due: Duration) -> Result<Request, Failure> {
        let mut request =
            Request { due, asked: None, answered: None, age: Duration::ZERO, slept: false, ran_query: false };
        let asked = loop {
            let now = Instant::now();
            let left = (self.start + due).saturating_duration_since(now);
            // A request that is not due yet when the run is stopped early belongs to nobody's statistics.
            if left.is_zero() || self.stop.load(Ordering::Relaxed) {
                break now.saturating_duration_since(self.start);
            }
            request.slept = true;
            // Not `sleep`: a run that has failed must not wait for clients that ask once a minute.
            thread::park_timeout(left);
        };
        if asked >= self.plan.window || self.stop.load(Ordering::Relaxed) {
            return Ok(request);
        }
        request.asked = Some(asked);
        self.asker.due = due;
        let runs = self.asker.runs.len();
        let answer = self.strategy.report(&mut self.asker);
        let answered = Instant::now();
        let since_start = answered.saturating_duration_since(self.start);
        request.ran_query = self.asker.runs.len() > runs;
        match answer {
            Ok(report) => {
                if request.ran_query
                    && let Some(run) = self.asker.runs.last_mut()
                {
                    run.answered = Some(since_start);
                }
                if since_start <= self.plan.window {
                    request.answered = Some(since_start);
                    request.age = answered.saturating_duration_since(report.made);
                    // Relaxed: a number for the progress bar. One writer, so no read-modify-write.
                    let count = self.counter.0.load(Ordering::Relaxed);
                    self.counter.0.store(count + 1, Ordering::Relaxed);
                }
                Ok(request)
            }
            // Cut off when the window closed: the request stays without an answer.
            Err(Failure::Stopped) => Ok(request),
            Err(failure) => Err(failure),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Expiries, Summary};
    use crate::strategies::{Dogpile, MutexedCache, Unprotected};
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    fn plan(clients: u32, rate: f64, millis: u64) -> Plan {
        Plan { clients, rate, window: Duration::from_millis(millis) }
    }

    fn queries(clients: u32, query: impl Fn() -> Result<(), Failure> + Clone + Send + 'static) -> Vec<Query> {
        (0..clients)
            .map(|_| {
                let query = query.clone();
                Box::new(move || query().map(|()| vec![vec!["a row".to_owned()]])) as Query
            })
            .collect()
    }

    fn due_times(plan: Plan, client: u32) -> Vec<u128> {
        plan.due_times(client).map(|due| due.as_micros()).collect()
    }

    #[test]
    fn clients_take_turns_and_nothing_is_due_when_the_window_has_closed() {
        let plan = plan(4, 100.0, 30);
        assert_eq!(due_times(plan, 0), [0, 10_000, 20_000]);
        assert_eq!(due_times(plan, 3), [7_500, 17_500, 27_500]);
    }

    #[test]
    fn every_request_that_falls_due_is_noted_even_if_nobody_is_ever_answered() {
        let plan = plan(2, 1000.0, 20);
        let stop = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&stop);
        let endless = move || {
            while !over.load(Ordering::Relaxed) {
                thread::yield_now();
            }
            Err(Failure::Stopped)
        };
        let traces =
            run(&Unprotected, plan, queries(2, endless), &stop, |_| {}).expect("cut off is no failure");
        for (client, trace) in (0..).zip(&traces) {
            let due: Vec<u128> = trace.requests.iter().map(|request| request.due.as_micros()).collect();
            assert_eq!(due, due_times(plan, client));
            assert!(trace.requests.iter().all(|request| request.answered.is_none()));
            assert!(trace.requests[1..].iter().all(|request| request.asked.is_none()), "one at a time");
        }
    }

    #[test]
    fn a_query_that_fails_ends_the_run_with_what_the_database_said() {
        let asked = Arc::new(AtomicUsize::new(0));
        let third = move || match asked.fetch_add(1, Ordering::Relaxed) {
            2 => Err(Failure::Database("no such table: orders".into())),
            _ => Ok(()),
        };
        let hour = plan(4, 50.0, 3_600_000);
        let outcome = run(&Unprotected, hour, queries(4, third), &AtomicBool::new(false), |_| {});
        assert_eq!(outcome.map(|_| ()), Err(Failure::Database("no such table: orders".into())));
    }

    #[test]
    fn a_run_that_has_failed_does_not_wait_for_clients_that_ask_seldom() {
        let fails = || Err(Failure::Database("disk I/O error".into()));
        // The first request is due at once, the second one after 250 s.
        let seldom = plan(4, 0.001, 3_600_000);
        let began = Instant::now();
        let outcome = run(&Unprotected, seldom, queries(4, fails), &AtomicBool::new(false), |_| {});
        assert!(outcome.is_err());
        assert!(began.elapsed() < Duration::from_secs(200), "it waited for the next request");
    }

    /// The same with a cell: its waiters get the failure of the build that they waited for.
    #[test]
    fn a_first_build_that_fails_ends_the_run_for_those_who_wait_for_it_too() {
        let fails = || Err(Failure::Database("disk I/O error".into()));
        let hour = plan(4, 50.0, 3_600_000);
        let dogpile = Dogpile::new(Duration::from_secs(1));
        let outcome = run(&dogpile, hour, queries(4, fails), &AtomicBool::new(false), |_| {});
        assert_eq!(outcome.map(|_| ()), Err(Failure::Database("disk I/O error".into())));
    }

    /// A short run of eight clients, judged like one whose answers are good for `ttl`.
    fn short_run(strategy: &dyn Strategy, ttl: Duration) -> (Summary, Expiries) {
        let plan = plan(8, 500.0, 1000);
        let traces = run(strategy, plan, queries(8, || Ok(())), &AtomicBool::new(false), |_| {});
        let summary = Summary::new(strategy.name(), plan, Some(ttl), &traces.expect("nothing fails"));
        let expiries = summary.expiries.clone().expect("it has a ttl");
        (summary, expiries)
    }

    /// Both ways to protect the query run it once at first and once after each expiry.
    #[test]
    fn the_protected_runs_query_once_per_expiry() {
        let ttl = Duration::from_millis(10);
        for strategy in [&Dogpile::new(ttl) as &dyn Strategy, &MutexedCache::new(ttl)] {
            let (summary, expiries) = short_run(strategy, ttl);
            let name = strategy.name();
            assert!(!expiries.at.is_empty(), "{name}: a hundred times the ttl");
            assert_eq!(expiries.needless, 0, "{name}: {expiries:?}");
            assert_eq!(Some(summary.query_runs), summary.expected_runs(), "{name}: {expiries:?}");
        }
    }

    /// What the test above rests on: that it would notice.
    #[test]
    fn the_unprotected_run_queries_more_often_than_values_expire() {
        let (summary, expiries) = short_run(&Unprotected, Duration::from_secs(60));
        assert_eq!((summary.expected_runs(), expiries.needless), (Some(1), summary.query_runs - 1));
    }
}
