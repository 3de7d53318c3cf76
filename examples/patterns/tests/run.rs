//! Each program runs to its end (they assert what they claim), and prints what it shows.

use std::process::Command;

fn run(program: &str) -> String {
    let output = Command::new(program).output().expect("the program was built with this test");
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("they print UTF-8")
}

#[test]
fn a_configuration_is_parsed_only_when_it_has_changed() {
    let lines = run(env!("CARGO_BIN_EXE_config_reload"));
    let expected = "read the file: 4 workers\nlooked at the file: not modified\nread the file: 8 workers\n\
                    the old configuration stays: TOML parse error at line 1, column 11\n";
    assert_eq!(lines, expected);
}

#[test]
fn flags_are_read_once_for_each_change() {
    let lines = run(env!("CARGO_BIN_EXE_feature_flags"));
    let expected = "asked the database\nasked the database\nnew-checkout: false\nasked the database\n\
                    the table is gone; new-checkout: false\n3 builds, 1 of them failed\n";
    assert_eq!(lines, expected);
}

#[test]
fn pauses_grow_and_old_prices_are_served_until_they_are_too_old() {
    let lines = run(env!("CARGO_BIN_EXE_price_table"));
    assert!(lines.starts_with("the source is there: 9.5\nthe source has been killed"), "{lines}");
    let pauses: Vec<&str> = lines
        .lines()
        .filter_map(|line| {
            line.split_once("an attempt, ")?.1.split_once(" s after").map(|(pause, _)| pause.trim())
        })
        .collect();
    // From 100 ms on; those below a second are as long as the time between two requests.
    assert_eq!(pauses[..10], ["1", "1", "1", "1", "1", "2", "4", "7", "10", "10"], "{lines}");
    assert_eq!(lines.matches("9.5, the old price").count(), 66, "{lines}");
    // Ten minutes after the price was out of date.
    let error = lines.split_once(" 608 s: an attempt, 10 s after the last one: ").expect("an attempt").1;
    assert!(!error.starts_with("9.5"), "{lines}");
    assert!(lines.contains("68 attempts for 620 requests, 600 of which got a price"), "{lines}");
    assert!(lines.ends_with("the source is back: 9.9\n"), "{lines}");
}

#[test]
fn each_key_is_built_once() {
    let lines = run(env!("CARGO_BIN_EXE_keyed_cells"));
    assert_eq!(lines, "800 requests for 100 users: 100 builds\nafter one of them has changed: 101 builds\n");
}

#[test]
fn a_library_downloads_once() {
    let lines = run(env!("CARGO_BIN_EXE_in_a_library"));
    assert_eq!(lines, "known before the first use: false\nknown after 1000 uses: true, downloads: 1\n");
}

#[test]
fn a_router_never_mixes_two_configurations() {
    let lines = run(env!("CARGO_BIN_EXE_config_router"));
    let expected = "mixed: 0\nthe last router: (1000, 1000)\none client for both of them: true\n\
                    clients that nobody uses: 0\n";
    assert_eq!(lines, expected);
}
