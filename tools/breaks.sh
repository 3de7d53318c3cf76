#!/usr/bin/env bash
# Whether the tests see anything: breaks the crate on purpose, once for each patch in tools/breaks, and runs the test that
# must go red.
#
#   tools/breaks.sh                all of them: a few seconds each
#   tools/breaks.sh g04 g11-once   those whose names begin so
#   tools/breaks.sh check          only whether each patch still applies, and its tests are there
#   tools/breaks.sh table          the table in docs/testing.md
#
# A patch begins with the promise and what is broken, then `Red:` and the test (`--loom`: the model; `--map`: of dogpile-map), once
# for each test. `Hangs.`: the test may
# stand still instead of failing, as that is what is broken. It is made in a copy; the working tree is left alone.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD

mode=run
case "${1:-}" in
    check | table) mode=$1; shift ;;
    -*) echo "usage: $0 [check|table] [name...]" >&2; exit 2 ;;
esac

patches=()
for name in "${@:-}"; do
    for patch in "$root"/tools/breaks/"$name"*.patch; do
        [[ -e $patch ]] || { echo "FAILED: there is no patch whose name begins with $name"; exit 1; }
        patches+=("$patch")
    done
done

reds() { sed -n 's/^Red: //p' "$1"; }
all_reds() { for patch in "${patches[@]}"; do reds "$patch"; done | sed 's/^--test /--test=/' | sort -u; }

if [[ $mode == table ]]; then
    echo "| promise | broken | red |"
    echo "|---|---|---|"
    for patch in "${patches[@]}"; do
        IFS= read -r title <"$patch"
        red=$(reds "$patch" | sed 's/^--\(test \)\{0,1\}\([a-z_]*\) \(.*\)/`\2`: `\3`/' | paste -sd ';' | sed 's/;/; /g')
        grep -q '^Hangs\.$' "$patch" && red="$red (hangs)"
        echo "| ${title%%,*} |${title#*,} | $red |"
    done
    exit
fi

# Always in the same place, where the next run finds what this one has built.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target}
copy=$CARGO_TARGET_DIR/breaks
rm -rf "$copy"
mkdir -p "$copy"
# With new times: what was built from the copy before this one may have been broken.
git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
    if [[ -f $file ]]; then printf '%s\0' "$file"; fi
done | xargs -0 cp --parents -t "$copy"
cd "$copy"
# A repository of its own, or `git apply` would look at the one around it.
git init -q

# Suites: --lib, --test=name, --loom, --map. What is built for one stays there for the others.
# For how long at most, arguments.
loom() { RUSTFLAGS="--cfg dogpile_loom" timeout "$1" cargo test --release -p models --test loom "${@:2}"; }
# For how long at most, which, arguments.
suite() {
    local target=("$2")
    [[ $2 == --map ]] && target=(-p dogpile-map --test it)
    timeout "$1" cargo test --all-features "${target[@]}" "${@:3}"
}
list() {
    if [[ $1 == --loom ]]; then
        loom 600 -q -- --list
    else
        suite 600 "$1" -q -- --list | sed -n 's/: test$//p'
    fi
}

for patch in "${patches[@]}"; do
    if ! git apply --check "$patch"; then
        echo "FAILED: $(basename "$patch") does not apply any more"
        exit 1
    fi
    if [[ -z $(reds "$patch") ]]; then
        echo "FAILED: $(basename "$patch") names no test"
        exit 1
    fi
done
if [[ $mode == check ]]; then
    while read -r suite test; do
        # Once for each suite.
        list=$copy/tests$suite
        [[ -e $list ]] || (cd "$root" && list "$suite") >"$list"
        grep -qx "$test" "$list" || { echo "FAILED: there is no test $test in $suite"; exit 1; }
    done < <(all_reds)
    echo "${#patches[@]} patches apply, and name tests that are there"
    exit
fi

export CARGO_INCREMENTAL=1 CARGO_PROFILE_DEV_DEBUG=0 CARGO_PROFILE_TEST_DEBUG=0 RUST_BACKTRACE=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT

build() {
    if [[ $1 == --loom ]]; then
        loom 600 -q --no-run >"$log" 2>&1
    else
        suite 600 "$1" -q --no-run >"$log" 2>&1
    fi
}
# For how long at most, the suite, its tests.
run() {
    local limit=$1 suite=$2
    shift 2
    if [[ $suite == --loom ]]; then
        loom "$limit" -- "$@" >"$log" 2>&1
    else
        suite "$limit" "$suite" -- --exact "$@" >"$log" 2>&1
    fi
}
# Whether that test has passed, or failed.
is_green() { grep -qE "^(test $1 .*ok|$1: .* executions, .*)$" "$log"; }
is_red() { grep -qE "^(test $1 .*|$1: )FAILED$" "$log"; }

# First of all, unbroken, each of them is green.
start=$SECONDS
declare -A suites
while read -r suite test; do
    suites[$suite]+=" $test"
done < <(all_reds)
for suite in "${!suites[@]}"; do
    read -ra tests <<<"${suites[$suite]}"
    if ! build "$suite" || ! run 600 "$suite" "${tests[@]}"; then
        tail -40 "$log"
        echo "FAILED: $suite, unbroken"
        exit 1
    fi
    for test in "${tests[@]}"; do
        is_green "$test" || { echo "FAILED: there is no test $test in $suite"; exit 1; }
    done
done
echo "unbroken: all green, $((SECONDS - start)) s"

survived=0
for patch in "${patches[@]}"; do
    name=$(basename "$patch" .patch)
    git apply "$patch"
    while read -r suite test; do
        start=$SECONDS
        if ! build "$suite"; then
            tail -40 "$log"
            echo "FAILED: $name does not build"
            exit 1
        fi
        result=0 seen="" limit=300
        grep -q '^Hangs\.$' "$patch" && limit=20
        run "$limit" "$suite" "$test" || result=$?
        if ((result == 124 && limit == 20)) && grep -q "^running 1 test" "$log"; then
            seen="red, hangs"
        elif ((result != 0)) && { is_red "$test" || { [[ $suite == --loom && $limit == 20 ]] && grep -q deadlock "$log"; }; }; then
            seen=red
        fi
        if [[ -z $seen ]]; then
            ((result == 0)) && seen=GREEN || seen="ended with $result, which is not what the patch says"
            survived=$((survived + 1))
        fi
        echo "$name: $seen: $suite $test, $((SECONDS - start)) s"
    done < <(reds "$patch" | sed 's/^--test /--test=/')
    git apply -R "$patch"
done
if ((survived > 0)); then
    echo "FAILED: $survived breaks were not seen as they should be"
    exit 1
fi
echo "${#patches[@]} breaks, each of them seen"
