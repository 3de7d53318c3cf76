//! The run that is kept in `docs`, and quoted elsewhere: the same figures everywhere.

use std::fs;
use std::path::Path;

fn kept(file: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The results of the run: the paragraph below the picture.
fn results(page: &str) -> &str {
    let after = page.split("(stampede.svg) ").nth(1).expect("the picture");
    after.split(" | ").next().expect("the results, and then the table").trim()
}

/// The figures of a line of the table, without its label.
fn figures<'a>(page: &'a str, label: &str) -> Vec<&'a str> {
    let line = page.split(&format!("| {label}")).nth(1).expect(label);
    line.split('|').skip(usize::from(!line.starts_with(' '))).map(str::trim).take(4).collect()
}

#[test]
fn the_readme_quotes_the_run_that_is_kept() {
    let page = kept("docs/stampede.md");
    let results = results(&page);
    assert!(results.contains("requests: the query runs"), "{results}");
    assert!(kept("README.md").contains(results), "the caption of the picture must be: {results}");
}

#[test]
fn the_picture_is_of_the_run_that_is_kept() {
    let (page, picture) = (kept("docs/stampede.md"), kept("docs/stampede.svg"));
    let description =
        picture.split("<title>").nth(1).and_then(|rest| rest.split("</title>").next()).expect("a title");
    let runs = figures(&page, "query runs [2] ");
    let slowest = figures(&page, "latency max ");
    assert_eq!((runs.len(), slowest.len()), (4, 4));
    for (runs, slowest) in runs.iter().zip(&slowest) {
        let said = format!("{runs} query runs, slowest request {slowest}");
        assert!(description.contains(&said), "{said} is not in: {description}");
    }
}
