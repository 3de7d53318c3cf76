//! The server: `/users?ids=1,2,3` answers with the users of these ids, `null` where there is none.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, routing::get};
use tokio::runtime::Runtime;

use crate::Users;

/// What it answers to.
pub fn routes(users: Arc<Users>) -> Router {
    Router::new().route("/users", get(by_id)).with_state(users)
}

async fn by_id(State(users): State<Arc<Users>>, Query(query): Query<HashMap<String, String>>) -> Response {
    let ids: Result<Vec<i64>, _> =
        query.get("ids").map_or("", String::as_str).split(',').map(str::parse).collect();
    let Ok(ids) = ids else { return (StatusCode::BAD_REQUEST, "?ids=1,2,3").into_response() };
    match users.get_many_async(&ids).await {
        Ok(found) => Json(found.iter().map(Option::as_deref).collect::<Vec<_>>()).into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response(),
    }
}

/// A server on a free port of this machine; stops when dropped.
pub struct Server {
    address: SocketAddr,
    /// Its drop ends the tasks.
    _runtime: Runtime,
}

impl Server {
    /// Starts one.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn start(users: Arc<Users>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_io().build()?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        runtime.spawn(async { axum::serve(listener, routes(users)).await });
        Ok(Self { address, _runtime: runtime })
    }

    /// Where these users are.
    pub fn url(&self, ids: &[i64]) -> String {
        let ids: Vec<String> = ids.iter().map(i64::to_string).collect();
        format!("http://{}/users?ids={}", self.address, ids.join(","))
    }
}
