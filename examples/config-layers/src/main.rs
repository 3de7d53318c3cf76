//! `cargo run -p config-layers`: changes its own configuration, and shows what the program sees.
//! `APP_CONNECTIONS=9 cargo run -p config-layers`: the environment has the last word.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::ensure;
use config_layers::App;
use figment::providers::Env;

fn main() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text);
    write("base.toml", "url = 'https://one.example'\nconnections = 4\n")?;
    let app = App::start(folder.path(), || Env::prefixed("APP_"))?;
    let show = || {
        let (config, client) = (app.config(), app.client());
        println!("  {config:?}, client {} of {}", client.number, client.url());
    };
    let wait = |what: &str, holds: &dyn Fn() -> bool| {
        let start = Instant::now();
        while !holds() {
            ensure!(start.elapsed() < Duration::from_secs(10), "{what} is not noticed");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    };
    println!("The file:");
    show();

    println!("A file beside it, of another layer:");
    write("local.toml", "url = 'https://two.example'\n")?;
    wait("it", &|| app.config().url.contains("two"))?;
    show();

    println!("A mistake in it: the configuration stays.");
    write("local.toml", "url = 'https://three.example'\nconections = 5\n")?;
    wait("the mistake", &|| app.error().is_some())?;
    println!("  {}", app.error().unwrap_or_default());
    show();

    println!("It is gone again:");
    fs::remove_file(folder.path().join("local.toml"))?;
    wait("that", &|| app.config().url.contains("one"))?;
    show();
    Ok(())
}
