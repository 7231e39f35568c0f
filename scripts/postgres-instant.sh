#!/usr/bin/env bash
# A server on a cluster that is not restored: it answers at once, on a past moment, while its pages come from the
# repository; then it is thrown away, or kept once everything is there. It is interrupted and killed at many moments.
# Increments are read as whole files, and there is a tablespace. Times beside those of a full restore are printed.
#
# usage: scripts/postgres-instant.sh [MAJOR [SCALE]]     default 15 and 5 (of pgbench; 100 is 1.5 GB)
# environment: KEEPWELL  the command, by default that of the dev build; WORK  a directory to work in, such as /dev/shm
#              USERS     `root owner`: who runs the command; by default whoever can here
set -euo pipefail
unset XDG_CONFIG_HOME XDG_DATA_HOME XDG_CACHE_HOME # what is written stays in the work directory
cd "$(dirname "$0")/.."
major=${1:-15} scale=${2:-5}
keepwell=${KEEPWELL:-$(realpath "${CARGO_TARGET_DIR:-target}")/debug/keepwell}
if [ ! -r /dev/fuse ] || [ ! -w /dev/fuse ]; then echo "skipped: /dev/fuse cannot be opened here, so nothing can be mounted"; exit 0; fi
work=$(mktemp -d "${WORK:-${TMPDIR:-/tmp}}/instant-XXXXXX")
chmod 755 "$work"
receiver= instant=
cleanup() {
    for process in $instant $receiver; do kill "$process" 2>/dev/null || true; wait "$process" 2>/dev/null || true; done
    scripts/servers/postgres.sh stop "$work/server" 2>/dev/null || true
    for copy in kept/data full; do
        [ ! -e "$work/$copy/postmaster.pid" ] || as_owner "$BIN/pg_ctl" stop -s -m immediate -D "$work/$copy" || true
    done
    sed -n "s|^\S* \($work\S*\) fuse.*|\1|p" /proc/mounts | xargs -r -n 1 umount -l || true
    rm -rf "$work"
}
trap cleanup EXIT
fail() { echo "failed: $*" >&2; tail -n 20 "$work"/*.err >&2 || true; exit 1; }
as_owner() {
    if [ "$(id -u)" != 0 ]; then env HOME="$work/home" "$@"; else setpriv --reuid "$OWNER" --regid "$(id -g "$OWNER")" --clear-groups env HOME="$work/home" "$@"; fi
}
sql() { as_owner "$CLIENT_BIN/psql" -XAtq -v ON_ERROR_STOP=1 -d bench -c "$1"; }
there() { PGHOST=$1 PGPORT=5432 sql "$2"; }
dump() { as_owner "$CLIENT_BIN/pg_dump" -d bench | grep -v '^\\\(un\)\?restrict '; }
now() { date +%s.%N; }
since() { echo "$(now) $1" | awk '{printf "%.1f", $1 - $2}'; }
mounted() { grep -c " $work\S* fuse" /proc/mounts || true; }
# Servers that run on a copy below this directory.
servers() { { readlink /proc/[0-9]*/cwd || true; } 2>/dev/null | grep -c "^$1/" || true; }

