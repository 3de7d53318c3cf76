//! `cargo run --release -p metrics-export` builds a value, lets a build fail, and shows what is logged of it and what
//! Prometheus would get.

use dogpile::{DogpileCell, Policy};
use metrics_export::export;
use metrics_exporter_prometheus::PrometheusBuilder;
use std::thread::sleep;
use std::time::Duration;

const TTL: Duration = Duration::from_secs(60);

static RATES: DogpileCell<f64> =
    DogpileCell::with_policy(Policy::ttl(TTL).stale_if_error(TTL)).named("rates");

fn download_rates(source_is_up: bool) -> Result<f64, &'static str> {
    sleep(Duration::from_millis(50)); // stands for the download
    if source_is_up { Ok(1.07) } else { Err("no route to host") }
}

fn main() {
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG)
        .without_time()
        .init();
    let recorder = PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    metrics::set_global_recorder(recorder).expect("there is no other recorder");

    println!("What is logged:\n");
    RATES.try_get_or_refresh(|| download_rates(true)).expect("rates");
    RATES.invalidate();
    RATES.try_get_or_refresh(|| download_rates(false)).expect("the old rates");
    RATES.try_get_or_refresh(|| download_rates(true)).expect("rates");

    println!("\nWhat a scrape gets:\n");
    export("rates", &RATES);
    print!("{}", metrics.render());
}
