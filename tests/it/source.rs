//! A rule about the sources themselves.

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

/// So that a model checker can take the place of the primitives in one spot.
#[test]
fn only_one_file_names_the_primitives() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&src, &mut files);
    assert!(files.len() > 10, "the sources were not found: {files:?}");
    let offences: Vec<String> = files
        .iter()
        .filter(|file| !file.ends_with("src/sync.rs"))
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
                        "loom::",
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
