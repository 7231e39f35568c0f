#!/usr/bin/env bash
# Two hosts, one bucket of a real S3 server, a user with a policy of its own for each of four machines: from an empty
# bucket to a restore on a third machine while both hosts back up and a keeper prunes, and to a copy in a second bucket.
#
# usage: scripts/many-hosts.sh [ceph|moto] [ROUNDS]     ceph (the default) has users and enforces their policies; moto lets
#                                                       everybody do everything. ROUNDS: least backups of each host, default 5
# environment: KEEPWELL             the binary; default target/debug/keepwell
#              KEEPWELL_TRANSCRIPT  a file for the commands and what they said, as the guide shows them
set -euo pipefail

root=$(realpath "$(dirname "$0")/..")
server=${1:-ceph} rounds=${2:-5}
keepwell=${KEEPWELL:-${CARGO_TARGET_DIR:-$root/target}/debug/keepwell}
[ -x "$keepwell" ] || { echo "there is no $keepwell: cargo build --workspace --bins" >&2; exit 1; }
transcript=${KEEPWELL_TRANSCRIPT:-/dev/null}
: >"$transcript"
work=$(mktemp -d)
steps=0

end() {
    local job
    for job in $(jobs -p); do kill "$job" 2>/dev/null || true; done
    wait || true
    "$root/scripts/servers/$server.sh" stop "$work/server" >/dev/null 2>&1 || true
    chmod -R u+rwX "$work" && rm -rf "$work"
}
trap end EXIT

while read -r name; do unset "$name"; done < <(compgen -e | grep -E '^(KEEPWELL_|XDG_|AWS_|CREDENTIALS_DIRECTORY)' || true)
export TZ=Europe/Berlin
declare -A at
while IFS='=' read -r name value; do at[$name]=$value; done < <("$root/scripts/servers/$server.sh" start "$work/server")
[ -n "${at[ENDPOINT]:-}" ] || { echo "the server did not start" >&2; exit 1; }
users=${at[WRITER_ACCESS_KEY]:+yes}

step() { steps=$((steps + 1)); echo "-- $*"; printf '\n# %s\n' "$*" >>"$transcript"; }
fail() { echo "FAILED: $*" >&2; tail -n 25 "$work/out" "$work/err" >&2 || true; exit 1; }

# Gives MACHINE a home, with the credentials of USER (`OWNER` for the owner of the bucket).
machine() {
    local name=$1 user=$2 access secret
    access=${at[${user}_ACCESS_KEY]:-${at[ACCESS_KEY]}} secret=${at[${user}_SECRET_KEY]:-${at[SECRET_KEY]}}
    mkdir -p "$work/$name/.config/keepwell" "$work/$name/tree"
    printf '%s\n' "$secret" >"$work/$name/s3-secret"
    chmod 600 "$work/$name/s3-secret"
    cat >"$work/$name/.config/keepwell/config.toml" <<X
[profile.default]
repository = "s3://${at[BUCKET]}/office"
key-file = "$work/$name/$name.key"
paths = ["$work/$name/tree"]
host = "$name"
[profile.default.storage]
endpoint = "${at[ENDPOINT]}"
region = "${at[REGION]}"
[profile.default.credentials]
access-key = "$access"
secret-key-file = "$work/$name/s3-secret"
ambient = false
X
}

# Runs the command on MACHINE and demands an exit code; what it says goes to $work/out and $work/err, or OUT.out and OUT.err.
on() { # MACHINE CODE ARGUMENTS…
    local name=$1 wanted=$2 code=0 out=${OUT:-$work/out} err=${OUT:-$work/err}
    shift 2
    [ -z "${OUT:-}" ] || out=$OUT.out err=$OUT.err
    (cd "$work/$name" && HOME=$work/$name "$keepwell" "$@" >"$out" 2>"$err" </dev/null) || code=$?
    if [ -z "${OUT:-}" ] && [ "$1" != --json ]; then
        { printf '%s$ keepwell %s\n' "$name" "$*"; cat "$err" "$out"; [ "$code" = 0 ] || echo "(exit code $code)"; } |
            sed "s|$work/||g; s|$work||g" >>"$transcript"
    fi
    [ "$code" = "$wanted" ] || { [ -z "${OUT:-}" ] || cat "$out" "$err" >&2; fail "$name: keepwell $*: exit code $code, not $wanted"; }
}

says() { grep -qF -- "$1" "$work/out" "$work/err" || fail "nothing says: $1"; }
silent_about() { ! grep -qF -- "$1" "$work/out" "$work/err" || fail "something says: $1"; }

same() {
    local differences
    differences=$(rsync -aHAXc --delete -n --itemize-changes "$1/" "$2/")
    [ -z "$differences" ] || fail "$1 and $2 differ: $differences"
}

