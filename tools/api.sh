#!/usr/bin/env bash
# The public API of each published crate as a list, so that a change of it shows in a diff: docs/api.txt, map/api.txt, ...
#   tools/api.sh            compares
#   tools/api.sh --update   writes them anew
# Needs a nightly toolchain and `cargo install --locked cargo-public-api`.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! cargo +nightly public-api --version >/dev/null 2>&1; then
    echo "SKIPPED: cargo public-api is not installed, or there is no nightly toolchain"
    exit 0
fi
now=$(mktemp)
trap 'rm -f "$now"' EXIT
differs=0
for crate in dogpile dogpile-macros dogpile-map dogpile-files dogpile-fleet; do
    kept=${crate#dogpile-}/api.txt
    [[ $crate == dogpile ]] && kept=docs/api.txt
    cargo +nightly public-api -p "$crate" --all-features -sss 2>/dev/null | grep -v "^pub mod dogpile::guide" >"$now"
    if [[ ${1:-} == --update ]]; then
        cp "$now" "$kept"
    elif ! diff -u "$kept" "$now"; then
        echo "The public API of $crate is another one than $kept says: tools/api.sh --update, and a line in its CHANGELOG.md"
        differs=1
    fi
    echo "$crate: $(wc -l <"$now") public items"
done
exit "$differs"
