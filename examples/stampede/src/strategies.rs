//! The ways to get the report: what is compared, and nothing else.
//!
//! A strategy sees one request of one client at a time, through an [`Asker`]. It may run the query on that client's
//! connection, in the client's own thread; the asker notes each run of it.

use crate::database::{Failure, Query, Report};
use dogpile::{DogpileCell, Policy, Refresher};
use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// A way to get the report.
pub(crate) trait Strategy: Send + Sync {
    /// What the picture and the messages call it.
    fn name(&self) -> &'static str;

    /// What it does, in the words of its user.
    fn about(&self) -> &'static str;

    /// The head of its column in the table.
    fn short(&self) -> &'static str;

    /// The time to live of its answers, if it builds only after they have expired.
    fn ttl(&self) -> Option<Duration> {
        None
    }

    /// Whether it hands out answers that it has kept.
    fn keeps_answers(&self) -> bool {
        true
    }

    /// Answers one request.
    fn report(&self, asker: &mut Asker) -> Result<Arc<Report>, Failure>;

    /// The runs of the query that no client made and that began after `start`, in time since then.
    fn background_runs(&self, _start: Instant) -> Vec<QueryRun> {
        Vec::new()
    }
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

/// A timed cache without protection: each caller that finds the report expired runs the query.
pub(crate) struct TimedCache {
    ttl: Duration,
    cached: Mutex<Option<Arc<Report>>>,
}

impl TimedCache {
    pub(crate) const fn new(ttl: Duration) -> Self {
        Self { ttl, cached: Mutex::new(None) }
    }
}

impl Strategy for TimedCache {
    fn name(&self) -> &'static str {
        "A timed cache, nothing else"
    }

    fn about(&self) -> &'static str {
        "each caller runs the query"
    }

    fn short(&self) -> &'static str {
        "nothing"
    }

    fn ttl(&self) -> Option<Duration> {
        Some(self.ttl)
    }

    fn report(&self, asker: &mut Asker) -> Result<Arc<Report>, Failure> {
        let cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(report) = cached.filter(|report| report.made.elapsed() <= self.ttl) {
            return Ok(report);
        }
        // The lock is not held here: other callers neither wait for this query nor are kept from running another one.
        let report = Arc::new(asker.query()?);
        *self.cached.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&report));
        Ok(report)
    }
}

/// The usual remedy: the same cache, with the query under the mutex too, so that it runs once.
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
        "A mutex around it"
    }

    fn about(&self) -> &'static str {
        "one caller runs the query, all others wait"
    }

    fn short(&self) -> &'static str {
        "mutex"
    }

    fn ttl(&self) -> Option<Duration> {
        Some(self.ttl)
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

/// A `DogpileCell`. The caller that is elected runs the query on its own connection.
pub(crate) struct Dogpile {
    cell: DogpileCell<Report>,
}

impl Dogpile {
    pub(crate) const fn new(policy: Policy) -> Self {
        Self { cell: DogpileCell::with_policy(policy) }
    }
}

impl Strategy for Dogpile {
    fn name(&self) -> &'static str {
        "DogpileCell"
    }

    fn about(&self) -> &'static str {
        "one caller runs the query, all others get the old report"
    }

    fn short(&self) -> &'static str {
        "cell"
    }

    fn ttl(&self) -> Option<Duration> {
        Some(self.cell.policy().get_ttl())
    }

    fn report(&self, asker: &mut Asker) -> Result<Arc<Report>, Failure> {
        self.cell.try_get_or_refresh(|| asker.query()).map_err(|error| match error.downcast_ref() {
            Some(failure) => Failure::clone(failure),
            None => Failure::Database(error.to_string()),
        })
    }
}

/// A `DogpileCell` whose value a `Refresher` rebuilds before it expires: clients only read.
pub(crate) struct Refreshed {
    cell: Arc<DogpileCell<Report>>,
    background: Arc<Background>,
    /// Fails a request after the query has failed, in place of going on with the old report.
    strict: bool,
    refresher: Refresher,
}

/// What the refresher's builds leave behind.
#[derive(Default)]
struct Background {
    /// When each began and ended.
    runs: Mutex<Vec<(Instant, Option<Instant>)>>,
    /// The first one.
    failure: OnceLock<Failure>,
}

impl Refreshed {
    /// Starts a refresher that runs `query`. It rebuilds the report when half of its time to live has passed.
    ///
    /// If it is `strict`, a query that fails ends the run, as it does with the other strategies.
    pub(crate) fn start(ttl: Duration, mut query: Query, strict: bool) -> io::Result<Self> {
        let cell = Arc::new(DogpileCell::new(ttl));
        let background = Arc::new(Background::default());
        let notes = Arc::clone(&background);
        let refresher = Refresher::spawn(&cell, ttl / 2, move |_previous| {
            let began = Instant::now();
            let index = {
                let mut runs = notes.lock_runs();
                runs.push((began, None));
                runs.len() - 1
            };
            let rows = query().inspect_err(|failure| {
                // The first one counts, as with the clients.
                let _ = notes.failure.set(failure.clone());
            })?;
            let made = Instant::now();
            notes.lock_runs()[index].1 = Some(made);
            Ok::<_, Failure>(Report { rows, made })
        })?;
        Ok(Self { cell, background, strict, refresher })
    }

    /// Waits for the first report or the first failure; false if there was neither in that time.
    pub(crate) fn wait_ready(&self, time: Duration) -> bool {
        let start = Instant::now();
        // A failure does not end the refresher's own wait: it tries again.
        while !self.refresher.wait_ready(Duration::from_millis(50)) && self.background.failure.get().is_none()
        {
            if start.elapsed() > time {
                return false;
            }
        }
        true
    }
}

impl Background {
    fn lock_runs(&self) -> std::sync::MutexGuard<'_, Vec<(Instant, Option<Instant>)>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Strategy for Refreshed {
    fn name(&self) -> &'static str {
        "DogpileCell with a Refresher"
    }

    fn about(&self) -> &'static str {
        "the query runs ahead of time, no caller waits"
    }

    fn short(&self) -> &'static str {
        "refresher"
    }

    fn report(&self, _asker: &mut Asker) -> Result<Arc<Report>, Failure> {
        if self.strict
            && let Some(failure) = self.background.failure.get()
        {
            return Err(failure.clone());
        }
        self.cell.get().ok_or_else(|| Failure::Database("there is no report yet".into()))
    }

    fn background_runs(&self, start: Instant) -> Vec<QueryRun> {
        let since = |at: Instant| at.saturating_duration_since(start);
        let run = |(began, ended): &(Instant, Option<Instant>)| QueryRun {
            began: since(*began),
            ended: ended.map(since),
            answered: ended.map(since),
        };
        let runs = self.background.lock_runs();
        runs.iter().filter(|(began, _)| *began >= start).map(run).collect()
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
        "the baseline"
    }

    fn about(&self) -> &'static str {
        "no caller waits for anything"
    }

    fn short(&self) -> &'static str {
        "baseline"
    }

    fn keeps_answers(&self) -> bool {
        false
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
