#!/usr/bin/env bash
# A repository that is away while a server is written to: the slot holds the log back, the receiver waits and catches up, and
# nothing that was committed is missing. The repository is an S3 server (moto) behind a proxy that is ended and begun again.
#
# usage: [OUTAGE=SECONDS] scripts/postgres-outage.sh [MAJOR]   default 15, and half a minute; KEEPWELL names the command, by
#                                                              default that of the dev build
set -euo pipefail
while read -r name; do unset "$name"; done < <(compgen -e | grep -E '^(XDG_|AWS_)' || true)
cd "$(dirname "$0")/.."
major=${1:-15}
outage=${OUTAGE:-30}
keepwell=${KEEPWELL:-$(realpath "${CARGO_TARGET_DIR:-target}")/debug/keepwell}
work=$(mktemp -d)
chmod 755 "$work"
receiver= load= proxy=
end() { # PID: a process with its children
    local child
    for child in $(pgrep -P "$1" || true); do end "$child"; done
    kill -9 "$1" 2>/dev/null || true
}
cleanup() {
    local one
    for one in $load $receiver $proxy; do end "$one"; wait "$one" 2>/dev/null || true; done
    if [ -e "$work/copy/postmaster.pid" ]; then as_owner "$BIN/pg_ctl" stop -s -m immediate -D "$work/copy" || true; fi
    scripts/servers/postgres.sh stop "$work/server" 2>/dev/null || true
    scripts/servers/moto.sh stop "$work/moto" >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap cleanup EXIT
fail() { echo "failed: $*" >&2; tail -n 20 "$work"/*.log >&2 || true; exit 1; }
as=(env HOME="$work/home")
as_owner() { (cd "$work" && "${as[@]}" "$@"); }
sql() { as_owner "$CLIENT_BIN/psql" -XAtq -v ON_ERROR_STOP=1 -c "$1"; }
kw() { as_owner "$keepwell" "$@"; }
until_true() { # WHAT COMMAND…: waits for five minutes
    local what=$1 _
    shift
    for _ in $(seq 3000); do if "$@"; then return; fi; sleep 0.1; done
    fail "$what"
}

declare -A store
while IFS='=' read -r name value; do store[$name]=$value; done < <(scripts/servers/moto.sh start "$work/moto")
[ -n "${store[PORT]:-}" ] || fail "moto did not start"
scripts/servers/postgres.sh start "$major" "$work/server" --conf 'max_wal_size = 64MB' --conf 'max_slot_wal_keep_size = 8GB' >"$work/env"
. "$work/env"
if [ -z "$CLIENT_BIN" ]; then CLIENT_BIN=$(scripts/servers/postgres.sh install 17 | sed -n 's/^CLIENT_BIN=//p'); fi
export PGHOST=$SOCKET PGPORT=$PORT PGUSER=postgres PGDATABASE=postgres
front=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
cat >"$work/proxy.py" <<'PYTHON'
import socket, sys, threading
here, there = int(sys.argv[1]), int(sys.argv[2])
listener = socket.create_server(("127.0.0.1", here))
def pass_on(a, b):
    try:
        while data := a.recv(1 << 16):
            b.sendall(data)
    except OSError:
        pass
    for one in a, b:
        try:
            one.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
while True:
    client, _ = listener.accept()
    server = socket.create_connection(("127.0.0.1", there))
    for pair in (client, server), (server, client):
        threading.Thread(target=pass_on, args=pair, daemon=True).start()
PYTHON
begin_proxy() {
    python3 "$work/proxy.py" "$front" "${store[PORT]}" >"$work/proxy.log" 2>&1 &
    proxy=$!
}
mkdir -p "$work/home/.config/keepwell"
printf '%s\n' "${store[SECRET_KEY]}" >"$work/home/secret"
chmod 600 "$work/home/secret"
# moto looks, then stores; here one writes at a time.
cat >"$work/home/.config/keepwell/config.toml" <<X
[profile.default]
repository = "s3://${store[BUCKET]}/outage"
[profile.default.storage]
endpoint = "http://127.0.0.1:$front"
region = "${store[REGION]}"
conditional-create = false
[profile.default.credentials]
access-key = "${store[ACCESS_KEY]}"
secret-key-file = "$work/home/secret"
ambient = false
X
if [ "$(id -u)" = 0 ]; then
    as=(setpriv --reuid "$OWNER" --regid "$(id -g "$OWNER")" --clear-groups env HOME="$work/home")
    chown -R "$OWNER" "$work/home"
    chown "$OWNER" "$work"
    cp "$keepwell" "$work/keepwell"; keepwell=$work/keepwell
fi
streams() { [ "$(sql "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND application_name = 'keepwell'")" = 1 ]; }
archived() { [ "$(sql "SELECT count(*) FROM pg_stat_replication WHERE flush_lsn >= '$1'")" = 1 ]; }
held() { sql "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint FROM pg_replication_slots WHERE slot_name = 'keepwell'"; }

begin_proxy
until_true "no way to the store" curl -sSf -o /dev/null "http://127.0.0.1:$front/moto-api/"
kw --quiet init >/dev/null
sql "CREATE TABLE marks (n bigserial PRIMARY KEY, at timestamptz DEFAULT clock_timestamp())"
sql "CREATE TABLE filler AS SELECT n, repeat(md5(n::text), 25) AS text FROM generate_series(1, 20000) n"
(cd "$work" && exec "${as[@]}" "$keepwell" wal receive 'user=postgres' --create-slot --tail-every 1) >"$work/receiver.log" 2>&1 &
receiver=$!
until_true "no stream" streams
kw --quiet pg backup 'user=postgres' >/dev/null
(cd "$work" && while :; do "${as[@]}" "$CLIENT_BIN/psql" -XAtq -c "INSERT INTO marks DEFAULT VALUES" -c "UPDATE filler SET n = n WHERE n % 500 = 1" || true; sleep 0.05; done) >/dev/null 2>&1 &
load=$!
sleep 2

end "$proxy"; wait "$proxy" 2>/dev/null || true
began=$(sql "SELECT pg_current_wal_flush_lsn()")
sql "INSERT INTO filler SELECT n, (SELECT string_agg(md5(random()::text || m), '') FROM generate_series(1, 25 + n % 2) m) FROM generate_series(1, 60000) n"
sleep "$outage"
grep -q 'waits for the repository' "$work/receiver.log" || fail "the receiver does not say that it waits"
behind=$(sql "SELECT pg_current_wal_flush_lsn()")
! archived "$behind" || fail "the server heard that its log is safe, and the store was away"
bytes=$(held)
((bytes > 40000000)) || fail "the slot holds only $bytes bytes"
kill -0 "$receiver" || fail "the receiver ended"
begin_proxy
back=$(date +%s)
until_true "it did not catch up" archived "$behind"
took=$(($(date +%s) - back))
end "$load"; wait "$load" 2>/dev/null || true; load=
last=$(sql "SELECT pg_current_wal_flush_lsn()")
until_true "the end of the log was not archived" archived "$last"
kw wal gaps >/dev/null || fail "the outage left a gap"
bytes_after=$(held)

expected=$(sql "SELECT (SELECT count(*) || ' ' || max(n) FROM marks), (SELECT count(*) || ' ' || md5(string_agg(t::text, ',' ORDER BY t::text)) FROM filler t)")
kw --quiet pg restore "$work/copy" --start --bin-dir "$BIN" --set port="$PORT" --set unix_socket_directories="$work" --set listen_addresses= \
    >"$work/restore.log" 2>&1 || fail "the restore"
found=$( (export PGHOST=$work; sql "SELECT (SELECT count(*) || ' ' || max(n) FROM marks), (SELECT count(*) || ' ' || md5(string_agg(t::text, ',' ORDER BY t::text)) FROM filler t)"))
[ "$found" = "$expected" ] || fail "rows are missing: $found instead of $expected"
echo "PostgreSQL $major: the store was away for $outage s from $began on; the slot held $bytes bytes, which were archived $took s after it was back ($bytes_after are held now); no gap, and every row came back (${expected%%|*} marks)"
