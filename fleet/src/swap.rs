//! A store over anything that can read a row, and replace it if nobody else has.
//!
//! The [rules](crate::rules) run here, and the database only compares and swaps:
//!
//! ```text
//! read --> the rules --> nothing to change: the answer
//!    ^          |
//!    |          v
//!    +---- swap, from the revision that was read: refused, as another node was faster | done: the answer
//! ```
//!
//! Why `RedisStore` and `PostgresStore` are not made of this: an operation that changes something takes two round trips in place of
//! one, and a lease that is prolonged takes the value with it, both ways. Figures: `docs/stores.md`.

use std::fmt;
use std::time::Duration;

use crate::breaker::Breaker;
use crate::draw;
use crate::entry;
use crate::operations;
use crate::rules::{Entry, Micros};
use crate::store::{
    Acquire, Epoch, Hint, Invalidation, Poll, Publication, Publish, RefreshStore, Request, StoreError,
    Subscription, Token, Version,
};

/// What a database has to offer for a [`SwapStore`]: with a client of the user's own, in some fifty lines.
///
/// A row has a name of up to 64 bytes, a revision and some bytes. How it is written for `PostgreSQL`, with a client and a runtime
/// that the program has already: `examples/own_client.rs`.
///
/// Both operations have to come back within bounded time.
pub trait SwapEntry: Send + Sync {
    /// The row of a name, and the time.
    fn read(&self, name: &str) -> Result<Row, StoreError>;

    /// Makes `entry` the row of a name, with the revision `to`, if the row has the revision `from` (`None`: if there is no row).
    /// Returns whether it did. Comparing and replacing have to be one step.
    fn swap(&self, name: &str, from: Option<u64>, to: u64, entry: &[u8]) -> Result<bool, StoreError>;

    /// See [`RefreshStore::subscribe`]. Default: no hints; the nodes poll.
    fn subscribe(&self, name: &str, hint: Hint) -> Option<Subscription> {
        let _ = (name, hint);
        None
    }
}

/// What [`SwapEntry::read`] returns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// The database's time, in microseconds, of a clock that all nodes share and that does not go back.
    pub now: Micros,
    /// The revision, from 1 to 2^63 - 1, and the bytes; `None` if there is no row.
    pub entry: Option<(u64, Vec<u8>)>,
}

/// A [`RefreshStore`] over a [`SwapEntry`].
///
/// # Cost
///
/// A look is one round trip, every change two, and more if nodes meet. Each of them carries the whole value.
///
/// # Examples
///
/// Over a map in memory:
///
/// ```
/// use dogpile_fleet::{FleetCell, FleetPolicy, Plain, Row, StoreError, SwapEntry, SwapStore, conformance};
/// use std::collections::HashMap;
/// use std::sync::{Arc, Mutex};
/// use std::time::{Duration, Instant};
///
/// struct Table {
///     start: Instant,
///     rows: Mutex<HashMap<String, (u64, Vec<u8>)>>,
/// }
///
/// impl SwapEntry for Table {
///     fn read(&self, name: &str) -> Result<Row, StoreError> {
///         let now = u64::try_from(self.start.elapsed().as_micros()).map_err(StoreError::new)?;
///         Ok(Row { now, entry: self.rows.lock().unwrap().get(name).cloned() })
///     }
///
///     fn swap(&self, name: &str, from: Option<u64>, to: u64, entry: &[u8]) -> Result<bool, StoreError> {
///         let mut rows = self.rows.lock().unwrap();
///         let swaps = rows.get(name).map(|(revision, _)| *revision) == from;
///         if swaps {
///             rows.insert(name.to_owned(), (to, entry.to_vec()));
///         }
///         Ok(swaps)
///     }
/// }
///
/// let store = Arc::new(SwapStore::new(Table { start: Instant::now(), rows: Mutex::default() }));
/// conformance::check(&*store, std::thread::sleep);
/// let page = FleetCell::new("page", store, Plain, FleetPolicy::ttl(Duration::from_secs(60)));
/// assert_eq!(*page.get_or_refresh(|| String::from("<html>")), "<html>");
/// ```
pub struct SwapStore<S> {
    rows: S,
    breaker: Breaker,
}

/// How often an operation begins again because other nodes were faster.
const ATTEMPTS: u32 = 32;

impl<S: SwapEntry> SwapStore<S> {
    /// A store over `rows`.
    pub fn new(rows: S) -> Self {
        Self { rows, breaker: Breaker::new() }
    }

    /// What it was made with.
    pub fn rows(&self) -> &S {
        &self.rows
    }

    /// The entry, and from which revision it is to be replaced. One that is damaged counts as lost.
    fn read(&self, name: &str) -> Result<(Entry, Option<u64>, Micros), StoreError> {
        let Row { now, entry } = self.rows.read(name)?;
        let (revision, bytes) = entry.unzip();
        Ok((bytes.and_then(|bytes| entry::decode(&bytes)).unwrap_or_default(), revision, now))
    }

    /// An operation, which returns whether it has changed the entry.
    fn change<R>(
        &self,
        name: &str,
        operation: impl Fn(&mut Entry, Micros) -> (bool, R),
    ) -> Result<R, StoreError> {
        for attempt in 0..ATTEMPTS {
            let (mut entry, from, now) = self.read(name)?;
            let (changed, answer) = operation(&mut entry, now);
            // Drawn, so that no revision ever comes back.
            if !changed || self.rows.swap(name, from, draw::incarnation(), &entry::encode(&entry))? {
                return Ok(answer);
            }
            if attempt > 1 {
                std::thread::sleep(draw::around(Duration::from_millis(2), 100));
            }
        }
        Err(StoreError::busy(format!("other nodes were faster {ATTEMPTS} times in a row")))
    }
}

impl<S: SwapEntry> RefreshStore for SwapStore<S> {
    fn poll(&self, name: &str, known: Option<Version>) -> Result<Poll, StoreError> {
        let (entry, _, now) = self.read(name)?;
        Ok(entry.poll(now, known))
    }

    fn acquire(&self, name: &str, request: &Request) -> Result<Acquire, StoreError> {
        self.change(name, operations::acquire(request))
    }

    fn publish(
        &self,
        name: &str,
        token: &Token,
        publication: &Publication<'_>,
    ) -> Result<Publish, StoreError> {
        self.change(name, operations::publish(token, publication))
    }

    fn unchanged(
        &self,
        name: &str,
        token: &Token,
        soft: Duration,
        hard: Duration,
    ) -> Result<Publish, StoreError> {
        self.change(name, operations::unchanged(token, soft, hard))
    }

    fn fail(&self, name: &str, token: &Token, pause: Duration) -> Result<bool, StoreError> {
        self.change(name, operations::fail(token, pause))
    }

    fn renew(&self, name: &str, token: &Token, lease: Duration) -> Result<bool, StoreError> {
        self.change(name, operations::renew(token, lease))
    }

    fn invalidate(&self, name: &str, how: Invalidation) -> Result<Epoch, StoreError> {
        self.change(name, operations::invalidate(how))
    }

    fn subscribe(&self, name: &str, hint: Hint) -> Option<Subscription> {
        self.rows.subscribe(name, hint)
    }

    fn breaker(&self) -> Option<&Breaker> {
        Some(&self.breaker)
    }
}

impl<S> fmt::Debug for SwapStore<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SwapStore").finish_non_exhaustive()
    }
}
