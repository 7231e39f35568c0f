#!/usr/bin/env bash
# What a backup, a receiver and a restore leave when they are killed at random moments, and when a disk is full: nothing is
# lost, nothing half-done starts, and the next run completes. (A repository that is away: tests/servers/receive.rs.)
#
# usage: scripts/postgres-kill.sh [MAJOR [KILLS]]   default 15, and 5 of each kind; KEEPWELL names the command, by default
#                                                   that of the dev build; as root also with full disks (small tmpfs)
set -euo pipefail
unset XDG_CONFIG_HOME XDG_DATA_HOME XDG_CACHE_HOME # what is written stays in the work directory
cd "$(dirname "$0")/.."
major=${1:-15}
kills=${2:-5}
keepwell=${KEEPWELL:-$(realpath "${CARGO_TARGET_DIR:-target}")/debug/keepwell}
work=$(mktemp -d)
chmod 755 "$work"
receiver= load=
mounted=()
kill_all() { # PID: a process with its children, which setpriv and sh may stand before
    local child
    for child in $(pgrep -P "$1" || true); do kill_all "$child"; done
    kill -9 "$1" 2>/dev/null || true
}
end_receiver() { if [ -n "$receiver" ]; then kill_all "$receiver"; wait "$receiver" 2>/dev/null || true; receiver=; fi; }
end_load() { if [ -n "$load" ]; then kill_all "$load"; wait "$load" 2>/dev/null || true; load=; fi; }
cleanup() {
    local place
    end_load
    end_receiver
    for place in server full; do scripts/servers/postgres.sh stop "$work/$place" 2>/dev/null || true; done
    if [ -e "$work/copy/postmaster.pid" ]; then as_owner "$BIN/pg_ctl" stop -s -m immediate -D "$work/copy" || true; fi
    for place in "${mounted[@]}"; do umount -l "$place" || true; done
    rm -rf "$work"
}
trap cleanup EXIT
fail() { echo "failed: $*" >&2; tail -n 20 "$work"/*.log >&2 || true; exit 1; }
as=(env HOME="$work/home")
as_owner() { (cd "$work" && "${as[@]}" "$@"); }
sql() { as_owner "$CLIENT_BIN/psql" -XAtq -v ON_ERROR_STOP=1 -c "$1"; }
kw() { as_owner "$keepwell" --repository "$work/repository" "$@"; }
snapshots() { kw --json snapshots | grep -c '"type":"snapshot"' || true; }
until_true() { # WHAT COMMAND…: waits for a minute
    local what=$1 _
    shift
    for _ in $(seq 600); do if "$@"; then return; fi; sleep 0.1; done
    fail "$what"
}
# Runs a command in the background and kills it after a random part of so many milliseconds; gives its exit code.
killed() { # MILLISECONDS COMMAND…
    local at=$((RANDOM * $1 / 32768)) process code=0
    shift
    (cd "$work" && exec "${as[@]}" "$@") >"$work/killed.log" 2>&1 &
    process=$!
    sleep "$(printf '%d.%03d' $((at / 1000)) $((at % 1000)))"
    kill_all "$process"
    wait "$process" 2>/dev/null || code=$?
    echo "$code"
}
clock() { date +%s%3N; }
begin_receiver() { # ARGUMENT…
    (cd "$work" && exec "${as[@]}" "$keepwell" --repository "$work/repository" wal receive "$@" --create-slot --tail-every 1) >>"$work/receiver.log" 2>&1 &
    receiver=$!
}
streams() { [ "$(sql "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND application_name = 'keepwell'")" = 1 ]; }
archived() { [ "$(sql "SELECT count(*) FROM pg_stat_replication WHERE flush_lsn >= '$1'")" = 1 ]; }
flushed() { sql "SELECT pg_current_wal_flush_lsn()"; }

scripts/servers/postgres.sh start "$major" "$work/server" --conf 'max_wal_size = 64MB' --conf 'checkpoint_timeout = 30s' >"$work/env"
. "$work/env"
if [ -z "$CLIENT_BIN" ]; then CLIENT_BIN=$(scripts/servers/postgres.sh install 17 | sed -n 's/^CLIENT_BIN=//p'); fi
mkdir "$work/home" "$work/repository"
if [ "$(id -u)" = 0 ]; then
    as=(setpriv --reuid "$OWNER" --regid "$(id -g "$OWNER")" --clear-groups env "HOME=$work/home")
    chown "$OWNER" "$work" "$work/home" "$work/repository"
    cp "$keepwell" "$work/keepwell"; keepwell=$work/keepwell
fi
export PGHOST=$SOCKET PGPORT=$PORT PGUSER=postgres PGDATABASE=postgres
kw --quiet init >/dev/null
sql "CREATE TABLE marks (n bigserial PRIMARY KEY, at timestamptz DEFAULT clock_timestamp())"
sql "CREATE TABLE filler AS SELECT n, repeat(md5(n::text), 25) AS text FROM generate_series(1, 60000) n"
begin_receiver 'user=postgres'
until_true "no stream" streams
(cd "$work" && while :; do "${as[@]}" "$CLIENT_BIN/psql" -XAtq -c "INSERT INTO marks DEFAULT VALUES" -c "UPDATE filler SET n = n WHERE n % 500 = 1" || true; done) >/dev/null 2>&1 &
load=$!

# A backup that is killed leaves no snapshot and no slot, and the next one completes.
began=$(clock)
kw --quiet pg backup 'user=postgres' >/dev/null
took=$(($(clock) - began + 200))
count=$(snapshots)
died=0
for _ in $(seq "$kills"); do
    code=$(killed "$took" "$keepwell" --quiet --repository "$work/repository" pg backup 'user=postgres')
    if [ "$code" = 137 ]; then died=$((died + 1)); fi
    now=$(snapshots)
    [ "$now" = "$count" ] || [ "$now" = $((count + 1)) ] || fail "after a kill there are $now snapshots, and before $count"
    count=$now
    kw --quiet pg backup 'user=postgres' >/dev/null || fail "the next backup"
    count=$((count + 1))
    [ "$(snapshots)" = "$count" ] || fail "the next backup is not there"
done
no_slot_left() { [ "$(sql "SELECT count(*) FROM pg_replication_slots WHERE slot_name <> 'keepwell'")" = 0 ]; }
until_true "a killed backup left a slot" no_slot_left
echo "backups: $died of $kills killed before their end"

# A receiver that is killed loses nothing that it reported; another one goes on.
for _ in $(seq "$kills"); do
    sleep "0.$((RANDOM % 900 + 100))"
    end_receiver
    begin_receiver 'user=postgres'
    until_true "no stream after a kill" streams
done
end_load
last=$(flushed)
until_true "the log was not archived" archived "$last"
kw wal gaps >/dev/null || fail "a killed receiver left a gap"
echo "receivers: $kills killed, no gap"

waits() { grep -q 'waits for the repository' "$work/receiver.log"; }

# A restore that is killed leaves nothing that starts as if it were whole; given again, it completes.
rows=$(sql "SELECT count(*) || ' ' || max(n) FROM marks")
sum=$(sql "SELECT count(*) || ' ' || md5(string_agg(t::text, ',' ORDER BY t::text)) FROM filler t")
restore=("$keepwell" --yes --repository "$work/repository" pg restore "$work/copy" --no-safety-snapshot --bin-dir "$BIN"
    --set port=6547 --set "unix_socket_directories=$work" --set listen_addresses=)
began=$(clock)
as_owner "${restore[@]}" >/dev/null 2>&1 || fail "the first restore"
took=$(($(clock) - began))
died=0 halves=0
# Whether a server would begin with the copy. 14 looks at `pg_control` only when it does.
begins() {
    if ((major < 15)); then as_owner "$BIN/postgres" --single -D "$work/copy" postgres </dev/null; else as_owner "$BIN/postgres" -D "$work/copy" -C data_checksums; fi
}
for _ in $(seq "$kills"); do
    rm -rf "$work/copy" "$work/copy".*
    for _ in 1 2; do
        code=$(killed $((took * 6 / 10)) "${restore[@]}")
        [ "$code" = 137 ] || continue
        died=$((died + 1))
        if [ ! -e "$work/copy/global/pg_control" ]; then
            halves=$((halves + 1))
            if [ -e "$work/copy/PG_VERSION" ] && begins >"$work/start.log" 2>&1; then
                fail "half a restore would start"
            fi
        fi
    done
    as_owner "${restore[@]}" --start >"$work/restore.log" 2>&1 || fail "the restore after a kill"
    there() { (export PGHOST=$work PGPORT=6547; sql "$1"); }
    [ "$(there "SELECT count(*) || ' ' || max(n) FROM marks")" = "$rows" ] || fail "rows are missing after a kill"
    [ "$(there "SELECT count(*) || ' ' || md5(string_agg(t::text, ',' ORDER BY t::text)) FROM filler t")" = "$sum" ] || fail "rows differ after a kill"
    as_owner "$BIN/pg_ctl" stop -s -m immediate -D "$work/copy"
done
echo "restores: $died of $((2 * kills)) killed before their end, $halves of them without pg_control; each completed, and its server has every row"

# Full disks.
if [ "$(id -u)" = 0 ]; then
    tmpfs() { mkdir -p "$1"; mount -t tmpfs -o "size=$2,mode=755" keepwell-test "$1"; mounted+=("$1"); chown "$OWNER" "$1"; }
    # The repository's: a receiver waits for room and goes on; a backup fails, leaves no snapshot, and succeeds later.
    end_receiver
    sql "SELECT pg_drop_replication_slot('keepwell')" >/dev/null
    mv "$work/repository" "$work/first"
    tmpfs "$work/repository" 24m
    kw --quiet init >/dev/null
    kw --quiet pg backup 'user=postgres' >"$work/full.log" 2>&1 || true
    count=$(snapshots)
    : >"$work/receiver.log"
    begin_receiver 'user=postgres'
    until_true "no stream into a small repository" streams
    sql "INSERT INTO filler SELECT n, (SELECT string_agg(md5(random()::text || m), '') FROM generate_series(1, 25 + n % 2) m) FROM generate_series(1, 60000) n"
    last=$(flushed)
    until_true "the receiver does not say that it waits for room" waits
    archived "$last" && fail "the server heard that its log is safe, and the disk is full"
    code=0
    kw --quiet pg backup 'user=postgres' --full >"$work/full.log" 2>&1 || code=$?
    [ "$code" = 1 ] && grep -qi 'no space' "$work/full.log" || fail "a backup onto a full disk ended with $code"
    [ "$(snapshots)" = "$count" ] || fail "a backup onto a full disk left a snapshot"
    mount -o remount,size=1g "$work/repository"
    until_true "it did not go on when there was room" archived "$last"
    kw wal gaps >/dev/null || fail "a gap after the disk was full"
    kw --quiet pg backup 'user=postgres' >/dev/null || fail "a backup when there was room again"
    kw --quiet check --read-data >/dev/null || fail "the check"
    echo "full repository: the receiver waited for room, the backup left nothing"

    # The target's: refused before anything is written.
    tmpfs "$work/small" 8m
    code=0
    as_owner "$keepwell" --repository "$work/repository" pg restore "$work/small/copy" >"$work/full.log" 2>&1 || code=$?
    [ "$code" = 1 ] && grep -q 'free' "$work/full.log" || fail "a restore into too little room ended with $code"
    [ -z "$(find "$work/small" -type f)" ] || fail "a restore into too little room left files"
    echo "full target: refused"

    # The server's own: `max_slot_wal_keep_size` guards it, at the price of a gap, which is said.
    end_receiver
    tmpfs "$work/full" 400m
    scripts/servers/postgres.sh start "$major" "$work/full" --conf 'max_slot_wal_keep_size = 48MB' --conf 'max_wal_size = 64MB' --conf 'min_wal_size = 32MB' >"$work/env"
    . "$work/env"
    export PGHOST=$SOCKET PGPORT=$PORT
    if [ -z "$CLIENT_BIN" ]; then CLIENT_BIN=$(scripts/servers/postgres.sh install 17 | sed -n 's/^CLIENT_BIN=//p'); fi
    begin_receiver 'user=postgres' --dataset guarded
    until_true "no stream of the guarded server" streams
    last=$(flushed)
    until_true "the log of the guarded server was not archived" archived "$last"
    end_receiver
    for _ in 1 2 3 4 5 6 7 8; do
        sql "CREATE TABLE t AS SELECT repeat('x', 900) FROM generate_series(1, 40000)"
        sql "DROP TABLE t"
        sql "CHECKPOINT"
    done
    [ "$(sql "SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'keepwell'")" = lost ] || fail "the guard did not take the slot: $(sql "SELECT * FROM pg_replication_slots")"
    [ "$(sql "SELECT sum(size) < 200000000 FROM pg_ls_waldir()")" = t ] || fail "the log fills the disk"
    code=0
    kw wal receive 'user=postgres' --dataset guarded --until 0/1 >"$work/full.log" 2>&1 || code=$?
    [ "$code" = 1 ] && grep -q 'the replication slot `keepwell` is lost: the server has removed WAL' "$work/full.log" || fail "a lost slot: $code"
    grep -q 'Drop it, start again with --create-slot, and take a new base backup' "$work/full.log" || fail "no hint for a lost slot"
    sql "SELECT pg_drop_replication_slot('keepwell')" >/dev/null
    begin_receiver 'user=postgres' --dataset guarded
    until_true "no stream with a new slot" streams
    sql "CREATE TABLE late AS SELECT 1 AS n"
    last=$(flushed)
    until_true "the log behind the gap was not archived" archived "$last"
    grep -q 'the archive has a gap' "$work/receiver.log" || fail "the receiver does not speak of the gap"
    code=0
    kw wal gaps >/dev/null || code=$?
    [ "$code" = 13 ] || fail "there is a gap, and wal gaps ended with $code"
    kw --quiet pg backup 'user=postgres' --dataset guarded >/dev/null
    kw pg restore "$work/copy2" --dataset guarded --dry-run >"$work/full.log" 2>&1 || fail "no way behind the gap"
    echo "full server: the guard took the slot, the server lives, and the gap is named"
fi
kw --quiet check --read-data >/dev/null || fail "the check at the end"
echo "PostgreSQL $major: killed and full; nothing was lost"
