#!/usr/bin/env bash
# The fuzz targets: the models of the property tests, with operations drawn from bytes.
#
#   tools/fuzz.sh          20 s of each
#   tools/fuzz.sh long     10 minutes of each
#   SECONDS_EACH=3600 tools/fuzz.sh
#
# What a target has found is in fuzz/artifacts, shortened by `cargo fuzz tmin`; it becomes a test by name.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-short}" in
    short) seconds=${SECONDS_EACH:-20} ;;
    long) seconds=${SECONDS_EACH:-600} ;;
    *) echo "usage: $0 [short|long]" >&2; exit 2 ;;
esac
# Of each target. Fewer means that it hangs, or does nothing, not that it has passed.
minimum=${MINIMUM:-500}
minimum_covered=2000

toolchain=${TOOLCHAIN:-nightly}
if ! cargo "+$toolchain" --version >/dev/null 2>&1; then
    echo "SKIPPED: the $toolchain toolchain cannot be had on this machine (rustup toolchain install $toolchain)"
    exit 0
fi
if ! cargo fuzz --version >/dev/null 2>&1 && ! cargo install --locked --debug cargo-fuzz >/dev/null 2>&1; then
    echo "SKIPPED: cargo-fuzz cannot be had on this machine (cargo install --locked cargo-fuzz)"
    exit 0
fi

export RUSTFLAGS="" CARGO_INCREMENTAL=0 RUST_BACKTRACE=0
# There is no `unsafe` for a sanitizer to watch, and without one a target runs several times as often.
flags=(-s none)

log=$(mktemp)
trap 'rm -f "$log"' EXIT
for target in cell sync_reader; do
    # The time to build does not count.
    if ! cargo "+$toolchain" fuzz build "${flags[@]}" "$target" >"$log" 2>&1; then
        tail -40 "$log"
        echo "FAILED: the fuzz target $target does not build"
        exit 1
    fi
    if ! cargo "+$toolchain" fuzz run "${flags[@]}" "$target" -- \
        -max_total_time="$seconds" -max_len=1024 -timeout=60 -print_final_stats=1 >"$log" 2>&1; then
        tail -60 "$log"
        echo "FAILED: the fuzz target $target has found something"
        exit 1
    fi
    runs=$(awk '/^stat::number_of_executed_units:/ {print $2}' "$log")
    covered=$(grep -oE 'cov: [0-9]+' "$log" | tail -1 | grep -oE '[0-9]+' || echo 0)
    echo "$target: $runs runs in $seconds s, $covered edges covered"
    if ((runs < minimum || covered < minimum_covered)); then
        echo "FAILED: at least $minimum runs of $target were to be made, and $minimum_covered edges covered"
        exit 1
    fi
done
