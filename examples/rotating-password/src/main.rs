//! `cargo run --release -p rotating-password [-- SECONDS]`: the password is changed every two seconds beside four clients. Needs an
//! installed `PostgreSQL`, of which it starts a server of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::ensure;
use rotating_password::{Database, Server};
use tokio::time::sleep;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let seconds: u32 = std::env::args().nth(1).map_or(Ok(20), |text| text.parse())?;
    let server = Server::start().await?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("credentials");
    server.rotate("password-0", &file).await?;
    let database = Arc::new(Database::open(&file, server.port).await?);
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (database, stop) = (Arc::clone(&database), Arc::clone(&stop));
            tokio::spawn(async move {
                let (mut queries, mut failures) = (0u64, Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    queries += 1;
                    failures.extend(database.ask("SELECT 7").await.err());
                }
                (queries, failures)
            })
        })
        .collect();
    let rotations = seconds / 2;
    for number in 1..=rotations {
        sleep(Duration::from_secs(2)).await;
        server.rotate(&format!("password-{number}"), &file).await?;
    }
    sleep(Duration::from_secs(1)).await;
    stop.store(true, Ordering::Relaxed);
    let (mut queries, mut failures) = (0, Vec::new());
    for client in clients {
        let (asked, failed) = client.await?;
        queries += asked;
        failures.extend(failed);
    }
    println!(
        "{rotations} passwords, {queries} queries, {} failed; {} connections were refused and made again",
        failures.len(),
        database.refused()
    );
    ensure!(failures.is_empty(), "{:?}", failures.first());
    Ok(())
}
