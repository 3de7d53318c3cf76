#!/usr/bin/env bash
# The public API as a list, so that a change of it shows in a diff: docs/api.txt.
#   tools/api.sh            compares
#   tools/api.sh --update   writes it anew
# Needs a nightly toolchain and `cargo install --locked cargo-public-api`.
set -euo pipefail
cd "$(dirname "$0")/.."
kept=docs/api.txt
if ! cargo +nightly public-api --version >/dev/null 2>&1; then
    echo "SKIPPED: cargo public-api is not installed, or there is no nightly toolchain"
    exit 0
fi
now=$(mktemp)
trap 'rm -f "$now"' EXIT
cargo +nightly public-api -p dogpile --all-features -sss 2>/dev/null | grep -v "^pub mod dogpile::guide" >"$now"
if [[ ${1:-} == --update ]]; then
    cp "$now" "$kept"
elif ! diff -u "$kept" "$now"; then
    echo "The public API is another one than $kept says: tools/api.sh --update, and a line in CHANGELOG.md"
    exit 1
fi
echo "$(wc -l <"$now") public items"