conf=(--conf 'wal_level = replica')
[ "$major" -lt 17 ] || conf+=(--conf 'summarize_wal = on')
scripts/servers/postgres.sh start "$major" "$work/server" "${conf[@]}" >"$work/env"
. "$work/env"
# Servers of some majors come without client programs; newer ones serve older servers too.
if [ -z "$CLIENT_BIN" ]; then CLIENT_BIN=$(scripts/servers/postgres.sh install 17 | sed -n 's/^CLIENT_BIN=//p'); fi
mkdir "$work/home" "$work/repository" "$work/fast" "$work/scratch"
cp "$keepwell" "$work/keepwell"
keepwell=$work/keepwell
[ "$(id -u)" != 0 ] || chown "$OWNER" "$work" "$work/home" "$work/fast" "$work/scratch" "$work/repository"
export PGHOST=$SOCKET PGPORT=$PORT PGUSER=postgres
kw() { as_owner "$keepwell" --repository "$work/repository" "$@"; }
kw init >/dev/null
# Without `as_owner`: what is killed in the end is the process itself.
as=(env HOME="$work/home"); [ "$(id -u)" != 0 ] || as=(setpriv --reuid "$OWNER" --regid "$(id -g "$OWNER")" --clear-groups env HOME="$work/home")
"${as[@]}" "$keepwell" --repository "$work/repository" wal receive 'user=postgres dbname=postgres' --create-slot --tail-every 1 >/dev/null 2>"$work/receiver.err" &
receiver=$!
for _ in $(seq 300); do grep -q streaming "$work/receiver.err" && break; sleep 0.1; done
as_owner "$CLIENT_BIN/createdb" bench
sql "CREATE TABLESPACE fast LOCATION '$work/fast'"
as_owner "$CLIENT_BIN/pgbench" -i -q -s "$scale" bench 2>/dev/null
sql "CREATE TABLE elsewhere (n int PRIMARY KEY, t text) TABLESPACE fast"
sql "INSERT INTO elsewhere SELECT n, repeat('x', n % 100) FROM generate_series(1, 50000) n"
kw pg backup 'user=postgres dbname=postgres' >/dev/null
# What follows is an increment: its files are put together from several backups.
sql "UPDATE pgbench_accounts SET abalance = aid % 7 WHERE aid % 10 = 0; UPDATE elsewhere SET t = 'y' WHERE n % 100 = 0"
kw pg backup 'user=postgres dbname=postgres' >/dev/null
as_owner "$CLIENT_BIN/pgbench" -n -t 200 bench >/dev/null 2>&1
question="SELECT md5(string_agg(aid || ':' || abalance, ',' ORDER BY aid)) FROM pgbench_accounts
          UNION ALL SELECT md5(string_agg(n || t, ',' ORDER BY n)) FROM elsewhere
          UNION ALL SELECT count(*)::text FROM pgbench_history"
expected=$(sql "$question")
dump >"$work/expected.sql"
sleep 0.2
before=$(sql "SELECT clock_timestamp()")
sql "DROP TABLE elsewhere; TRUNCATE pgbench_history; UPDATE pgbench_branches SET bbalance = 1"
last=$(sql "SELECT pg_current_wal_flush_lsn()")
for _ in $(seq 600); do [ "$(sql "SELECT flush_lsn >= '$last' FROM pg_stat_replication")" = t ] && break; sleep 0.1; done
echo "cluster: $(du -sm "$DATA" | cut -f1) MiB"

who=()
runs() { # WORD…: pg instant, as root with a server of another user, or as that user
    exec "${who[@]}" "$keepwell" --repository "$work/repository" pg instant --at "$before" --scratch "$work/scratch" --bin-dir "$BIN" "$@"
}
open_instant() { # OPTION…
    began=$(now)
    runs "$@" >"$work/instant.out" 2>"$work/instant.err" &
    instant=$!
    for _ in $(seq 6000); do
        grep -q 'connect with' "$work/instant.err" && break
        kill -0 "$instant" 2>/dev/null || fail "pg instant ended"
        sleep 0.02
    done
    at=$(sed -n 's/^connect with `psql -h \(\S*\) .*/\1/p' "$work/instant.err")
}
nothing_left() {
    [ "$(mounted)" = 0 ] || fail "$1: it is still mounted"
    [ "$(servers "$work/scratch")" = 0 ] || fail "$1: a server still runs"
    [ -z "$(ls -A "$work/scratch")" ] || fail "$1: something was left behind: $(ls -A "$work/scratch"/*)"
}

# It answers, on the moment that was asked for, and is thrown away.
thrown_away() {
    open_instant
    [ "$(there "$at" "SELECT count(*) FROM pgbench_branches")" = "$scale" ] || fail "the first answer is wrong"
    echo "instant: the first answer after $(since "$began") s; $(head -n 1 "$work/instant.out")"
    [ "$(there "$at" "$question")" = "$expected" ] || fail "the cluster is not what it was at $before"
    echo "instant: every row was read after $(since "$began") s"
    there "$at" "UPDATE pgbench_accounts SET abalance = 5; CREATE TABLE new AS SELECT * FROM elsewhere; DROP TABLE elsewhere" >/dev/null
    there "$at" "CHECKPOINT" >/dev/null
    there "$at" "VACUUM FULL pgbench_tellers" >/dev/null
    [ "$(there "$at" "SELECT count(*) FROM pgbench_accounts WHERE abalance = 5")" = $((scale * 100000)) ] || fail "what was written is not there"
    [ "$(there "$at" "SELECT count(*) FROM new")" = 50000 ] || fail "the new table is not there"
    rss=$(awk '/VmHWM/ {print int($2 / 1024)}' "/proc/$instant/status")
    echo "instant: $rss MiB resident at most"
    [ "$rss" -le 256 ] || fail "it took $rss MiB"
    [ "$(there "$at" "SHOW archive_mode")" = off ] || fail "it would archive"
    kill -INT "$instant"; code=0; wait "$instant" || code=$?; instant=
    [ $code = 0 ] || fail "it ended with $code"
    nothing_left "thrown away"
}

