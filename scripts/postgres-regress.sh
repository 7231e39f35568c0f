#!/usr/bin/env bash
# PostgreSQL's own regression database, which has objects of every kind: `make installcheck` runs while WAL is received
# and a base backup is taken. Restored from before, amid and after it, and loaded from a logical backup, it must dump as
# the source does.
#
# usage: scripts/postgres-regress.sh [MAJOR]      15 (the default), 17 or 18; KEEPWELL names the command, by default that
#                                                 of the dev build
set -euo pipefail
unset XDG_CONFIG_HOME XDG_DATA_HOME XDG_CACHE_HOME # what is written stays in the work directory
cd "$(dirname "$0")/.."
major=${1:-15}
keepwell=${KEEPWELL:-$(realpath "${CARGO_TARGET_DIR:-target}")/debug/keepwell}
work=$(mktemp -d)
chmod 755 "$work"
running=()
cleanup() {
    if ((${#running[@]})); then kill "${running[@]}" 2>/dev/null || true; wait "${running[@]}" 2>/dev/null || true; fi
    if [ -e "$work/back/postmaster.pid" ]; then as_owner "$BIN/pg_ctl" stop -s -m immediate -D "$work/back" || true; fi
    scripts/servers/postgres.sh stop "$work/server" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
fail() { echo "failed: $*" >&2; tail -n 5 "$work"/*.log >&2 || true; exit 1; }
as=(env HOME="$work/home")
as_owner() { (cd "$work" && "${as[@]}" "$@"); }
in_background() { # LOG COMMAND…
    (cd "$work" && exec "${as[@]}" "${@:2}") >"$1" 2>&1 &
    running+=($!)
}

conf=(--conf 'wal_level = logical' --conf 'max_prepared_transactions = 10')
if ((major >= 17)); then conf+=(--conf 'summarize_wal = on'); fi
scripts/servers/postgres.sh regress "$major" >"$work/regress.env"
scripts/servers/postgres.sh start "$major" "$work/server" "${conf[@]}" >"$work/env"
. "$work/regress.env"
. "$work/env"
mkdir "$work/home" "$work/repository" "$work/out"
if [ "$(id -u)" = 0 ]; then
    as=(setpriv --reuid "$OWNER" --regid "$(id -g "$OWNER")" --clear-groups env HOME="$work/home")
    chown "$OWNER" "$work" "$work/home" "$work/repository" "$work/out"
    cp "$keepwell" "$work/keepwell"; keepwell=$work/keepwell
fi
export PGHOST=$SOCKET PGPORT=$PORT PGUSER=postgres PGDATABASE=postgres
sql() { as_owner "$CLIENT_BIN/psql" -XAtq -v ON_ERROR_STOP=1 -c "$1"; }
kw() { as_owner "$keepwell" --repository "$work/repository" "$@"; }
backup() { # sets `id`
    kw --quiet --json pg backup 'user=postgres' --dataset regress >"$work/backup.json" || fail "the backup: $(cat "$work/backup.json")"
    id=$(python3 -c 'import json, sys
for line in sys.stdin:
    value = json.loads(line)
    if value.get("type") == "pg_backup": print(value["snapshot"])' <"$work/backup.json")
}
# Two lines of newer programs hold a random word. Rows of unlogged tables do not outlive a recovery.
whole() { as_owner "$CLIENT_BIN/pg_dumpall" --no-unlogged-table-data | grep -vE '^\\(un)?restrict '; }

# The log has each sequence up to 32 values ahead, which is where a recovery leaves it.
values() { sed -E 's/^(SELECT pg_catalog.setval\([^,]*), .*/\1/'; }

kw --quiet init >/dev/null
in_background "$work/receiver.log" "$keepwell" --repository "$work/repository" wal receive 'user=postgres' --dataset regress --create-slot --tail-every 1
for _ in $(seq 600); do grep -qs streaming "$work/receiver.log" && break; sleep 0.1; done
backup
before=$id

# What `make installcheck` runs. Tests that fail for the locale or the clock of this host leave their objects all the same.
options=(--inputdir="$REGRESS/src" --outputdir="$work/out" --bindir="$CLIENT_BIN" --dlpath="$REGRESS/lib"
    --schedule="$REGRESS/src/parallel_schedule" --max-concurrent-tests=20 --host="$SOCKET" --port="$PORT" --user=postgres)
if ((major >= 16)); then options+=(--expecteddir="$REGRESS/src"); fi
in_background "$work/regress.log" "$REGRESS/pg_regress" "${options[@]}"
tests=$!
for _ in $(seq 1200); do [ "$(sql "SELECT count(*) FROM pg_database WHERE datname = 'regression'")" = 1 ] && break; sleep 0.1; done
backup
amid=$id
kill -0 "$tests" 2>/dev/null || echo "the tests were over before the second backup was"
wait "$tests" || true
passed=$(grep -cE '^ok |\.\.\. ok ' "$work/regress.log" || true) total=$(grep -cE '^(not )?ok |\.\.\. (ok|FAILED) ' "$work/regress.log" || true)
((passed * 20 >= total * 19 && total > 150)) || fail "only $passed of $total tests passed"
checked() { as_owner "$CLIENT_BIN/pg_amcheck" --install-missing=pg_catalog --heapallindexed --rootdescend -d regression >"$work/checked.log" 2>&1; }
checked || fail "what the tests left has faults from the beginning"
backup
after=$id

whole | values >"$work/expected"
last=$(sql "SELECT pg_current_wal_flush_lsn()")
archived() { [ "$(sql "SELECT flush_lsn >= '$last' FROM pg_stat_replication WHERE application_name = 'keepwell'")" = t ]; }
for _ in $(seq 1200); do archived && break; sleep 0.1; done
archived || fail "the log is not archived"

# The first test makes a tablespace inside the data directory. Where one is there when a recovery gets to the end of the
# base backup, the server goes on only with the setting that the test has.
in_place=(--set allow_in_place_tablespaces=on)
restored() { # SNAPSHOT WHAT
    kw --quiet --yes pg restore "$1" "$work/back" --start --bin-dir "$BIN" --set port="$PORT" --set unix_socket_directories="$work/out" \
        --set listen_addresses= "${in_place[@]}" >"$work/restore.log" 2>&1 || fail "$2: it was not restored"
    (export PGHOST=$work/out; whole | values) >"$work/found"
    cmp -s "$work/expected" "$work/found" || { diff "$work/expected" "$work/found" | head -20 >&2 || true; fail "$2: it dumps otherwise"; }
    (export PGHOST=$work/out; checked) || fail "$2: it has faults"
    as_owner "$BIN/pg_ctl" stop -s -m fast -D "$work/back"
    rm -rf "$work/back"
}
restored "$after" "from after the tests"
restored "$amid" "from amid the tests"
restored "$before" "from before the tests"

# As a logical backup, into another database beside it.
# Columns of tables that inherit may stand in another order after pg_dump and pg_restore, as PostgreSQL's own tests know.
text_of() { # DATABASE: what it is made of; `--verify` reads every row back and compares it by the names of columns
    as_owner "$CLIENT_BIN/pg_dump" --schema-only -d "$1" -f "$work/out/text"
    grep -vE '^\\(un)?restrict ' "$work/out/text" | sed 's/,$//' | sort
}
kw --quiet pg dump 'user=postgres' --bin-dir "$CLIENT_BIN" --database regression --dataset logical >/dev/null
kw --quiet pg load --bin-dir "$CLIENT_BIN" --database regression --into loaded --verify >"$work/load.log" 2>&1 || fail "it was not loaded"
text_of regression >"$work/expected"
text_of loaded >"$work/found"
cmp -s "$work/expected" "$work/found" || { diff "$work/expected" "$work/found" | head -20 >&2 || true; fail "the loaded one dumps otherwise"; }
echo "PostgreSQL $major: $passed of $total regression tests passed; restored from before, amid and after them, and loaded, the database dumps as it did"
