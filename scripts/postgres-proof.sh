#!/usr/bin/env bash
# A cluster with a tablespace is backed up, verified up to level 5, a table is taken out of its past, a damaged data
# directory is repaired in place, a copy of the repository recovers too, and what is no longer needed of the log is pruned.
#
# usage: scripts/postgres-proof.sh [MAJOR]       default 15; KEEPWELL names the command, by default that of the dev build
set -euo pipefail
unset XDG_CONFIG_HOME XDG_DATA_HOME XDG_CACHE_HOME # what is written stays in the work directory
cd "$(dirname "$0")/.."
major=${1:-15}
keepwell=${KEEPWELL:-$(realpath "${CARGO_TARGET_DIR:-target}")/debug/keepwell}
work=$(mktemp -d)
chmod 755 "$work"
receiver= scratch_left=
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
sql() { as_owner "$CLIENT_BIN/psql" -XAtq -v ON_ERROR_STOP=1 -d "${2:-clinic}" -c "$1"; }
kw() { as_owner "$keepwell" --repository "$work/repository" "$@"; }

scripts/servers/postgres.sh start "$major" "$work/server" --conf 'wal_level = replica' >"$work/env"
. "$work/env"
if [ -z "$CLIENT_BIN" ]; then CLIENT_BIN=$(scripts/servers/postgres.sh install 17 | sed -n 's/^CLIENT_BIN=//p'); fi
mkdir "$work/home" "$work/repository" "$work/second" "$work/fast"
if [ "$(id -u)" = 0 ]; then
    chown "$OWNER" "$work" "$work/home" "$work/repository" "$work/second" "$work/fast"
    cp "$keepwell" "$work/keepwell"
    keepwell=$work/keepwell
fi
export PGHOST=$SOCKET PGPORT=$PORT PGUSER=postgres
kw init >/dev/null
exec_as_owner "$keepwell" --repository "$work/repository" wal receive 'user=postgres dbname=postgres' --create-slot --tail-every 1 --heartbeat 1 2>"$work/receiver.log" &
receiver=$!
for _ in $(seq 300); do grep -q streaming "$work/receiver.log" && break; sleep 0.1; done
sql "CREATE TABLESPACE fast LOCATION '$work/fast'" postgres
sql "CREATE DATABASE clinic" postgres
sql "CREATE TABLE patients (n int PRIMARY KEY, name text) TABLESPACE fast"
sql "CREATE TABLE visits (n int PRIMARY KEY, patient int REFERENCES patients)"
sql "INSERT INTO patients SELECT n, 'patient ' || n FROM generate_series(1, 20000) n"
sql "INSERT INTO visits SELECT n, n FROM generate_series(1, 20000) n"
sql "CREATE SCHEMA old"
sql "CREATE EXTENSION pg_trgm"
sql "CREATE TABLE events (n int REFERENCES patients, day date) PARTITION BY RANGE (day)"
sql "CREATE TABLE old.events_1 PARTITION OF events FOR VALUES FROM ('2026-01-01') TO ('2026-07-01')"
sql "CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM ('2026-07-01') TO ('2027-01-01')"
sql "INSERT INTO events SELECT n, date '2026-01-01' + n % 365 FROM generate_series(1, 1000) n"
oid=$(sql "SELECT oid FROM pg_tablespace WHERE spcname = 'fast'")

cat >"$work/recorded.toml" <<'TOML'
[[question]]
name = "extensions that there were"
database = "clinic"
sql = "SELECT count(*) FROM pg_extension"
at-least-recorded = 100

[[question]]
name = "patients that there were"
database = "clinic"
sql = "SELECT count(*) FROM patients"
at-least-recorded = 50
TOML

# A base backup; by hand as long as the command cannot take one.
backup() {
    if kw pg --help | grep -q '^  backup '; then
        kw pg backup 'user=postgres dbname=postgres' --questions "$work/recorded.toml" >/dev/null
        return
    fi
    local base=$work/base now
    as_owner "$CLIENT_BIN/pg_basebackup" -D "$base/data" -X stream -c fast -T "$work/fast=$base/tablespaces/$oid"
    rm "$base/data/pg_tblspc/$oid"
    now=$(date -u +%Y-%m-%dT%H:%M:%S.%NZ)
    as_owner python3 - "$base" "$now" "$DATA" "$oid" "$work/fast" "$(sql "SELECT system_identifier FROM pg_control_system()")" "$(sql "SHOW server_version_num")" <<'PYTHON'
import json, pathlib, sys
base, now, data, oid, fast, system, version = sys.argv[1:]
base = pathlib.Path(base)
label = dict(line.split(": ", 1) for line in (base / "data/backup_label").read_text().splitlines())
span = json.loads((base / "data/backup_manifest").read_text())["WAL-Ranges"][-1]
(base / "cluster.json").write_text(json.dumps({
    "format": 1, "system_identifier": system, "server_version_num": int(version), "timeline": span["Timeline"],
    "start_lsn": label["START WAL LOCATION"].split()[0], "stop_lsn": span["End-LSN"], "start_time": now, "stop_time": now,
    "wal_segment_size": 16 << 20, "data_directory": data,
    "tablespaces": [{"oid": int(oid), "location": fast, "name": "fast"}]}))
PYTHON
    kw backup "$base" >/dev/null
    rm -rf "$base"
}
backed_up() { if kw pg --help | grep -q '^  backup '; then echo latest; else echo "latest:$work/base"; fi; }

