#!/usr/bin/env bash
# Base backups of a live server, and servers that run from them: under load, with a tablespace, in full and as
# increments, compared with the source in every row, its files checked by pg_verifybackup and pg_amcheck.
#
# usage: scripts/postgres-base.sh [MAJOR]      default 15; KEEPWELL names the command, by default that of the dev build;
#                                              SCALE that of pgbench (default 5); READING is `sent` (the default), `local`,
#                                              `sql` or `mixed` (by turns); CHECKSUMS=no makes a cluster without them
set -euo pipefail
unset XDG_CONFIG_HOME XDG_DATA_HOME XDG_CACHE_HOME # what is written stays in the work directory
cd "$(dirname "$0")/.."
major=${1:-15}
scale=${SCALE:-5}
keepwell=${KEEPWELL:-$(realpath "${CARGO_TARGET_DIR:-target}")/debug/keepwell}
work=$(mktemp -d)
chmod 755 "$work"
load=
cleanup() {
    if [ -n "$load" ]; then kill "$load" 2>/dev/null || true; wait "$load" 2>/dev/null || true; fi
    for one in back standby; do
        if [ -e "$work/$one/data/postmaster.pid" ]; then as_owner "$BIN/pg_ctl" stop -s -m immediate -D "$work/$one/data" || true; fi
    done
    scripts/servers/postgres.sh stop "$work/server" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
fail() { echo "failed: $*" >&2; exit 1; }
as_owner() {
    if [ "$(id -u)" != 0 ]; then env HOME="$work/home" "$@"; else (cd "$work" && setpriv --reuid "$OWNER" --regid "$(id -g "$OWNER")" --clear-groups env HOME="$work/home" "$@"); fi
}

conf=()
if ((major >= 17)); then conf=(--conf 'summarize_wal = on'); fi
if [ "${CHECKSUMS:-yes}" = no ]; then conf+=(--no-checksums); fi
scripts/servers/postgres.sh start "$major" "$work/server" "${conf[@]}" >"$work/env"
. "$work/env"
# Servers of some majors come without client programs; newer ones serve older servers too.
if [ -z "$CLIENT_BIN" ]; then CLIENT_BIN=$(scripts/servers/postgres.sh install 17 | sed -n 's/^CLIENT_BIN=//p'); fi
mkdir "$work/home" "$work/repository" "$work/space" "$work/target"
if [ "$(id -u)" = 0 ]; then
    chown "$OWNER" "$work" "$work/home" "$work/repository" "$work/space" "$work/target"
    cp "$keepwell" "$work/keepwell"; keepwell=$work/keepwell
fi
export PGHOST=$SOCKET PGPORT=$PORT PGUSER=postgres PGDATABASE=postgres
sql() { as_owner "$CLIENT_BIN/psql" -XAtq -v ON_ERROR_STOP=1 -c "$1"; }
kw() { as_owner "$keepwell" --repository "$work/repository" "$@"; }
field() { python3 -c "import json, sys
for line in sys.stdin:
    value = json.loads(line)
    if value.get('type') == 'pg_backup': print(eval(sys.argv[1], {'v': value}))" "$1"; }
reading=${READING:-sent} turn=0
backup() { # ARGUMENT…: sets `id` and `json`
    local how=$reading here=() as=stream
    turn=$((turn + 1))
    if [ "$how" = mixed ]; then
        case $((turn % 3)) in 1) how=sent ;; 2) how=local ;; 0) how=sql ;; esac
    fi
    case $how in local) here=(--local) as=local ;; sql) here=(--parallel) as=sql ;; esac
    json=$(kw --json pg backup 'user=keepwell' --dataset shop "${here[@]}" "$@")
    id=$(field 'v["snapshot"]' <<<"$json")
    [ -n "$id" ] || fail "no snapshot: $json"
    [ "$(field 'v["cluster"]["capture"]' <<<"$json")" = "$as" ] ||
        fail "it was read otherwise: $json"
}

kw --quiet init >/dev/null
sql "CREATE ROLE keepwell LOGIN REPLICATION"
if [ "$reading" != sent ]; then
    begin="pg_backup_start(text, boolean)" end="pg_backup_stop(boolean)"
    if ((major < 15)); then begin="pg_start_backup(text, boolean, boolean)" end="pg_stop_backup(boolean, boolean)"; fi
    # Those of the guide.
    sql "GRANT pg_read_all_settings, pg_read_server_files TO keepwell; GRANT EXECUTE ON FUNCTION $begin, $end TO keepwell"
    sql "GRANT EXECUTE ON FUNCTION pg_ls_dir(text, boolean, boolean), pg_stat_file(text, boolean),
        pg_read_binary_file(text, bigint, bigint, boolean) TO keepwell"
