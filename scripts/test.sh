#!/usr/bin/env bash
# Everything that must hold before a change lands. A fresh Debian 12 with a Rust toolchain (rustup) is enough:
# the `tools` stage installs what is missing.
#
# usage: scripts/test.sh [STAGE…]      without a stage: all of them, in order; a failed stage does not stop the rest
#
# environment: KEEPWELL_FUZZ_SECONDS   per fuzz target, default 5
#              KEEPWELL_TEST_SERVERS   servers that `stores` runs, default "moto azurite gcs sftp"; also ceph, webdav
#              KEEPWELL_FUZZ_SEED      where `fuzz` begins its new inputs; by default always at the same place, 0: elsewhere
#              KEEPWELL_SIM_SEEDS      simulated worlds, default 150
#              KEEPWELL_TEST_POSTGRES  majors to test against, default "15 17"
#              PROPTEST_RNG_SEED       where `test` begins its random inputs; by default always at the same place
#              KEEPWELL_ADVISORIES=1   `deny` also fetches the advisory database (needs the network)
set -uo pipefail
cd "$(dirname "$0")/.."
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-auto}

STAGES=(tools fmt clippy deny test doctest api e2e embed bench fuzz stores)
# Asked for by name: they take minutes. `postgres`, `sim`, `random`. `rescue` is a part of `e2e`.