backup
from=$(backed_up)
sleep 0.2
before=$(sql "SELECT clock_timestamp()")
sql "DELETE FROM visits"
sql "DELETE FROM events"
sql "DELETE FROM patients WHERE n > 10"
sql "CREATE TABLE filler AS SELECT n, repeat('x', 900) FROM generate_series(1, 60000) n"
last=$(sql "SELECT pg_current_wal_flush_lsn()")
for _ in $(seq 600); do [ "$(sql "SELECT flush_lsn >= '$last' FROM pg_stat_replication")" = t ] && break; sleep 0.1; done

cat >"$work/questions.toml" <<'TOML'
[[question]]
name = "patients that were left"
database = "clinic"
sql = "SELECT count(*) FROM patients"
equals = "10"

[[question]]
name = "rows of the filler"
database = "clinic"
sql = "SELECT count(*) FROM filler"
at-least = 60000
TOML
# Some majors come without the programs that level 4 takes: then it is not proved.
holds=0; [ -x "$BIN/pg_dump" ] || [ -x "$BIN/pg_amcheck" ] || holds=3
code=0; kw pg verify "$from" --level 5 --questions "$work/questions.toml" --scratch "$work" --report "$work/proof.json" --bin-dir "$BIN" || code=$?
[ $code = $holds ] || fail "the verification ended with $code"
grep -q '"sound": true' "$work/proof.json" || fail "the report does not say that it is sound"

code=0; kw pg verify "$from" --level 0 --report "$work/no/such/directory/proof.json" >"$work/said" 2>&1 || code=$?
[ $code = 1 ] && ! grep -q 'level 0' "$work/said" || fail "a report that cannot be written is found out too late: $code"

# The report says how long a recovery takes and how much would be lost; it is signed, and no bit of it can be changed.
python3 - "$work/proof.json" <<'PYTHON' || fail "the report lacks what was measured"
import json, sys
report = json.load(open(sys.argv[1]))
point = report["recovery_point"]
# The heart beats every second, and a tail is archived after one more; the rest is what a busy machine may take.
assert point["recovered"] and 0 <= point["seconds"] < 60, point
assert report["recovery_seconds"] > 0 and all(step["seconds"] >= 0 for step in report["steps"]), report
PYTHON
code=0; kw pg verify --check-report "$work/proof.json" || code=$?
[ $code = $holds ] || fail "the report was shown with $code"
code=0; kw pg verify "$from" --level 3 --report "$work/less.json" --bin-dir "$work/none" >"$work/said" || code=$?
[ $code = 3 ] && grep -q 'proved up to level 1, and not up to level 3' "$work/said" || fail "a host without a server proves a recovery: $code: $(cat "$work/said")"
code=0; kw pg verify --check-report "$work/less.json" >/dev/null || code=$?
[ $code = 3 ] || fail "the report of a host without a server was shown with $code"
for change in 's/"sound": true/"sound": tru3/' 's/"recovery_seconds": ./"recovery_seconds": 0/' '$ s/}/} /' 's/"signer": "./"signer": "g/'; do
    sed "$change" "$work/proof.json" >"$work/changed.json"
    cmp -s "$work/proof.json" "$work/changed.json" && continue
    code=0; kw pg verify --check-report "$work/changed.json" >/dev/null 2>"$work/refused" || code=$?
    [ $code = 13 ] && grep -q 'is not to be believed' "$work/refused" || fail "a changed report ($change) ended with $code: $(cat "$work/refused")"
done
kw --yes key enroll --name verifier --role reader --output "$work/verifier.key" >/dev/null
as_owner "$keepwell" --repository "$work/repository" --key-file "$work/verifier.key" pg verify "$from" --level 1 --report "$work/small.json" >/dev/null
kw pg verify --check-report "$work/small.json" | grep -q 'signed by `verifier`' || fail "a reader's report"
kw --yes key revoke verifier >/dev/null
code=0; kw pg verify --check-report "$work/small.json" >/dev/null 2>&1 || code=$?
[ $code = 13 ] || fail "a report of somebody who was revoked is believed: $code"

