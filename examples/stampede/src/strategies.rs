//! The ways to get the report: what is compared, and nothing else.
//!
//! A strategy sees one request of one client at a time, through an [`Asker`]. It may run the query on that client's
//! connection, in the client's own thread; the asker notes each run of it.

use crate::database::{Failure, Query, Report};
use dogpile::{DogpileCell, Policy};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A way to get the report.
pub(crate) trait Strategy: Sync {
    /// What the table and the picture call it.
    fn name(&self) -> &'static str;

    /// Answers one request.
    fn report(&self, asker: &mut Asker) -> Result<Arc<Report>, Failure>;
}

/// One run of the query, in time since the start of the load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueryRun {
    pub(crate) began: Duration,
    /// When the query had returned its last row; `None` when it was cut off.
    pub(crate) ended: Option<Duration>,
    /// When the strategy handed the answer to the client that ran the query: by then, others could have it too.
    pub(crate) answered: Option<Duration>,
}

/// The client in whose name a strategy asks.
pub(crate) struct Asker {
    /// Which of the clients this is, from 0.
    pub(crate) client: u32,
    /// When the request fell due, and the one before it, in time since the start.
    pub(crate) due: Duration,
    pub(crate) due_before: Option<Duration>,
    /// Every run of the query by this client.
    pub(crate) runs: Vec<QueryRun>,
    start: Instant,
    query: Query,
}

impl Asker {
    pub(crate) fn new(client: u32, start: Instant, query: Query) -> Self {
        Self { client, due: Duration::ZERO, due_before: None, runs: Vec::new(), start, query }
    }

    /// Runs the expensive query.
    pub(crate) fn query(&mut self) -> Result<Report, Failure> {
        let index = self.runs.len();
        self.runs.push(QueryRun { began: self.start.elapsed(), ended: None, answered: None });
        let rows = (self.query)()?;
        let made = Instant::now();
        self.runs[index].ended = Some(made - self.start);
        Ok(Report { rows, made })
    }
}

/// Every request runs the query.
pub(crate) struct Unprotected;

impl Strategy for Unprotected {
    fn name(&self) -> &'static str {
        "no protection"
    }

    fn report(&self, asker: &mut Asker) -> Result<Arc<Report>, Failure> {
        asker.query().map(Arc::new)
    }
}

/// What one writes first: the report and its time under one mutex, and the query too, so that it runs once.
pub(crate) struct MutexedCache {
    ttl: Duration,
    cached: Mutex<Option<Arc<Report>>>,
}

impl MutexedCache {
    pub(crate) const fn new(ttl: Duration) -> Self {
        Self { ttl, cached: Mutex::new(None) }
    }
}

impl Strategy for MutexedCache {
    fn name(&self) -> &'static str {
        "mutex, timed cache"
    }

    fn report(&self, asker: &mut Asker) -> Result<Arc<Report>, Failure> {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(report) = cached.as_ref().filter(|report| report.made.elapsed() <= self.ttl) {
            return Ok(Arc::clone(report));
        }
        let report = Arc::new(asker.query()?);
        *cached = Some(Arc::clone(&report));
        Ok(report)
    }
}

/// A `DogpileCell`, as one uses it.
pub(crate) struct Dogpile {
    cell: DogpileCell<Report>,
}

impl Dogpile {
    pub(crate) const fn new(ttl: Duration) -> Self {
        // A query that fails ends the run, as it does with the other strategies; without this it would be hidden.
        Self { cell: DogpileCell::with_policy(Policy::ttl(ttl).stale_if_error(Duration::ZERO)) }
    }
}

impl Strategy for Dogpile {
    fn name(&self) -> &'static str {
        "DogpileCell"
    }

    fn report(&self, asker: &mut Asker) -> Result<Arc<Report>, Failure> {
        self.cell.try_get_or_refresh(|| asker.query()).map_err(|error| match error.downcast_ref() {
            Some(failure) => Failure::clone(failure),
            None => Failure::Database(error.to_string()),
        })
    }
}

/// What this machine does to such a load when there is nothing to wait for: the query runs once per `period`, each
/// time in another client, and the answer goes to nobody. All other requests return at once, and no two clients
/// share anything. A latency above this one comes from the strategy; the rest comes from timers and from the
/// scheduler, which has one busy thread more than usual while the query runs.
pub(crate) struct NothingShared {
    period: Duration,
    clients: u32,
    answer: Vec<Arc<Report>>,
}

impl NothingShared {
    pub(crate) fn new(period: Duration, clients: u32) -> Self {
        // One for each client: not even a reference count is shared.
        let answer = || Arc::new(Report { rows: Vec::new(), made: Instant::now() });
        Self { period, clients, answer: (0..clients).map(|_| answer()).collect() }
    }

    fn turn(&self, due: Duration) -> u128 {
        due.as_nanos() / self.period.as_nanos().max(1)
    }
}

impl Strategy for NothingShared {
    fn name(&self) -> &'static str {
        "nothing shared"
    }

    fn report(&self, asker: &mut Asker) -> Result<Arc<Report>, Failure> {
        let turn = self.turn(asker.due);
        let new = asker.due_before.is_none_or(|before| self.turn(before) < turn);
        if new && turn % u128::from(self.clients) == u128::from(asker.client) {
            asker.query()?;
        }
        Ok(Arc::clone(&self.answer[asker.client as usize]))
    }
}
