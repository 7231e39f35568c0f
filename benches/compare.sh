#!/usr/bin/env bash
# Measures keepwell beside its peers on one tree: page cache warm, runs interleaved, wall time and peak memory of each.
#
# usage: benches/compare.sh TREE WORK [ROUNDS]     WORK: an empty directory on the disk to measure; ROUNDS: default 3
#
# environment: KEEPWELL   our binary, default target/release/keepwell (built if it is missing)
#              PROGRAMS   only these, separated by commas: "keepwell 2,restic auto"
#              PEERS      where benches/peers.sh put the others; those that are missing are left out
#
# Writes WORK/results.tsv and WORK/results.md: minimum / median of the rounds. The tree is not changed; for the prune,
# every second of its top directories (or theirs) is out of sight for a moment.
set -euo pipefail

tree=$(realpath "${1:?usage: benches/compare.sh TREE WORK [ROUNDS]}")
work=$(realpath -m "${2:?usage: benches/compare.sh TREE WORK [ROUNDS]}")
rounds=${3:-3}
root=$(realpath "$(dirname "$0")/..")
keepwell=${KEEPWELL:-$root/target/release/keepwell}
peers=${PEERS:-$work/peers}/bin
mkdir -p "$work"
[ -x "$keepwell" ] || (cd "$root" && cargo build --release --locked -p keepwell-cli)
table=$work/results.tsv
printf 'round\tprogram\toperation\tseconds\tpeak_kib\n' >"$table"

# Runs a command and appends wall time and peak memory; the command's own output goes to the log.
measure() { # ROUND PROGRAM OPERATION COMMAND…
    local round=$1 program=$2 operation=$3
    shift 3
    sync
    if ! /usr/bin/time -o "$work/time" -f '%e\t%M' "$@" >>"$work/log" 2>&1; then
        echo "failed: $program $operation: $* (see $work/log)" >&2
        return 1
    fi
    printf '%s\t%s\t%s\t%s\n' "$round" "$program" "$operation" "$(tail -n 1 "$work/time")" >>"$table"
}

size() { # ROUND PROGRAM OPERATION PATH: its bytes, in the column of the seconds
    printf '%s\t%s\t%s\t%s\t0\n' "$1" "$2" "$3" "$(du -sb "$4" | cut -f1)" >>"$table"
}

warm() { find "$tree" -type f -print0 | xargs -0 cat >/dev/null; }

# -- the programs: init, backup, restore, check, forget_prune; $1 is the variant, the repository is $repo ------------------

keepwell_init() { export KEEPWELL_KEY_FILE=$repo.key KEEPWELL_CACHE_DIR=$repo.cache KEEPWELL_CONFIG=/dev/null XDG_CONFIG_HOME=$work/config; "$keepwell" -r "$repo" init >>"$work/log" 2>&1; }
keepwell_backup() { "$keepwell" -r "$repo" backup "$tree" --compression-level "$1"; }
keepwell_restore() { "$keepwell" -r "$repo" restore latest --target "$out"; }
keepwell_check() { "$keepwell" -r "$repo" check --read-data; }
keepwell_prune() { "$keepwell" -r "$repo" forget --yes --keep-last 1 --prune; }

restic_init() { export RESTIC_PASSWORD=x RESTIC_REPOSITORY=$repo RESTIC_CACHE_DIR=$repo.cache; "$peers/restic" init >>"$work/log" 2>&1; }
restic_backup() { "$peers/restic" backup --compression "$1" "$tree"; }
restic_restore() { "$peers/restic" restore latest --target "$out"; }
restic_check() { "$peers/restic" check --read-data; }
restic_prune() { "$peers/restic" forget --keep-last 1 --prune; }

rustic_init() { export RUSTIC_PASSWORD=x RUSTIC_REPOSITORY=$repo RUSTIC_CACHE_DIR=$repo.cache; "$peers/rustic" init --set-compression "$variant" >>"$work/log" 2>&1; }
rustic_backup() { "$peers/rustic" backup "$tree"; }
rustic_restore() { "$peers/rustic" restore latest "$out"; }
rustic_check() { "$peers/rustic" check --read-data; }
rustic_prune() { "$peers/rustic" forget --keep-last 1 --prune --instant-delete --keep-delete 0s; }

borg_init() { export BORG_PASSPHRASE=x BORG_REPO=$repo BORG_CACHE_DIR=$repo.cache BORG_CONFIG_DIR=$repo.config; "$peers/borg" init -e repokey-blake2 >>"$work/log" 2>&1; }
borg_backup() { "$peers/borg" create --compression "$1" '::{now:%Y%m%d%H%M%S%f}' "$tree"; }
borg_restore() { mkdir -p "$out" && cd "$out" && "$peers/borg" extract "::$("$peers/borg" list --last 1 --format '{archive}')"; }
borg_check() { "$peers/borg" check --verify-data; }
borg_prune() { "$peers/borg" prune --keep-last 1 && "$peers/borg" compact --threshold 0; }

# -- one round of one program ----------------------------------------------------------------------------------------------

