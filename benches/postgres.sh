#!/usr/bin/env bash
# Base backups beside pg_basebackup, and beside pgBackRest where it is installed: one server, one run, all in page cache.
#
# usage: benches/postgres.sh WORK [MAJOR]      WORK is an empty directory with room for four times the cluster, best on tmpfs
#
# environment: KEEPWELL (the command; default: the release build), SCALE of pgbench (default 130) and ROWS of a table of
# varied text with two indexes (default 9000000), which together are about 4 GB; PGBACKREST, its command.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(realpath "$1")
major=${2:-15}
keepwell=$(realpath "${KEEPWELL:-${CARGO_TARGET_DIR:-target}/release/keepwell}")
scale=${SCALE:-130} rows=${ROWS:-9000000}
trap 'scripts/servers/postgres.sh stop "$work/server" 2>/dev/null || true' EXIT
conf=(--conf 'shared_buffers = 256MB' --conf 'max_wal_size = 8GB')
if ((major >= 17)); then conf+=(--conf 'summarize_wal = on'); fi
scripts/servers/postgres.sh start "$major" "$work/server" "${conf[@]}" >"$work/env"
. "$work/env"
if [ -z "$CLIENT_BIN" ]; then CLIENT_BIN=$(scripts/servers/postgres.sh install 17 | sed -n 's/^CLIENT_BIN=//p'); fi
export PGHOST=$SOCKET PGPORT=$PORT PGUSER=postgres PGDATABASE=postgres HOME=$work
sql() { "$CLIENT_BIN/psql" -XAtq -v ON_ERROR_STOP=1 -c "$1"; }
timed() { # NAME COMMAND…
    local name=$1 began ended
    shift
    began=$(date +%s%N)
    "$@" >"$work/$name.log" 2>&1 || { cat "$work/$name.log" >&2; exit 1; }
    ended=$(date +%s%N)
    printf '%-28s %6.2f s   %s\n' "$name" "$(((ended - began) / 10000000))e-2" "$(grep -E ' added to the repository' "$work/$name.log" || true)"
}

"$CLIENT_BIN/pgbench" -q -i -s "$scale" 2>/dev/null
sql "CREATE TABLE words AS SELECT n, md5(n::text) || ' ' || md5((n * 7)::text) AS text, n % 1000 AS kind, now() + n * interval '1 s' AS at FROM generate_series(1, $rows) n"
sql "CREATE INDEX ON words (n); CREATE INDEX ON words (text)"
# Hint bits and all-visible bits are written once; afterwards only what transactions change.
sql "VACUUM ANALYZE"
sql "CHECKPOINT"
echo "PostgreSQL $major, $(sql "SELECT pg_size_pretty(sum(pg_database_size(oid))) FROM pg_database"), $(nproc) cores, load $(cut -d' ' -f1 /proc/loadavg)"

kw() { "$keepwell" --no-progress --repository "$work/repository" "$@"; }
kw --quiet init >/dev/null
timed "raw stream" bash -c "'$CLIENT_BIN/pg_basebackup' -D - -F t -X none -c fast | cat >/dev/null"
timed "keepwell full" kw pg backup
timed "keepwell nothing changed" kw pg backup
sql "CHECKPOINT"
"$CLIENT_BIN/pgbench" -n -t 2000 >/dev/null 2>&1
timed "keepwell after 2,000" kw pg backup

if [ -n "${PGBACKREST:-}" ]; then
    mkdir -p "$work/pgbackrest"
    peer() {
        "$PGBACKREST" --stanza=bench --pg1-path="$DATA" --pg1-port="$PORT" --pg1-socket-path="$SOCKET" --pg1-user=postgres \
            --repo1-path="$work/pgbackrest" --repo1-cipher-type=aes-256-cbc --repo1-cipher-pass=bench --repo1-bundle=y --repo1-block=y \
            --compress-type=zst --compress-level=1 --process-max=2 --start-fast --archive-check=n --log-path="$work" --lock-path="$work" "$@"
    }
    timed "pgbackrest stanza" peer --no-online stanza-create
    timed "pgbackrest full" peer --type=full backup
    echo "  $(du -sb "$work/pgbackrest" | cut -f1) bytes"
    before=$(du -sb "$work/pgbackrest" | cut -f1)
    sql "CHECKPOINT"
    "$CLIENT_BIN/pgbench" -n -t 2000 >/dev/null 2>&1
    timed "pgbackrest after 2,000" peer --type=incr backup
    echo "  $(($(du -sb "$work/pgbackrest" | cut -f1) - before)) bytes"
fi
