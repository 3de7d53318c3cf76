//! The program from the command line.

use std::process::Command;

#[test]
fn it_shows_every_fetch_and_ends() {
    let output = Command::new(env!("CARGO_BIN_EXE_keyset")).output().expect("the program starts");
    let said = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let mut rest = &*said;
    // In this order; on a busy machine there may be more of them.
    for part in [
        "200: key-1",
        "304: as it was",
        "304: as it was",
        "rotates",
        "200: key-2",
        "is down",
        "failed: http status: 503",
        "failed: http status: 503",
        "failed: http status: 503",
        "last error: http status: 503; the cell: Stale",
        "It is back",
        "304: as it was",
        "invalidate",
        "304: as it was",
        "got an answer each time, and saw key-1, then key-2.",
        " of them failed; 0 reads waited.",
        "key-1: found; fetches so far: 1",
        "made-up-1000: unknown; fetches so far: 2",
        "key-2: unknown; fetches so far: 2",
        "key-2: found; fetches so far: 3",
    ] {
        let (_, after) = rest.split_once(part).unwrap_or_else(|| panic!("{part} is missing in: {said}"));
        rest = after;
    }
}
