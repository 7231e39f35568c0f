#!/usr/bin/env bash
# From an empty machine to a table as it was before somebody emptied it, and to the last commit of a dead server, with
# the commands of docs/guide/postgresql.md.
#
# usage: scripts/postgres-wal.sh [MAJOR]       default 15; KEEPWELL names the command, by default that of the dev build
set -euo pipefail
unset XDG_CONFIG_HOME XDG_DATA_HOME XDG_CACHE_HOME # what is written stays in the work directory
cd "$(dirname "$0")/.."
major=${1:-15}
keepwell=${KEEPWELL:-$(realpath "${CARGO_TARGET_DIR:-target}")/debug/keepwell}
work=$(mktemp -d)
chmod 755 "$work"
receiver=
cleanup() {
    if [ -n "$receiver" ]; then kill "$receiver" 2>/dev/null || true; wait "$receiver" 2>/dev/null || true; fi
    scripts/servers/postgres.sh stop "$work/server" 2>/dev/null || true
    if [ -e "$work/copy/postmaster.pid" ]; then as_owner "$BIN/pg_ctl" stop -s -m immediate -D "$work/copy" || true; fi
    rm -rf "$work"
}
trap cleanup EXIT
fail() { echo "failed: $*" >&2; exit 1; }
# In the background: what `$!` names is then the program, and no shell that waits for it.
exec_as_owner() {
    if [ "$(id -u)" != 0 ]; then exec env HOME="$work/home" "$@"; else exec setpriv --reuid "$OWNER" --regid "$(id -g "$OWNER")" --clear-groups env HOME="$work/home" "$@"; fi
}
as_owner() {
    if [ "$(id -u)" != 0 ]; then env HOME="$work/home" "$@"; else setpriv --reuid "$OWNER" --regid "$(id -g "$OWNER")" --clear-groups env HOME="$work/home" "$@"; fi
}

scripts/servers/postgres.sh start "$major" "$work/server" --conf 'wal_level = replica' >"$work/env"
. "$work/env"
if [ -z "$CLIENT_BIN" ]; then CLIENT_BIN=$(scripts/servers/postgres.sh install 17 | sed -n 's/^CLIENT_BIN=//p'); fi
mkdir "$work/home" "$work/repository"
if [ "$(id -u)" = 0 ]; then chown "$OWNER" "$work/home" "$work/repository" "$work"; cp "$keepwell" "$work/keepwell"; keepwell=$work/keepwell; fi
export PGHOST=$SOCKET PGPORT=$PORT PGUSER=postgres PGDATABASE=postgres
sql() { as_owner "$CLIENT_BIN/psql" -XAtq -c "$1"; }
kw() { as_owner "$keepwell" --repository "$work/repository" "$@"; }

kw init >/dev/null
sql "CREATE ROLE keepwell LOGIN REPLICATION"
exec_as_owner "$keepwell" --repository "$work/repository" wal receive 'user=keepwell' --create-slot --tail-every 1 2>"$work/receiver.log" &
receiver=$!
for _ in $(seq 100); do grep -q streaming "$work/receiver.log" && break; sleep 0.1; done
grep -q streaming "$work/receiver.log" || fail "no stream: $(cat "$work/receiver.log")"

sql "CREATE TABLE patients AS SELECT n, 'patient ' || n AS name FROM generate_series(1, 1000) n"
as_owner "$CLIENT_BIN/pg_basebackup" -D "$work/copy" -X none -c fast --no-manifest
sql "INSERT INTO patients VALUES (1001, 'the last one before')"
sleep 0.2
before=$(sql "SELECT clock_timestamp()")
sql "DELETE FROM patients"
sql "INSERT INTO patients VALUES (2000, 'and one after')"
last=$(sql "SELECT pg_current_wal_flush_lsn()")
for _ in $(seq 100); do [ "$(sql "SELECT flush_lsn >= '$last' FROM pg_stat_replication")" = t ] && break; sleep 0.1; done
[ "$(sql "SELECT flush_lsn >= '$last' FROM pg_stat_replication")" = t ] || fail "the WAL was not archived"
kw wal status "user=keepwell"
kw wal gaps

# The receiver is killed, not stopped; then the server dies with its disk.
kill -9 "$receiver"; wait "$receiver" 2>/dev/null || true; receiver=
scripts/servers/postgres.sh stop "$work/server"
rm -rf "$work/server/data"

recover() { # TARGET-SETTINGS
    cp -a "$work/copy" "$work/copy.fresh"
    {
        echo "restore_command = '$keepwell --quiet --repository $work/repository wal get %f %p'"
        printf '%s\n' "$1" "recovery_target_action = 'promote'" "listen_addresses = ''" "unix_socket_directories = '$SOCKET'"
    } >>"$work/copy/postgresql.auto.conf"
    touch "$work/copy/recovery.signal"
    if [ "$(id -u)" = 0 ]; then chown "$OWNER" "$work/copy/recovery.signal"; fi
    as_owner "$BIN/pg_ctl" start -w -t 120 -s -D "$work/copy" -l "$work/copy.log" -o "-p $PORT" </dev/null || { cat "$work/copy.log" >&2; fail "it did not start"; }
    for _ in $(seq 100); do [ "$(sql "SELECT pg_is_in_recovery()")" = f ] && break; sleep 0.1; done
    sql "SELECT count(*) || ' ' || max(n) FROM patients"
    as_owner "$BIN/pg_ctl" stop -s -m immediate -D "$work/copy"
    rm -rf "$work/copy"; mv "$work/copy.fresh" "$work/copy"
}
found=$(recover "recovery_target_time = '$before'")
[ "$found" = "1001 1001" ] || fail "before the deletion there were 1001 patients, and recovery found: $found"
found=$(recover "")
[ "$found" = "1 2000" ] || fail "at the end there was one patient, and recovery found: $found"

# What is not an answer must stop a recovery: any trouble is 255, and only what is not there is 1.
code=0; kw --quiet wal get 000000010000000000000001 "$work/copy/x" --system 1 || code=$?
[ $code = 1 ] || fail "WAL of a cluster that nobody archived: exit code $code"
code=0; kw --quiet wal get 00000009.history "$work/copy/x" --system 1 || code=$?
[ $code = 1 ] || fail "a history that nobody archived: exit code $code"
code=0; as_owner "$keepwell" --quiet --repository "$work/nowhere" wal get 000000010000000000000001 "$work/copy/x" --system 1 2>/dev/null || code=$?
[ $code = 255 ] || fail "a repository that is away: exit code $code"
code=0; kw --quiet wal get --no-such-option 2>/dev/null || code=$?
[ $code = 255 ] || fail "a wrong command line: exit code $code"
echo "PostgreSQL $major: recovered to $before and to the last commit"
