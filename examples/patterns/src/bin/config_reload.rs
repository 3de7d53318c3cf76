//! A configuration file that is read again when it has changed: at most once in a ttl somebody looks at its modification
//! time, and only a changed file is parsed.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dogpile::{DogpileCell, Lookup};
use serde::Deserialize;

#[derive(Deserialize)]
struct Config {
    workers: usize,
    #[serde(skip)]
    modified: Option<SystemTime>,
}

static CONFIG: DogpileCell<Config> = DogpileCell::new(Duration::from_secs(1)).named("config");

/// The configuration as it is, or as it was if the file is being rewritten just now.
fn config(path: &Path) -> Result<Arc<Config>, Box<dyn Error>> {
    let lease = match CONFIG.lookup() {
        Lookup::Fresh(config) | Lookup::Stale(config) => return Ok(config),
        Lookup::Elected(lease) => lease,
        // Only while the first caller reads it.
        Lookup::Pending(_) | Lookup::Failed(_) => return Err("there is no configuration yet".into()),
    };
    let modified = fs::metadata(path)?.modified()?;
    if lease.previous().is_some_and(|config| config.modified == Some(modified)) {
        println!("looked at the file: not modified");
        return lease.renew().map_err(|_| "there was one a moment ago".into());
    }
    let mut config: Config = match toml::from_str(&fs::read_to_string(path)?) {
        Ok(config) => config,
        Err(error) => {
            println!("the file makes no sense, the old configuration stays");
            let previous = lease.previous().cloned();
            lease.fail(error.message().to_owned());
            return previous.ok_or_else(|| error.into());
        }
    };
    config.modified = Some(modified);
    println!("read the file: {} workers", config.workers);
    Ok(lease.publish(config))
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
