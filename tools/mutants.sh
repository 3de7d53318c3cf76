#!/usr/bin/env bash
# Mutations: does a test notice if a piece of the code is not there, or is another one?
#
#   tools/mutants.sh                      all of src: an hour
#   tools/mutants.sh -f src/policy.rs     one file; anything that `cargo mutants` takes
#
# In two rounds, since most mutants are killed by the tests that are quickest to build: first the unit tests and tests/it, then all
# tests for those that are left. Each begins with the code as it is. Needs `cargo install --locked cargo-mutants`.
#
# A test may take LIMIT seconds in the first round (12; they take one, if nothing hangs) and twenty times as many in the second.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! cargo mutants --version >/dev/null 2>&1; then
    echo "SKIPPED: cargo mutants is not installed (cargo install --locked cargo-mutants)"
    exit 0
fi

out=${OUT:-target/mutants}
limit=${LIMIT:-12}
mkdir -p "$out"
rm -rf "$out"/mutants.out{,.old}
# A mutant is a change of one line: only what hangs on it is compiled again.
export CARGO_INCREMENTAL=1 CARGO_PROFILE_DEV_DEBUG=0 CARGO_PROFILE_TEST_DEBUG=0 RUST_BACKTRACE=0
# As many cases as find a mutant, if they find it at all.
export PROPTEST_CASES=${PROPTEST_CASES:-200}
rounds=(-p dogpile -o "$out" --iterate --colors never --build-timeout 300 "$@")
# In a hundred of all that compile.
minimum=95
failed() { (($? == 2 || $? == 3)); } # some were missed; some hung
# What a round has had, of itself and of the one before it.
count() { { cat "$out"/mutants.out{,.old}/"$1".txt 2>/dev/null || true; } | wc -l; }

cargo mutants --timeout "$limit" -j 3 "${rounds[@]}" --cargo-arg=--lib --cargo-arg=--test=it || failed
# A mutant that makes a test hang is killed, but `--iterate` would take it up again.
hung=$(count timeout)
cat "$out/mutants.out/timeout.txt" >>"$out/mutants.out/caught.txt"
: >"$out/mutants.out/timeout.txt"
cargo mutants --timeout "$((20 * limit))" -j 2 "${rounds[@]}" --cargo-arg=--tests || failed

killed=$(($(count caught) + $(count timeout)))
missed=$(wc -l <"$out/mutants.out/missed.txt")
cat "$out/mutants.out/missed.txt"
echo "$killed of $((killed + missed)) mutants were killed ($((hung + $(count timeout))) of them made a test hang), $(count unviable) did not compile"
if ((killed + missed == 0 || ($# == 0 && 100 * killed < minimum * (killed + missed)))); then
    echo "FAILED: at least $minimum of a hundred were to be killed"
    exit 1
fi
