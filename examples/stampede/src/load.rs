//! The load: clients that ask at fixed times, and a note of every request that fell due.
//!
//! The load is an open loop. A request falls due at its time whether or not the earlier ones are answered; a client
//! that is late asks for what is overdue without a pause. Latency counts from the moment when the request was due, so
//! a client that is held up for a second has a second's worth of late requests, not one.
//!
//! Nothing is left out at the end either. No request falls due after the window, but the run goes on until those that
//! did have their answers, for a limited time. A request without an answer when that is over counts with the time that
//! it has waited until then: less than it would have had to wait, never nothing.
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

/// The number of clients, how often they ask, and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) clients: u32,
    /// Requests per second of each client.
    pub(crate) rate: f64,
    /// Requests fall due for so long.
    pub(crate) window: Duration,
    /// For so long after the window at most, requests that were due in it are still answered.
    pub(crate) grace: Duration,
}

impl Plan {
    /// When the run ends at the latest.
    pub(crate) fn end(self) -> Duration {
        self.window + self.grace
    }

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
    /// When the client asked; `None` if it had not come to it when the run ended.
    pub(crate) asked: Option<Duration>,
    /// When the answer was there, if that was before the run ended.
    pub(crate) answered: Option<Duration>,
    /// How long before that the answer's query had ended.
    pub(crate) age: Duration,
    /// The client slept until the request was due: what `asked` is late by is the machine's doing.
    pub(crate) slept: bool,
    /// The query ran for this request, in this client.
    pub(crate) ran_query: bool,
}

/// What one client did, or a strategy in the background.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trace {
    /// In the order in which they fell due.
    pub(crate) requests: Vec<Request>,
    pub(crate) runs: Vec<QueryRun>,
}

