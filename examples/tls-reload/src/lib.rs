//! A TLS server whose certificate follows its files.
//!
//! Certificate and key are one value in a [`DogpileCell`]; a [`Watch`] keeps it up to date, and rustls asks the cell at each
//! handshake. So a certificate that is replaced is served to the next client, without a restart, and a pair that does not
//! match replaces nothing.

mod load;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use dogpile::{DogpileCell, Policy};
use dogpile_files::{FileError, Files, Watch};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

pub use load::{Authority, Load, Report};

/// A certificate with its key.
pub type Identity = DogpileCell<CertifiedKey>;

/// A cell for an identity. It never expires by itself: the files say when it is replaced.
#[must_use]
pub fn identity() -> Arc<Identity> {
    Arc::new(DogpileCell::with_policy(Policy::never_expires()))
}

/// Keeps `identity` up to date with `cert.pem` and `key.pem` in a folder.
pub fn watch(identity: &Arc<Identity>, folder: &Path) -> anyhow::Result<Watch> {
    let watch = Watch::files(["cert.pem", "key.pem"].map(|name| folder.join(name)))
        .debounce(Duration::from_millis(300))
        .spawn(identity, parse)?;
    Ok(watch)
}

fn parse(files: &Files) -> Result<CertifiedKey, FileError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(files.read(0)?).collect();
    let chain = chain.map_err(|error| files.error(0, error))?;
    let key = PrivateKeyDer::from_pem_slice(files.read(1)?).map_err(|error| files.error(1, error))?;
    // Refuses a key that is not the certificate's.
    CertifiedKey::from_der(chain, key, &default_provider()).map_err(|error| files.error(1, error))
}

#[derive(Debug)]
struct Resolver(Arc<Identity>);

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.get()
    }
}

/// Serves until the listener fails.
pub async fn serve(listener: TcpListener, identity: Arc<Identity>) -> anyhow::Result<()> {
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Resolver(identity)));
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let router = Router::new().route("/", get(|| async { "hello\n" }));
    loop {
        let (stream, _peer) = listener.accept().await?;
        let (acceptor, service) = (acceptor.clone(), TowerToHyperService::new(router.clone()));
        tokio::spawn(async move {
            let stream = match acceptor.accept(stream).await {
                Ok(stream) => TokioIo::new(stream),
                Err(error) => return eprintln!("a handshake failed: {error}"),
            };
            let builder = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
            // A client that goes away in the middle is its own affair.
            let _ = builder.serve_connection(stream, service).await;
        });
    }
}

/// Starts a server on a free port of the loopback interface.
pub async fn start(identity: Arc<Identity>) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(serve(listener, identity));
    Ok(address)
}
