#!/usr/bin/env bash
# Builds the fuzz targets with the stable toolchain and runs each, as many at once as there are processors: first its seed
# corpus, then new inputs.
#
# usage: scripts/fuzz.sh [SECONDS [TARGET…]]     SECONDS per target, default 5; 0 runs the corpora only
#
# environment: KEEPWELL_FUZZ_SEED  a number that says where new inputs begin; by default elsewhere each time
#
# A failing input is left in fuzz/artifacts/<target>/; `FUZZ_BINARY FILE` runs it again.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"

seconds=${1:-5}
shift || true
host=$(rustc -vV | sed -n 's/^host: //p')
target_dir=$(cd .. && realpath -m "${CARGO_TARGET_DIR:-target}")

# What cargo-fuzz would set, without its sanitizers: the code is safe Rust, and sanitizers need a nightly toolchain.
# With --target, build scripts and procedural macros stay uninstrumented, and are those that the workspace has built already.
RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
 -Cllvm-args=-sanitizer-coverage-trace-compares" \
    cargo build --locked --quiet --bins --target "$host" --target-dir "$target_dir"

[ $# = 0 ] && set -- $(cd src/bin && ls | sed 's/\.rs$//')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fuzz() { # TARGET: says in one piece how it went
    local target=$1 said binary=$binaries/$1 log=$work/$1.log
    local limits=(-timeout=60 -rss_limit_mb=1024 -malloc_limit_mb=512 -max_len=65536)
    limits+=("-seed=${KEEPWELL_FUZZ_SEED:-0}" -artifact_prefix="artifacts/$1/")
    mkdir -p "corpus/$target" "artifacts/$target" "$work/$target"
    if "$binary" "${limits[@]}" -runs=0 "corpus/$target" >"$log" 2>&1 &&
        { [ "$seconds" = 0 ] || "$binary" "${limits[@]}" -max_total_time="$seconds" "$work/$target" "corpus/$target" >"$log" 2>&1; }; then
        echo "$target: $(find "corpus/$target" -type f | wc -l) seeds, $(grep -aE '^(Done|#[0-9]+.*DONE)' "$log" | tail -n 1)"
        return 0
    fi
    said=$(grep -aE -A3 'panicked at|ERROR: libFuzzer|Test unit written' "$log" | head -n 20)
    printf '%s\n%s: FAILED\n' "$said" "$target"
    return 1
}

# One target keeps one processor busy.
export binaries=$target_dir/$host/debug seconds work
export -f fuzz
printf '%s\n' "$@" | xargs -P "$(nproc)" -I '{}' bash -c 'fuzz "$1"' fuzz '{}'
