#!/usr/bin/env bash
# A repository whose data packs lie in an archive class of moto: what a restore, a check and a warm-up say and do.
#
# usage: scripts/archive.sh
# environment: KEEPWELL  the binary; default target/debug/keepwell
set -euo pipefail

root=$(realpath "$(dirname "$0")/..")
keepwell=${KEEPWELL:-${CARGO_TARGET_DIR:-$root/target}/debug/keepwell}
[ -x "$keepwell" ] || { echo "there is no $keepwell: cargo build --workspace --bins" >&2; exit 1; }
work=$(mktemp -d)

end() {
    "$root/scripts/servers/moto.sh" stop "$work/server" >/dev/null 2>&1 || true
    chmod -R u+rwX "$work" && rm -rf "$work"
}
trap end EXIT

while read -r name; do unset "$name"; done < <(compgen -e | grep -E '^(KEEPWELL_|XDG_|AWS_|CREDENTIALS_DIRECTORY)' || true)
export HOME=$work/home TZ=Europe/Berlin
declare -A at
while IFS='=' read -r name value; do at[$name]=$value; done < <("$root/scripts/servers/moto.sh" start "$work/server")
[ -n "${at[ENDPOINT]:-}" ] || { echo "the server did not start" >&2; exit 1; }

step() { echo "-- $*"; }
fail() { echo "FAILED: $*" >&2; tail -n 25 "$work/out" "$work/err" >&2 || true; exit 1; }
expect() { # CODE ARGUMENTS…
    local wanted=$1 code=0
    shift
    "$keepwell" "$@" >"$work/out" 2>"$work/err" </dev/null || code=$?
    [ "$code" = "$wanted" ] || fail "keepwell $*: exit code $code, not $wanted"
}
says() { grep -qF -- "$1" "$work/out" "$work/err" || fail "nothing says: $1"; }

mkdir -p "$HOME/.config/keepwell" "$work/tree"
printf '%s\n' "${at[SECRET_KEY]}" >"$work/s3-secret"
chmod 600 "$work/s3-secret"
# Without the condition, as with a service that has none.
cat >"$HOME/.config/keepwell/config.toml" <<X
[profile.default]
repository = "s3://${at[BUCKET]}/archive"
paths = ["$work/tree"]
[profile.default.storage]
endpoint = "${at[ENDPOINT]}"
region = "${at[REGION]}"
cold-class = "GLACIER"
conditional-create = false
[profile.default.credentials]
access-key = "${at[ACCESS_KEY]}"
secret-key-file = "$work/s3-secret"
ambient = false
X
head -c 80000000 /dev/urandom >"$work/tree/large"
echo small >"$work/tree/file"

step "a backup, whose large packs go to the archive"
expect 0 init
expect 0 backup --threads 2 # each fills a pack: with many, on a machine with many processors, none would be large
expect 0 snapshots

step "a restore refuses at once, and says how many packs must be thawed"
expect 0 restore latest --target "$work/planned" --plan
says "in an archive"
[ ! -e "$work/planned" ] || fail "a plan makes nothing"
expect 1 restore latest --target "$work/refused"
says "must be thawed first"
says "keepwell warm-up"
[ ! -e "$work/refused/$work/tree/file" ] || fail "something was restored"
expect 3 restore latest --target "$work/rest" --leave-archived

step "a check counts what it could not read"
expect 0 check --read-data
says "in an archive and could not be read"

step "a command asks for packs by the names that the store has for them"
expect 0 warm-up latest --command "cat >'$work/names'" --no-wait
says "asked for them"
grep -q '^archive/data/' "$work/names" || fail "the names lack the prefix: $(cat "$work/names")"
expect 0 warm-up latest --command "tee '$work/names'" --no-wait --json
python3 -c 'import json,sys; [json.loads(line)["type"] for line in open(sys.argv[1])]' "$work/out" ||
    fail "what the command says stands among the lines of JSON"
grep -q '^archive/data/' "$work/err" || fail "what the command says is not told"
expect 1 warm-up latest --command 'exit 7' --no-wait
says "the command that warms up failed"

step "warm-up asks the store, and then everything is restored"
expect 0 warm-up latest --days 1 --speed bulk
says "everything can be read now"
expect 0 restore latest --target "$work/back"
cmp "$work/tree/large" "$work/back/$work/tree/large"
cmp "$work/tree/file" "$work/back/$work/tree/file"
expect 0 warm-up latest
says "all can be read now"
echo "the archive: all steps passed"
