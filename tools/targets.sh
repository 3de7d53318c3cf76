#!/usr/bin/env bash
# Other systems: the crate is checked for each, the tests run on 32 bits, and a smoke test runs in WebAssembly.
#
#   tools/targets.sh           all of that: less than two minutes
#   tools/targets.sh check     only the checks
#
# What cannot be had on this machine is SKIPPED.
set -euo pipefail
cd "$(dirname "$0")/.."

targets=(
    i686-unknown-linux-gnu         # 32 bits
    armv7-unknown-linux-gnueabihf
    powerpc-unknown-linux-gnu      # no atomics of 64 bits
    wasm32-unknown-unknown         # no threads
    x86_64-pc-windows-gnu
    aarch64-apple-darwin
    aarch64-linux-android
)

is_there() {
    rustup target list --installed 2>/dev/null | grep -qx "$1" || rustup target add "$1" >/dev/null 2>&1
}

missing=" "
for target in "${targets[@]}"; do
    if is_there "$target"; then
        cargo check -q -p dogpile --all-features --target "$target"
        echo "$target: checked"
    else
        missing+="$target "
        echo "SKIPPED: the target $target cannot be had"
    fi
done
[[ ${1:-} == check ]] && exit

if [[ $missing != *" i686-unknown-linux-gnu "* ]]; then
    if echo 'int main(void) { return 0; }' | cc -m32 -x c -o /dev/null - 2>/dev/null; then
        cargo test -q --target i686-unknown-linux-gnu --lib --test it
        cargo test -q --target i686-unknown-linux-gnu -p fork-tests
    else
        echo "SKIPPED: no C compiler for i686 (Debian: gcc-multilib)"
    fi
fi

if [[ $missing != *" wasm32-unknown-unknown "* ]]; then
    if command -v node >/dev/null; then
        cargo build -q --release -p wasm-smoke --target wasm32-unknown-unknown
        # A trap may leave it waiting for itself.
        timeout 60 node platforms/wasm/run.mjs \
            "${CARGO_TARGET_DIR:-target}/wasm32-unknown-unknown/release/wasm_smoke.wasm"
    else
        echo "SKIPPED: no node, so nothing runs in WebAssembly"
    fi
fi
