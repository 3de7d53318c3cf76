#!/usr/bin/env bash
# The stress tests under ThreadSanitizer, with a standard library that is built for it.
#
#   tools/tsan.sh          a few minutes
#   tools/tsan.sh long     a minute of chaos and ten times the rest
#
# No suppressions: neither this crate nor arc-swap 1.9.5 uses a fence, which ThreadSanitizer does not understand, and
# the standard library, built for it, has loads in the place of its own.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-short}" in
    short) export DOGPILE_CHAOS=${DOGPILE_CHAOS:-10} DOGPILE_STRESS=${DOGPILE_STRESS:-1} ;;
    long) export DOGPILE_CHAOS=${DOGPILE_CHAOS:-60} DOGPILE_STRESS=${DOGPILE_STRESS:-10} ;;
    *) echo "usage: $0 [short|long]" >&2; exit 2 ;;
esac
minimum=${MINIMUM:-27}

toolchain=${TOOLCHAIN:-nightly}
if ! rustc "+$toolchain" -vV >/dev/null 2>&1; then
    echo "SKIPPED: the $toolchain toolchain cannot be had on this machine (rustup toolchain install $toolchain)"
    exit 0
fi
target=$(rustc "+$toolchain" -vV | sed -n 's/^host: //p')
library=$(rustc "+$toolchain" --print sysroot)/lib/rustlib/src/rust/library
if [[ ! -d $library ]] && ! rustup component add rust-src --toolchain "$toolchain" >/dev/null 2>&1; then
    echo "SKIPPED: the standard library's source cannot be had on this machine (rustup component add rust-src --toolchain $toolchain)"
    exit 0
fi
case $target in
    x86_64-unknown-linux-gnu | aarch64-unknown-linux-gnu | *-apple-darwin) ;;
    *) echo "SKIPPED: there is no ThreadSanitizer for $target"; exit 0 ;;
esac

export RUSTFLAGS="-Zsanitizer=thread" RUST_BACKTRACE=0 CARGO_INCREMENTAL=0
export TSAN_OPTIONS="halt_on_error=1 second_deadlock_stack=1 ${TSAN_OPTIONS:-}"

folder=$(mktemp -d)
log=$folder/log
trap 'rm -rf "$folder"' EXIT

# Whether it sees a race at all.
cat >"$folder/race.rs" <<'RACE'
static mut NUMBER: u64 = 0;
fn main() {
    let threads: Vec<_> = (0..2)
        .map(|_| std::thread::spawn(|| (0..1000).for_each(|_| unsafe { NUMBER = std::hint::black_box(NUMBER) + 1 })))
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}
RACE
rustc "+$toolchain" --edition 2021 -Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer \
    -o "$folder/race" "$folder/race.rs"
if "$folder/race" >"$log" 2>&1 || ! grep -q "data race" "$log"; then
    cat "$log"
    echo "FAILED: ThreadSanitizer does not report a race that is there"
    exit 1
fi
: >"$log"

start=$SECONDS
for tests in "--test stress" "--test linear"; do
    # shellcheck disable=SC2086 # two words
    if ! cargo "+$toolchain" test -Zbuild-std --target "$target" --features async $tests >>"$log" 2>&1; then
        grep -vE '^ +Compiling' "$log" | tail -120
        echo "FAILED: ThreadSanitizer, $tests"
        exit 1
    fi
done
passed=$(awk '/^test result: ok/ {sum += $4} END {print sum + 0}' "$log")
echo "$passed tests passed under ThreadSanitizer, $((SECONDS - start)) s"
if ((passed < minimum)); then
    echo "FAILED: at least $minimum tests were to run under ThreadSanitizer"
    exit 1
fi
