//! A small HTTP server that stands for the source: it answers 429 beyond so many requests a second.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, routing::get};
use dogpile::{Clock, Tick};
use tokio::sync::oneshot;

/// What the source was asked so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Requests that were answered.
    pub answered: u64,
    /// Requests that were refused, with 429.
    pub refused: u64,
    /// Ids in the requests that were answered.
    pub ids: u64,
}

/// A source on a free port; stops when dropped.
pub struct Source {
    address: SocketAddr,
    shared: Arc<dyn Counted>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

struct Shared<C> {
    clock: C,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    asked: Asked,
    limit: u64,
    /// Requests in the second that began at that tick.
    second: Option<Tick>,
    requests: u64,
    /// Each price goes up with it.
    day: u64,
}

/// What the source's handle needs, whatever its clock.
trait Counted: Send + Sync {
    fn counts(&self) -> &Mutex<Counts>;
}

impl<C: Clock> Counted for Shared<C> {
    fn counts(&self) -> &Mutex<Counts> {
        &self.counts
    }
}

impl Counts {
    fn is_allowed(&mut self, now: Tick) -> bool {
        let is_same =
            self.second.is_some_and(|began| now.saturating_duration_since(began) < Duration::from_secs(1));
        if !is_same {
            (self.second, self.requests) = (Some(now), 0);
        }
        self.requests += 1;
        self.requests <= self.limit
    }
}

impl Source {
    /// Starts one that allows `limit` requests a second. It has ids 0 to 9,999; the price of an id is at first ten times the id.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn start<C: Clock + 'static>(limit: u64, clock: C) -> io::Result<Self> {
        let shared = Arc::new(Shared { clock, counts: Mutex::new(Counts { limit, ..Counts::default() }) });
        let routes = Router::new().route("/prices", get(prices::<C>)).with_state(Arc::clone(&shared));
        let (stop, stopped) = oneshot::channel();
        let (tell, address) = mpsc::channel();
        let serve = async move {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
            tell.send(listener.local_addr()?).map_err(io::Error::other)?;
            let server = axum::serve(listener, routes);
            tokio::select! {
                ended = server => ended,
                _ = stopped => Ok(()),
            }
        };
        let thread = thread::spawn(|| {
            tokio::runtime::Builder::new_current_thread().enable_io().build()?.block_on(serve)
        });
        let address = address.recv().map_err(io::Error::other)?;
        Ok(Self { address, shared, stop: Some(stop), thread: Some(thread) })
    }

    fn counts(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.shared.counts().lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the prices are.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}/prices", self.address)
    }

    /// What it was asked so far.
    #[must_use]
    pub fn asked(&self) -> Asked {
        self.counts().asked
    }

    /// From now on it allows so many requests a second.
    pub fn set_limit(&self, limit: u64) {
        self.counts().limit = limit;
    }

    /// From now on each price is one more than before.
    pub fn raise_prices(&self) {
        self.counts().day += 1;
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// `?ids=1,2,3`: the prices of those that there are.
async fn prices<C: Clock>(
    State(shared): State<Arc<Shared<C>>>,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    let ids: Vec<u32> = query
        .get("ids")
        .into_iter()
        .flat_map(|ids| ids.split(','))
        .filter_map(|id| id.parse().ok())
        .collect();
    let now = shared.clock.now();
    let mut counts = shared.counts.lock().unwrap_or_else(PoisonError::into_inner);
    if !counts.is_allowed(now) {
        counts.asked.refused += 1;
        return (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "1")]).into_response();
    }
    counts.asked.answered += 1;
    counts.asked.ids += ids.len() as u64;
    let day = counts.day;
    let found: HashMap<u32, u64> =
        ids.into_iter().filter(|id| *id < 10_000).map(|id| (id, 10 * u64::from(id) + day)).collect();
    Json(found).into_response()
}
