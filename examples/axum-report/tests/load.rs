//! The server under load, on a clock that the test moves, with builds that end when the test says so: order is
//! channels, and real time is a guard against hangs.

use axum_report::{App, POLICY, Report, serve};
use dogpile::{DogpileCell, ManualClock};
use serde_json::Value;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;
use ureq::Agent;

/// Just past the policy's ttl.
const EXPIRY: Duration = Duration::from_nanos(1_000_000_001);
/// Past the ttl and all of the time in which an old report may be served.
const END: Duration = Duration::from_nanos(61_000_000_001);
const PATIENCE: Duration = Duration::from_secs(30);

struct Server {
    address: SocketAddr,
    app: Arc<App<ManualClock>>,
    clock: ManualClock,
    /// The number of each build that has begun.
    begun: Receiver<u64>,
    /// One permit lets one build end.
    ends: Arc<Semaphore>,
    stop: oneshot::Sender<()>,
    served: JoinHandle<io::Result<()>>,
    runtime: Runtime,
}

impl Server {
    fn start() -> Self {
        let clock = ManualClock::new();
        let (teller, begun) = channel();
        let ends = Arc::new(Semaphore::new(0));
        let number = Arc::new(AtomicU64::new(0));
        let teller = Mutex::new(teller);
        let end = Arc::clone(&ends);
        let query = move || {
            let number = number.fetch_add(1, Ordering::SeqCst) + 1;
            teller.lock().unwrap().send(number).unwrap();
            let end = Arc::clone(&end);
            async move {
                end.acquire().await.unwrap().forget();
                Report { number, orders: 7 }
            }
        };
        let app = Arc::new(App {
            cell: Arc::new(DogpileCell::with_clock(POLICY, clock.clone())),
            query: Box::new(move || Box::pin(query())),
        });
        let runtime = Runtime::new().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let served = runtime.spawn(serve(listener, Arc::clone(&app), async { drop(stopped.await) }));
        Self { address, app, clock, begun, ends, stop, served, runtime }
    }

    /// A client with a connection of its own, that it keeps. An answer that does not come is an error.
    fn client(&self) -> Client {
        let config = Agent::config_builder().http_status_as_error(false).timeout_global(Some(PATIENCE));
        Client { agent: config.build().into(), url: format!("http://{}", self.address) }
    }

    fn next_build(&self) -> u64 {
        self.begun.recv_timeout(PATIENCE).expect("a build begins")
    }

    fn let_a_build_end(&self) {
        self.ends.add_permits(1);
    }

    fn assert_no_more_builds(&self) {
        let more: Vec<u64> = self.begun.try_iter().collect();
        assert!(more.is_empty(), "nobody has asked for the builds {more:?}");
    }
}

struct Client {
    agent: Agent,
    url: String,
}

impl Client {
    fn get(&self, path: &str) -> (u16, Value) {
        let mut answer = self.agent.get(format!("{}{path}", self.url)).call().expect("an answer");
        let body = answer.body_mut().read_to_string().expect("all of the answer");
        (answer.status().as_u16(), serde_json::from_str(&body).expect("JSON"))
    }

    /// The number of the report.
    fn report(&self) -> u64 {
        let (status, report) = self.get("/report");
        assert_eq!((status, &report["orders"]), (200, &Value::from(7)), "{report}");
        report["number"].as_u64().expect("a number")
    }
}

/// All clients at the same time, each `requests` times.
fn reports(clients: &[Client], requests: usize) -> Vec<u64> {
    thread::scope(|scope| {
        let all: Vec<_> = clients
            .iter()
            .map(|client| scope.spawn(move || (0..requests).map(|_| client.report()).collect::<Vec<_>>()))
            .collect();
        all.into_iter().flat_map(|client| client.join().expect("a client's panic")).collect()
    })
}

/// Until something has happened elsewhere that nobody is told of.
#[track_caller]
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "{what}: has not come to be");
        thread::yield_now();
    }
}