# A signed request as USER: METHOD PATH [HEADER:VALUE]…, the body from standard input; prints the answer's status.
request() {
    local user=$1 method=$2 path=$3 error
    shift 3
    if error=$(ACCESS_KEY=${at[${user}_ACCESS_KEY]:-${at[ACCESS_KEY]}} SECRET_KEY=${at[${user}_SECRET_KEY]:-${at[SECRET_KEY]}} \
        REGION=${at[REGION]} /usr/bin/python3 "$root/scripts/servers/s3_request.py" "$method" "${at[ENDPOINT]}/$path" "$@" \
        2>&1 >"$work/answer"); then
        echo 200
    else
        echo "${error##*: }"
    fi
}

must() { # STATUS USER METHOD PATH [HEADER:VALUE]…
    local wanted=$1 got
    shift
    got=$(request "$@")
    [ "$got" = "$wanted" ] || fail "$*: the store answered $got, not $wanted: $(head -c 300 "$work/answer" | tr -cd "[:print:]")"
}

member() { # NAME: the id of a member
    on desk 0 --json key list
    python3 -c 'import json,sys; print([o["id"] for o in map(json.loads, open(sys.argv[1])) if o.get("name") == sys.argv[2]][-1])' "$work/out" "$1"
}

snapshots() { # MACHINE [OPTIONS…]: how many there are
    on "$1" 0 --json "${@:2}" snapshots
    wc -l <"$work/out"
}

# The rules that `policy lifecycle` prints, as the request wants them.
lifecycle_xml() {
    python3 - "$1" <<'X'
import json, sys
def xml(name, value):
    if isinstance(value, list):
        return "".join(xml(name.removesuffix("s"), item) for item in value)
    if isinstance(value, dict):
        value = "".join(xml(key, item) for key, item in value.items())
    return f"<{name}>{str(value).lower() if isinstance(value, bool) else value}</{name}>"
rules = json.load(open(sys.argv[1]))
print(xml("LifecycleConfiguration", {"Rules": rules["Rules"]}), end="")
X
}

change() { # HOST N: some files come, some change, one goes
    head -c $((200000 + RANDOM)) /dev/urandom >"$work/$1/tree/random$(($2 % 3))"
    seq "$2" 20000 >"$work/$1/tree/numbers"
    echo "$2" >"$work/$1/tree/note$2"
    rm -f "$work/$1/tree/note$(($2 - 3))"
}

step "an empty bucket, and who looks after it"
machine desk OWNER
on desk 0 init
on desk 0 doctor
says "exactly one"
[ "$(stat -c %a "$work/desk/desk.key")" = 600 ] || fail "the key can be read by others"

step "a key for each machine"
for host in web1 web2; do
    machine "$host" "$([ $host = web1 ] && echo WRITER || echo WRITER2)"
    on desk 0 key enroll --name "$host" --role writer --output "../$host/$host.key"
done
machine vault KEEPER
on desk 0 key enroll --name vault --role keeper --output ../vault/vault.key
machine lab READER
on desk 0 key enroll --name lab --role reader --output ../lab/lab.key
on desk 0 key list

step "a policy for each user of the store"
on desk 0 policy writer --member "$(member web1)" --principal arn:aws:iam:::user/writer
cp "$work/out" "$work/web1.json"
on desk 0 policy writer --member "$(member web2)" --principal arn:aws:iam:::user/writer2
cp "$work/out" "$work/web2.json"
on desk 0 policy keeper --principal arn:aws:iam:::user/keeper
cp "$work/out" "$work/vault.json"
on desk 0 policy reader --principal arn:aws:iam:::user/reader
cp "$work/out" "$work/lab.json"
on desk 0 policy keeper --principal arn:aws:iam:::user/keepwell # in Ceph an object belongs to who stored it, not to the bucket
cp "$work/out" "$work/desk.json"
python3 -c 'import json,sys; print(json.dumps({"Version": "2012-10-17", "Statement": [s for f in sys.argv[1:] for s in json.load(open(f))["Statement"]]}))' \
    "$work"/{web1,web2,vault,lab,desk}.json >"$work/policy.json"
[ -z "$users" ] || must 200 OWNER PUT "${at[BUCKET]}?policy" <"$work/policy.json"
on desk 0 policy lifecycle
cp "$work/out" "$work/lifecycle.json"
lifecycle_xml "$work/lifecycle.json" >"$work/lifecycle.xml"
must 200 OWNER PUT "${at[BUCKET]}?lifecycle" "content-md5:$(openssl md5 -binary "$work/lifecycle.xml" | base64)" <"$work/lifecycle.xml"

step "the first backup of each host"
for host in web1 web2; do
    cp -a /usr/share/doc/bash* "$work/$host/tree/"
    change "$host" 0
    on "$host" 0 backup
    on "$host" 0 backup
    says "0 new, 0 changed"
done
on web1 12 restore latest --target elsewhere
says "this credential cannot decrypt"

