//! `cargo run --release -p metrics-export` builds a value, lets a build fail, and shows what is logged of it and what
//! Prometheus would get.

use dogpile::DogpileCell;
use metrics_export::{export, export_errors};
use metrics_exporter_prometheus::PrometheusBuilder;
use std::thread::sleep;
use std::time::Duration;

static RATES: DogpileCell<f64> = DogpileCell::new(Duration::from_secs(60)).named("rates");

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
    export_errors("rates", &RATES.stats(), RATES.last_error());
    println!("\nWhat a scrape gets while builds fail:\n\n{}", metrics.render());
    // It does not wait for the end of the retry pause.
    RATES.request().no_cache().try_get(|| download_rates(true)).expect("rates");

    println!("\nWhat a scrape gets:\n");
    export("rates", &RATES);
    export_errors("rates", &RATES.stats(), RATES.last_error());
    print!("{}", metrics.render());
}