/// What a run leaves behind.
#[derive(Debug)]
pub(crate) struct Record {
    /// What all times count from.
    pub(crate) start: Instant,
    pub(crate) traces: Vec<Trace>,
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

/// Asks for the report once, before the load, so that the load begins with one. Returns when that was made.
pub(crate) fn warm_up(strategy: &dyn Strategy, query: Query) -> Result<Instant, Failure> {
    let mut asker = Asker::new(0, Instant::now(), query);
    strategy.report(&mut asker).map(|report| report.made)
}

/// Lets one client for each of `queries` ask `strategy` for the report, until all have their answers, the time is over
/// or a query fails.
///
/// The queries are expected to end early once `stop` is set.
pub(crate) fn run(
    strategy: &dyn Strategy,
    plan: Plan,
    queries: Vec<Query>,
    stop: &AtomicBool,
    mut show: impl FnMut(Progress),
) -> Result<Record, Failure> {
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
            let left = (start + plan.end()).saturating_duration_since(Instant::now());
            if left.is_zero() || threads.iter().all(ScopedJoinHandle::is_finished) {
                stop.store(true, Ordering::Relaxed);
            }
            thread::sleep(left.min(TICK));
        }
        // Clients that sleep until a request is due end at once.
        for thread in &threads {
            thread.thread().unpark();
        }
        let background = Trace { requests: Vec::new(), runs: strategy.background_runs(start) };
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .chain(std::iter::once(background))
            .collect()
    });
    failure.into_inner().map_or(Ok(Record { start, traces }), Err)
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
        if asked >= self.plan.end() || self.stop.load(Ordering::Relaxed) {
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
                if since_start <= self.plan.end() {
                    request.answered = Some(since_start);
                    request.age = answered.saturating_duration_since(report.made);
                    // Relaxed: a number for the progress bar. One writer, so no read-modify-write.
                    let count = self.counter.0.load(Ordering::Relaxed);
                    self.counter.0.store(count + 1, Ordering::Relaxed);
                }
                Ok(request)
            }
            // Cut off when the run ended: the request stays without an answer.
            Err(Failure::Stopped) => Ok(request),
            Err(failure) => Err(failure),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Expiries, Summary};
    use crate::strategies::{Dogpile, MutexedCache, Refreshed, TimedCache};
    use dogpile::Policy;
    use std::sync::atomic::AtomicUsize;
    use std::sync::{Arc, Barrier};

    const HOUR: Duration = Duration::from_secs(3600);

    fn plan(clients: u32, rate: f64, millis: u64) -> Plan {
        Plan { clients, rate, window: Duration::from_millis(millis), grace: Duration::from_millis(millis) }
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
        let record = run(&TimedCache::new(HOUR), plan, queries(2, endless), &stop, |_| {})
            .expect("cut off is no failure");
        for (client, trace) in (0..2).zip(&record.traces) {
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
        let outcome =
            run(&TimedCache::new(Duration::ZERO), hour, queries(4, third), &AtomicBool::new(false), |_| {});
        assert_eq!(outcome.map(|_| ()), Err(Failure::Database("no such table: orders".into())));
    }

    #[test]
    fn a_run_that_has_failed_does_not_wait_for_clients_that_ask_seldom() {
        let fails = || Err(Failure::Database("disk I/O error".into()));
        // The first request is due at once, the second one after 250 s.
        let seldom = plan(4, 0.001, 3_600_000);
        let began = Instant::now();
        let outcome =
            run(&TimedCache::new(Duration::ZERO), seldom, queries(4, fails), &AtomicBool::new(false), |_| {});
        assert!(outcome.is_err());
        assert!(began.elapsed() < Duration::from_secs(200), "it waited for the next request");
    }

    /// The same with a cell: its waiters get the failure of the build that they waited for.
    #[test]
    fn a_first_build_that_fails_ends_the_run_for_those_who_wait_for_it_too() {
        let fails = || Err(Failure::Database("disk I/O error".into()));
        let hour = plan(4, 50.0, 3_600_000);
        let dogpile = Dogpile::new(Policy::ttl(Duration::from_secs(1)).stale_if_error(Duration::ZERO));
        let outcome = run(&dogpile, hour, queries(4, fails), &AtomicBool::new(false), |_| {});
        assert_eq!(outcome.map(|_| ()), Err(Failure::Database("disk I/O error".into())));
    }

    /// A short run of eight clients, judged like one whose answers are good for `ttl`.
    fn short_run(
        strategy: &dyn Strategy,
        ttl: Duration,
        query: impl Fn() -> Result<(), Failure> + Clone + Send + 'static,
    ) -> (Summary, Expiries) {
        let plan = plan(8, 500.0, 1000);
        let traces = run(strategy, plan, queries(8, query), &AtomicBool::new(false), |_| {});
        // It begins with nothing: the first request finds no value, as if it had expired.
        let none = Duration::ZERO;
        let summary = Summary::new(strategy, plan, Some((none, ttl)), &traces.expect("nothing fails").traces);
        let expiries = summary.expiries.clone().expect("it has a ttl");
        (summary, expiries)
    }

    /// Both ways to protect the query run it once after each expiry.
    #[test]
    fn the_protected_runs_query_once_per_expiry() {
        let ttl = Duration::from_millis(10);
        let dogpile = Dogpile::new(Policy::ttl(ttl));
        for strategy in [&dogpile as &dyn Strategy, &MutexedCache::new(ttl)] {
            let (summary, expiries) = short_run(strategy, ttl, || Ok(()));
            let name = strategy.name();
            assert!(expiries.at.len() > 1, "{name}: a hundred times the ttl");
            assert_eq!(expiries.needless, 0, "{name}: {expiries:?}");
            assert_eq!(summary.query_runs, expiries.at.len(), "{name}: {expiries:?}");
        }
    }

    /// What the test above rests on: that it would notice. The query ends when all eight clients run it.
    #[test]
    fn without_protection_each_client_runs_the_query() {
        let all = Arc::new(Barrier::new(8));
        let query = move || {
            all.wait();
            Ok(())
        };
        let (summary, expiries) = short_run(&TimedCache::new(HOUR), HOUR, query);
        assert_eq!((summary.query_runs, expiries.at.len(), expiries.needless), (8, 1, 7));
    }

    #[test]
    fn a_load_that_has_a_report_already_runs_no_query() {
        for strategy in [
            &TimedCache::new(HOUR) as &dyn Strategy,
            &MutexedCache::new(HOUR),
            &Dogpile::new(Policy::ttl(HOUR)),
        ] {
            let made = warm_up(strategy, queries(1, || Ok(())).remove(0)).expect("a report");
            let client = || panic!("a client ran the query");
            let record =
                run(strategy, plan(2, 100.0, 50), queries(2, client), &AtomicBool::new(false), |_| {});
            let record = record.expect("nothing fails");
            assert!(made <= record.start);
            let requests = record.traces.iter().flat_map(|trace| &trace.requests);
            assert_eq!(requests.filter(|request| request.answered.is_some()).count(), 10);
        }
    }

    #[test]
    fn beside_a_refresher_no_client_runs_the_query() {
        let background = queries(1, || Ok(())).remove(0);
        let refreshed = Refreshed::start(Duration::from_millis(50), background, true).expect("a thread");
        assert!(refreshed.wait_ready(HOUR));
        let client = || panic!("a client ran the query");
        let plan = plan(4, 200.0, 300);
        let traces = run(&refreshed, plan, queries(4, client), &AtomicBool::new(false), |_| {});
        let traces = traces.expect("nothing fails").traces;
        let (background, clients) = traces.split_last().expect("one for each client and one more");
        assert!(clients.iter().all(|trace| trace.requests.iter().all(|request| request.answered.is_some())));
        assert!(background.runs.len() > 1, "{:?}: six times the ttl", background.runs);
    }

    #[test]
    fn a_query_that_fails_in_the_refresher_ends_the_run() {
        let fails = || Err(Failure::Database("disk I/O error".into()));
        let refreshed = Refreshed::start(HOUR, queries(1, fails).remove(0), true).expect("a thread");
        assert!(refreshed.wait_ready(HOUR));
        let hour = plan(4, 50.0, 3_600_000);
        let outcome = run(&refreshed, hour, queries(4, || Ok(())), &AtomicBool::new(false), |_| {});
        assert_eq!(outcome.map(|_| ()), Err(Failure::Database("disk I/O error".into())));
    }

    /// No request is cut off because the window closed: the slow ones at the end are as slow as those before.
    #[test]
    fn what_is_due_in_the_window_is_answered_after_it() {
        let plan = Plan { clients: 1, rate: 1000.0, window: Duration::from_millis(20), grace: HOUR };
        let window = plan.window;
        let begun = Instant::now();
        let past_the_window = move || {
            while begun.elapsed() < 10 * window {
                thread::yield_now();
            }
            Ok(())
        };
        let cache = TimedCache::new(HOUR);
        let traces = run(&cache, plan, queries(1, past_the_window), &AtomicBool::new(false), |_| {});
        let requests = &traces.expect("nothing fails").traces[0].requests;
        assert_eq!(requests.len(), 20);
        assert!(requests.iter().all(|request| request.answered.is_some_and(|answered| answered > window)));
    }
}
