//! `cargo run --release -p tls-reload [-- SECONDS]`: a server whose certificate is replaced each second, under load.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;
use tls_reload::{Authority, Load, identity, start, watch};
use tokio::time::{MissedTickBehavior, interval, sleep};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let seconds = std::env::args().nth(1).map_or(Ok(10), |text| text.parse())?;
    let folder = tempfile::tempdir()?;
    run(folder.path(), seconds).await
}

async fn run(folder: &Path, seconds: u32) -> anyhow::Result<()> {
    let authority = Authority::new()?;
    authority.rotate(folder)?;
    let identity = identity();
    let watch = watch(&identity, folder)?;
    ensure!(
        watch.wait_ready_async(Duration::from_secs(10)).await,
        "no certificate: {:?}",
        watch.last_error()
    );
    let address = start(identity.clone()).await?;
    let load = Load::start(&authority, address, 4)?;

    let mut written = Vec::new();
    let mut ticks = interval(Duration::from_secs(1));
    // Each certificate has a second, also on a busy machine.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for _ in 0..seconds {
        ticks.tick().await;
        written.push((authority.rotate(folder)?, Instant::now()));
    }
    sleep(Duration::from_secs(1)).await;

    println!("A certificate without its key: it is refused, and the old pair goes on being served.");
    let (certificate, _key, _) = authority.issue()?;
    std::fs::write(folder.join("cert.pem"), certificate)?;
    while watch.last_error().is_none() {
        sleep(Duration::from_millis(10)).await;
    }
    println!("  {}", watch.last_error().expect("it was there a moment ago"));
    sleep(Duration::from_millis(500)).await;

    let report = load.stop().await?;
    println!("{report}");
    let late: Vec<Duration> = written
        .iter()
        .filter_map(|(certificate, written)| {
            Some(report.first_seen.get(certificate)?.duration_since(*written))
        })
        .collect();
    let longest = late.iter().max().copied().unwrap_or_default();
    println!(
        "{} certificates were written, {} served, the latest {longest:.0?} after it was written",
        written.len(),
        late.len()
    );
    ensure!(report.failures.is_empty(), "handshakes have failed");
    Ok(())
}
