//! A key set that is fetched over HTTP, and not transferred again while it has not changed.

pub mod issuer;

use dogpile::Refreshed;
use std::sync::Arc;
use std::time::Duration;
use ureq::http::{StatusCode, header};

/// The keys that an issuer signs with at the moment.
#[derive(Debug, serde::Deserialize)]
pub struct KeySet {
    /// The keys.
    pub keys: Vec<Key>,
    /// What the issuer calls this state of them, to be asked whether it is still right.
    #[serde(skip)]
    pub etag: Option<String>,
}

/// A key; what it is made of is left out here.
#[derive(Debug, serde::Deserialize)]
pub struct Key {
    /// Its name, as in the header of a token.
    pub kid: String,
}

/// A client whose requests end: a fetch that hangs would keep others from trying.
#[must_use]
pub fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(10))).build().into()
}

/// What a [`Refresher`](dogpile::Refresher) is given to run.
///
/// # Errors
///
/// If the issuer does not answer, answers with an error, or with something else than keys.
pub fn fetch(
    agent: &ureq::Agent,
    url: &str,
    previous: Option<&Arc<KeySet>>,
) -> Result<Refreshed<KeySet>, ureq::Error> {
    let mut request = agent.get(url);
    if let Some(etag) = previous.and_then(|keys| keys.etag.as_ref()) {
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
