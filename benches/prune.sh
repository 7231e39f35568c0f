#!/usr/bin/env bash
# Prunes of a repository with many snapshots and chunks, keepwell beside restic and rustic: time and peak memory, cold and with
# what the last prune left in the cache.
#
# usage: benches/prune.sh WORK [SNAPSHOTS] [FILES]     WORK: an empty directory; default 500 snapshots of 2,000 files each
#
# environment: KEEPWELL   our binary, default target/release/keepwell
#              PEERS      where benches/peers.sh put restic, and rustic if asked; those that are not there are left out
#
# Each snapshot is of a directory of its own, with files of about 1.2 KB that no other has, so that a repository has
# SNAPSHOTS x FILES chunks of content. A tenth of the snapshots is forgotten, evenly. Needs about 3 KB for each file.
# Writes WORK/prune.tsv: program, operation, seconds, peak KiB; the last column is what the program says about it.
set -euo pipefail

work=$(realpath -m "${1:?usage: benches/prune.sh WORK [SNAPSHOTS] [FILES]}")
snapshots=${2:-500} files=${3:-2000}
root=$(realpath "$(dirname "$0")/..")
keepwell=${KEEPWELL:-$root/target/release/keepwell}
restic=${PEERS:-$work/peers}/bin/restic rustic=${PEERS:-$work/peers}/bin/rustic
mkdir -p "$work"
table=$work/prune.tsv
printf 'program\toperation\tseconds\tpeak_kib\tsays\n' >"$table"

export KEEPWELL_KEY_FILE=$work/keepwell.key KEEPWELL_CACHE_DIR=$work/keepwell.cache KEEPWELL_CONFIG=/dev/null XDG_CONFIG_HOME=$work/config
export RESTIC_PASSWORD=x RESTIC_REPOSITORY=$work/restic RESTIC_CACHE_DIR=$work/restic.cache
export RUSTIC_PASSWORD=x RUSTIC_REPOSITORY=$work/rustic RUSTIC_CACHE_DIR=$work/rustic.cache
programs=(keepwell)
[ ! -x "$restic" ] || programs+=(restic)
[ ! -x "$rustic" ] || programs+=(rustic)

make_tree() { # NUMBER: the directory of one snapshot
    rm -rf "$work/tree"
    mkdir -p "$work/tree"
    python3 - "$work/tree" "$1" "$files" <<'END'
import hashlib, os, sys
top, snapshot, files = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for directory in range(0, files, 200):
    os.mkdir(f"{top}/{directory}")
    for n in range(directory, min(files, directory + 200)):
        body = hashlib.shake_128(f"{snapshot} {n}".encode()).digest(1000 + n % 400)
        with open(f"{top}/{directory}/{n}", "wb") as file:
            file.write(body)
END
}

measure() { # PROGRAM OPERATION COMMAND…
    local program=$1 operation=$2
    shift 2
    /usr/bin/time -o "$work/time" -f '%e\t%M' "$@" >"$work/out" 2>&1 || { cat "$work/out" >&2; return 1; }
    printf '%s\t%s\t%s\t%s\n' "$program" "$operation" "$(tail -n 1 "$work/time")" "$("says_$program")" >>"$table"
}

says_keepwell() { sed -n 's/.*"type":"prune".*"nodes_read":\([0-9]*\).*/\1 nodes read/p' "$work/out" | tail -n 1; }
says_rustic() { says_restic; }
says_restic() { grep -E '^(frees|to delete|total prune|remaining)' "$work/out" | tr -s ' ' | paste -sd';' || true; }

keepwell_init() { "$keepwell" -r "$work/keepwell" init; }
keepwell_backup() { "$keepwell" -r "$work/keepwell" backup "$work/tree"; }
keepwell_forget() { # every N-th of what there is
    "$keepwell" -r "$work/keepwell" snapshots --json | grep -o '"id":"[0-9a-f]*"' | cut -d'"' -f4 | awk -v n="$1" 'NR == 1 || NR % n == 0' \
        | xargs "$keepwell" -r "$work/keepwell" forget --yes
}
keepwell_prune() { measure keepwell "$1" "$keepwell" -r "$work/keepwell" prune --yes --json; }

restic_init() { "$restic" init; }
restic_backup() { "$restic" backup "$work/tree"; }
restic_forget() {
    "$restic" snapshots --json | grep -o '"short_id":"[0-9a-f]*"' | cut -d'"' -f4 | awk -v n="$1" 'NR == 1 || NR % n == 0' \
        | xargs "$restic" forget
}
restic_prune() { measure restic "$1" "$restic" prune; }

rustic_init() { "$rustic" init; }
rustic_backup() { "$rustic" backup "$work/tree"; }
rustic_forget() {
    "$rustic" snapshots --json | grep -oE '"id": ?"[0-9a-f]{64}"' | cut -d'"' -f4 | awk -v n="$1" 'NR == 1 || NR % n == 0' \
        | xargs "$rustic" forget
}
# Packs go at once, as those of the others do; by default they wait for a day.
rustic_prune() { measure rustic "$1" "$rustic" prune --instant-delete --keep-delete 0s; }

for program in "${programs[@]}"; do "${program}_init" >>"$work/log" 2>&1; done
for ((n = 1; n <= snapshots; n++)); do
    make_tree "$n"
    for program in "${programs[@]}"; do "${program}_backup" >>"$work/log" 2>&1; done
done
for program in "${programs[@]}"; do
    "${program}_forget" 10 >>"$work/log" 2>&1
    "${program}_prune" 'first prune, a tenth forgotten'
done
make_tree $((snapshots + 1))
for program in "${programs[@]}"; do "${program}_backup" >>"$work/log" 2>&1; done
for program in "${programs[@]}"; do
    "${program}_prune" 'next prune, one new snapshot'
    "${program}_forget" 100 >>"$work/log" 2>&1
    "${program}_prune" 'next prune, a hundredth forgotten'
done
rm -rf "$work/tree"
cat "$table"
uptime
