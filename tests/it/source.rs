//! Rules about the sources themselves.

use std::path::{Path, PathBuf};

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn sources() -> Vec<PathBuf> {
    let mut files = Vec::new();
    rust_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    assert!(files.len() > 10, "the sources were not found: {files:?}");
    files
}

/// A model checker replaces the primitives in one place.
#[test]
fn only_one_module_names_the_primitives() {
    let files = sources();
    assert!(files.iter().any(|file| file.ends_with("src/sync/real.rs")), "the exception names nothing");
    let offences: Vec<String> = files
        .iter()
        .filter(|file| !file.ends_with("src/sync.rs") && !file.parent().unwrap().ends_with("src/sync"))
        .flat_map(|file| {
            let text = std::fs::read_to_string(file).unwrap();
            let lines: Vec<String> = text
                .lines()
                .enumerate()
                .filter(|(_, line)| !line.trim_start().starts_with("//"))
                .filter(|(_, line)| {
                    [
                        "std::sync",
                        "core::sync",
                        "alloc::sync",
                        "parking_lot",
                        "arc_swap",
                        "once_cell",
                        "portable_atomic",
                        "loom::",
                        "shuttle::",
                    ]
                    .iter()
                    .any(|primitive| line.contains(primitive))
                })
                .map(|(number, line)| format!("{}:{}: {}", file.display(), number + 1, line.trim()))
                .collect();
            lines
        })
        .collect();
    assert!(offences.is_empty(), "import these from crate::sync instead:\n{}", offences.join("\n"));
}

/// The lines of public functions, and of those whose documentation has no block of code that asserts something.
///
/// What is private is `pub(crate)` or less (lint `unreachable_pub`). Documentation stands before the attributes.
fn public_functions(text: &str) -> (usize, Vec<(usize, &str)>) {
    let (mut functions, mut without) = (0, Vec::new());
    let (mut in_code, mut asserts, mut is_hidden) = (false, false, false);
    for (number, line) in text.lines().map(str::trim).enumerate() {
        if let Some(doc) = line.strip_prefix("///") {
            if doc.trim_start().starts_with("```") {
                in_code = !in_code;
            }
            asserts |= in_code && doc.contains("assert");
        } else if line == "#[doc(hidden)]" {
            is_hidden = true;
        } else if !line.starts_with("#[") && !line.starts_with("//") {
            let is_function = line.strip_prefix("pub ").is_some_and(|rest| {
                rest.split(' ').find(|word| !["const", "async"].contains(word)) == Some("fn")
            });
            if is_function && !is_hidden {
                functions += 1;
                if !asserts {
                    without.push((number + 1, line));
                }
            }
            (in_code, asserts, is_hidden) = (false, false, false);
        }
    }
    (functions, without)
}

#[test]
fn each_public_function_has_an_example_that_asserts_something() {
    let mut found = 0;
    let mut without = Vec::new();
    // In `lib.rs` there is one that exists only for the models; what is in `attribute.rs` is for code that a macro writes.
    let is_for_users = |file: &&PathBuf| !file.ends_with("src/lib.rs") && !file.ends_with("src/attribute.rs");
    for file in sources().iter().filter(is_for_users) {
        let text = std::fs::read_to_string(file).unwrap();
        let (functions, lines) = public_functions(&text);
        found += functions;
        without.extend(lines.iter().map(|(number, line)| format!("{}:{number}: {line}", file.display())));
    }
    assert!(without.is_empty(), "no example that asserts something:\n{}", without.join("\n"));
    assert!(found > 150, "only {found} public functions were found");
}

#[test]
fn a_public_function_without_an_example_is_seen() {
    let text = "
        /// ```
        /// assert!(true);
        /// ```
        #[must_use]
        pub const fn with(self) {}

        /// assert!(true);
        pub fn not_in_a_block() {}

        /// ```
        /// println!();
        /// ```
        pub async fn without_an_assertion() {}

        pub(crate) fn private() {}

        #[doc(hidden)]
        pub fn hidden() {}

        pub struct Function;
    ";
    let (functions, without) = public_functions(text);
    let without: Vec<&str> = without.iter().map(|(_, line)| *line).collect();
    assert_eq!(functions, 3);
    assert_eq!(without, ["pub fn not_in_a_block() {}", "pub async fn without_an_assertion() {}"]);
}

/// The value of `key = "value"`.
fn entry<'a>(manifest: &'a str, key: &str) -> Option<&'a str> {
    let line = manifest.lines().find(|line| line.split(" = ").next() == Some(key))?;
    Some(line.split_once(" = ")?.1.trim_matches('"'))
}

/// They are released together. A crate that asks for another version of a member than the one beside it is tested with code
/// that its users do not get.
#[test]
fn published_crates_have_one_version_and_say_what_a_registry_shows() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read =
        |path: &Path| std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    let version = env!("CARGO_PKG_VERSION");
    for (name, folder) in [
        ("dogpile", ""),
        ("dogpile-macros", "macros"),
        ("dogpile-map", "map"),
        ("dogpile-files", "files"),
        ("dogpile-fleet", "fleet"),
    ] {
        let folder = root.join(folder);
        let manifest = read(&folder.join("Cargo.toml"));
        assert_eq!(entry(&manifest, "name"), Some(name));
        assert_eq!(entry(&manifest, "version"), Some(version), "{name}");
        for key in ["description", "keywords", "categories", "documentation", "readme", "include"] {
            assert!(entry(&manifest, key).is_some_and(|value| value.len() > 2), "{name}: no {key}");
        }
        for key in ["edition", "rust-version", "license"] {
            assert!(manifest.contains(&format!("\n{key}.workspace = true\n")), "{name}: {key}");
        }
        assert!(name == "dogpile-macros" || manifest.contains("[package.metadata.docs.rs]"), "{name}");
        for line in manifest.lines().filter(|line| line.starts_with("dogpile") && line.contains("version")) {
            let asked = line.split("version = \"").nth(1).unwrap().split('"').next().unwrap();
            assert_eq!(asked.trim_start_matches('='), version, "{name}: {line}");
        }
        assert!(read(&folder.join("CHANGELOG.md")).contains(&format!("\n## [{version}]")), "{name}");
        for file in ["README.md", "LICENSE-APACHE", "LICENSE-MIT"] {
            assert!(folder.join(file).exists(), "{name}: no {file}");
        }
    }
}

#[test]
fn the_readme_names_the_features_and_what_they_depend_on() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    let (manifest, readme) = (read("Cargo.toml"), read("README.md"));
    let features = readme.split_once("\n## Features\n").unwrap().1.split_once("\n## ").unwrap().0;
    let part = |name: &str| {
        let part = manifest.split_once(&format!("\n[{name}]\n")).unwrap().1;
        part.split_once("\n[").map_or(part, |(part, _)| part).lines().filter(|line| line.contains(" = "))
    };
    for feature in part("features") {
        let name = feature.split(" = ").next().unwrap();
        let row = features.lines().find(|line| line.starts_with(&format!("| `{name}` |"))).expect(name);
        for dependency in feature.split("dep:").skip(1) {
            let dependency = dependency.split('"').next().unwrap();
            assert!(row.contains(&format!("`{dependency}`")), "{name}: {dependency}");
        }
    }
    let always = features.lines().find(|line| line.starts_with("| (none) |")).unwrap();
    for dependency in part("dependencies").filter(|line| !line.contains("optional = true")) {
        let dependency = dependency.split(" = ").next().unwrap();
        assert!(always.contains(&format!("`{dependency}`")), "{dependency}");
    }
}