# Installs the Debian packages, Rust components and cargo tools that the other stages use, if they are missing.
stage_tools() {
    local package missing=()
    for package in build-essential ca-certificates git age zstd rsync acl attr python3 procps tmux time; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    if ((${#missing[@]})); then
        as_root apt-get update -qq
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    fi
    cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
    cargo clippy --version >/dev/null 2>&1 || rustup component add clippy
    cargo nextest --version >/dev/null 2>&1 || cargo install --locked --quiet --no-default-features --features default-no-update cargo-nextest
    cargo deny --version >/dev/null 2>&1 || cargo install --locked --quiet cargo-deny
    cargo --version
    cargo nextest --version | head -n 1
    cargo deny --version
}

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

stage_fmt() {
    cargo fmt --all --check
    (cd fuzz && cargo fmt --all --check)
    (cd tests/sim && cargo fmt --check)
    no_test_is_forgotten
}

# A crate whose tests are one program names each file of them in it; one that it does not name would never run.
no_test_is_forgotten() {
    local manifest file name
    for manifest in $(grep -l '^autotests = false' {crates,tests}/*/Cargo.toml); do
        for file in "$(dirname "$manifest")"/tests/*.rs; do
            name=$(basename "$file" .rs)
            grep -q "^path = \"tests/$name.rs\"" "$manifest" || grep -qsx "mod $name;" "$(dirname "$file")"/*.rs ||
                { echo "$file is part of no program: name it in one beside it (\`mod $name;\`)" >&2; return 1; }
        done
    done
}

stage_clippy() {
    cargo clippy --workspace --all-targets --features keepwell-source-postgres/test-servers --locked --quiet -- -D warnings
    local host target_dir
    host=$(rustc -vV | sed -n 's/^host: //p') target_dir=$(realpath -m "${CARGO_TARGET_DIR:-target}")
    # With --target its flags are not those of procedural macros, which are there already.
    (cd tests/sim && cargo clippy --all-targets --locked --quiet --target "$host" --target-dir "$target_dir" -- -D warnings)
}

# Licences, bans and sources are facts of Cargo.lock and need no network once the crates are fetched.
stage_deny() {
    local checks=(bans licenses sources)
    cargo fetch --locked --quiet
    if [ "${KEEPWELL_ADVISORIES:-0}" = 1 ]; then
        cargo deny --locked check --hide-inclusion-graph advisories
    else
        echo "advisories are not checked (KEEPWELL_ADVISORIES=1 fetches their database and checks them)"
    fi
    cargo deny --offline --locked check --hide-inclusion-graph --allow duplicate "${checks[@]}"
}

# Random inputs are the same in every run, so that a change is judged by what it changes; `random` tries others. The
# examples are not built: `clippy` looks at them, and none is run.
stage_test() {
    PROPTEST_RNG_SEED=${PROPTEST_RNG_SEED:-1} cargo nextest run --workspace --bins --tests --locked --no-fail-fast \
        --no-tests=pass --status-level fail --final-status-level slow
}

# The tests of the libraries with inputs that no run had before, twenty times as many of them, and the fuzz targets.
stage_random() {
    unset PROPTEST_RNG_SEED
    KEEPWELL_FUZZ_SEED=0 stage_fuzz
    PROPTEST_CASES=5120 cargo nextest run --workspace --locked --no-fail-fast --lib --status-level fail --final-status-level slow
    cargo nextest run --workspace --locked --no-fail-fast --stress-count 20 --status-level fail --final-status-level none \
        -E 'binary(it) - test(/^(confinement|target|walk)::/) + binary(engine) & test(/^stateful::/)'
}

# Against real servers, which are installed, started and stopped: the suite that every store must pass, a network that
# fails at every request, and two hosts with a keeper in one bucket. A server that does not start fails it.
stage_stores() {
    local servers=${KEEPWELL_TEST_SERVERS:-moto azurite gcs sftp}
    KEEPWELL_TEST_SERVERS=$servers cargo nextest run --workspace --locked --no-fail-fast --test-threads 2 \
        --status-level pass --final-status-level slow --test live
    if [[ " ${servers//,/ } " == *" moto "* ]]; then
        cargo build --locked --quiet --workspace --bins --tests # built already for the stage `test`
        scripts/archive.sh
        scripts/many-hosts.sh moto
    fi
    if [[ " ${servers//,/ } " == *" ceph "* ]]; then
        cargo build --locked --quiet --workspace --bins --tests # built already for the stage `test`
        scripts/many-hosts.sh ceph
    fi
}

# Against real PostgreSQL servers, 15 and 17 unless KEEPWELL_TEST_POSTGRES names others ("14 15 16 17 18").
stage_postgres() {
    local major
    cargo nextest run --locked -p keepwell-source-postgres --features test-servers --test servers --status-level fail --final-status-level slow
    cargo build --locked --quiet --workspace --bins --tests # built already for the stage `test`
    for major in ${KEEPWELL_TEST_POSTGRES:-15 17}; do
        scripts/postgres-base.sh "$major"
        scripts/postgres-logical.sh "$major"
        scripts/postgres-kill.sh "$major"
        scripts/postgres-outage.sh "$major"
        [ -n "$(scripts/servers/postgres.sh install "$major" | sed -n 's/^CLIENT_BIN=//p')" ] || continue
        scripts/postgres-wal.sh "$major"
        scripts/postgres-instant.sh "$major"
        scripts/postgres-proof.sh "$major"
        scripts/postgres-pitr.py --major "$major" --moments 6
        case $major in 15 | 17 | 18) scripts/postgres-regress.sh "$major" ;; esac
    done
}

stage_doctest() { cargo test --workspace --locked --doc --quiet; }

stage_api() { scripts/public_api.py backup-core; }

# The independent reader restores what our own command wrote, and every format fixture.
stage_rescue() { scripts/rescue.sh; }

# What follows keeps one processor busy most of the time, so `rescue` runs beside it.
stage_e2e() {
    local script failed=0 rescued rescue
    cargo build --locked --quiet --workspace --bins --tests # built already for the stage `test`
    rescued=$(mktemp)
    stage_rescue >"$rescued" 2>&1 &
    rescue=$!
    # Ctrl-C does not reach what runs in the background.
    trap "kill $rescue 2>/dev/null || true; rm -f '$rescued'" EXIT
    for script in scripts/e2e/*.sh; do
        [ -e "$script" ] || { echo "no end-to-end scripts"; break; }
        echo "-- $script"
        bash "$script" || { echo "failed: $script"; failed=1; }
    done
    echo "-- scripts/first-run.sh"
    KEEPWELL=${CARGO_TARGET_DIR:-target}/debug/keepwell scripts/first-run.sh /usr/share/doc >/dev/null || failed=1
    echo "-- scripts/rescue.sh"
    wait "$rescue" || { echo "failed: scripts/rescue.sh"; failed=1; }
    cat "$rescued"
    return $failed
}

stage_embed() { built keepwell-example-embed; }

# One counted iteration of every benchmark shows that they run; the dev build is used, so the times mean nothing.
stage_bench() { built keepwell-benches --once; }

# Runs a program of the workspace. `cargo run -p` would build its dependencies again, with other features.
built() {
    cargo build --locked --quiet --workspace --bins --tests # built already for the stage `test`
    "${CARGO_TARGET_DIR:-target}/debug/$1" "${@:2}"
}

# The engine in simulated worlds; a workspace of its own (docs/simulation.md).
stage_sim() { (cd tests/sim && cargo test --locked --quiet); }

stage_fuzz() { KEEPWELL_FUZZ_SEED=${KEEPWELL_FUZZ_SEED:-1} scripts/fuzz.sh "${KEEPWELL_FUZZ_SECONDS:-5}"; }

run_stage() {
    local started=$SECONDS status
    printf '\n== %s\n' "$1"
    (set -e; "stage_$1")
    status=$?
    printf -- '-- %s: %s, %d s\n' "$1" "$([ $status = 0 ] && echo ok || echo FAILED)" $((SECONDS - started))
    summary+=("$(printf '%-8s %-6s %5d s' "$1" "$([ $status = 0 ] && echo ok || echo FAILED)" $((SECONDS - started)))")
    [ $status = 0 ] || failed=1
}

summary=() failed=0
[ $# = 0 ] && set -- "${STAGES[@]}"
for stage in "$@"; do
    declare -F "stage_$stage" >/dev/null || { echo "unknown stage \`$stage\`; stages: ${STAGES[*]}" >&2; exit 2; }
done
for stage in "$@"; do run_stage "$stage"; done
printf '\n== summary (%d s)\n' "$SECONDS"
printf '%s\n' "${summary[@]}"
exit $failed
