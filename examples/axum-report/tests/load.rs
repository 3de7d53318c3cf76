//! The server under load, on a clock that the test moves, with builds that end when the test says so: order is
//! channels, and real time is a guard against hangs.

use axum_report::{POLICY, Query, Report, Reports, SOFT_TIMEOUT, serve};
use dogpile::{DogpileCell, LazyDogpile, ManualClock};
use serde_json::Value;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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
/// The policy's first retry pause.
const RETRY: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(30);

struct Server {
    address: SocketAddr,
    reports: Reports<ManualClock>,
    clock: ManualClock,
    /// The number of each build that has begun.
    begun: Receiver<u64>,
    /// One permit lets one build end.
    ends: Arc<Semaphore>,
    /// Builds that end now fail.
    is_down: Arc<AtomicBool>,
    stop: oneshot::Sender<()>,
    served: JoinHandle<io::Result<()>>,
    runtime: Runtime,
}

impl Server {
    /// Starts it; its first build has begun when this returns.
    fn start() -> Self {
        let clock = ManualClock::new();
        let (begins, begun) = channel();
        let ends = Arc::new(Semaphore::new(0));
        let is_down = Arc::new(AtomicBool::new(false));
        let (end, down) = (Arc::clone(&ends), Arc::clone(&is_down));
        let (number, begins) = (AtomicU64::new(0), Mutex::new(begins));
        let query: Query = Box::new(move || {
            let number = number.fetch_add(1, Ordering::SeqCst) + 1;
            begins.lock().unwrap().send(number).unwrap();
            let (end, down) = (Arc::clone(&end), Arc::clone(&down));
            Box::pin(async move {
                end.acquire().await.unwrap().forget();
                if down.load(Ordering::SeqCst) {
                    return Err(io::Error::other("the database is down"));
                }
                Ok(Report { number, orders: 7 })
            })
        });
        let reports = Arc::new(LazyDogpile::with_clock(POLICY, clock.clone(), query));
        let runtime = Runtime::new().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let served = runtime.spawn(serve(listener, Arc::clone(&reports), async { drop(stopped.await) }));
        let this = Self { address, reports, clock, begun, ends, is_down, stop, served, runtime };
        assert_eq!(this.next_build(), 1, "without a request");
        this
    }

    fn cell(&self) -> &DogpileCell<Report, ManualClock> {
        self.reports.cell()
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

    /// Lets a build end with an error.
    fn let_a_build_fail(&self) {
        let failed = self.cell().stats().failed;
        self.is_down.store(true, Ordering::SeqCst);
        self.let_a_build_end();
        until("the build has failed", || self.cell().stats().failed == failed + 1);
        self.is_down.store(false, Ordering::SeqCst);
    }

    #[track_caller]
    fn assert_no_more_builds(&self) {
        let more: Vec<u64> = self.begun.try_iter().collect();
        assert!(more.is_empty(), "the builds {more:?} are one too many");
    }
}

struct Client {
    agent: Agent,
    url: String,
}

impl Client {
    /// The status and the text.
    fn text(&self, path: &str) -> (u16, String) {
        let mut answer = self.agent.get(format!("{}{path}", self.url)).call().expect("an answer");
        let body = answer.body_mut().read_to_string().expect("all of the answer");
        (answer.status().as_u16(), body)
    }

    fn get(&self, path: &str) -> (u16, Value) {
        let (status, body) = self.text(path);
        (status, serde_json::from_str(&body).expect("JSON"))
    }

    /// The number of the report.
    fn report(&self) -> u64 {
        self.report_from("/report")
    }