# What the host lacks is no fault of the backup, and is named.
if [ -d "$BIN/../../../../share/postgresql/$major" ]; then
    bare=$work/bare
    mkdir -p "$bare/lib/postgresql" "$bare/share/postgresql"
    cp -a "$BIN/.." "$bare/lib/postgresql/$major"
    cp -a "$BIN/../../../../share/postgresql/$major" "$bare/share/postgresql/$major"
    rm "$bare/share/postgresql/$major/extension/amcheck.control" "$bare/share/postgresql/$major/extension/pg_trgm.control"
    chmod -R a+rX "$bare"
    kw pg verify "$from" --level 4 --scratch "$work" --bin-dir "$bare/lib/postgresql/$major/bin" >"$work/said"
    cat "$work/said"
    grep -q 'unavailable  the cluster.s extensions are here (not installed on this host: `pg_trgm` 1\.[0-9]* of database `clinic`)' "$work/said" || fail "a missing extension is not named"
    grep -q 'unavailable  pg_amcheck of all databases (`.*/pg_amcheck` needs the extension `amcheck`, which is not installed on this host)' "$work/said" || fail "a missing amcheck is not named"
    kw pg restore "$from" "$work/bare-copy" --dry-run --tablespace "fast=$work/bare-fast" --bin-dir "$bare/lib/postgresql/$major/bin" >"$work/said" 2>&1
    grep -q 'the extension `pg_trgm` 1\.[0-9]* of database `clinic` is not installed on this host; what uses it fails until it is' "$work/said" || fail "a restore does not name what is missing: $(cat "$work/said")"
    rm -rf "$bare"
fi
# Of the patients of when it was backed up few are left; the moment before has all of them.
if [ "$from" = latest ] && [ -x "$BIN/pg_dump" ]; then
    code=0; kw pg verify "$from" --level 5 --questions "$work/recorded.toml" --scratch "$work" --bin-dir "$BIN" >"$work/said" || code=$?
    [ $code = 13 ] && grep -q 'failed *patients that there were (the answer is 10, and 20000 when it was backed up)' "$work/said" &&
        grep -q 'passed *extensions that there were' "$work/said" || fail "what was recorded: $code: $(cat "$work/said")"
    kw pg verify "$from" --level 5 --questions "$work/recorded.toml" --at "$before" --scratch "$work" --bin-dir "$BIN" >"$work/said" ||
        fail "what was recorded does not hold before: $(cat "$work/said")"
fi
sed -i 's/"10"/"11"/' "$work/questions.toml"
code=0; kw --quiet pg verify "$from" --level 5 --questions "$work/questions.toml" --scratch "$work" --bin-dir "$BIN" >/dev/null || code=$?
[ $code = 13 ] || fail "a wrong answer ended with $code"
compgen -G "$work/keepwell-scratch-*" >/dev/null && fail "a scratch cluster was left behind"

# One that is interrupted leaves nothing behind either, and no server.
as=(env HOME="$work/home")
if [ "$(id -u)" = 0 ]; then as=(setpriv --reuid "$OWNER" --regid "$(id -g "$OWNER")" --clear-groups env HOME="$work/home"); fi
"${as[@]}" "$keepwell" --repository "$work/repository" pg verify "$from" --level 4 --scratch "$work" --bin-dir "$BIN" >/dev/null 2>&1 &
verifying=$!
for _ in $(seq 600); do compgen -G "$work/keepwell-scratch-*/data/postmaster.pid" >/dev/null && break; sleep 0.05; done
scratch_server=$(head -n 1 "$work"/keepwell-scratch-*/data/postmaster.pid)
kill -INT "$verifying"
code=0; wait "$verifying" || code=$?
[ $code = 130 ] || fail "an interrupted verification ended with $code"
compgen -G "$work/keepwell-scratch-*" >/dev/null && fail "an interrupt left a scratch cluster behind"
[ -e "/proc/$scratch_server" ] && fail "an interrupt left a scratch server behind"

# Tables out of the past, which takes the client programs of the cluster's own major.
extract() { kw "${quiet[@]}" pg extract --snapshot "$from" --at "$before" --scratch "$work" --bin-dir "$BIN" "$@"; }
quiet=()
if [ -x "$BIN/pg_dump" ]; then
    extract --database clinic --table public.patients --into 'dbname=clinic' --schema lost
    [ "$(sql "SELECT count(*) FROM lost.patients")" = 20000 ] || fail "the table was not taken out of the past"
    [ "$(sql "SELECT count(*) FROM patients")" = 10 ] || fail "the table that was there was touched"
    extract --database clinic --table public.visits -o "$work/visits.sql"
    [ "$(grep -c '^[0-9]' "$work/visits.sql")" = 20000 ] || fail "the dump does not have the rows"
    quiet=(--json)
    extract --database clinic --table public.events --table public.patients --into 'dbname=clinic' --schema parts >"$work/said"
    quiet=()
    python3 -c 'import json, sys; [json.loads(line) for line in sys.stdin]' <"$work/said" || fail "something else than JSON: $(cat "$work/said")"
    for part in events:1000 events_1:542 events_2:458 patients:20000; do
        [ "$(sql "SELECT count(*) FROM parts.${part%:*}")" = "${part#*:}" ] || fail "${part%:*} was taken out of the past in part"
    done
