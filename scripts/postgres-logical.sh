#!/usr/bin/env bash
# Logical backups: a database with an object of every common kind is dumped, loaded as another one, and both are compared
# as pg_dump sees them; then one in the place of another, single tables, exports, and dumps of old scripts.
#
# usage: scripts/postgres-logical.sh [MAJOR]     default 15; KEEPWELL names the command, by default that of the dev build
set -euo pipefail
unset XDG_CONFIG_HOME XDG_DATA_HOME XDG_CACHE_HOME # what is written stays in the work directory
cd "$(dirname "$0")/.."
major=${1:-15}
keepwell=${KEEPWELL:-$(realpath "${CARGO_TARGET_DIR:-target}")/debug/keepwell}
work=$(mktemp -d)
chmod 755 "$work"
load=
cleanup() {
    if [ -n "$load" ]; then kill "$load" 2>/dev/null || true; wait "$load" 2>/dev/null || true; fi
    for one in server second; do scripts/servers/postgres.sh stop "$work/$one" 2>/dev/null || true; done
    rm -rf "$work"
}
trap cleanup EXIT
fail() { echo "failed: $*" >&2; exit 1; }
as_owner() {
    if [ "$(id -u)" != 0 ]; then env HOME="$work/home" "$@"; else (cd "$work" && setpriv --reuid "$OWNER" --regid "$(id -g "$OWNER")" --clear-groups env HOME="$work/home" "$@"); fi
}

scripts/servers/postgres.sh start "$major" "$work/second" >"$work/env"
. "$work/env"
second="host=$SOCKET port=$PORT user=postgres dbname=postgres"
scripts/servers/postgres.sh start "$major" "$work/server" >"$work/env"
. "$work/env"
if [ -z "$CLIENT_BIN" ]; then CLIENT_BIN=$(scripts/servers/postgres.sh install 17 | sed -n 's/^CLIENT_BIN=//p'); fi
mkdir "$work/home" "$work/repository" "$work/out"
if [ "$(id -u)" = 0 ]; then
    chown "$OWNER" "$work" "$work/home" "$work/repository" "$work/out"
    cp "$keepwell" "$work/keepwell"; keepwell=$work/keepwell
fi
export PGHOST=$SOCKET PGPORT=$PORT PGUSER=postgres PGDATABASE=postgres
sql() { as_owner "$CLIENT_BIN/psql" -XAtq -v ON_ERROR_STOP=1 -d "${2:-clinic}" -c "$1"; }
kw() { as_owner "$keepwell" --repository "$work/repository" "$@"; }
code_of() { local code=0; "$@" >"$work/said" 2>&1 || code=$?; echo $code; }
# As text; without the two lines of newer programs that hold a random word. Rows have no order.
text_of() { # DATABASE [CONNECTION]
    as_owner "$CLIENT_BIN/pg_dump" -d "${2:+$2 }dbname=$1" -f "$work/out/text"
    grep -vE '^\\(un)?restrict ' "$work/out/text" | sort
}
sizes_of() { # large objects: what they hold
    sql "SELECT oid, md5(lo_get(oid)), lomowner::regrole, lomacl FROM pg_largeobject_metadata ORDER BY 1" "$1"
}

as_owner "$CLIENT_BIN/psql" -Xq -v ON_ERROR_STOP=1 -d postgres -f - <scripts/servers/objects.sql >/dev/null 2>&1
# What pg_dump of 16 and newer writes of subscriptions, older servers do not know.
if ((major < 16)) && [ "$BIN" != "$CLIENT_BIN" ]; then sql "DROP SUBSCRIPTION from_afar"; fi
sql "INSERT INTO app.wide SELECT n, repeat(md5(n::text), 20), n FROM generate_series(1, 30000) n"
text_of clinic >"$work/expected"
sizes_of clinic >"$work/expected.large"
kw --quiet init >/dev/null

dump() { kw pg dump --bin-dir "$CLIENT_BIN" "$@"; }
loaded() { kw pg load --bin-dir "$CLIENT_BIN" "$@"; }
same() { # DATABASE WHAT [CONNECTION]
    text_of "$1" "${3:-}" >"$work/found"
    cmp -s "$work/expected" "$work/found" || { diff "$work/expected" "$work/found" | head -20 >&2 || true; fail "$2: the databases differ"; }
}