if [ -n "$users" ]; then
    step "what a host cannot do, asked of the store itself"
    pack=$(cd "$work" && request OWNER GET "${at[BUCKET]}?prefix=office/data/" >/dev/null && grep -o '<Key>[^<]*' answer | head -n 1 | cut -c6-)
    must 403 WRITER GET "${at[BUCKET]}/$pack"
    must 403 WRITER DELETE "${at[BUCKET]}/$pack"
    must 403 WRITER DELETE "${at[BUCKET]}/office/keepwell.json"
    must 403 WRITER PUT "${at[BUCKET]}/office/trust/0000000001" <<<x
    must 403 WRITER PUT "${at[BUCKET]}/office/commits/$(member web2)/0000000009" <<<x
    must 403 WRITER PUT "${at[BUCKET]}/elsewhere" <<<x
    must 403 WRITER PUT "${at[BUCKET]}?policy" <"$work/policy.json"
    must 403 WRITER DELETE "${at[BUCKET]}?lifecycle" </dev/null
    must 403 READER PUT "${at[BUCKET]}/office/data/00/x" <<<x
    must 403 READER DELETE "${at[BUCKET]}/$pack"
    must 200 READER GET "${at[BUCKET]}/$pack"

    step "doctor says so too"
    on web1 1 doctor
    says "This writer cannot delete: it was tried, and refused."
    says "This writer cannot read what backups consist of: it was tried, and refused."
    says "This writer can overwrite objects." # Ceph knows no condition that would forbid it
    on vault 0 doctor
    says "These credentials may delete"
    on lab 0 restore latest --host web1 --target first
    same "$work/web1/tree" "$work/lab/first$work/web1/tree"
fi

step "both hosts back up, the keeper prunes, the third machine restores, all at once"
PRUNES_MIN=2
touch "$work"/{backups,prunes,restores}
back_up() { # HOST
    local n
    for ((n = 1; n <= rounds || $(wc -l <"$work/prunes") < PRUNES_MIN; n++)); do
        change "$1" "$n"
        OUT=$work/$1-backup on "$1" 0 backup
        echo x >>"$work/backups"
    done
    touch "$work/$1-done"
}
keep() {
    while [ ! -e "$work/web1-done" ] || [ ! -e "$work/web2-done" ]; do
        OUT=$work/vault-forget on vault 0 forget --keep-last 2
        OUT=$work/vault-prune on vault 0 prune --max-unused 0
        echo x >>"$work/prunes"
    done
}
look() {
    local n=0 dir
    while [ ! -e "$work/web1-done" ] || [ ! -e "$work/web2-done" ]; do
        dir=$work/lab/look$((n++))
        OUT=$work/lab-restore on lab 0 restore latest --host "web$((n % 2 + 1))" --target "$dir"
        rm -rf "$dir"
        echo x >>"$work/restores"
    done
}
back_up web1 &
back_up web2 &
keep &
look &
# Whichever ends first: the others wait for each other, and would do so for one that has failed.
for _ in 1 2 3 4; do wait -n || fail "one of them failed"; done
echo "   $(wc -l <"$work/backups") backups, $(wc -l <"$work/prunes") prunes, $(wc -l <"$work/restores") restores"

step "what is there is whole"
on vault 0 forget --keep-last 2
on vault 0 prune --exclusive
on lab 0 snapshots
[ "$(snapshots lab)" = 4 ] || fail "two snapshots of each host were to be kept"
on lab 0 check --read-data
says "no damage was found"
for host in web1 web2; do
    on lab 0 restore latest --host "$host" --target "from-$host"
    same "$work/$host/tree" "$work/lab/from-$host$work/$host/tree"
done

step "a copy in another bucket, and a restore from that alone"
must 200 OWNER PUT elsewhere </dev/null
cat >>"$work/desk/.config/keepwell/config.toml" <<X
[[profile.default.copy]]
name = "elsewhere"
to = "s3://elsewhere/office"
[profile.elsewhere]
repository = "s3://elsewhere/office"
key-file = "$work/desk/desk.key"
[profile.elsewhere.storage]
endpoint = "${at[ENDPOINT]}"
region = "${at[REGION]}"
[profile.elsewhere.credentials]
access-key = "${at[ACCESS_KEY]}"
secret-key-file = "$work/desk/s3-secret"
ambient = false
X
on desk 0 copy
on desk 0 copy
says "up to date"
on desk 0 copies
on desk 0 --profile elsewhere check --read-data
on desk 0 --profile elsewhere restore latest --host web2 --target from-copy
same "$work/web2/tree" "$work/desk/from-copy$work/web2/tree"

step "a pack is lost, and nobody need notice"
pack=$(cd "$work" && request OWNER GET "${at[BUCKET]}?prefix=office/data/" >/dev/null && grep -o '<Key>[^<]*' answer | cut -c6-)
for key in $pack; do must 200 OWNER DELETE "${at[BUCKET]}/$key" </dev/null || true; done
on desk 0 restore latest --host web2 --target from-both
says "is taken from the copy"
same "$work/web2/tree" "$work/desk/from-both$work/web2/tree"

echo "$steps steps passed"