# Stopped by somebody else, interrupted at any moment, killed: nothing stays, or the next run removes it.
ended_otherwise() {
    open_instant
    # Without waiting: it looks for the directory ten times a second, which may be gone with the server.
    as_owner "$BIN/pg_ctl" stop -W -s -m fast -D "$at/data"
    wait "$instant" || fail "a server that was stopped is no failure"
    instant=
    nothing_left "stopped"
    for moment in 0.05 0.15 0.3 0.5 0.8 1.2 1.8; do
        runs >"$work/instant.out" 2>"$work/instant.err" &
        instant=$!
        sleep "$moment"
        kill -INT "$instant" 2>/dev/null || true
        wait "$instant" || true
        instant=
        nothing_left "interrupted after $moment s"
    done
    for moment in 0.3 0.8 open twice; do
        if [ $moment = open ] || [ $moment = twice ]; then open_instant; else runs >"$work/instant.out" 2>"$work/instant.err" & instant=$!; sleep $moment; fi
        if [ $moment = twice ]; then
            # A server that does not stop, so that there is time for the second interrupt.
            server=$(as_owner head -n 1 "$at/data/postmaster.pid")
            kill -STOP "$server"
            kill -INT "$instant"; sleep 0.5
            kill -0 "$instant" 2>/dev/null || fail "the first interrupt ended it: what is tried here?"
            kill -INT "$instant"; wait "$instant" 2>/dev/null || true; instant=
            kill -CONT "$server" 2>/dev/null || true
            [ "$(mounted)" = 0 ] || fail "interrupted twice: it is still mounted"
        else
            kill -KILL "$instant"; wait "$instant" 2>/dev/null || true; instant=
        fi
        for _ in $(seq 200); do [ "$(servers "$work/scratch")" = 0 ] && break; sleep 0.1; done
        [ "$(servers "$work/scratch")" = 0 ] || fail "killed at $moment: the server goes on"
        for left in "$work/scratch"/*/data; do
            [ ! -e "$left/global/pg_control" ] || fail "killed at $moment: a server would start in what was left"
        done
    done
    [ -n "$(ls -A "$work/scratch")" ] || fail "a killed run left nothing: what is tried here?"
    open_instant
    [ "$(grep -c 'which a killed run left' "$work/instant.err")" -ge 1 ] || fail "the next run did not say what it removed"
    kill -INT "$instant"; wait "$instant" || true; instant=
    nothing_left "killed"
}

# It copies itself while it serves, and stays.
kept() {
    open_instant --keep "$work/kept"
    kill -KILL "$instant"; wait "$instant" 2>/dev/null || true; instant=
    open_instant --keep "$work/kept"
    # It may be restarted just now.
    for _ in $(seq 50); do there "$work/kept" "INSERT INTO pgbench_branches VALUES (-1, 0, '') ON CONFLICT DO NOTHING" 2>/dev/null && break; sleep 0.1; done
    wait "$instant" || fail "pg instant --keep failed"
    instant=
    echo "instant --keep: whole after $(since "$began") s"
    [ "$(mounted)" = 0 ] || fail "it is still mounted"
    [ "$(there "$work/kept" "$question")" = "$expected" ] || fail "the kept cluster is not what it was at $before"
    [ "$(there "$work/kept" "DELETE FROM pgbench_branches WHERE bid = -1 RETURNING bid")" = -1 ] || fail "what was written meanwhile is lost"
    [ "$(there "$work/kept" "SHOW fsync")" = on ] || fail "the kept server is not durable"
    if [ -x "$BIN/pg_amcheck" ]; then
        PGHOST=$work/kept PGPORT=5432 as_owner "$BIN/pg_amcheck" --install-missing=pg_catalog -d bench >/dev/null || fail "pg_amcheck found something"
        there "$work/kept" "DROP EXTENSION amcheck"
    fi
    as_owner "$BIN/pg_ctl" stop -s -m fast -D "$work/kept/data"
    # With its own configuration, as any cluster.
    as_owner "$BIN/pg_ctl" start -s -w -D "$work/kept/data" -l "$work/home/log" -o "-p 5432 -k $work/kept -c listen_addresses="
    PGHOST=$work/kept PGPORT=5432 dump >"$work/kept.sql"
    cmp "$work/expected.sql" "$work/kept.sql" || fail "the dump of the kept cluster is another one"
    as_owner "$BIN/pg_ctl" stop -s -m fast -D "$work/kept/data"
    grep -q '^restore_command\|^recovery_' "$work/kept/data/postgresql.auto.conf" && fail "settings of the recovery were left"
    [ ! -e "$work/kept/keepwell-instant" ] && [ -s "$work/kept/data/global/pg_control" ] && [ ! -e "$work/kept/data/global/pg_control.incomplete" ] || fail "something was left"
    code=0; runs --keep "$work/kept" >/dev/null 2>"$work/refused.err" & wait $! || code=$?
    [ $code = 2 ] && grep -q 'is not empty' "$work/refused.err" || fail "a cluster was not refused: $code"
    rm -rf "$work/kept"
}

# What was recovered is a snapshot of its own; it opens again without the log, and is no base backup of the cluster.
saved() {
    code=0; runs --save postgres >/dev/null 2>"$work/refused.err" & wait $! || code=$?
    [ $code = 2 ] && grep -q 'cannot be the name' "$work/refused.err" || fail "the name of a dataset was not refused: $code"
    runs --save then >"$work/instant.out" 2>"$work/instant.err" & wait $! || fail "pg instant --save"
    echo "instant --save: $(tail -n 1 "$work/instant.out")"
    nothing_left "saved"
    began=$(now)
    "${who[@]}" "$keepwell" --repository "$work/repository" pg instant --saved then --scratch "$work/scratch" --bin-dir "$BIN" >"$work/instant.out" 2>"$work/instant.err" &
    instant=$!
    for _ in $(seq 3000); do grep -q 'connect with' "$work/instant.err" && break; kill -0 "$instant" 2>/dev/null || fail "pg instant --saved ended"; sleep 0.02; done
    at=$(sed -n 's/^connect with `psql -h \(\S*\) .*/\1/p' "$work/instant.err")
    [ "$(there "$at" "SELECT count(*) FROM pgbench_branches")" = "$scale" ] || fail "the first answer is wrong"
    echo "instant --saved: the first answer after $(since "$began") s; $(head -n 1 "$work/instant.out")"
    PGHOST=$at PGPORT=5432 dump >"$work/saved.sql"
    cmp "$work/expected.sql" "$work/saved.sql" || fail "the dump of the saved cluster is another one"
    kill -INT "$instant"; wait "$instant" || true; instant=
    nothing_left "opened again"
    owned
    planned=$(kw --json pg instant --dry-run | sed -n 's/.*"timeline":\([0-9]*\).*/\1/p')
    [ "$planned" = 1 ] || fail "a saved state leads recoveries of the cluster astray: $planned"
}