dump --database clinic --dataset clinic
first=$(kw --json snapshots | python3 -c 'import json, sys
for line in sys.stdin:
    value = json.loads(line)
    if value.get("type") == "snapshot": print(value["id"])' | tail -n 1)

# As another database of the same server.
loaded --database clinic --into copy --verify
same copy "loaded as another database"
sizes_of copy >"$work/found.large"
cmp -s "$work/expected.large" "$work/found.large" || { diff "$work/expected.large" "$work/found.large" >&2 || true; fail "large objects differ"; }
[ "$(sql "SELECT count(*) FROM pg_stats WHERE schemaname = 'app'" copy)" -gt 10 ] || fail "there are no statistics"
[ "$(sql "SELECT nextval('app.people_id_seq')" copy)" = "$(sql "SELECT nextval('app.people_id_seq')")" ] || fail "a sequence stands elsewhere"
settings() { sql "SELECT datcollate, datconnlimit, datdba::regrole, (SELECT array_agg(a ORDER BY a::text) FROM unnest(datacl) a), (SELECT array_agg(setrole::regrole::text || c ORDER BY setrole, c) FROM pg_db_role_setting, unnest(setconfig) c WHERE setdatabase = d.oid), shobj_description(oid, 'pg_database') FROM pg_database d WHERE datname = '$1'" postgres; }
[ "$(settings clinic)" = "$(settings copy)" ] || fail "the database itself differs: $(settings clinic) and $(settings copy)"

# What is there is not touched unless that is said; a database that cannot be filled is not left behind.
[ "$(code_of loaded --database clinic)" = 1 ] && grep -q 'has a database `clinic`' "$work/said" || fail "an existing database was not refused: $(cat "$work/said")"
[ "$(code_of loaded --database nothing --into x)" = 1 ] || fail "a database that is not there"
[ "$(code_of dump --database clinic --exclude-rows app.nothing)" = 1 ] && grep -q 'fits no table' "$work/said" || fail "a pattern that fits nothing: $(cat "$work/said")"

# On another server, with the roles that it lacks.
loaded --to "$second" --database clinic
same clinic "loaded into another server" "$second"
[ "$(as_owner "$CLIENT_BIN/psql" -XAtq -d "$second" -c "SELECT count(*) FROM pg_auth_members WHERE roleid = 'reader'::regrole AND member = 'clinic_owner'::regrole")" = 1 ] || fail "a membership is missing"
[ "$(as_owner "$CLIENT_BIN/psql" -XAtq -d "$second" -c "SELECT rolpassword ~ '^SCRAM' FROM pg_authid WHERE rolname = 'clinic_owner'")" = t ] || fail "a password is missing"

# In the place of the one that is there, while somebody is connected to it.
sql "UPDATE app.people SET name = 'lost'; DROP TABLE app.wide"
as_owner "$CLIENT_BIN/psql" -Xq -d clinic -c "SELECT pg_sleep(300)" >/dev/null 2>&1 &
load=$!
[ "$(code_of kw pg load --bin-dir "$CLIENT_BIN" --database clinic --replace)" = 2 ] || fail "it was not asked for"
kw --yes pg load --bin-dir "$CLIENT_BIN" "$first" --database clinic --replace
wait "$load" 2>/dev/null && fail "a connection was left"; load=
same clinic "replaced"
old=$(sql "SELECT datname FROM pg_database WHERE datname LIKE 'clinic_old_%'" postgres)
[ "$(sql "SELECT DISTINCT name FROM app.people" "$old")" = lost ] || fail "the old database is not what it was"
# A database with a subscription cannot be dropped; that of the one that takes its place is another one.
sql "DROP SUBSCRIPTION IF EXISTS from_afar"
kw --yes pg load --bin-dir "$CLIENT_BIN" "$first" --database clinic --replace --drop-old
[ "$(sql "SELECT count(*) FROM pg_database WHERE datname LIKE 'clinic_old_%'" postgres)" = 1 ] || fail "an old database is left"

# Into the one that is there.
sql "DROP TABLE app.wide; CREATE TABLE app.own AS SELECT 1 AS n; INSERT INTO app.people (name) VALUES ('more')" copy
kw --yes pg load --bin-dir "$CLIENT_BIN" "$first" --database clinic --into copy --clean >"$work/said" 2>&1 && fail "a schema with a stranger in it was dropped"
grep -q 'other objects depend on it' "$work/said" || fail "it says: $(cat "$work/said")"
sql "DROP TABLE app.own" copy
kw --yes pg load --bin-dir "$CLIENT_BIN" "$first" --database clinic --into copy --clean
same copy "loaded over what was there"

# One table; one schema; everything belongs to somebody else.
loaded "$first" --database clinic --into lost --table app.people --no-owner --no-privileges
[ "$(sql "SELECT count(*) FROM app.people" lost) $(sql "SELECT count(*) FROM app.wide" lost)" = "1000 0" ] || fail "the wrong rows"
loaded "$first" --database clinic --into lost2 --schema app --owner reader --no-privileges
[ "$(sql "SELECT DISTINCT relowner::regrole FROM pg_class WHERE relnamespace = 'app'::regnamespace AND relkind = 'r'" lost2)" = reader ] || fail "the wrong owner"

# What others read: a script, and both kinds of archives, which PostgreSQL's own programs load.
fresh() { sql "DROP DATABASE IF EXISTS $1" postgres; sql "CREATE DATABASE $1 TEMPLATE template0" postgres; }
export_() { kw pg export --bin-dir "$PROGRAMS" --scratch "$work" "$first" --database clinic "$@"; }
PROGRAMS=$CLIENT_BIN
export_ -o "$work/out/clinic.sql.gz"
fresh script
gunzip -c "$work/out/clinic.sql.gz" >"$work/clinic.sql"
as_owner "$CLIENT_BIN/psql" -Xq -v ON_ERROR_STOP=1 -d script -f "$work/clinic.sql" >/dev/null
same script "loaded from the script"
sizes_of script >"$work/found.large"
cmp -s "$work/expected.large" "$work/found.large" || fail "large objects of the script differ"
[ "$(code_of export_ -o "$work/out/clinic.sql.gz")" = 1 ] || fail "a file was overwritten"
for format in custom directory; do
    if [ "$BIN" != "$CLIENT_BIN" ]; then break; fi
    export_ --format $format -o "$work/out/clinic.$format"
    fresh "$format"
    as_owner "$CLIENT_BIN/pg_restore" -e -d "$format" "$work/out/clinic.$format"
    same "$format" "loaded from the archive"
done
kw --json pg export --globals -o "$work/out/globals.sql" >"$work/said"
grep -q '"type":"exported"' "$work/said" || fail "what was written is not told: $(cat "$work/said")"
grep -q '^CREATE ROLE clinic_owner' "$work/out/globals.sql" || fail "the roles are missing"
compgen -G "$work/keepwell-scratch-*" >/dev/null && fail "a scratch server was left behind"

# Interrupted, an archive leaves nothing behind; killed, its server ends with it, and the next one removes what it left.
as=(env HOME="$work/home")
if [ "$(id -u)" = 0 ]; then as=(setpriv --reuid "$OWNER" --regid "$(id -g "$OWNER")" --clear-groups env HOME="$work/home"); fi
for signal in INT KILL; do
    if [ "$BIN" != "$CLIENT_BIN" ]; then break; fi
    "${as[@]}" "$keepwell" --repository "$work/repository" pg export --bin-dir "$PROGRAMS" --scratch "$work" "$first" \
        --database clinic --format custom -o "$work/out/stopped.$signal" >/dev/null 2>&1 &
    load=$!
    scratch_server=
    for _ in $(seq 600); do
        scratch_server=$(cat "$work"/keepwell-scratch-*/data/postmaster.pid 2>/dev/null | head -n 1 || true)
        if [ -n "$scratch_server" ]; then break; fi
        sleep 0.05
    done
    [ -n "$scratch_server" ] || fail "no scratch server started"
    kill -s "$signal" "$load"
    code=0; wait "$load" || code=$?
    load=
    for _ in $(seq 200); do [ -e "/proc/$scratch_server" ] || break; sleep 0.05; done
    [ ! -e "/proc/$scratch_server" ] || fail "a scratch server outlived its export ($signal)"
    if [ "$signal" = INT ]; then
        [ $code = 130 ] || fail "an interrupted export ended with $code"
        [ ! -e "$work/out/stopped.INT" ] || fail "an interrupted export left half an archive"
        compgen -G "$work/keepwell-scratch-*" >/dev/null && fail "an interrupted export left its directory"
    else
        compgen -G "$work/keepwell-scratch-*" >/dev/null || fail "a killed export cleaned up, and nothing was tried"
        export_ --format custom -o "$work/out/again.custom" >"$work/said" 2>&1
        grep -q 'which a killed run left' "$work/said" || fail "nothing was removed: $(cat "$work/said")"
        compgen -G "$work/keepwell-scratch-*" >/dev/null && fail "what a killed export left is still there"
    fi
done

# Interrupted, a load leaves no half of a database behind. One that is through before it hears of it is tried again.
for _ in 1 2 3 4 5; do
    "${as[@]}" "$keepwell" --repository "$work/repository" pg load --bin-dir "$CLIENT_BIN" "$first" --database clinic --into stopped >/dev/null 2>&1 &
    load=$!
    for _ in $(seq 600); do
        if [ -n "$(sql "SELECT 1 FROM pg_database WHERE datname = 'stopped'" postgres)" ]; then break; fi
        sleep 0.02
    done
    kill -s TERM "$load" 2>/dev/null || true
    code=0; wait "$load" || code=$?
    load=
    there=$(sql "SELECT 1 FROM pg_database WHERE datname = 'stopped'" postgres)
    if [ $code = 130 ]; then break; fi
    [ $code = 0 ] && [ -n "$there" ] || fail "a load ended with $code"
    sql "DROP SUBSCRIPTION IF EXISTS from_afar" stopped
    sql "DROP DATABASE stopped" postgres
done
[ $code = 130 ] || fail "no load was interrupted in time"
[ -z "$there" ] || fail "an interrupted load left half a database"

# What old scripts left.
as_owner "$CLIENT_BIN/pg_dump" -Fc -d clinic -f "$work/out/old.dump"
as_owner "$CLIENT_BIN/pg_dump" -d clinic -f "$work/out/old.sql"
as_owner gzip "$work/out/old.sql"
as_owner touch -d '2024-02-03 04:05:06 UTC' "$work/out/old.sql.gz"
(cd "$work/out" && md5sum old.dump >old.dump.md5 && sha256sum old.sql.gz >old.sql.gz.sha256)
kw pg import --dataset old "$work/out/old.dump" "$work/out/old.sql.gz" 2>&1 | tee "$work/said"
[ "$(grep -c '^  it fits old' "$work/said")" = 2 ] || fail "the checksums were not compared"
kw --json snapshots --dataset old >"$work/said"
grep -q '"time":"2024-02-03T04:05:06' "$work/said" || fail "the time of the file is not that of its snapshot: $(cat "$work/said")"
kw dump "dataset:old:/old.dump" >"$work/out/again"
cmp -s "$work/out/again" "$work/out/old.dump" || fail "the file differs"
before=$(kw --json snapshots | wc -l)
echo x >>"$work/out/old.dump"
[ "$(code_of kw pg import --dataset old "$work/out/old.sql.gz" "$work/out/old.dump")" = 13 ] && grep -q 'is damaged' "$work/said" || fail "it says: $(cat "$work/said")"
[ "$(kw --json snapshots | wc -l)" = "$before" ] || fail "something was stored although a file is damaged"

# Everything, under writing: each database is one moment of its own.
as_owner "$CLIENT_BIN/pgbench" -q -i -s 1 postgres 2>/dev/null
as_owner "$CLIENT_BIN/pgbench" -n -c 2 -T 600 postgres >/dev/null 2>&1 &
load=$!
sleep 1
dump --dataset all
kill "$load"; wait "$load" 2>/dev/null || true; load=
loaded --dataset all --to "$second" --database postgres --into bench
there=$(as_owner "$CLIENT_BIN/psql" -XAtq -d "${second/dbname=postgres/dbname=bench}" -c "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history)
    AND (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT sum(delta) FROM pgbench_history)")
[ "$there" = t ] || fail "the balances do not add up"

# Who may not read everything dumps nothing.
sql "CREATE ROLE modest LOGIN; GRANT CONNECT ON DATABASE clinic TO modest"
before=$(kw --json snapshots | wc -l)
[ "$(code_of kw pg dump --bin-dir "$CLIENT_BIN" "user=modest" --database clinic)" = 1 ] && grep -q 'pg_read_all_data' "$work/said" || fail "it says: $(cat "$work/said")"
[ "$(kw --json snapshots | wc -l)" = "$before" ] || fail "there is a snapshot of what could not be read"

kw --quiet check --read-data >/dev/null
echo "PostgreSQL $major: dumped and loaded; every object, row, large object and sequence is the same"
