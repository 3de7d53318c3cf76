//! A configuration file that is read again when it has changed: at most once in a ttl one caller looks at its modification
//! time, and only a changed file is parsed. The first callers wait for the first one of them to read it.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dogpile::{BoxError, DogpileCell, RefreshError, Refreshed};
use serde::Deserialize;

#[derive(Deserialize)]
struct Config {
    workers: usize,
    #[serde(skip)]
    modified: Option<SystemTime>,
}

static CONFIG: DogpileCell<Config> = DogpileCell::new(Duration::from_secs(1)).named("config");

/// The configuration as it is, or as it was if the file cannot be used just now: then `CONFIG.last_error()` says why.
fn config(path: &Path) -> Result<Arc<Config>, RefreshError> {
    CONFIG.request().try_get_with(|previous| read(path, previous))
}

fn read(path: &Path, previous: Option<Arc<Config>>) -> Result<Refreshed<Config>, BoxError> {
    let modified = Some(fs::metadata(path)?.modified()?);
    if previous.is_some_and(|config| config.modified == modified) {
        println!("looked at the file: not modified");
        return Ok(Refreshed::NotModified);
    }
    let config: Config = toml::from_str(&fs::read_to_string(path)?)?;
    println!("read the file: {} workers", config.workers);
    Ok(Refreshed::New(Config { modified, ..config }))
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::temp_dir().join(format!("dogpile-config-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let path = folder.join("config.toml");

    fs::write(&path, "workers = 4")?;
    assert_eq!(config(&path)?.workers, 4);
    // In a service a second would have to pass; SIGHUP could call this.
    CONFIG.invalidate();
    assert_eq!(config(&path)?.workers, 4);

    write_later(&path, "workers = 8")?;
    CONFIG.invalidate();
    assert_eq!(config(&path)?.workers, 8);

    write_later(&path, "workers = many")?;
    CONFIG.invalidate();
    assert_eq!(config(&path)?.workers, 8);
    let error = CONFIG.last_error().ok_or("the file makes no sense")?;
    println!("the old configuration stays: {}", error.to_string().lines().next().unwrap_or_default());

    fs::remove_dir_all(&folder)?;
    Ok(())
}

/// File systems count time in coarse steps: a write must be seen to be later.
fn write_later(path: &Path, text: &str) -> Result<(), Box<dyn Error>> {
    let later = fs::metadata(path)?.modified()? + Duration::from_secs(1);
    fs::write(path, text)?;
    fs::File::options().append(true).open(path)?.set_modified(later)?;
    Ok(())
}

#[cfg(all(test, unix))]
#[path = "../config_reload_tests.rs"]
mod tests;
