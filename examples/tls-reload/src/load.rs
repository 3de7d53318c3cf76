//! Certificates that are replaced all the time, and clients that connect all the time.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::client::Resumption;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch::{Receiver, Sender, channel};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

/// Issues certificates for `localhost`.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// A new one.
    pub fn new() -> anyhow::Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate()?)? })
    }

    /// A new certificate and its key, as PEM; and the certificate itself.
    pub fn issue(&self) -> anyhow::Result<(String, String, CertificateDer<'static>)> {
        let key = KeyPair::generate()?;
        let certificate =
            CertificateParams::new(vec!["localhost".to_owned()])?.signed_by(&key, &self.issuer)?;
        Ok((certificate.pem(), key.serialize_pem(), certificate.der().clone()))
    }

    fn client(&self) -> anyhow::Result<TlsConnector> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone())?;
        let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        // Each connection is a whole handshake.
        config.resumption = Resumption::disabled();
        Ok(TlsConnector::from(Arc::new(config)))
    }

    /// Writes a new pair to a folder, as a tool does that knows nothing of this server: one file after the other, 50 ms apart.
    pub fn rotate(&self, folder: &Path) -> anyhow::Result<CertificateDer<'static>> {
        let (certificate, key, der) = self.issue()?;
        replace(&folder.join("cert.pem"), &certificate)?;
        std::thread::sleep(Duration::from_millis(50));
        replace(&folder.join("key.pem"), &key)?;
        Ok(der)
    }
}

/// Writes a file beside another one, and renames it.
fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    Ok(fs::rename(new, path)?)
}

/// What the clients have seen.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Handshakes that were followed by a request and a whole answer.
    pub handshakes: u64,
    /// What went wrong in the others.
    pub failures: Vec<String>,
    /// When each certificate was seen first.
    pub first_seen: HashMap<CertificateDer<'static>, Instant>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { handshakes, failures, first_seen } = self;
        write!(f, "{handshakes} handshakes, {} failed; {} certificates", failures.len(), first_seen.len())?;
        failures.iter().take(3).try_for_each(|failure| write!(f, "\n  {failure}"))
    }
}

/// Clients that connect, ask, and disconnect, one time after the other.
pub struct Load {
    report: Arc<Mutex<Report>>,
    stop: Sender<bool>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts `number` clients.
    pub fn start(authority: &Authority, address: SocketAddr, number: usize) -> anyhow::Result<Self> {
        let report = Arc::new(Mutex::new(Report::default()));
        let (stop, stopped) = channel(false);
        let connector = authority.client()?;
        let clients = (0..number)
            .map(|_| tokio::spawn(client(connector.clone(), address, Arc::clone(&report), stopped.clone())))
            .collect();
        Ok(Self { report, stop, clients })
    }

    /// What they have seen until now.
    ///
    /// # Panics
    ///
    /// If a client has.
    #[must_use]
    pub fn report(&self) -> Report {
        self.report.lock().expect("a client's panic").clone()
    }

    /// Stops them.
    pub async fn stop(self) -> anyhow::Result<Report> {
        self.stop.send(true)?;
        for client in self.clients {
            client.await?;
        }
        Ok(self.report.lock().expect("a client's panic").clone())
    }
}

async fn client(
    connector: TlsConnector,
    address: SocketAddr,
    report: Arc<Mutex<Report>>,
    stopped: Receiver<bool>,
) {
    while !*stopped.borrow() {
        let result = ask(&connector, address).await;
        let mut report = report.lock().expect("another client's panic");
        match result {
            Ok(certificate) => {
                report.handshakes += 1;
                report.first_seen.entry(certificate).or_insert_with(Instant::now);
            }
            Err(error) => report.failures.push(format!("{error:#}")),
        }
    }
}

/// One connection with one request. Returns the server's certificate.
async fn ask(connector: &TlsConnector, address: SocketAddr) -> anyhow::Result<CertificateDer<'static>> {
    let stream = TcpStream::connect(address).await.context("no connection")?;
    let mut stream =
        connector.connect(ServerName::try_from("localhost")?, stream).await.context("no handshake")?;
    let (_, session) = stream.get_ref();
    let certificate = session.peer_certificates().and_then(<[_]>::first).context("no certificate")?;
    let certificate = certificate.clone().into_owned();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await
        .context("no request")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.context("no answer")?;
    ensure!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("hello\n"), "not the answer: {answer:?}");
    Ok(certificate)
}
