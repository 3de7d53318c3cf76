//! The program as one calls it: what it leaves behind when all is well, and the one line that it says when not.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn versus(folder: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_versus"))
        .args(words)
        .current_dir(folder)
        .output()
        .expect("the program starts")
}

fn text(output: &[u8]) -> String {
    String::from_utf8(output.to_vec()).expect("text")
}

#[test]
fn a_quick_run_leaves_a_page_with_its_pictures_and_its_raw_data() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::create_dir(folder.path().join("docs")).expect("a folder");
    let output = versus(folder.path(), &["--quick"]);
    assert!(output.status.success(), "{}", text(&output.stderr));

    let docs = folder.path().join("docs");
    let page = fs::read_to_string(docs.join("benchmarks.md")).expect("the page");
    assert!(text(&output.stdout).starts_with(&page), "what is printed is what is saved");
    for part in ["rustc", "cores", "clock source", "the figures mean little", "goals are reached"] {
        assert!(page.contains(part), "{part} is missing in: {page}");
    }
    for name in [
        "get_or_refresh",
        "load_or_refresh",
        "Reader TickClock",
        "Reader no deadline",
        "LazyDogpile::get_or_refresh",
        "SyncReaderCell",
        "std RwLock",
        "parking_lot RwLock",
        "std Mutex",
        "arc_swap load; exact clock",
        "arc_swap load; coarse clock",
        "arc_swap Cache",
        "hazarc",
        "arcshift",
        "left-right",
        "tokio watch",
        "moka",
        "quick_cache",
        "cached #[once]",
        "once_cell",
        "Condvar",
    ] {
        assert!(page.contains(name), "{name} is missing in: {page}");
    }
    assert!(!page.contains("unknown") && !page.contains("NaN") && !page.contains("inf"), "{page}");
    let notify = fs::read_to_string(docs.join("benchmarks/notify.md")).expect("its page");
    assert!(
        page.contains("(benchmarks/notify.md)") && !notify.contains("NaN") && !notify.contains("inf"),
        "{notify}"
    );
    for row in
        ["| Reader::get |", "| set; 100 tasks asleep |", "| until 100 threads have it |", "| Derived::get |"]
    {
        assert!(notify.contains(row), "{row} is missing in: {notify}");
    }
    // Everybody is in every table, or left out of it on purpose.
    for (name, tables) in [("**Reader**", 7), ("arc_swap load; exact clock", 7), ("once_cell; no expiry", 6)]
    {
        let rows = page.lines().filter(|line| line.starts_with(&format!("| {name} |"))).count();
        assert_eq!(rows, tables, "tables with {name}");
    }

    for picture in ["ratios", "fresh", "building", "refresh", "notify"] {
        let page = if picture == "notify" { &notify } else { &page };
        let folder = if picture == "notify" { "" } else { "benchmarks/" };
        assert!(page.contains(&format!("({folder}{picture}.svg)")), "the page shows {picture}");
        let svg = fs::read_to_string(docs.join(format!("benchmarks/{picture}.svg"))).expect("a picture");
        assert!(svg.starts_with("<svg") && svg.matches("<circle").count() > 10, "{picture}: {svg:.200}");
    }
    for part in ["ratios", "wakeup", "fresh", "building", "refresh", "stampede", "keyed", "notify"] {
        assert!(docs.join(format!("benchmarks/{part}.csv")).is_file(), "{part}");
    }

    // The page is made of the raw data and of nothing else.
    fs::remove_file(docs.join("benchmarks.md")).expect("it was there");
    let again = versus(folder.path(), &["--page-only"]);
    assert!(again.status.success(), "{}", text(&again.stderr));
    assert_eq!(fs::read_to_string(docs.join("benchmarks.md")).expect("the page"), page);

    fs::write(docs.join("benchmarks/fresh.csv"), "# x\nkey,rounds\nname,fast\n").expect("a file");
    let broken = versus(folder.path(), &["--page-only"]);
    let said = text(&broken.stderr);
    assert!(!broken.status.success() && said.lines().count() == 1 && said.contains("fresh.csv"), "{said}");
}

#[test]
fn what_is_wrong_is_said_in_one_line() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (words, named) in [
        (&["--fast"] as &[&str], "--fast"),
        (&["everything"], "everything"),
        (&["--out", "nowhere"], "nowhere"),
    ] {
        let output = versus(folder.path(), words);
        let said = text(&output.stderr);
        assert!(!output.status.success() && output.stdout.is_empty(), "{words:?} succeeded");
        assert!(said.starts_with("versus: ") && said.contains(named), "{said}");
        assert_eq!(said.lines().count(), 1, "one line, not: {said}");
    }
}