else
    code=0; extract --database clinic --table public.visits -o "$work/none.sql" 2>"$work/refused" || code=$?
    [ $code = 1 ] && grep -q '`pg_dump` of this major is not on this host' "$work/refused" || fail "no programs: $code: $(cat "$work/refused")"
fi
quiet=(--quiet)
code=0; extract --database nowhere --table public.visits -o "$work/none.sql" 2>/dev/null || code=$?
[ $code != 0 ] && ! compgen -G "$work/none.sql*" >/dev/null || fail "a failed extraction left a file"

# A copy beside the original does not take its tablespace; it ends at the target when it is told to.
code=0; kw --quiet pg restore "$from" "$work/beside" --to-time "$before" 2>"$work/refused" || code=$?
[ $code != 0 ] && grep -q "something stands in \`$work/fast\`" "$work/refused" || fail "the live tablespace was not refused: $(cat "$work/refused")"
kw pg restore "$from" "$work/beside" --to-time "$before" --start --action shutdown --tablespace "fast=$work/beside-fast" \
    --set port=6545 --set "unix_socket_directories=$work/beside" --set listen_addresses= --bin-dir "$BIN"
"$CLIENT_BIN/pg_controldata" -D "$work/beside" | grep -q 'shut down in recovery' || fail "the server did not end at its target"

# The server dies; its data directory is damaged, and is repaired in place. The tablespace goes elsewhere.
kill "$receiver"; wait "$receiver" 2>/dev/null || true; receiver=
as_owner "$BIN/pg_ctl" stop -s -m fast -D "$DATA"
as_owner cp -a "$DATA" "$work/copy"
victim=$(find "$work/copy/base" -type f -size +1M | head -n 1)
as_owner dd if=/dev/urandom of="$victim" bs=4096 count=3 seek=10 conv=notrunc status=none
as_owner rm "$work/copy/global/pg_control"
as_owner rm "$work/copy/PG_VERSION"
kw --yes pg restore "$from" "$work/copy" --to-time "$before" --start --tablespace "fast=$work/elsewhere" --no-safety-snapshot \
    --set port=6544 --set "unix_socket_directories=$work/copy" --set listen_addresses= --bin-dir "$BIN"
(PGHOST=$work/copy PGPORT=6544; [ "$(sql "SELECT count(*) FROM patients")" = 20000 ] || fail "the repaired cluster lacks rows"
 [ "$(sql "SELECT pg_tablespace_location($oid)")" = "$work/elsewhere" ] || fail "the tablespace is not where it was to be"
 [ "$(sql "SHOW archive_mode")" = off ] || fail "a copy archives"
 [ "$(sql "SHOW max_logical_replication_workers")" = 0 ] || fail "a copy follows subscriptions")
code=0; kw --yes pg restore "$from" "$work/copy" --tablespace "fast=$work/elsewhere" --no-safety-snapshot 2>"$work/refused" || code=$?
[ $code = 1 ] && grep -q 'a server runs in' "$work/refused" || fail "a running server was restored over: $code"
as_owner "$BIN/pg_ctl" stop -s -m immediate -D "$work/copy"
compgen -G "$work/copy.pg_wal-*/0*" >/dev/null || fail "the WAL that stood there was not saved"

# A copy of the repository recovers to the end of the log; the log before the oldest base backup goes.
if kw pg --help | grep -q '^  backup '; then
    kw copy --to "$work/second"
    rm -rf "$work/copy" "$work/elsewhere" "$work/copy".*
    as_owner "$keepwell" --repository "$work/second" pg restore "$work/copy" --start --tablespace "fast=$work/elsewhere" \
        --set port=6544 --set "unix_socket_directories=$work/copy" --set listen_addresses= --bin-dir "$BIN"
    (PGHOST=$work/copy PGPORT=6544; [ "$(sql "SELECT count(*) FROM patients")" = 10 ] || fail "the copy of the repository recovered something else")
    as_owner "$BIN/pg_ctl" stop -s -m immediate -D "$work/copy"
fi
kw prune --dry-run
kw --yes prune
kw wal gaps
echo "PostgreSQL $major: verified, extracted, repaired and copied"
