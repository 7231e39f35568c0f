#!/usr/bin/env bash
# Base backups, restores and WAL of a PostgreSQL cluster, beside pg_basebackup and pgBackRest: one server, one run, all in
# page cache. Every restore is compared with what the repository of the same program was given, by file and size.
#
# usage: benches/postgres.sh WORK [MAJOR]      WORK is an empty directory with room for three times the cluster, best on tmpfs
#
# environment: KEEPWELL (the command; default: the release build), PGBACKREST (its command; benches/pgbackrest.sh fetches
# it; without it nothing is compared), SCALE of pgbench (default 130) and ROWS of a table of varied text with two indexes
# (default 9000000), which together are about 4 GB, ROUNDS (default 2), PARTS (default "local stream restore wal").
#
# Both programs encrypt, compress with zstd (ours at its default, pgBackRest's at 1) and use two processes or threads.
# pgBackRest bundles small files and stores blocks (`repo1-bundle`, `repo1-block`); its archive check is off.
# Run as root it does its work as the owner of the server's files, as pgBackRest has to; that user must be able to reach
# everything named here, KEEPWELL_SERVERS too.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(realpath -m "$1")
major=${2:-15}
keepwell=$(realpath "${KEEPWELL:-${CARGO_TARGET_DIR:-target}/release/keepwell}")
scale=${SCALE:-130} rows=${ROWS:-9000000} rounds=${ROUNDS:-2} parts=" ${PARTS:-local stream restore wal} "
mkdir -p "$work"
if [ -z "${STARTED:-}" ]; then trap 'scripts/servers/postgres.sh stop "$work/server" 2>/dev/null || true' EXIT; fi
conf=(--conf 'shared_buffers = 256MB' --conf 'max_wal_size = 4GB' --conf 'checkpoint_timeout = 1h')
conf+=(--conf 'autovacuum = off' --conf 'archive_mode = on' --conf "archive_command = '/bin/true'")
if ((major >= 17)); then conf+=(--conf 'summarize_wal = on'); fi
if [ -z "${STARTED:-}" ]; then
    scripts/servers/postgres.sh start "$major" "$work/server" "${conf[@]}" >"$work/env"
    . "$work/env"
    if [ "$(id -u)" = 0 ]; then
        chown "$OWNER" "$work"
        cp "$keepwell" "$work/keepwell-program"
        STARTED=1 KEEPWELL=$work/keepwell-program setpriv --reuid "$OWNER" --regid "$(id -g "$OWNER")" --clear-groups "$0" "$@"
        exit
    fi
fi
. "$work/env"
if [ -z "$CLIENT_BIN" ]; then CLIENT_BIN=$(scripts/servers/postgres.sh install 17 | sed -n 's/^CLIENT_BIN=//p'); fi
export PGHOST=$SOCKET PGPORT=$PORT PGUSER=postgres PGDATABASE=postgres HOME=$work
sql() { "$CLIENT_BIN/psql" -XAtq -v ON_ERROR_STOP=1 -c "$1"; }
size() { du -sb --apparent-size "$1" | cut -f1; }
# On tmpfs of a virtual machine whoever comes first waits for the host to hand out the memory: that nobody does, a file of
# the cluster's size is written and removed before each command.
even() {
    [ "$(stat -f -c %T "$work")" = tmpfs ] || return 0
    dd if=/dev/zero of="$work/ballast" bs=1M count="$(du -sm --apparent-size "$DATA" | cut -f1)" status=none
    rm "$work/ballast"
}
timed() { # NAME COMMAND…: seconds, peak memory of the largest process
    local name=$1 note
    shift
    even
    /usr/bin/time -f '%e %M' -o "$work/time" "$@" >"$work/log" 2>&1 || { cat "$work/log" >&2; echo "$name failed" >&2; exit 1; }
    note=$(grep -oE '[0-9.]+ [KMG]?i?B added to the repository' "$work/log" || true)
    awk -v name="$name" -v note="$note" '{printf "%-36s %7.2f s %5d MiB  %s\n", name, $1, $2 / 1024, note}' "$work/time"
}
kw() { timed "$1" "$keepwell" --no-progress --threads 2 --repository "$repository" "${@:2}"; }
cat >"$work/pgbackrest.conf" <<CONF
[global]
repo1-path=$work/pgbackrest
repo1-cipher-type=aes-256-cbc
repo1-cipher-pass=bench
repo1-bundle=y
repo1-block=y
repo1-retention-full=9
compress-type=zst
compress-level=1
process-max=2
start-fast=y
archive-check=n
archive-async=y
spool-path=$work
log-path=$work
lock-path=$work
[bench]
pg1-path=$DATA
pg1-port=$PORT
pg1-socket-path=$SOCKET
pg1-user=postgres
CONF
peer() { timed "$1" "$PGBACKREST" --config="$work/pgbackrest.conf" --stanza=bench "${@:2}"; }
change() { "$CLIENT_BIN/pgbench" -n -t 2000 >/dev/null 2>&1; sql "CHECKPOINT"; }
want() { [[ $parts == *" $1 "* ]]; }

"$CLIENT_BIN/pgbench" -q -i -s "$scale" 2>/dev/null
sql "CREATE TABLE words AS SELECT n, md5(n::text) || ' ' || md5((n * 7)::text) AS text, n % 1000 AS kind, now() + n * interval '1 s' AS at FROM generate_series(1, $rows) n"
sql "CREATE INDEX ON words (n)"
sql "CREATE INDEX ON words (text)"
# Hint bits and all-visible bits are written once; afterwards only what transactions change.
sql "VACUUM ANALYZE"
# Twice: then no WAL of the load is left.
sql "CHECKPOINT"; sql "SELECT pg_switch_wal()" >/dev/null; sql "CHECKPOINT"
echo "PostgreSQL $major, $(sql "SELECT pg_size_pretty(sum(pg_database_size(oid))) FROM pg_database"), $(nproc) cores, load $(cut -d' ' -f1 /proc/loadavg), $("$keepwell" version 2>/dev/null | head -1), ${PGBACKREST:+$("$PGBACKREST" version)}"

