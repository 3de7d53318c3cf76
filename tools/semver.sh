#!/usr/bin/env bash
# Whether the public API of a published crate has changed more than its version says, against the latest release (the latest
# tag v*). All published crates have the same version.
#   tools/semver.sh              compares with the latest release
#   tools/semver.sh <revision>   with that one
# Needs `cargo install --locked cargo-semver-checks`.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! cargo semver-checks --version >/dev/null 2>&1; then
    echo "SKIPPED: cargo semver-checks is not installed"
    exit 0
fi
baseline=${1:-$(git describe --tags --match 'v[0-9]*' --abbrev=0 2>/dev/null || true)}
if [[ -z $baseline ]]; then
    echo "SKIPPED: there is no release yet to compare with; docs/api.txt and its like show every change"
    exit 0
fi
# Not `dogpile-macros`: its only item is a macro, which the tool does not look at.
for crate in dogpile dogpile-map dogpile-files dogpile-fleet; do
    cargo semver-checks -p "$crate" --all-features --baseline-rev "$baseline"
done
