//! Scenarios that are too large for loom, in random interleavings.
//!
//! ```text
//! shuttle [--seed N] [--times N] [--at-least N] [part of a name]
//! ```
//!
//! The seed is printed first, and is `DOGPILE_SEED` if that is set. The same seed makes the same executions. `--times`: so
//! many times as many as stand beside each scenario. `--at-least`: fails if there were fewer executions, in all.

#[cfg(not(dogpile_shuttle))]
fn main() {
    eprintln!("NOT RUN: build with RUSTFLAGS=\"--cfg dogpile_shuttle\"");
    std::process::exit(1);
}

#[cfg(dogpile_shuttle)]
mod cell;
#[cfg(dogpile_shuttle)]
mod drains;
#[cfg(dogpile_shuttle)]
mod maps;
#[cfg(dogpile_shuttle)]
mod support;

#[cfg(dogpile_shuttle)]
fn main() {
    let (mut seed, mut times, mut at_least, mut part) = (None, 1, 1, String::new());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|number| number.parse::<u64>().ok()).expect("a number");
        match argument.as_str() {
            "--seed" => seed = Some(number()),
            "--times" => times = number(),
            "--at-least" => at_least = number(),
            _ if argument.starts_with('-') => panic!("there is no option {argument}"),
            _ => part = argument,
        }
    }
    let seed = seed.or_else(|| std::env::var("DOGPILE_SEED").ok()?.parse().ok()).unwrap_or_else(|| {
        use std::hash::{BuildHasher, RandomState};
        RandomState::new().hash_one(0)
    });
    println!("seed {seed}");
    let (mut run, mut done) = (0, 0);
    for scenario in [cell::SCENARIOS, drains::SCENARIOS, maps::SCENARIOS].into_iter().flatten() {
        if scenario.name.contains(&part) {
            done += scenario.check(seed, usize::try_from(times).expect("not that often"));
            run += 1;
        }
    }
    println!("{run} scenarios, {done} executions, seed {seed}");
    assert!(done as u64 >= at_least, "{done} executions are fewer than {at_least}");
}
