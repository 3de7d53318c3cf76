#!/usr/bin/env bash
# The tests under Miri: undefined behaviour, data races, leaks; with Tree Borrows and several schedules.
#
#   tools/miri.sh              seven minutes: two schedules, on two processors
#   tools/miri.sh long         32 schedules
#   SEEDS=100 tools/miri.sh    more of them
#   tools/miri.sh schedule 17  that one once more
#
# What it leaves out, and why: docs/testing.md.
set -euo pipefail
cd "$(dirname "$0")/.."

# Of each schedule. Fewer means that tests have got lost, not that they have passed.
minimum=${MINIMUM:-410}
# Miri uses one processor.
jobs=${JOBS:-$(nproc 2>/dev/null || echo 2)}

toolchain=${TOOLCHAIN:-nightly}
export RUSTFLAGS="" CARGO_INCREMENTAL=0
# A panic that is expected would take minutes to print.
export RUST_BACKTRACE=0
# Tests look at their own sources and at the clock; parking_lot makes pointers of integers.
flags="-Zmiri-tree-borrows -Zmiri-disable-isolation -Zmiri-permissive-provenance"

# Looks at two clocks thirty thousand times; and the tests of a test, which share nothing between threads.
skip=(--skip the_coarse_reading_never_leads --skip model::tests)

schedule() {
    local seed=$1 start=$SECONDS tests names leaks passed ignored
    log=$(mktemp)
    trap 'rm -f "$log"' EXIT
    for tests in lib linear stress it async; do
        names=() leaks=""
        # Those that are quick. Some leave a thread of a cell's that still runs when the process ends, which counts as a leak.
        case $tests in
            it) names=(election:: failure:: fence:: lease:: local:: reader:: sync_reader:: waiting::) ;;
            async)
                names=(cancellation:: fence:: lease_timeout:: pending:: reads:: reentrancy:: shutdown:: sync_reader:: wakers::)
                # What executors ask of the system Miri does not have.
                names+=(--skip executor --skip smol --skip tokio)
                ;;
        esac
        ((${#names[@]} > 0)) && leaks=-Zmiri-ignore-leaks
        [[ $tests == lib ]] && tests=--lib || tests=--test=$tests
        if ! MIRIFLAGS="$flags $leaks -Zmiri-seed=$seed" DOGPILE_SEED=$seed \
            cargo "+$toolchain" miri test --features async "$tests" -- "${names[@]}" "${skip[@]}" >>"$log" 2>&1; then
            grep -vE '^ +Compiling|^test .*(ok|ignored)$' "$log" | tail -80
            echo "FAILED: Miri, seed $seed, $tests"
            exit 255
        fi
    done
    passed=$(awk '/^test result: ok/ {sum += $4} END {print sum + 0}' "$log")
    ignored=$(awk '/^test result: ok/ {sum += $8} END {print sum + 0}' "$log")
    echo "seed $seed: $passed tests passed, $ignored left out, $((SECONDS - start)) s"
    if ((passed < minimum)); then
        echo "FAILED: at least $minimum tests were to run under Miri"
        exit 255
    fi
}

case "${1:-short}" in
    short) seeds=${SEEDS:-2} ;;
    long) seeds=${SEEDS:-32} ;;
    schedule) schedule "$2"; exit ;;
    *) echo "usage: $0 [short|long|schedule <seed>]" >&2; exit 2 ;;
esac

library=$(rustc "+$toolchain" --print sysroot 2>/dev/null || true)/lib/rustlib/src/rust/library
if { ! cargo "+$toolchain" miri --version >/dev/null 2>&1 || [[ ! -d $library ]]; } \
    && ! rustup component add miri rust-src --toolchain "$toolchain" >/dev/null 2>&1; then
    echo "SKIPPED: Miri cannot be had on this machine (rustup component add miri rust-src --toolchain $toolchain)"
    exit 0
fi

# At the first schedule that fails (255) no other one is begun.
seq 0 $((seeds - 1)) | xargs -n 1 -P "$jobs" tools/miri.sh schedule