# What root has written into repository and cache is everybody's again.
owned() { [ "$(id -u)" != 0 ] || chown -R "$OWNER" "$work/repository" "$work/home"; }

users=${USERS:-}
if [ -z "$users" ]; then
    [ "$(id -u)" != 0 ] || users=root
    as_owner test -w /dev/fuse && command -v fusermount3 >/dev/null && users="$users owner"
fi
for user in $users; do
    owned
    who=("${as[@]}")
    [ "$user" != root ] || who=(env HOME="$work/home")
    echo "-- run by $user"
    thrown_away
    ended_otherwise
    kept
    saved
done

# Beside it, an ordinary restore.
mkdir "$work/full"; [ "$(id -u)" != 0 ] || chown "$OWNER" "$work/full"
began=$(now)
kw --yes pg restore --to-time "$before" "$work/full" --start --tablespace "fast=$work/full-fast" --no-safety-snapshot \
    --set port=6545 --set "unix_socket_directories=$work/full" --set listen_addresses= --bin-dir "$BIN" >/dev/null 2>"$work/full.err" || fail "the restore"
[ "$(PGHOST=$work/full PGPORT=6545 sql "SELECT count(*) FROM pgbench_branches")" = "$scale" ] || fail "the restored cluster is wrong"
echo "full restore: the first answer after $(since "$began") s"
as_owner "$BIN/pg_ctl" stop -s -m fast -D "$work/full"
echo "PostgreSQL $major: instant recovery ok"