fi
sql "CREATE TABLESPACE apart LOCATION '$work/space'"
as_owner "$CLIENT_BIN/pgbench" -q -i -s "$scale" postgres 2>/dev/null
sql "CREATE TABLE notes TABLESPACE apart AS SELECT n, repeat(md5(n::text), 4) AS text FROM generate_series(1, 20000) n"
sql "CREATE INDEX ON notes (text) TABLESPACE apart"
sql "CREATE DATABASE empty"
sql "CREATE UNLOGGED TABLE unlogged AS SELECT n FROM generate_series(1, 3000) n"
# Every row is marked as visible to all.
sql "CREATE TABLE seen (n int PRIMARY KEY) WITH (autovacuum_enabled = off)"
sql "INSERT INTO seen SELECT generate_series(1, 20000)"
sql "VACUUM seen"

restore() { # ID DIR: as $work/DIR, its tablespace elsewhere than where the source has it
    local back=$work/$2 verify=(-n)
    rm -rf "$back"
    kw --quiet restore "$1" --target "$back" >/dev/null
    as_owner ln -s "$back/tablespaces/$space" "$back/data/pg_tblspc/$space"
    # What shows the WAL is of the server's own major only.
    if [ -x "$BIN/pg_waldump" ] && [ "$CLIENT_BIN" = "$BIN" ]; then verify=(); fi
    as_owner "$CLIENT_BIN/pg_verifybackup" -q "${verify[@]}" "$back/data" || fail "pg_verifybackup"
    as_owner sed -i "s# .*# $back/tablespaces/$space#" "$back/data/tablespace_map"
    as_owner mkdir -p "$back/socket"
}
start() { # DIR
    local back=$work/$1
    as_owner "$BIN/pg_ctl" start -w -t 120 -s -D "$back/data" -l "$back/log" \
        -o "-p $PORT -c listen_addresses= -c unix_socket_directories=$back/socket" </dev/null >/dev/null ||
        { cat "$back/log" >&2; fail "it did not start"; }
    grep -q 'consistent recovery state reached' "$back/log" || fail "it was not recovered"
}
end() { as_owner "$BIN/pg_ctl" stop -s -m immediate -D "$work/$1/data"; }
there() { (export PGHOST=$work/back/socket; "$@"); }
dump() { # of every database; two lines of newer dumps hold a random word
    local database
    for database in postgres empty; do
        as_owner "$CLIENT_BIN/psql" -XAtq -d "$database" -c "SELECT n.nspname, c.relname, c.relkind, c.relpersistence FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace ORDER BY 1, 2"
    done
    for table in pgbench_accounts pgbench_branches pgbench_tellers pgbench_history notes; do
        sql "SELECT '$table', count(*), md5(string_agg(t::text, ',' ORDER BY t::text)) FROM $table t"
    done
    # As the index has it where the visibility map says that this is enough.
    sql "SET enable_seqscan = off; SET enable_bitmapscan = off; SELECT 'seen', count(*) FROM seen WHERE n > 0"
    # A database with an object of every kind, as pg_dump sees it; rows of unlogged tables do not outlive a crash, and a
    # tablespace lies elsewhere.
    as_owner "$CLIENT_BIN/pg_dump" --create --no-unlogged-table-data -d clinic | grep -vE '^\\(un)?restrict '
    as_owner "$CLIENT_BIN/pg_dumpall" --globals-only | grep -vE '^\\(un)?restrict |^CREATE TABLESPACE '
}
space=$(sql "SELECT oid FROM pg_tablespace WHERE spcname = 'apart'")

