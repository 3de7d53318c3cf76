//! Rules about the pages: every link leads somewhere, README and crate page say the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Component, Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every `*.md` of the repository, by its path from the root.
fn pages() -> BTreeMap<PathBuf, String> {
    fn walk(folder: &Path, pages: &mut BTreeMap<PathBuf, String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() {
                // What is built or fetched is not the repository's.
                if !name.starts_with('.') && name != "target" && name != "corpus" {
                    walk(&path, pages);
                }
            } else if path.extension().is_some_and(|extension| extension == "md") {
                let text = fs::read_to_string(&path).unwrap();
                pages.insert(path.strip_prefix(root()).unwrap().to_owned(), text);
            }
        }
    }
    let mut pages = BTreeMap::new();
    walk(root(), &mut pages);
    assert!(pages.len() > 20, "the pages were not found: {:?}", pages.keys());
    pages
}

/// Without blocks of code, and without code in a line.
fn prose(text: &str) -> String {
    let mut in_code = false;
    let mut prose = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        } else if !in_code {
            for (number, part) in line.split('`').enumerate() {
                prose.push_str(if number % 2 == 0 { part } else { "code" });
            }
            prose.push('\n');
        }
    }
    assert!(!in_code, "a block of code is not closed: {text}");
    prose
}

/// What a Git host names the headings of a page.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut in_code = false;
    let mut anchors = BTreeSet::new();
    for line in text.lines() {
        if line.starts_with("```") {
            in_code = !in_code;
        }
        let Some((marks, heading)) = line.split_once(' ') else { continue };
        if !in_code && !marks.is_empty() && marks.chars().all(|mark| mark == '#') {
            let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            anchors.insert(kept.collect::<String>().to_lowercase().replace(' ', "-"));
        }
    }
    anchors
}

/// The targets of `[..](target)` and of `[..]: target`; and the names in `[..][name]` that have no such definition.
fn targets(text: &str) -> (Vec<String>, Vec<String>) {
    let prose = prose(text);
    let mut targets: Vec<String> =
        prose.split("](").skip(1).map(|rest| rest.split(')').next().unwrap().trim().to_owned()).collect();
    let mut defined = BTreeSet::new();
    for line in prose.lines() {
        if let Some((name, target)) = line.strip_prefix('[').and_then(|rest| rest.split_once("]: ")) {
            defined.insert(name.to_owned());
            targets.push(target.trim().to_owned());
        }
    }
    let undefined = prose
        .split("][")
        .skip(1)
        .map(|rest| rest.split(']').next().unwrap().to_owned())
        .filter(|name| !defined.contains(name))
        .collect();
    (targets, undefined)
}

/// `folder/target`, from the root; `None` if it leads out of the repository.
fn resolve(folder: &Path, target: &str) -> Option<PathBuf> {
    let mut path = PathBuf::new();
    for component in folder.join(target).components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::ParentDir if !path.pop() => return None,
            _ => {}
        }
    }
    Some(path)
}

/// What is wrong with the links of a page, and the pages and pictures that it leads to.
fn check(page: &Path, text: &str, pages: &BTreeMap<PathBuf, String>) -> (String, BTreeSet<PathBuf>) {
    let mut wrong = String::new();
    let mut led_to = BTreeSet::new();
    let (targets, undefined) = targets(text);
    for name in undefined {
        writeln!(wrong, "{}: [{name}] is not defined", page.display()).unwrap();
    }
    for target in targets.iter().filter(|target| !target.contains("://")) {
        let (file, anchor) =
            target.split_once('#').map_or((&**target, None), |(file, anchor)| (file, Some(anchor)));
        let leads_to = if file.is_empty() {
            Some(page.to_owned())
        } else {
            resolve(page.parent().unwrap(), file).filter(|path| root().join(path).exists())
        };
        let Some(leads_to) = leads_to else {
            writeln!(wrong, "{}: {target} is not there", page.display()).unwrap();
            continue;
        };
        if let Some(anchor) = anchor {
            let text = if leads_to == page { Some(text) } else { pages.get(&leads_to).map(|text| &**text) };
            if !text.is_some_and(|text| anchors(text).contains(anchor)) {
                writeln!(wrong, "{}: {target}: there is no such heading", page.display()).unwrap();
            }
        }
        led_to.insert(leads_to);
    }
    (wrong, led_to)
}

