//! An axum server around one `DogpileCell`: `/report` answers with an expensive report, `/healthz` tells how old it is.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, routing::get};
use dogpile::{Clock, DogpileCell, Freshness, Policy, SharedCell};
use std::{io, pin::Pin, sync::Arc, time::Duration};
use tokio::net::TcpListener;

/// What everybody wants to see, and what takes long to make.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Report {
    /// How many reports have been made, with this one.
    pub number: u64,
    /// What they are about.
    pub orders: u64,
}

/// Fresh for a second; served for up to a minute more, while a new one is made.
pub const POLICY: Policy = Policy::ttl(Duration::from_secs(1)).stale_while_refresh(Duration::from_secs(60));

/// Makes a report.
pub type Query = Box<dyn Fn() -> Pin<Box<dyn Future<Output = Report> + Send>> + Send + Sync>;

/// What the handlers share.
pub struct App<C> {
    /// The report.
    pub cell: Arc<DogpileCell<Report, C>>,
    /// Where it comes from.
    pub query: Query,
}

/// Serves until `stop` is ready. Requests that are being answered by then get their answers.
pub async fn serve<C: Clock + 'static>(
    listener: TcpListener,
    app: Arc<App<C>>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let routes = Router::new().route("/report", get(report)).route("/healthz", get(healthz)).with_state(app);
    axum::serve(listener, routes).with_graceful_shutdown(stop).await
}

/// Only if there is nothing to serve does the request wait: for the first build, which one request runs for all. Later ones
/// run as tasks of their own, and the request that was elected is answered at once, like all others, with the old report.
async fn report<C: Clock + 'static>(State(app): State<Arc<App<C>>>) -> Response {
    let builder = Arc::clone(&app);
    let build = move || async move { (builder.query)().await };
    let spawn = |build| {
        tokio::spawn(build);
    };
    let report = app.cell.get_or_refresh_in_background_async(spawn, build).await;
    Json(&*report).into_response()
}

/// Builds nothing and waits for nothing. 503 while `/report` would have to wait.
async fn healthz<C: Clock + 'static>(State(app): State<Arc<App<C>>>) -> Response {
    let (stats, snapshot) = (app.cell.stats(), app.cell.snapshot());
    let freshness = snapshot.as_ref().map_or(Freshness::Empty, |snapshot| snapshot.freshness);
    let code = match freshness {
        Freshness::Fresh | Freshness::Stale => StatusCode::OK,
        Freshness::Empty | Freshness::Expired => StatusCode::SERVICE_UNAVAILABLE,
    };
    let health = serde_json::json!({
        "freshness": format!("{freshness:?}").to_lowercase(),
        "generation": snapshot.as_ref().map(|snapshot| snapshot.generation),
        "age_seconds": snapshot.as_ref().map(|snapshot| snapshot.age.as_secs_f64()),
        "refreshing": app.cell.is_refreshing(),
        "builds": stats.builds,
        "panicked": stats.panicked,
        "waits": stats.waits,
        "last_build_seconds": stats.last_build.map(|took| took.as_secs_f64()),
    });
    (code, Json(health)).into_response()
}