round() {
    local repository=$work/keepwell before
    timed "raw stream (pg_basebackup)" bash -c "'$CLIENT_BIN/pg_basebackup' -D - -F t -X none -c fast | cat >/dev/null"
    if want stream; then
        rm -rf "$repository"
        "$keepwell" --quiet --repository "$repository" init >/dev/null
        kw "keepwell full, protocol" pg backup
        echo "    $(size "$repository") bytes"
        change
        kw "keepwell after 2,000, protocol" pg backup
        if want local; then rm -rf "$repository"; fi
    fi
    if want local; then
        rm -rf "$repository"
        "$keepwell" --quiet --repository "$repository" init >/dev/null
        kw "keepwell full, local" pg backup --local
        echo "    $(size "$repository") bytes"
    fi
    if [ -n "${PGBACKREST:-}" ]; then
        rm -rf "$work/pgbackrest"
        mkdir "$work/pgbackrest"
        peer "pgbackrest stanza-create" --no-online stanza-create
        peer "pgbackrest full" --type=full backup
        echo "    $(size "$work/pgbackrest") bytes"
    fi
    change
    if want local; then
        before=$(size "$repository")
        kw "keepwell after 2,000, local" pg backup --local
        echo "    $(($(size "$repository") - before)) bytes"
    fi
    if [ -n "${PGBACKREST:-}" ]; then
        before=$(size "$work/pgbackrest")
        peer "pgbackrest after 2,000" --type=incr backup
        echo "    $(($(size "$work/pgbackrest") - before)) bytes"
    fi
    if want restore; then restores; fi
}

# A restore to nothing, and one over the same files after a tenth of them were damaged in a page each.
restores() {
    local target=$work/target
    damage() { # every tenth relation file: one page, and the time, as a server that went on would have left it
        find "$1/base" -type f -size +64k | sort | awk 'NR % 10 == 1' | while read -r file; do
            dd if=/dev/urandom of="$file" bs=8192 count=1 seek=2 conv=notrunc status=none
        done
    }
    rm -rf "$target"
    kw "keepwell restore" pg restore --dataset postgres "$target"
    compare "$target"
    damage "$target"
    kw "keepwell restore, delta" pg restore --dataset postgres --no-safety-snapshot --yes "$target"
    compare "$target"
    rm -rf "$target" "$target".*
    if [ -n "${PGBACKREST:-}" ]; then
        mkdir -m 700 "$target"
        peer "pgbackrest restore" --pg1-path="$target" --archive-mode=off --type=immediate restore
        compare "$target"
        damage "$target"
        peer "pgbackrest restore, delta" --pg1-path="$target" --archive-mode=off --type=immediate --delta restore
        compare "$target"
        rm -rf "$target"
    fi
}

# The relations of the table that no transaction touches are as the server has them.
compare() {
    local path one
    for path in $(sql "SELECT pg_relation_filepath(oid) FROM pg_class WHERE relname LIKE 'words%'"); do
        for one in "$DATA/$path" "$DATA/$path".*; do
            [ ! -e "$one" ] || cmp -s "$one" "$1/${one#"$DATA"/}" || { echo "${one#"$DATA"/} differs" >&2; exit 1; }
        done
    done
}

# The server's own archiver, with as many finished segments waiting when it begins.
archive() { # NAME COMMAND
    local count began ready=$DATA/pg_wal/archive_status
    sql "ALTER SYSTEM SET archive_command = ''"; sql "SELECT pg_reload_conf()" >/dev/null; sleep 1
    sql "CREATE TABLE filler AS SELECT md5(n::text) FROM generate_series(1, ${WAL_ROWS:-10000000}) n"
    sql "SELECT pg_switch_wal()" >/dev/null
    count=$(find "$ready" -name '*.ready' | wc -l)
    began=$(date +%s%N)
    sql "ALTER SYSTEM SET archive_command = '$2'"; sql "SELECT pg_reload_conf()" >/dev/null
    while [ -n "$(find "$ready" -name '*.ready' -print -quit)" ]; do
        [ $((($(date +%s%N) - began) / 1000000000)) -lt 100 ] || { tail "$work/server/server.log" "$work"/bench-*.log >&2; echo "$1 does not end" >&2; exit 1; }
        sleep 0.02
    done
    awk -v name="$1" -v n="$count" -v t="$(($(date +%s%N) - began))" 'BEGIN {printf "%-36s %7.2f s for %d segments, %.1f a second\n", name, t / 1e9, n, n * 1e9 / t}'
    sql "ALTER SYSTEM SET archive_command = '/bin/true'"; sql "SELECT pg_reload_conf()" >/dev/null
    sql "DROP TABLE filler"; sql "CHECKPOINT"
}

wal() {
    local repository=$work/keepwell-wal
    "$keepwell" --quiet --repository "$repository" init >/dev/null
    archive "keepwell wal push --ahead" "HOME=$work $keepwell --quiet --repository $repository wal push --ahead %p"
    rm -rf "$repository"
    [ -n "${PGBACKREST:-}" ] || return 0
    archive "pgbackrest archive-push, async" "$PGBACKREST --config=$work/pgbackrest.conf --stanza=bench archive-push %p"
}

for number in $(seq "$rounds"); do
    echo "round $number"
    round
done
if want wal; then wal; fi
