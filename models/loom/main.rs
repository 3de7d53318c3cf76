//! Models of the protocols, checked by loom: each interleaving of their threads within the bound that stands beside the
//! model, and each value that a load may return by its ordering.
//!
//! ```text
//! loom [--list] [--at-least N] [--preemptions N] [parts of names]
//! ```
//!
//! `--preemptions` raises the bound of each model that has a smaller one.
//!
//! What each shows, and what all of them leave out: `docs/testing.md`.
//!
//! Two things to know when a model is written. Loom remembers one access of each object, so a thread that loads a word and
//! then stores to it (as the holder of the lock does) hides the load of another thread before: let the thread that stores be
//! the one that runs first, the model's own. And it knows nothing of the counts in an `Arc`, which are std's: where one is
//! given up, take a step beside it that loom does see.

#[cfg(not(dogpile_loom))]
fn main() {
    eprintln!("NOT RUN: build with RUSTFLAGS=\"--cfg dogpile_loom\"");
    std::process::exit(1);
}

#[cfg(dogpile_loom)]
mod displaced;
#[cfg(dogpile_loom)]
mod drains;
#[cfg(dogpile_loom)]
mod elections;
#[cfg(dogpile_loom)]
mod listeners;
#[cfg(dogpile_loom)]
mod maps;
#[cfg(dogpile_loom)]
mod publications;
#[cfg(dogpile_loom)]
mod refreshers;
#[cfg(dogpile_loom)]
mod spawned;
#[cfg(dogpile_loom)]
mod support;
#[cfg(dogpile_loom)]
mod tasks;

#[cfg(dogpile_loom)]
fn main() -> std::process::ExitCode {
    use std::process::ExitCode;
    use std::sync::Mutex;

    let (mut at_least, mut preemptions, mut list, mut parts) = (1, None, false, Vec::new());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|number| number.parse().ok()).expect("a number");
        match argument.as_str() {
            "--at-least" => at_least = number(),
            "--preemptions" => preemptions = Some(number()),
            "--list" => list = true,
            _ if argument.starts_with('-') => panic!("there is no option {argument}"),
            _ => parts.push(argument),
        }
    }
    let all = [
        elections::MODELS,
        publications::MODELS,
        displaced::MODELS,
        tasks::MODELS,
        spawned::MODELS,
        drains::MODELS,
        refreshers::MODELS,
        listeners::MODELS,
        maps::MODELS,
    ]
    .concat();
    let is_named = |model: &support::Model| parts.iter().any(|part| model.name.contains(part));
    let to_run = all.into_iter().filter(|model| parts.is_empty() || is_named(model));
    if list {
        to_run.for_each(|model| println!("{}", model.name));
        return ExitCode::SUCCESS;
    }
    let left = Mutex::new(to_run);
    // Per model: how many executions, if it has held.
    let ended: Mutex<Vec<Option<usize>>> = Mutex::default();
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(model) = { left.lock().unwrap().next() } {
                    // Named, so that a panic tells where it was.
                    let thread = std::thread::Builder::new().name(model.name.into());
                    let checked = thread.spawn(move || model.check(preemptions)).expect("a thread").join();
                    if checked.is_err() {
                        println!("{}: FAILED", model.name);
                    }
                    ended.lock().unwrap().push(checked.ok());
                }
            });
        }
    });
    let ended = ended.into_inner().unwrap();
    let (models, held) = (ended.len(), ended.iter().flatten().count());
    let executions: usize = ended.iter().flatten().sum();
    println!("{models} models, {held} held, {executions} executions");
    if held < models || models < at_least {
        eprintln!("{} failed; {models} run, at least {at_least} must be", models - held);
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