# Hides or shows every second directory just below the tree (or below its only directory).
hide_half() { # hide|show
    local top=$tree away=$tree.away
    while [ "$(find "$top" -mindepth 1 -maxdepth 1 | wc -l)" = 1 ] && [ ! -d "$away" ]; do top=$(find "$top" -mindepth 1 -maxdepth 1); done
    if [ "$1" = show ]; then
        [ ! -d "$away" ] || { find "$away" -mindepth 1 -maxdepth 1 ! -name .top -exec mv -t "$(cat "$away/.top")" {} +; rm -r "$away"; }
        return
    fi
    mkdir "$away"
    echo "$top" >"$away/.top"
    find "$top" -mindepth 1 -maxdepth 1 | sort | awk 'NR % 2 == 0' | xargs -d '\n' mv -t "$away"
}
trap 'hide_half show' EXIT

round_of() { # ROUND PROGRAM VARIANT
    local round=$1 program=$2
    variant=$3 name="$2 $3" repo=$work/repo out=$work/out
    export keepwell peers tree repo out variant
    rm -rf "$repo" "$repo".* "$out"
    export -f "${program}_backup" "${program}_restore" "${program}_check" "${program}_prune"
    "${program}_init"
    step() { measure "$round" "$name" "$1" bash -c "${program}_$2 '$variant'"; }
    warm
    step "first backup" backup
    size "$round" "$name" "size" "$repo"
    step "unchanged" backup
    step "restore" restore
    if [ "$round" = 1 ]; then
        local restored=$out$tree
        [ -d "$restored" ] || restored=$out
        echo "$name: $(rsync -anc --delete --out-format=%n "$tree/" "$restored/" | wc -l) differences after restore" | tee -a "$work/log"
    fi
    rm -rf "$out"
    step "check with data" check
    hide_half hide
    "${program}_backup" "$variant" >>"$work/log" 2>&1
    hide_half show
    step "forget half + prune" prune
    size "$round" "$name" "size after prune" "$repo"
    rm -rf "$repo" "$repo".*
}

baselines() { # ROUND
    warm
    # shellcheck disable=SC2016
    measure "$1" "bare" "first backup" bash -c 'tar -C "$0" -cf - . | zstd -q -1 -T2 -o "$1" -f' "$tree" "$work/bare.tar.zst"
    size "$1" bare size "$work/bare.tar.zst"
    mkdir -p "$work/out"
    # shellcheck disable=SC2016
    measure "$1" "bare" "restore" bash -c 'zstd -dcq "$1" | tar -C "$0" -xf -' "$work/out" "$work/bare.tar.zst"
    rm -rf "$work/out" "$work/bare.tar.zst"
    measure "$1" "bare" "unchanged" find "$tree" -printf '%s %T@\n'
    measure "$1" "bare" "creating empty files" cp -r --attributes-only "$tree" "$work/out"
    rm -rf "$work/out"
}

programs=("keepwell 1" "keepwell 2" "keepwell 3")
[ ! -x "$peers/restic" ] || programs+=("restic auto")
[ ! -x "$peers/borg" ] || programs+=("borg lz4" "borg zstd,3")
[ ! -x "$peers/rustic" ] || programs+=("rustic 3")

[ -z "${PROGRAMS:-}" ] || IFS=, read -ra programs <<<"$PROGRAMS"

for round in $(seq "$rounds"); do
    baselines "$round"
    for program in "${programs[@]}"; do
        # shellcheck disable=SC2086
        set +e
        (set -e; round_of "$round" $program)
        status=$?
        set -e
        hide_half show
        [ $status = 0 ] || echo "round $round of $program is incomplete" >&2
    done
done

python3 - "$table" "$tree" "$rounds" >"$work/results.md" <<'PY'
import collections, csv, os, platform, statistics, subprocess, sys
rows = list(csv.DictReader(open(sys.argv[1]), delimiter="\t"))
values = collections.defaultdict(list)
for row in rows:
    values[row["program"], row["operation"]].append((float(row["seconds"]), int(row["peak_kib"])))
programs = list(dict.fromkeys(row["program"] for row in rows))
operations = list(dict.fromkeys(row["operation"] for row in rows))
files = subprocess.run(["find", sys.argv[2], "-type", "f", "-printf", "%s\n"], capture_output=True, text=True).stdout.split()
print(f"{len(files):,} files, {sum(map(int, files)) / 1e9:.2f} GB; {os.cpu_count()} CPUs; {platform.release()}; {sys.argv[3]} rounds; page cache warm.")
print("Seconds: minimum / median. In brackets: peak memory in MiB. Sizes in MB.\n")
print("| operation | " + " | ".join(programs) + " |")
print("|---|" + "---|" * len(programs))
for operation in operations:
    cells = []
    for program in programs:
        got = values.get((program, operation))
        if not got:
            cells.append("")
        elif operation.startswith("size"):
            cells.append(f"{min(v for v, _ in got) / 1e6:.0f}")
        else:
            seconds = [v for v, _ in got]
            cells.append(f"{min(seconds):.2f} / {statistics.median(seconds):.2f} ({max(m for _, m in got) // 1024})")
    print(f"| {operation} | " + " | ".join(cells) + " |")
PY
cat "$work/results.md"
