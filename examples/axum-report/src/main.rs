//! `cargo run --release -p axum-report` starts the server, sends it some requests, shows the answers and stops it.
//! With `-- --serve ADDRESS` it serves until Ctrl-C.

use axum_report::{POLICY, Query, Report, serve};
use dogpile::LazyDogpile;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::{net::TcpListener, signal::ctrl_c, sync::oneshot, task::spawn_blocking, time::sleep};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let made = Arc::new(AtomicU64::new(0));
    let query: Query = Box::new(move || {
        let made = Arc::clone(&made);
        Box::pin(async move {
            sleep(Duration::from_millis(400)).await; // stands for the database's work
            Ok(Report { number: made.fetch_add(1, Ordering::Relaxed) + 1, orders: 1_000_000 })
        })
    });
    let reports = Arc::new(LazyDogpile::with_policy(POLICY, query));

    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let url = format!("http://{}", listener.local_addr()?);
            let (stop, stopped) = oneshot::channel::<()>();
            let server = tokio::spawn(serve(listener, reports, async { drop(stopped.await) }));
            let shown = spawn_blocking(move || show(&url)).await?;
            drop(stop);
            server.await??;
            shown
        }
        ["--serve", address] => {
            let listener = TcpListener::bind(address).await?;
            println!("http://{0}/report and http://{0}/healthz, until Ctrl-C", listener.local_addr()?);
            Ok(serve(listener, reports, async { drop(ctrl_c().await) }).await?)
        }
        _ => anyhow::bail!("usage: axum-report [--serve ADDRESS]"),
    }
}

/// Sends the requests, one line for each.
fn show(url: &str) -> anyhow::Result<()> {
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let ask = |path: &str| {
        let start = Instant::now();
        let mut answer = agent.get(format!("{url}{path}")).call()?;
        let (status, body) = (answer.status().as_u16(), answer.body_mut().read_to_string()?);
        println!("{:7.1} ms  GET {path:14} {status} {body}", start.elapsed().as_secs_f64() * 1e3);
        anyhow::Ok(())
    };
    println!("The first build has begun with the server. The probe says 503 until it has ended.");
    ask("/healthz")?;
    println!("Three first callers wait for that build, which takes 400 ms.");
    std::thread::scope(|scope| {
        let callers = [(); 3].map(|()| scope.spawn(|| ask("/report")));
        callers.into_iter().try_for_each(|caller| caller.join().expect("a caller's panic"))
    })?;
    println!("After that no request waits, also when the report is out of date: a task makes the new one.");
    ask("/report")?;
    std::thread::sleep(Duration::from_millis(1_100));
    ask("/report")?;
    println!(
        "Except for a request that prefers the new one: it waits 200 ms for it, and gets the old one after that."
    );
    ask("/report/latest")?;
    ask("/healthz")?;
    std::thread::sleep(Duration::from_millis(500));
    println!("Half a second later it is there.");
    ask("/report/latest")?;
    ask("/healthz")
}