#[test]
fn every_link_of_every_page_leads_somewhere() {
    let pages = pages();
    let mut wrong = String::new();
    let mut links = 0;
    for (page, text) in &pages {
        let (faults, led_to) = check(page, text, &pages);
        wrong += &faults;
        links += led_to.len();
    }
    assert!(wrong.is_empty(), "\n{wrong}");
    assert!(links > 40, "only {links} links were found");
}

#[test]
fn every_page_and_every_picture_of_docs_is_led_to() {
    let pages = pages();
    let mut led_to = BTreeSet::new();
    for (page, text) in &pages {
        led_to.extend(check(page, text, &pages).1);
    }
    let mut alone = Vec::new();
    for folder in ["docs", "docs/coming_from", "docs/internals", "docs/benchmarks"] {
        for entry in fs::read_dir(root().join(folder)).unwrap() {
            let path = Path::new(folder).join(entry.unwrap().file_name());
            let is_shown = path.extension().is_some_and(|extension| extension == "md" || extension == "svg");
            if is_shown && !led_to.contains(&path) {
                alone.push(path);
            }
        }
    }
    assert!(alone.is_empty(), "no page leads to {alone:?}");
}

#[test]
fn a_link_that_leads_nowhere_is_seen() {
    let pages = pages();
    let text = "# A page\n\n[a](b.md) [c](policy.md#no-such-heading) ![d](life.svg) [e][f] [g](#a-page) `[h](i.md)`\n\
                [j](../README.md#features) [k](../../README.md) [l]\n\n```text\n[m](n.md)\n```\n\n[l]: o.svg\n";
    let (wrong, led_to) = check(Path::new("docs/page.md"), text, &pages);
    let expected = [
        "docs/page.md: [f] is not defined",
        "docs/page.md: b.md is not there",
        "docs/page.md: policy.md#no-such-heading: there is no such heading",
        "docs/page.md: ../../README.md is not there",
        "docs/page.md: o.svg is not there",
    ];
    assert_eq!(wrong.lines().collect::<Vec<_>>(), expected);
    let expected = ["README.md", "docs/life.svg", "docs/page.md", "docs/policy.md"];
    assert_eq!(led_to, expected.iter().map(PathBuf::from).collect());
}

/// In rustdoc the pages of the guide are modules, and links to files lead nowhere.
#[test]
fn pages_of_the_guide_link_only_to_each_other() {
    let guide = fs::read_to_string(root().join("src/guide.rs")).unwrap();
    let pages: Vec<&str> = guide
        .split("page!(")
        .filter_map(|rest| Some(rest.split_once("\"../")?.1.split_once('"')?.0))
        .collect();
    assert!(pages.len() > 15, "{pages:?}");
    for page in pages {
        let text = fs::read_to_string(root().join(page)).unwrap();
        let prose = prose(&text);
        assert!(!prose.contains("]("), "{page}: write the link as [text][name], and [name] in src/guide.rs");
        for name in prose.split("][").skip(1).map(|rest| rest.split(']').next().unwrap()) {
            assert!(
                guide.contains(&format!("[{name}]: ")) || name == "life",
                "{page}: {name} is not in src/guide.rs"
            );
        }
    }
}