#[test]
fn one_build_for_each_expiry_and_nobody_but_the_first_callers_waits() {
    const CLIENTS: usize = 16;
    const REQUESTS: usize = 25;
    const EXPIRIES: u64 = 5;

    let server = Server::start();
    let clients: Vec<Client> = (0..CLIENTS).map(|_| server.client()).collect();
    let cell = &server.app.cell;
    let others = u64::try_from(CLIENTS).unwrap() - 1;

    let first = thread::scope(|scope| {
        let first = scope.spawn(|| reports(&clients, 1));
        assert_eq!(server.next_build(), 1);
        until("all others wait", || cell.stats().waits == others);
        server.let_a_build_end();
        first.join().expect("the clients' panic")
    });
    assert_eq!(first, vec![1; CLIENTS]);

    for expiry in 1..=EXPIRIES {
        server.clock.advance(EXPIRY);
        // No build can end, and still all are answered: with the old report, also who has begun the build.
        assert_eq!(reports(&clients, REQUESTS), vec![expiry; CLIENTS * REQUESTS]);
        assert_eq!(server.next_build(), expiry + 1);
        assert!(cell.is_refreshing());

        server.let_a_build_end();
        until("the new report", || cell.generation() == expiry + 1);
        assert_eq!(reports(&clients, REQUESTS), vec![expiry + 1; CLIENTS * REQUESTS]);
    }

    server.assert_no_more_builds();
    let stats = cell.stats();
    assert_eq!((stats.builds, stats.published), (EXPIRIES + 1, EXPIRIES + 1));
    assert_eq!(stats.waits, others, "nobody has waited but the first callers");
}

#[test]
fn health_is_told_without_building_and_without_waiting() {
    let server = Server::start();
    let (client, other) = (server.client(), server.client());
    let health =
        |status: u16, freshness: &str, generation: Option<u64>, age: Option<f64>, refreshing: bool| {
            let (told, health) = client.get("/healthz");
            assert_eq!(told, status, "{health}");
            assert_eq!(health["freshness"], freshness, "{health}");
            assert_eq!(health["generation"], Value::from(generation), "{health}");
            assert_eq!(health["age_seconds"], Value::from(age), "{health}");
            assert_eq!(health["refreshing"], refreshing, "{health}");
            health
        };
    let cold = health(503, "empty", None, None, false);
    assert_eq!((&cold["builds"], &cold["last_build_seconds"]), (&Value::from(0), &Value::Null));
    server.assert_no_more_builds();

    thread::scope(|scope| {
        let first = scope.spawn(|| other.report());
        server.next_build();
        health(503, "empty", None, None, true);
        server.clock.advance(Duration::from_secs(2));
        server.let_a_build_end();
        assert_eq!(first.join().expect("the client's panic"), 1);
    });
    let fresh = health(200, "fresh", Some(1), Some(0.0), false);
    assert_eq!((&fresh["builds"], &fresh["last_build_seconds"]), (&Value::from(1), &Value::from(2.0)));

    server.clock.advance(EXPIRY);
    health(200, "stale", Some(1), Some(EXPIRY.as_secs_f64()), false);
    server.assert_no_more_builds();
    assert_eq!(other.report(), 1);
    server.next_build();
    health(200, "stale", Some(1), Some(EXPIRY.as_secs_f64()), true);

    server.clock.advance(END - EXPIRY);
    health(503, "expired", Some(1), Some(END.as_secs_f64()), true);
    server.let_a_build_end();
    assert_eq!(other.report(), 2);
    health(200, "fresh", Some(2), Some(0.0), false);
    server.assert_no_more_builds();
}

#[test]
fn a_first_caller_that_hangs_up_leaves_the_build_to_another() {
    let server = Server::start();
    let client = server.client();
    let mut first = TcpStream::connect(server.address).unwrap();
    write!(first, "GET /report HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    assert_eq!(server.next_build(), 1);

    thread::scope(|scope| {
        let second = scope.spawn(|| client.report());
        until("the second one waits", || server.app.cell.stats().waits == 1);
        drop(first);
        assert_eq!(server.next_build(), 2);
        server.let_a_build_end();
        assert_eq!(second.join().expect("the client's panic"), 2);
    });
    let stats = server.app.cell.stats();
    assert_eq!((stats.builds, stats.abandoned, stats.published), (2, 1, 1));
}

#[test]
fn a_request_that_is_being_answered_when_the_server_stops_gets_its_answer() {
    let server = Server::start();
    let client = server.client();
    let last = thread::spawn(move || client.report());
    server.next_build();
    server.stop.send(()).unwrap();
    until("the door is shut", || TcpStream::connect(server.address).is_err());
    assert!(!server.served.is_finished(), "it waits for the answer");
    server.ends.add_permits(1);
    assert_eq!(last.join().expect("the client's panic"), 1);
    let end = server.runtime.block_on(async { tokio::time::timeout(PATIENCE, server.served).await });
    end.expect("the server ends").unwrap().unwrap();
}
