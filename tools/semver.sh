#!/usr/bin/env bash
# Whether the public API has changed more than the version says, against the latest release (the latest tag v*).
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
    echo "SKIPPED: there is no release yet to compare with; docs/api.txt shows every change"
    exit 0
fi
cargo semver-checks -p dogpile --all-features --baseline-rev "$baseline"
