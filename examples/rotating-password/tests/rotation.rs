//! No query fails while the password is changed.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rotating_password::{Database, Server};
use tokio::time::sleep;

/// A guard against hangs.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_go_on_while_the_password_is_changed() {
    let server = match Server::start().await {
        Ok(server) => server,
        Err(reason) => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "no server: {reason}");
            let _ = writeln!(std::io::stderr(), "SKIPPED: rotating-password: no server: {reason}");
            return;
        }
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("credentials");
    server.rotate("password-0", &file).await.unwrap();
    let database = Arc::new(Database::open(&file, server.port).await.unwrap());
    let (stop, queries) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let clients: Vec<_> = (0..2)
        .map(|_| {
            let (database, stop, queries) = (Arc::clone(&database), Arc::clone(&stop), Arc::clone(&queries));
            tokio::spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    assert_eq!(database.ask("SELECT 7").await.unwrap(), 7);
                    queries.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    for number in 1..=3 {
        server.rotate(&format!("password-{number}"), &file).await.unwrap();
        // Queries that began after the change have come back.
        let (enough, start) = (queries.load(Ordering::SeqCst) + 10, Instant::now());
        while queries.load(Ordering::SeqCst) < enough {
            assert!(start.elapsed() < PATIENCE, "hangs");
            sleep(Duration::from_millis(5)).await;
        }
    }
    stop.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.unwrap();
    }
    println!("{} queries, {} refused and made again", queries.load(Ordering::SeqCst), database.refused());
    // Another error is an error at once.
    let error = database.ask("SELECT 1 / 0").await.unwrap_err();
    assert!(format!("{error:?}").contains("division by zero"), "{error:?}");
    assert_eq!(database.ask("SELECT 8").await.unwrap(), 8);
}
