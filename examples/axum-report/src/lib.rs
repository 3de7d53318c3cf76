//! An axum server around one `LazyDogpile`: `/report` answers with an expensive report, `/report/latest` prefers a new one to
//! a quick answer, and `/healthz` is the readiness probe.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, routing::get};
use dogpile::{Clock, Freshness, LazyDogpile, Policy, RefreshError, SystemClock};
use std::{io, pin::Pin, sync::Arc, time::Duration};
use tokio::net::TcpListener;

/// What every client wants to see, and what takes long to make.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Report {
    /// How many reports have been made, with this one.
    pub number: u64,
    /// What they are about.
    pub orders: u64,
}

/// Fresh for a second; served for up to a minute more, while a new one is made or the database is down.
pub const POLICY: Policy = Policy::ttl(Duration::from_secs(1)).stale_while_refresh(Duration::from_secs(60));

/// How long a request without a report to fall back on waits for the first one.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// How long `/report/latest` waits for a new report before it answers with the old one.
pub const SOFT_TIMEOUT: Duration = Duration::from_millis(200);

/// Makes a report, or fails.
pub type Query = Box<dyn Fn() -> Pin<Box<dyn Future<Output = io::Result<Report>> + Send>> + Send + Sync>;

/// What the handlers share.
pub type Reports<C = SystemClock> = Arc<LazyDogpile<Report, Query, C>>;

/// Serves until `stop` is ready. Requests that are being answered by then get their answers.
pub async fn serve<C: Clock + 'static>(
    listener: TcpListener,
    reports: Reports<C>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    start_build(&reports).await;
    let routes = Router::new()
        .route("/report", get(report))
        .route("/report/latest", get(latest))
        .route("/healthz", get(healthz))
        .with_state(reports);
    axum::serve(listener, routes).with_graceful_shutdown(stop).await
}

/// Waits only if there is nothing to serve. Every build is a task of its own, which goes on when the request is dropped.
async fn report<C: Clock + 'static>(State(reports): State<Reports<C>>) -> Result<Response, Unavailable> {
    let report =
        reports.request_owned().wait_at_most(PATIENCE).spawn_with(tokio::spawn).try_get_async().await?;
    Ok(Json(&*report).into_response())
}

/// A fresh report if there is one in time, or else the old one.
async fn latest<C: Clock + 'static>(State(reports): State<Reports<C>>) -> Result<Response, Unavailable> {
    let fresh = reports.request_owned().max_stale(Duration::ZERO).wait_at_most(SOFT_TIMEOUT);
    let report = fresh.or_stale().spawn_with(tokio::spawn).try_get_async().await?;
    Ok(Json(&*report).into_response())
}

/// Starts a build unless one runs, a retry pause runs or there is a fresh report; waits for nothing.
async fn start_build<C: Clock + 'static>(reports: &Reports<C>) {
    let request = reports.request_owned().wait_at_most(Duration::ZERO);
    drop(request.spawn_with(tokio::spawn).try_get_async().await);
}

/// 503 while `/report` would have to wait. Then the probe itself starts the build: an instance that is not ready gets no
/// requests that could.
async fn healthz<C: Clock + 'static>(State(reports): State<Reports<C>>) -> Response {
    if reports.get().is_none() {
        start_build(&reports).await;
    }
    let cell = reports.cell();
    let (stats, snapshot) = (cell.stats(), cell.peek());
    let freshness = snapshot.as_ref().map_or(Freshness::Empty, |snapshot| snapshot.freshness);
    let code = match freshness {
        Freshness::Fresh | Freshness::Stale => StatusCode::OK,
        Freshness::Empty | Freshness::Expired => StatusCode::SERVICE_UNAVAILABLE,
    };
    let health = serde_json::json!({
        "freshness": format!("{freshness:?}").to_lowercase(),
        "generation": snapshot.as_ref().map(|snapshot| snapshot.generation),
        "age_seconds": snapshot.as_ref().map(|snapshot| snapshot.age.as_secs_f64()),
        "refreshing": cell.is_refreshing(),
        "builds": stats.builds,
        "consecutive_failures": stats.consecutive_failures,
        "last_error": cell.last_error().map(|error| error.to_string()),
        "panicked": stats.panicked,
        "waits": stats.waits,
        "last_build_seconds": stats.last_build.map(|took| took.as_secs_f64()),
    });
    (code, Json(health)).into_response()
}

/// The answer in place of a report: 503, with the reason.
struct Unavailable(RefreshError);

impl From<RefreshError> for Unavailable {
    fn from(error: RefreshError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Unavailable {
    fn into_response(self) -> Response {
        (StatusCode::SERVICE_UNAVAILABLE, self.0.to_string()).into_response()
    }
}