/// The changelog says what became of them.
#[test]
fn no_page_shows_a_name_that_is_gone() {
    let gone = [
        "get_fresh_or_refresh",
        "try_get_or_refresh_timeout",
        "get_or_refresh_in_background",
        "get_or_refresh_with",
        "SharedCell",
        "OwnedLease",
        "OwnedPending",
        "OwnedLookup",
        "RefreshError<",
        "LazyDogpile::load`",
    ];
    let mut wrong = String::new();
    for (page, text) in pages().iter().filter(|(page, _)| !page.ends_with("CHANGELOG.md")) {
        for name in gone.iter().filter(|name| text.contains(**name)) {
            writeln!(wrong, "{}: {name}", page.display()).unwrap();
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

/// Each can be read at a sitting.
#[test]
fn the_small_examples_are_small() {
    let folder = root().join("examples/patterns/src/bin");
    let mut programs: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    programs
        .extend(["keyset", "axum-report"].map(|name| root().join("examples").join(name).join("src/main.rs")));
    assert!(programs.len() > 6, "{programs:?}");
    for program in programs {
        let lines = fs::read_to_string(&program).unwrap().lines().count();
        assert!(lines < 80, "{}: {lines} lines", program.display());
    }
}

/// The section under a heading, links taken out, and each run of white space one space.
fn section(text: &str, heading: &str) -> String {
    let mut in_code = false;
    let mut inside = heading.is_empty();
    let mut section = String::new();
    for line in text.lines() {
        if line.starts_with("```") {
            in_code = !in_code;
        }
        if !in_code && line.starts_with('#') {
            inside =
                line.trim_start_matches(['#', ' ']) == heading || heading.is_empty() && line == "# dogpile";
        } else if inside {
            section.push_str(line);
            section.push('\n');
        }
    }
    // `[text](target)` and `[text]` become `text`; in Rust such brackets stand only around what is left out on both sides.
    let mut plain = String::new();
    let mut rest = &*section;
    while let Some((before, after)) = rest.split_once("](") {
        plain.push_str(before);
        rest = after.split_once(')').unwrap().1;
    }
    plain.push_str(rest);
    plain.retain(|c| c != '[' && c != ']');
    plain.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn readme_and_crate_page_say_the_same() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let source = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let page: String = source
        .lines()
        // A block that needs features begins with an attribute.
        .filter_map(|line| match line.split_once("doc = \"```rust\"") {
            Some(_) => Some(" ```rust"),
            None => line.strip_prefix("//!"),
        })
        .map(|line| line.strip_prefix(' ').unwrap_or(line).to_owned() + "\n")
        .collect();
    // A picture and what is said of it are in the README only: rustdoc shows no files.
    let paragraphs: Vec<&str> = readme.split("\n\n").collect();
    let is_shown = |paragraph: &str| paragraph.starts_with("![");
    let readme: Vec<&str> = (0..paragraphs.len())
        .filter(|&at| !is_shown(paragraphs[at]) && (at == 0 || !is_shown(paragraphs[at - 1])))
        .map(|at| paragraphs[at])
        .collect();
    let readme = readme.join("\n\n");
    for heading in ["", "Compared with others", "What it is bad at", "Features"] {
        let said = section(&readme, heading);
        assert!(said.len() > 100, "{heading:?} is not in the README");
        assert_eq!(said, section(&page, heading), "{heading:?}");
    }
    let promises = fs::read_to_string(root().join("docs/promises.md")).unwrap();
    let numbered = section(&promises, "What the crate promises");
    assert!(numbered.ends_with(&section(&page, "What it promises")), "{numbered}");
}

/// `fn name` of every Rust file of the repository, and the names of the models.
fn functions() -> BTreeSet<String> {
    fn walk(folder: &Path, functions: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() {
                if !name.starts_with('.') && name != "target" {
                    walk(&path, functions);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let names =
                    text.split("fn ").skip(1).filter_map(|rest| rest.split_once('(')).map(|(name, _)| name);
                functions.extend(names.map(str::to_owned));
                let models = text.split("name: \"").skip(1).filter_map(|rest| rest.split_once('"'));
                functions.extend(models.map(|(name, _)| name.to_owned()));
            }
        }
    }
    let mut functions = BTreeSet::new();
    walk(root(), &mut functions);
    functions
}

/// The cells of the rows of the tables in `text`, without the marks of links.
fn rows(text: &str) -> Vec<Vec<String>> {
    text.lines()
        .filter(|line| line.starts_with("| ") && line.ends_with(" |"))
        .map(|line| line[2..line.len() - 2].split(" | ").map(|cell| cell.trim().to_owned()).collect())
        .collect()
}

/// `docs/testing.md` says what is behind each statement of the README.
#[test]
fn what_is_behind_the_first_page_exists() {
    let testing = fs::read_to_string(root().join("docs/testing.md")).unwrap();
    let list = testing.split_once("## What the first page says").unwrap().1.split_once("\n## ").unwrap().0;
    let list = rows(list);
    let functions = functions();
    let mut named = 0;
    for row in &list {
        for code in row[1].split('`').skip(1).step_by(2) {
            let is_test = code.contains('_') && !code.contains([' ', '/', '.', '[', '-']);
            let is_file = root().join("tests").join(code).with_extension("rs").exists();
            if is_test && !is_file && code != "unsafe_code" {
                let name = code.rsplit("::").next().unwrap();
                assert!(functions.contains(name), "there is no test {code}");
                named += 1;
            } else if code.contains('/') && !code.contains(' ') {
                assert!(root().join(code).exists(), "there is no {code}");
            }
        }
    }
    assert!(named > 30, "only {named} tests were found");

    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let features = readme.split_once("## Compared with others").unwrap().1.split_once("\n## ").unwrap().0;
    let features = rows(features);
    assert!(features.len() > 15, "{features:?}");
    for feature in
        features.iter().filter(|row| row.len() == 8 && !row[0].is_empty() && !row[0].starts_with('-'))
    {
        let behind = list.iter().find(|row| row[0] == feature[0]).unwrap_or_else(|| {
            panic!("docs/testing.md does not say what is behind {:?}", feature[0]);
        });
        assert_eq!(behind[1].starts_with("a cross"), feature[1] == "✗", "{feature:?}");
        assert!(feature[1] == "✗" || feature[1].starts_with("[✓]("), "a tick without a page: {feature:?}");
    }
}

/// The same marks on the two pages that have the table.
#[test]
fn the_comparison_is_the_same_on_both_pages() {
    let marks = |page: &str| -> Vec<Vec<String>> {
        let text = fs::read_to_string(root().join(page)).unwrap();
        let mut rows = rows(&text);
        rows.retain(|row| row.len() == 8);
        for cell in rows.iter_mut().flatten().filter(|cell| cell.starts_with("[✓]")) {
            "✓".clone_into(cell);
        }
        rows
    };
    let (readme, comparison) = (marks("README.md"), marks("docs/comparison.md"));
    assert!(readme.len() > 15, "{readme:?}");
    assert_eq!(readme, comparison);
}

/// The book is made from this list.
#[test]
fn each_page_is_in_the_summary_once() {
    let summary = fs::read_to_string(root().join("docs/SUMMARY.md")).unwrap();
    let (listed, _) = targets(&summary);
    let mut listed: Vec<PathBuf> =
        listed.iter().map(|target| resolve(Path::new("docs"), target).expect(target)).collect();
    listed.sort();
    let left_out = ["docs/SUMMARY.md", "SECURITY.md", "macros/README.md"];
    let pages: Vec<PathBuf> = pages()
        .into_keys()
        .filter(|page| !left_out.iter().any(|path| page == Path::new(path)))
        // Of the changelogs one.
        .filter(|page| page == Path::new("CHANGELOG.md") || !page.ends_with("CHANGELOG.md"))
        .collect();
    assert_eq!(listed, pages);
}

/// rustdoc shows no files: the picture goes into the page as an address that contains it.
#[test]
fn the_picture_in_the_guide_is_that_of_the_folder() {
    let svg = fs::read_to_string(root().join("docs/life.svg")).unwrap();
    let mut link = String::from("[life]: data:image/svg+xml,");
    for byte in svg.trim_end().replace('\n', " ").bytes() {
        if byte.is_ascii_alphanumeric() || b"-./:;=,".contains(&byte) {
            link.push(char::from(byte));
        } else {
            write!(link, "%{byte:02X}").unwrap();
        }
    }
    link.push('\n');
    let kept = root().join("docs/life.link");
    if std::env::var_os("DOGPILE_UPDATE").is_some() {
        fs::write(&kept, &link).unwrap();
    }
    assert_eq!(
        fs::read_to_string(kept).unwrap_or_default(),
        link,
        "DOGPILE_UPDATE=1 cargo test the_picture_in_the_guide makes docs/life.link anew"
    );
}
