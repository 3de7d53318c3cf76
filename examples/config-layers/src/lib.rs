//! A configuration in layers, and a client that is made of it.
//!
//! `base.toml`, then `local.toml` if it is there, then environment variables: the later ones win. The two files are one value
//! in a cell. The client is derived from it, and is made again when the configuration has changed.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context;
use dogpile::{BoxError, Derived, DogpileCell, Policy, RefreshError};
use dogpile_files::{Files, Watch};
use figment::providers::{Format, Toml};
use figment::{Figment, Provider};

/// The configuration.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Of the service that is called.
    pub url: String,
    /// How many connections at most.
    pub connections: u32,
}

/// Reads the layers. An error names the file; figment's says the key, and the line where the text is no TOML.
fn parse(files: &Files, environment: impl Provider) -> Result<Config, BoxError> {
    let mut figment = Figment::from(Toml::string(files.text(0)?));
    let local = match files.text(1) {
        Err(error) if error.kind() == Some(std::io::ErrorKind::NotFound) => None,
        text => Some(text?),
    };
    if let Some(local) = local {
        figment = figment.merge(Toml::string(local));
    }
    let config = figment.merge(environment).extract();
    // In the last layer, if there is one; figment does not say in which.
    Ok(config.map_err(|error| files.error(usize::from(local.is_some()), error))?)
}

/// Stands for something expensive: a connection pool, an HTTP client with its certificates.
#[derive(Debug)]
pub struct Client {
    config: Arc<Config>,
    /// Which one it is, counted from 1.
    pub number: u32,
}

impl Client {
    /// The service that it is connected to.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.config.url
    }
}

/// A program's configuration, and what follows from it.
pub struct App {
    config: Arc<DogpileCell<Config>>,
    client: Derived<Client>,
    watch: Watch,
}

impl App {
    /// Starts to follow the files of a folder. `environment` is the last layer. Fails if they do not make a configuration
    /// within ten seconds.
    pub fn start<P: Provider>(
        folder: &Path,
        environment: impl Fn() -> P + Send + 'static,
    ) -> anyhow::Result<Self> {
        let config = Arc::new(DogpileCell::with_policy(Policy::never_expires()));
        let watch = Watch::files(["base.toml", "local.toml"].map(|name| folder.join(name)))
            .debounce(Duration::from_millis(100))
            .spawn(&config, move |files: &Files| parse(files, environment()))?;
        // No caller is served the client of an old configuration: all wait for the new one.
        let policy = Policy::never_expires().stale_while_refresh(Duration::ZERO);
        let client = Derived::with_policy(policy, {
            let (config, clients) = (Arc::clone(&config), AtomicU32::new(0));
            move |cx| {
                let number = clients.fetch_add(1, Ordering::Relaxed) + 1;
                Ok::<_, RefreshError>(Client { config: cx.try_get(&config)?, number })
            }
        });
        let app = Self { config, client, watch };
        if !app.watch.wait_ready(Duration::from_secs(10)) {
            let error = app.watch.last_error().context("the configuration could not be read in time")?;
            return Err(error).context("there is no configuration");
        }
        Ok(app)
    }

    /// The configuration.
    ///
    /// # Panics
    ///
    /// Never: it is there since the start, and never expires.
    #[must_use]
    pub fn config(&self) -> Arc<Config> {
        self.config.get().expect("there since the start")
    }

    /// Why the files as they are now are no configuration.
    #[must_use]
    pub fn error(&self) -> Option<String> {
        self.watch.last_error().map(|error| error.to_string())
    }

    /// The client for the configuration as it is now. One caller makes it, however many ask.
    ///
    /// # Panics
    ///
    /// Never: there is a configuration since the start.
    #[must_use]
    pub fn client(&self) -> Arc<Client> {
        self.client.get()
    }
}
