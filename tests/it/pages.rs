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
        .filter_map(|line| line.strip_prefix("//!"))
        .map(|line| line.strip_prefix(' ').unwrap_or(line).to_owned() + "\n")
        .collect();
    for heading in
        ["", "First steps", "What do you need?", "What it promises", "What it is bad at", "Features"]
    {
        let said = section(&readme, heading);
        assert!(said.len() > 100, "{heading:?} is not in the README");
        assert_eq!(said, section(&page, heading), "{heading:?}");
    }
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
