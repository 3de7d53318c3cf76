//! No handshake fails while certificates are replaced.

use std::fs;
use std::time::{Duration, Instant};

use tls_reload::{Authority, Load, identity, start, watch};
use tokio::time::sleep;

/// A guard against hangs.
const PATIENCE: Duration = Duration::from_secs(60);

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "hangs: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// `DOGPILE_TLS_ROTATIONS` makes it longer.
fn rotations() -> u32 {
    std::env::var("DOGPILE_TLS_ROTATIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(3)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_replaced_under_load_without_a_failed_handshake() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new().unwrap();
    let first = authority.rotate(folder.path()).unwrap();
    let identity = identity();
    let watch = watch(&identity, folder.path()).unwrap();
    assert!(watch.wait_ready_async(PATIENCE).await, "{:?}", watch.last_error());
    let address = start(identity.clone()).await.unwrap();
    let load = Load::start(&authority, address, 2).unwrap();
    eventually("the first certificate", || load.report().first_seen.contains_key(&first)).await;
    let mut last = first;
    for _ in 0..rotations() {
        last = authority.rotate(folder.path()).unwrap();
        eventually("the next certificate", || load.report().first_seen.contains_key(&last)).await;
    }

    // A certificate without its key.
    let (certificate, _key, alone) = authority.issue().unwrap();
    fs::write(folder.path().join("cert.pem"), certificate).unwrap();
    eventually("it is refused", || watch.last_error().is_some()).await;
    let error = watch.last_error().unwrap().to_string();
    assert!(error.contains("key.pem: ") && error.to_lowercase().contains("mismatch"), "{error}");
    // Half a certificate.
    fs::write(folder.path().join("cert.pem"), "-----BEGIN CERTIFICATE-----\nMIIB").unwrap();
    eventually("it is refused too", || {
        watch.last_error().is_some_and(|error| error.to_string().contains("cert.pem"))
    })
    .await;
    let before = load.report().handshakes;
    eventually("the old one is served", || load.report().handshakes > before + 10).await;

    let report = load.stop().await.unwrap();
    println!("{report}");
    assert!(report.failures.is_empty(), "{report}");
    assert!(!report.first_seen.contains_key(&alone));
    assert_eq!(u32::try_from(report.first_seen.len()).unwrap(), 1 + rotations());
    assert_eq!(identity.get().unwrap().cert[0], last);
}