    fn report_from(&self, path: &str) -> u64 {
        let (status, report) = self.get(path);
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

/// Waits for something that happens elsewhere without a signal.
#[track_caller]
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        thread::yield_now();
    }
}

#[test]
fn one_build_for_each_expiry_and_only_the_first_callers_wait() {
    const CLIENTS: usize = 16;
    const REQUESTS: usize = 25;
    const EXPIRIES: u64 = 5;

    let server = Server::start();
    let clients: Vec<Client> = (0..CLIENTS).map(|_| server.client()).collect();
    let cell = server.cell();
    let all = u64::try_from(CLIENTS).unwrap();

    let first = thread::scope(|scope| {
        let first = scope.spawn(|| reports(&clients, 1));
        until("all clients wait", || cell.stats().waits == all);
        server.let_a_build_end();
        first.join().expect("the clients' panic")
    });
    assert_eq!(first, vec![1; CLIENTS]);

    for expiry in 1..=EXPIRIES {
        server.clock.advance(EXPIRY);
        // No build can end, and still all are answered with the old report, the one that has started the build too.
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
    assert_eq!(stats.waits, all, "only the first callers have waited");
}

#[test]
fn the_probe_waits_for_nothing_and_builds_only_where_there_is_nothing_to_serve() {
    let server = Server::start();
    let (client, other) = (server.client(), server.client());
    let health =
        |status: u16, freshness: &str, generation: Option<u64>, age: Option<f64>, refreshing: bool| {
            let (shown, health) = client.get("/healthz");
            assert_eq!(shown, status, "{health}");
            assert_eq!(health["freshness"], freshness, "{health}");
            assert_eq!(health["generation"], Value::from(generation), "{health}");
            assert_eq!(health["age_seconds"], Value::from(age), "{health}");
            assert_eq!(health["refreshing"], refreshing, "{health}");
            health
        };
    let cold = health(503, "empty", None, None, true);
    assert_eq!((&cold["builds"], &cold["last_build_seconds"]), (&Value::from(1), &Value::Null));
    server.assert_no_more_builds();

    server.clock.advance(Duration::from_secs(2));
    server.let_a_build_end();
    until("the first report", || server.cell().generation() == 1);
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
fn an_instance_that_gets_no_requests_but_probes_becomes_ready_after_its_first_build_has_failed() {
    let server = Server::start();
    let client = server.client();
    server.let_a_build_fail();
    let (status, health) = client.get("/healthz");
    assert_eq!((status, &health["last_error"]), (503, &Value::from("the database is down")), "{health}");
    assert_eq!(health["consecutive_failures"], 1, "{health}");
    server.assert_no_more_builds();

    server.clock.advance(RETRY);
    let (status, health) = client.get("/healthz");
    assert_eq!((status, &health["refreshing"]), (503, &Value::from(true)), "{health}");
    assert_eq!(server.next_build(), 2);
    server.let_a_build_end();
    until("the first report", || server.cell().generation() == 1);
    let (status, health) = client.get("/healthz");
    assert_eq!((status, &health["last_error"]), (200, &Value::Null), "{health}");

    // Its report has expired, and still there were no requests.
    server.clock.advance(END);
    assert_eq!(client.get("/healthz").0, 503);
    assert_eq!(server.next_build(), 3);
    server.let_a_build_end();
    until("a report again", || server.cell().generation() == 2);
    assert_eq!(client.get("/healthz").0, 200);
    server.assert_no_more_builds();
}

#[test]
fn a_failed_build_is_an_error_without_an_old_report_and_invisible_beside_one() {
    let server = Server::start();
    let client = server.client();
    server.let_a_build_fail();
    assert_eq!(client.text("/report"), (503, "the database is down".to_owned()));
    server.assert_no_more_builds();

    server.clock.advance(RETRY);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| client.report());
        assert_eq!(server.next_build(), 2);
        server.let_a_build_end();
        assert_eq!(waiting.join().expect("the client's panic"), 2);
    });

    server.clock.advance(EXPIRY);
    assert_eq!(client.report(), 2);
    assert_eq!(server.next_build(), 3);
    server.let_a_build_fail();
    for path in ["/report", "/report/latest"] {
        assert_eq!(client.report_from(path), 2, "{path}");
    }
    server.assert_no_more_builds();
}

#[test]
fn the_latest_report_is_waited_for_until_the_soft_timeout() {
    let server = Server::start();
    let client = server.client();
    server.let_a_build_end();
    until("the first report", || server.cell().generation() == 1);
    assert_eq!(client.report_from("/report/latest"), 1);
    server.assert_no_more_builds();

    server.clock.advance(EXPIRY);
    for number in [1, 2] {
        let waits = server.cell().stats().waits;
        thread::scope(|scope| {
            let latest = scope.spawn(|| client.report_from("/report/latest"));
            until("it waits", || server.cell().stats().waits == waits + 1);
            if number == 1 {
                assert_eq!(server.next_build(), 2);
                server.clock.advance(SOFT_TIMEOUT);
            } else {
                // The same build, which has gone on.
                server.let_a_build_end();
            }
            assert_eq!(latest.join().expect("the client's panic"), number);
        });
    }
    server.assert_no_more_builds();
}

#[test]
fn a_build_goes_on_when_the_caller_that_started_it_hangs_up() {
    let server = Server::start();
    let client = server.client();
    server.let_a_build_fail();
    server.clock.advance(RETRY);
    let mut first = TcpStream::connect(server.address).unwrap();
    write!(first, "GET /report HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    assert_eq!(server.next_build(), 2);

    thread::scope(|scope| {
        let second = scope.spawn(|| client.report());
        until("both callers wait", || server.cell().stats().waits == 2);
        drop(first);
        server.let_a_build_end();
        assert_eq!(second.join().expect("the client's panic"), 2);
    });
    server.assert_no_more_builds();
    let stats = server.cell().stats();
    assert_eq!((stats.builds, stats.abandoned, stats.published), (2, 0, 1));
}

#[test]
fn a_request_that_is_being_answered_when_the_server_stops_gets_its_answer() {
    let server = Server::start();
    let client = server.client();
    let last = thread::spawn(move || client.report());
    until("it waits", || server.cell().stats().waits == 1);
    server.stop.send(()).unwrap();
    until("new connections are refused", || TcpStream::connect(server.address).is_err());
    assert!(!server.served.is_finished(), "it waits for the answer");
    server.ends.add_permits(1);
    assert_eq!(last.join().expect("the client's panic"), 1);
    let end = server.runtime.block_on(async { tokio::time::timeout(PATIENCE, server.served).await });
    end.expect("the server ends").unwrap().unwrap();
}
