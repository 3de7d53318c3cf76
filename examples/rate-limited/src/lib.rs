//! Prices by id, from a source that allows few requests, but many ids in each.

mod source;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use dogpile::{Clock, Policy, RefreshError};
use dogpile_map::{Batches, DogpileMap, Stats};

pub use source::{Asked, Source};

/// How long a price is fresh.
pub const TTL: Duration = Duration::from_secs(60);
/// The most ids in one request.
pub const BATCH: usize = 50;
/// How long a batch that is not full waits for more ids.
pub const WINDOW: Duration = Duration::from_millis(20);
/// How long the source is left alone after a refusal, at first.
pub const PAUSE: Duration = Duration::from_secs(1);

/// Prices, from the cache or from the source.
pub struct Prices<C> {
    source: Client,
    cache: DogpileMap<u32, u64, C>,
    /// Rebuilds stale prices as long as it lives.
    _batches: Batches,
}

#[derive(Clone)]
struct Client {
    agent: ureq::Agent,
    url: Arc<str>,
}

impl Client {
    /// One request. A status such as 429 is an error.
    fn fetch(&self, ids: &[u32]) -> Result<Vec<(u32, u64)>, ureq::Error> {
        let list: Vec<String> = ids.iter().map(u32::to_string).collect();
        let mut response = self.agent.get(&*self.url).query("ids", list.join(",")).call()?;
        let prices: HashMap<u32, u64> = response.body_mut().read_json()?;
        Ok(prices.into_iter().collect())
    }
}

impl<C: Clock + Clone + 'static> Prices<C> {
    /// Prices from the source at this address.
    ///
    /// # Errors
    ///
    /// If the thread that fetches batches cannot be started.
    pub fn new(url: &str, ttl: Duration, clock: C) -> io::Result<Self> {
        // What is refused is tried again after a pause; the old prices are served meanwhile.
        let policy = Policy::ttl(ttl).retry_backoff(PAUSE, 60 * PAUSE);
        let cache = DogpileMap::builder(policy).max_entries(10_000).name("prices").clock(clock).build();
        let source = Client { agent: ureq::Agent::new_with_defaults(), url: url.into() };
        let client = source.clone();
        let batches = cache.refresh_in_batches(BATCH, WINDOW, move |stale: &[u32]| client.fetch(stale))?;
        Ok(Self { source, cache, _batches: batches })
    }

    /// A price. Only the first call for an id waits for the source.
    ///
    /// # Errors
    ///
    /// The source's, if it has never told this price.
    pub fn get(&self, id: u32) -> Result<Arc<u64>, RefreshError> {
        self.cache.try_get_or_refresh(&id, |id| {
            let prices = self.source.fetch(&[*id])?;
            prices.into_iter().next().map(|(_, price)| price).ok_or(ureq::Error::StatusCode(404))
        })
    }

    /// Many prices. Those that are not known yet are one request; `None`: there is no such id.
    ///
    /// # Errors
    ///
    /// The source's, if it has never told one of these prices.
    pub fn get_many(&self, ids: &[u32]) -> Result<Vec<Option<Arc<u64>>>, RefreshError> {
        self.cache.get_many(ids, |missing| self.source.fetch(missing))
    }

    /// What the cache has done so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.cache.stats()
    }
}
