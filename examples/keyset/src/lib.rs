//! A key set that is fetched over HTTP, and not transferred again while it has not changed; and the search for the key of a
//! token, whose key id anybody can make up.

pub mod issuer;

use dogpile::{Clock, DogpileCell, Policy, RefreshError, Refreshed, SystemClock};
use std::sync::Arc;
use std::time::Duration;
use ureq::http::{StatusCode, header};

/// The keys that an issuer signs with at the moment.
#[derive(Debug, serde::Deserialize)]
pub struct KeySet {
    /// The keys.
    pub keys: Vec<Key>,
    /// The issuer's name for this state of them, sent with the next request.
    #[serde(skip)]
    pub etag: Option<String>,
}

/// A key; what it is made of is left out here.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
pub struct Key {
    /// Its id, as in the header of a token.
    pub kid: String,
}

impl KeySet {
    fn key(&self, kid: &str) -> Option<Key> {
        self.keys.iter().find(|key| key.kid == kid).cloned()
    }
}

/// The key set of an issuer, without a `Refresher`: fetched when it is needed.
#[derive(Debug)]
pub struct Keys<C = SystemClock> {
    cell: DogpileCell<KeySet, C>,
    agent: ureq::Agent,
    url: String,
}

/// How long a key set is used without asking the issuer, if all key ids are known.
pub const TTL: Duration = Duration::from_secs(3600);

/// The key set is fetched at most once in so long because of key ids that it does not have.
pub const MIN_AGE: Duration = Duration::from_secs(30);

impl<C: Clock> Keys<C> {
    /// The keys at `url`. Nothing is fetched yet.
    pub fn new(url: String, clock: C) -> Self {
        Self { cell: DogpileCell::with_clock(Policy::ttl(TTL), clock), agent: agent(), url }
    }

    /// The key with this id. `None`: the issuer does not have it, as far as is known.
    ///
    /// An id that is not in the key set may be that of a new key, or made up. Only the issuer knows, so the key set is fetched
    /// again, unless the one that was searched is at most [`MIN_AGE`] old: `max_age` is a bound on the age of the answer, and
    /// so on the number of requests, however many tokens come and from however many threads. A new key is found at once if the
    /// latest fetch is older than that, else after [`MIN_AGE`] at the latest.
    ///
    /// (`newer_than` would be wrong here. It suits a value that is known to be bad, such as an access token that was answered
    /// with a 401. Each made-up id would ask for something newer than the latest key set, and be a fetch of its own.)
    ///
    /// # Errors
    ///
    /// The fetch failed, so that it is not known whether there is such a key. (With `.or_stale()` the old key set would decide.)
    pub fn find(&self, kid: &str) -> Result<Option<Key>, RefreshError> {
        let fetch = |previous| fetch(&self.agent, &self.url, previous);
        if let Some(key) = self.cell.request().try_get_with(fetch)?.key(kid) {
            return Ok(Some(key));
        }
        Ok(self.cell.request().max_age(MIN_AGE).try_get_with(fetch)?.key(kid))
    }
}

/// A client whose requests end: a fetch that hangs would keep others from trying.
#[must_use]
pub fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(10))).build().into()
}

/// Fetches the key set, unless the issuer says that `previous` is still right.
///
/// # Errors
///
/// If the issuer does not answer, answers with an error, or with something else than keys.
pub fn fetch(
    agent: &ureq::Agent,
    url: &str,
    previous: Option<Arc<KeySet>>,
) -> Result<Refreshed<KeySet>, ureq::Error> {
    let mut request = agent.get(url);
    if let Some(etag) = previous.and_then(|keys| keys.etag.clone()) {
        request = request.header(header::IF_NONE_MATCH, etag);
    }
    let mut answer = request.call()?;
    if answer.status() == StatusCode::NOT_MODIFIED {
        return Ok(Refreshed::NotModified);
    }
    let etag = answer.headers().get(header::ETAG).and_then(|etag| etag.to_str().ok()).map(str::to_owned);
    let keys: KeySet = answer.body_mut().read_json()?;
    Ok(Refreshed::New(KeySet { etag, ..keys }))
}