# Under load: what is there at the end of the backup is a moment of the load.
as_owner "$CLIENT_BIN/pgbench" -n -c 2 -T 600 postgres >/dev/null 2>&1 &
load=$!
sleep 1
backup
full=$id
[ "$(field 'v["cluster"]["increment"]' <<<"$json")" = None ] || fail "the first one is no increment"
[ "$(field 'v["cluster"]["tablespaces"][0]["name"]' <<<"$json")" = apart ] || fail "the tablespace: $json"
[ "$(field '[d["tables"] for d in v["cluster"]["databases"] if d["name"] == "postgres"]' <<<"$json")" = "[7]" ] || fail "the tables: $json"
sleep 1
backup
second=$id
kill "$load"; wait "$load" 2>/dev/null || true; load=
for one in "$full" "$second"; do
    restore "$one" back
    start back
    sums=$(there sql "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history)
        AND (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT sum(delta) FROM pgbench_history)")
    [ "$sums" = t ] || fail "the balances do not add up"
    end back
done

# At rest: everything is equal, whatever happened to files in between.
sql "DROP TABLE pgbench_tellers; CREATE TABLE pgbench_tellers AS SELECT 1 AS tid" 
sql "DELETE FROM notes WHERE n > 5000"
sql "VACUUM notes"
sql "INSERT INTO notes SELECT n, 'more' FROM generate_series(1, 9000) n"
sql "UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid % 5000 = 0"
sql "CREATE TABLE other AS SELECT 1; TRUNCATE other"
# Takes rows away, and their marks, which is in the WAL only by implication.
sql "DELETE FROM seen WHERE n % 2 = 0"
as_owner "$CLIENT_BIN/psql" -Xq -v ON_ERROR_STOP=1 -f - <scripts/servers/objects.sql >/dev/null 2>&1
# What follows this backup is kept for the standby that is made from it: checkpoints would remove it.
sql "SELECT pg_create_physical_replication_slot('standby', true)" >/dev/null
backup
third=$id
stored=$(field 'v["stored_bytes"]' <<<"$json")
how=$(field '(v["cluster"]["increment"] or {}).get("method", "full")' <<<"$json")
if ((major >= 17)); then expected=wal-summaries; else expected=page-map; fi
[ "$how" = "$expected" ] || fail "it was $how: $json"
dump >"$work/expected"
restore "$third" back
start back
there dump >"$work/found"
cmp -s "$work/expected" "$work/found" || { diff "$work/expected" "$work/found" | head -20 >&2 || true; fail "the databases differ"; }
[ "$(there sql "SELECT count(*) FROM unlogged")" = 0 ] || fail "an unlogged table is not empty"
if [ -x "$CLIENT_BIN/pg_amcheck" ] && [ "$CLIENT_BIN" = "$BIN" ]; then
    there as_owner "$CLIENT_BIN/pg_amcheck" --install-missing --heapallindexed --rootdescend -d postgres || fail "pg_amcheck"
fi
end back

# Any of them can go.
kw --quiet forget "$full" "$second" >/dev/null
kw --quiet prune >/dev/null
kw --quiet check --read-data >/dev/null
restore "$third" back
start back
there dump >"$work/found"
cmp -s "$work/expected" "$work/found" || fail "the databases differ after a prune"
end back

# A standby made from a snapshot, and a snapshot made from the standby.
restore "$third" standby
as_owner touch "$work/standby/data/standby.signal"
as_owner tee -a "$work/standby/data/postgresql.auto.conf" >/dev/null \
    <<<"primary_conninfo = 'host=$SOCKET port=$PORT user=postgres'"$'\n'"primary_slot_name = 'standby'"
start standby
# As one transaction: its commit lies behind the checkpoint that the backup begins at.
sql "CREATE TABLE late AS SELECT 1 AS n; CHECKPOINT"
at=$(sql "SELECT pg_current_wal_flush_lsn()")
on_standby() { (export PGHOST=$work/standby/socket; "$@"); }
# A backup has what the standby had replayed when it began, and promises no more.
replayed() { [ "$(on_standby sql "SELECT pg_last_wal_replay_lsn() >= '$at'")" = t ]; }
for _ in $(seq 1200); do replayed && break; sleep 0.1; done
replayed || { tail -n 20 "$work/standby/log" >&2; fail "the standby did not get to $at"; }
dump >"$work/expected"
PGHOST=$work/standby/socket
backup
PGHOST=$SOCKET
[ "$(field 'v["cluster"]["from_standby"]' <<<"$json")" = True ] || fail "it is from a standby: $json"
restore "$id" back
start back
there dump >"$work/found"
cmp -s "$work/expected" "$work/found" || { diff "$work/expected" "$work/found" | head -20 >&2 || true; fail "the databases differ from those of the standby"; }
end back
echo "PostgreSQL $major, $reading: backed up under load, at rest and from a standby, and restored; the increment ($how) stored $stored bytes"
