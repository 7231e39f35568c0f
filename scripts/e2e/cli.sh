#!/usr/bin/env bash
# Drives the command as a person would: every verb, every exit code that can be provoked, restores compared byte by byte.
#
# usage: scripts/e2e/cli.sh [WORK]     WORK: an empty directory; default: a new one, removed afterwards
# environment: KEEPWELL  the binary; default target/debug/keepwell, built if it is missing
set -euo pipefail

root=$(realpath "$(dirname "$0")/../..")
keepwell=${KEEPWELL:-${CARGO_TARGET_DIR:-$root/target}/debug/keepwell}
[ -x "$keepwell" ] || (cd "$root" && cargo build --locked --workspace --bins)
if [ $# -gt 0 ]; then work=$(realpath "$1") ours=; else work=$(mktemp -d) ours=yes; fi

# However it ends: no backup goes on in a directory that is gone, and nothing stays mounted.
end() {
    local job place
    for job in $(jobs -p); do kill "$job" 2>/dev/null || true; done
    wait || true
    for place in "$work/disks/m" "$work/small"; do umount "$place" 2>/dev/null || true; done
    [ -z "$ours" ] || { chmod -R u+rwX "$work" && rm -rf "$work"; }
}
trap end EXIT

# Nothing of the caller's settings may reach the command.
while read -r name; do unset "$name"; done < <(compgen -e | grep -E '^(KEEPWELL_|XDG_|CREDENTIALS_DIRECTORY)' || true)
export HOME=$work/home TZ=Europe/Berlin
mkdir -p "$HOME" "$work/tree"
log=$work/log
steps=0

step() { steps=$((steps + 1)); echo "-- $*" | tee -a "$log"; }

fail() { echo "FAILED: $*" >&2; tail -n 25 "$log" | cut -c1-400 >&2; exit 1; }

# Runs the command and demands an exit code; output goes to $work/out and $work/err.
expect() { # CODE ARGUMENTS…
    local wanted=$1 code=0
    shift
    echo "\$ keepwell $*" >>"$log"
    "$keepwell" "$@" >"$work/out" 2>"$work/err" </dev/null || code=$?
    [ "$1" = dump ] || cat "$work/out" >>"$log"
    cat "$work/err" >>"$log"
    [ "$code" = "$wanted" ] || fail "keepwell $*: exit code $code, not $wanted"
}

says() { grep -qF -- "$1" "$work/out" "$work/err" || fail "nothing says: $1"; }
silent_about() { ! grep -qF -- "$1" "$work/out" "$work/err" || fail "something says: $1"; }

wait_for() { # MESSAGE COMMAND…: until the command succeeds, a minute at most
    local message=$1
    shift
    for _ in $(seq 600); do
        ! "$@" || return 0
        sleep 0.1
    done
    fail "$message"
}

# The sign of life of the session that is at work with this cache.
alive_in() { find "$1" -path "*/alive/*" -type f ! -name "*.new" 2>/dev/null | head -n 1 || true; }
has_alive() { [ -n "$(alive_in "$1")" ]; }

same() { # A B: nothing may differ
    local differences
    differences=$(rsync -aHAXc --delete -n --itemize-changes "$1/" "$2/")
    [ -z "$differences" ] || fail "$1 and $2 differ: $differences"
}

json() { # KEY: that field of the last line of type TYPE
    python3 -c 'import json,sys; print([o for o in map(json.loads, open(sys.argv[1])) if o["type"] == sys.argv[2]][-1][sys.argv[3]])' "$work/out" "$1" "$2"
}

# The same on a terminal of its own, where every question gets the same answer; an interrupt ($'\x03') needs no Enter.
on_terminal() { # CODE ANSWER ARGUMENTS…
    local wanted=$1 code=0
    echo "\$ keepwell ${*:3}" >>"$log"
    python3 - "$2" "$keepwell" "${@:3}" >"$work/out" 2>"$work/err" <<'PYTHON' || code=$?
import fcntl, os, pty, signal, struct, sys, termios
answer, command = sys.argv[1], sys.argv[2:]
pid, terminal = pty.fork()
if pid == 0:
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
    os.execve(command[0], command, dict(os.environ, TERM="xterm"))
said, answered = b"", 0
signal.alarm(300)  # a question that nobody can end
while True:
    try:
        part = os.read(terminal, 4096)
    except OSError:
        break
    if not part:
        break
    said += part
    while answer and said.count(b"[y/N]") > answered:
        os.write(terminal, answer.encode() + b"\n" * (answer != "\x03"))
        answered += 1
sys.stdout.buffer.write(said)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
PYTHON
    cat "$work/out" "$work/err" >>"$log"
    [ "$code" = "$wanted" ] || fail "keepwell ${*:3} on a terminal: exit code $code, not $wanted"
}

make_tree() {
    cp -a /usr/share/doc/[a-c]* "$work/tree/"
    mkdir -p "$work/tree/odd/empty"
    printf 'x' >"$work/tree/odd/$(printf 'bad\xff\nname')"
    ln "$work/tree/odd"/bad* "$work/tree/odd/second name"
    ln -s nowhere "$work/tree/odd/link"
    mkfifo "$work/tree/odd/fifo"
    truncate -s 5M "$work/tree/odd/sparse"
    printf 'end' | dd of="$work/tree/odd/sparse" bs=1 seek=4000000 conv=notrunc status=none
    head -c 3000000 /dev/urandom >"$work/tree/odd/random"
    chmod 4711 "$work/tree/odd/random"
    chmod 0500 "$work/tree/odd/empty"
    touch -d '2001-02-03 04:05:06.123456789' "$work/tree/odd/random" "$work/tree/odd"
}

make_tree
tree=$work/tree

step "without any configuration: the first backup makes the repository and says so"
expect 0 backup "$tree"
says "made a repository at $HOME/.local/share/keepwell/repository"
says "keep a copy elsewhere"
key=$(ls "$HOME"/.config/keepwell/keys/*.key)
[ "$(stat -c %a "$key")" = 600 ] || fail "the key file has mode $(stat -c %a "$key")"
grep -q "$key" "$HOME/.config/keepwell/repositories.toml" || fail "the key file is not remembered"

step "quietly, a first backup still says where it made a repository"
mkdir "$work/quiet"
HOME=$work/quiet expect 0 --quiet backup "$tree/odd"
says "made a repository at $work/quiet/.local/share/keepwell/repository"
silent_about "added to the repository"

step "an unchanged tree is not read again"
expect 0 backup "$tree" --json
[ "$(json backup bytes_read)" = 0 ] || fail "$(json backup bytes_read) bytes were read"
expect 0 snapshots
[ "$(wc -l <"$work/out")" = 3 ] || fail "two snapshots and a heading were expected"

step "a restore gives back everything"
expect 0 restore latest --target "$work/back"
same "$tree" "$work/back$tree"
expect 0 restore "latest:$tree/odd" --target "$work/part"
same "$tree/odd" "$work/part"
expect 0 restore "latest~1:$tree/odd/random" --target "$work/one"
cmp "$tree/odd/random" "$work/one/random"
expect 0 restore latest --target "$work/some" --include '*.gz' --exclude '/**/changelog*'
[ -z "$(find "$work/some" -type f ! -name '*.gz')" ] || fail "more than was included"

step "on a terminal: a bar with rate and time left, and colors unless NO_COLOR says otherwise"
head -c 60000000 /dev/urandom >"$work/big" # several packs: what is fetched counts pack by pack
expect 0 backup "$work/big" --dataset big
on_terminal 0 "" restore dataset:big --target "$work/slowly" --limit-download 6MiB
says "MiB of "
says "B/s"
grep -Eq '[0-9]+:[0-9]{2} left' "$work/out" || fail "the bar does not say how long it takes"
on_terminal 0 "" restore "latest~1:$tree/odd/random" --target "$work/quietly" --no-progress
silent_about "B/s"
on_terminal 0 "" snapshots --no-progress
says $'\e[1m'
NO_COLOR=1 on_terminal 0 "" snapshots --no-progress
silent_about $'\e[1m'
expect 0 forget dataset:big
rm -r "$work/big" "$work/slowly"

step "a dry run changes nothing"
expect 0 restore latest --target "$work/nothing" --dry-run
says "free"
[ ! -e "$work/nothing" ] || fail "a dry run made $work/nothing"
expect 0 backup "$tree" --dry-run
says "would back up"
"$keepwell" backup / --dry-run --verbose >"$work/out" 2>"$work/err" &
process=$!
wait_for "the dry run does not begin" test -s "$work/err"
kill -INT "$process"
code=0
wait "$process" || code=$?
[ "$code" = 130 ] || fail "an interrupted dry run: exit code $code"
silent_about "would back up"

step "looking into snapshots"
expect 0 ls latest
says "$tree/odd/sparse"
expect 0 ls "latest:$tree/odd" -l
says "-rws--x--x"
expect 0 find 'random' --newest
says "$tree/odd/random"
expect 0 show latest
says "$tree"
expect 0 dump "latest:$tree/odd/random"
cmp "$work/out" "$tree/odd/random"
expect 2 dump latest
says "names no path"
expect 1 ls latest:/not/there
says "keepwell find"
for format in tar tar.gz tar.zst; do
    expect 0 dump "latest:$tree" --archive "$format"
    rm -rf "$work/untar" && mkdir "$work/untar"
    case $format in
        tar) tar -C "$work/untar" --warning=no-unknown-keyword -xpf "$work/out" ;;
        tar.gz) tar -C "$work/untar" --warning=no-unknown-keyword -xpzf "$work/out" ;;
        tar.zst) zstd -dcq "$work/out" | tar -C "$work/untar" --warning=no-unknown-keyword -xpf - ;;
    esac
    touch -r "$tree" "$work/untar" # names in an archive are relative to the directory, which is not in it
    same "$tree" "$work/untar"
done

step "what changed"
echo more >>"$tree/odd/random" && chmod u+s "$tree/odd/random"
rm "$tree/odd/link"
expect 0 backup "$tree" --tag second --verify
says "read back and proved"
expect 0 diff latest~1 latest
says "M $tree/odd/random"
says "- $tree/odd/link"
expect 0 diff latest~1
says "M $tree/odd/random"
expect 2 diff latest
says "keepwell diff latest~1"
expect 0 diff latest latest

step "no logical backup among others"
expect 1 pg export --database clinic --output "$work/never.sql"
says "there is no logical backup here"

step "a file of patterns that is not there"
expect 2 backup "$tree/odd" --exclude-file "$work/no-patterns"
says "read \`$work/no-patterns\`: No such file or directory"

step "a file of patterns that can be read only once"
mkdir "$work/piped"
HOME=$work/piped expect 0 backup "$tree/odd" --exclude-file <(echo random)
HOME=$work/piped expect 0 ls latest
silent_about "$tree/odd/random"

step "names of snapshots"
expect 0 show tag:second
expect 0 show "dataset:$tree"
expect 0 snapshots --last 1 --json
expect 0 show "$(date -d "$(json snapshot time)" +%F)" # not today's: midnight may have passed
expect 0 show "latest~2"
expect 1 show latest~3
says "goes back further"
expect 1 show 2001-01-01
expect 1 show deadbeef
says "keepwell snapshots"

step "over something: refused unless confirmed, saved first, undone as told"
cp -a "$tree" "$work/live"
expect 2 restore "latest~1:$tree" --target "$work/live" --delete
says "--yes"
same "$tree" "$work/live"
cp -a "$work/live" "$work/live.before"
expect 0 restore "latest~1:$tree" --target "$work/live" --delete --dry-run
says "nothing is removed"
mkdir "$work/live/extra" && touch "$work/live/extra/a" "$work/live/extra/b"
expect 0 restore "latest~1:$tree" --target "$work/live" --delete --dry-run
says "3 things that the snapshot lacks are removed"
says "removed: $work/live/extra"
rm -r "$work/live/extra" && touch -r "$work/live.before" "$work/live"
expect 0 restore "latest~1:$tree" --target "$work/live" --delete --yes
says "To undo:"
undo=$(grep -o 'keepwell restore .*' "$work/err")
[ -L "$work/live/odd/link" ] || fail "the restore did not bring the link back"
# shellcheck disable=SC2086
expect 0 ${undo#keepwell } --yes
same "$work/live.before" "$work/live"

step "one file over another: only that one is saved first"
mkdir "$work/into" && echo old >"$work/into/random" && touch "$work/into/bystander"
expect 0 restore "latest:$tree/odd/random" --target "$work/into" --yes --json
[ "$(json safety_snapshot paths)" = "['$work/into/random']" ] || fail "more was saved than is replaced"

step "a symlink in the way is saved and replaced, or refused; nothing is reached through it"
export KEEPWELL_REPOSITORY=$work/odd-ones
expect 0 init
mkdir -p "$work/two/a" "$work/two/b" && touch "$work/two/a/x" "$work/two/b/y"
expect 0 backup "$work/two/a" "$work/two/b" --dataset two
mkdir -p "$work/t2$work" "$work/aside/a" && touch "$work/aside/a/stays" && ln -s "$work/aside" "$work/t2$work/two"
cp -a "$work/aside" "$work/aside.before"
expect 1 restore latest --dataset two --target "$work/t2" --delete --yes
says "in the way"
same "$work/aside.before" "$work/aside"
expect 0 restore latest --dataset two --target "$work/t2" --yes
same "$work/aside.before" "$work/aside"
[ -f "$work/t2$work/two/a/x" ] || fail "nothing was restored"
undo=$(grep -o 'keepwell restore .*' "$work/err")
# shellcheck disable=SC2086
expect 0 ${undo#keepwell } --yes
[ -L "$work/t2$work/two" ] || fail "the symlink is not back"

step "a file among several captured paths, with --delete"
expect 0 backup "$work/two/a" "$work/two/b/y" --dataset mixed
expect 0 restore latest --dataset mixed --target "$work/t3" --delete --dry-run
[ ! -e "$work/t3" ] || fail "a dry run made $work/t3"
expect 0 restore latest --dataset mixed --target "$work/t3" --delete
[ -f "$work/t3$work/two/b/y" ] || fail "the file does not stand where it was"

step "a part with a captured path in it comes back whole, and --delete removes what is chosen"
mkdir -p "$work/three/in/a" "$work/three/in/b" && touch "$work/three/in/a/x" "$work/three/in/b/y"
expect 0 backup "$work/three" "$work/three/in/a" --dataset three
expect 0 restore "latest:$work/three/in" --dataset three --target "$work/t4" --delete
[ -f "$work/t4/a/x" ] || fail "the captured path in the part is missing"
[ -f "$work/t4/b/y" ] || fail "the rest of the part is missing"
touch "$work/t4/b/new.conf" "$work/t4/b/new.log"
expect 0 restore "latest:$work/three/in" --dataset three --target "$work/t4" --delete --include '*.conf' --include y --yes
[ ! -e "$work/t4/b/new.conf" ] || fail "--delete did not remove what is chosen"
[ -e "$work/t4/b/new.log" ] || fail "--delete removed what is not chosen"
mkdir -p "$work/t4/gone/deep" && touch "$work/t4/gone/x" "$work/t4/gone/deep/k.keep"
expect 0 restore "latest:$work/three/in" --dataset three --target "$work/t4" --delete --exclude '*.keep' --yes
says "removed: $work/t4/gone/x"
[ ! -e "$work/t4/gone/x" ] || fail "--delete did not remove what is not excluded in a directory of its own"
[ -e "$work/t4/gone/deep/k.keep" ] || fail "--delete removed what is excluded with the directory that it is in"

step "a path that is no UTF-8 is saved like any other"
bad=$work/$(printf 'bad\xff') && mkdir "$bad" && echo 1 >"$bad/f"
expect 0 backup "$bad" --dataset bad
echo 2 >"$bad/f"
expect 0 restore latest --dataset bad --target / --yes
[ "$(cat "$bad/f")" = 1 ] || fail "it was not restored"
undo=$(grep -o 'keepwell restore .*' "$work/err")
# shellcheck disable=SC2086
expect 0 ${undo#keepwell } --yes --no-safety-snapshot
[ "$(cat "$bad/f")" = 2 ] || fail "it was not undone"
expect 0 restore latest --dataset bad --target "$bad/target" --json

step "what is on a file system mounted in the target stays, and is named"
mkdir -p "$work/disks/m"
expect 0 backup "$work/disks" -x --dataset disks
if mount -t tmpfs none "$work/disks/m" 2>/dev/null; then
    touch "$work/disks/m/precious" "$work/disks/stray"
    code=0
    "$keepwell" restore "latest:$work/disks" --dataset disks --target "$work/disks" --delete --yes \
        >"$work/out" 2>"$work/err" || code=$?
    left=$(ls "$work/disks/m")
    umount "$work/disks/m"
    [ "$left" = precious ] || fail "what was mounted in the target was emptied"
    [ "$code" = 3 ] || fail "exit code $code, not 3"
    says "not removed: another file system is mounted there"
    [ ! -e "$work/disks/stray" ] || fail "what the snapshot lacks was not removed"
fi

step "what does not fit is refused, also where it is only asked; parts on one file system share its room"
mkdir -p "$work/large/a" "$work/large/b" "$work/small"
head -c 300000 /dev/urandom >"$work/large/a/x" && head -c 300000 /dev/urandom >"$work/large/b/y"
expect 0 backup "$work/large/a" "$work/large/b" --dataset large
if mount -t tmpfs -o size=500k none "$work/small" 2>/dev/null; then
    fits() { expect "$1" restore latest --dataset large --target "$work/small" --yes "${@:2}"; }
    for how in "" "--delete"; do
        # shellcheck disable=SC2086
        for only in "--dry-run" ""; do fits 1 $how $only && says "the restore needs"; done
    done
    fits 0 --include x --dry-run
    umount "$work/small"
fi
unset KEEPWELL_REPOSITORY

step "a whole snapshot with --delete removes only within what was captured"
mkdir -p "$work/other$tree" && touch "$work/other/stays" "$work/other$tree/goes"
expect 0 restore latest --target "$work/other" --delete --yes --no-safety-snapshot
[ -e "$work/other/stays" ] || fail "something outside of what was captured was removed"
same "$tree" "$work/other$tree"

step "a home that holds the repository: neither backed up with it, nor restored over it"
(
    export HOME=$work/home-of-all
    mkdir -p "$HOME/letters" && echo 1 >"$HOME/letters/a"
    expect 0 backup "$HOME"
    says "/repository\` is left out"
    expect 0 ls latest
    says "$HOME/letters/a"
    says "$HOME/.config/keepwell/keys"
    silent_about "keepwell/repository"
    echo 2 >"$HOME/letters/a"
    expect 0 backup "$HOME"
    echo other >"$HOME/.config/keepwell/keys/other.key" # none of the snapshots has it
    touch "$HOME/stray"
    expect 0 restore "latest~1:$HOME" --target "$HOME" --delete --yes
    says "$HOME/.local/share/keepwell/repository stays as it is"
    [ "$(cat "$HOME/letters/a")" = 1 ] || fail "nothing was restored"
    [ ! -e "$HOME/stray" ] || fail "what the snapshot lacks was not removed"
    [ -e "$HOME/.config/keepwell/keys/other.key" ] || fail "a key was removed"
    undo=$(grep -o 'keepwell restore .*' "$work/err")
    # shellcheck disable=SC2086
    expect 0 ${undo#keepwell } --yes
    [ "$(cat "$HOME/letters/a")" = 2 ] || fail "it was not undone"
    expect 0 snapshots --json
    [ "$(wc -l <"$work/out")" = 4 ] || fail "a restore took snapshots away"
    expect 0 check --read-data
    expect 1 restore latest --target "$HOME/.local/share/keepwell/repository"
    says "belongs to the backups themselves"
    own=$(basename "$(ls "$HOME"/.config/keepwell/keys/????????????????*.key)")
    expect 0 key enroll --name laptop --role writer --role reader --output "$HOME/laptop.key"
    expect 0 --key-file "$HOME/laptop.key" backup "$HOME"
    says "$own\` is left out"
    expect 0 ls latest
    says "$HOME/laptop.key"
    silent_about "$own"
) || exit 1

step "check"
expect 0 check
expect 0 check --read-data
says "no damage was found"
expect 0 check --read-data-share 0%
says ", 0 B of them read"
expect 0 check --read-data-share 100% --json
all=$(json check packs_read)
[ "$all" = "$(json check packs)" ] || fail "a share of 100% is $all packs of $(json check packs)"
expect 0 check --read-data-older-than 1d --json
[ "$(json check packs_read)" = 0 ] || fail "what was just read was read again"
expect 2 check --read-data-share 101%
expect 0 check --without-key

step "nobody reads on"
code=0
"$keepwell" dump "latest:$tree/odd/random" --dataset "$tree" 2>"$work/err" | head -c 10 >"$work/out" || code=$?
[ "$code" = 141 ] || fail "dump into a pipe that closes: exit code $code"

step "forget and prune"
expect 2 forget
says "--keep-daily"
expect 2 forget --keep-last 1 --max-unused 10
says "\`--prune\` is not"
expect 2 forget --keep-last 1 --prune --max-unused 101
expect 0 forget --keep-last 1 --dry-run
says "would forget"
expect 0 forget latest --dry-run
says "would forget 1 snapshot"
silent_about "keep 0"
expect 0 forget --keep-last 1 --host nobody
says "no snapshot matches"
expect 0 forget --keep-last 1 --prune --dry-run
says "before these are forgotten"
expect 0 rewrite latest --exclude no-such-name
says "it stays as it is"
expect 0 rewrite latest --exclude random --dry-run
says "$tree/odd/random"
expect 2 rewrite latest --exclude random
says "--dry-run"
expect 0 forget --keep-last 1 --prune
says "no rule keeps it"
says "stored: "
says "removed "
expect 0 unforget
says "could be brought back"
expect 2 unforget 0123456789
on_terminal 0 "" prune
says "nothing to remove"
says "removed "
head -c 300000 /dev/urandom >"$work/goes"
expect 0 backup "$work/goes" --dataset goes
expect 0 forget dataset:goes
expect 0 unforget --json
goes=$(json forgotten snapshot)
expect 2 unforget "$goes" 0123456789
expect 0 unforget --json
[ "$(json forgotten snapshot)" = "$goes" ] || fail "something was brought back although one name meant nothing"
on_terminal 1 n prune --quiet
says "not confirmed"
on_terminal 0 y prune --no-progress
says "removed "
expect 0 check --read-data
expect 0 restore "latest:$tree" --target "$work/after" --dataset "$tree"
same "$tree" "$work/after"

step "tags, and snapshots that are to be kept"
expect 2 tag "dataset:$tree" --keep-until 2020-01-01
says "is in the past"
expect 0 tag "dataset:$tree" --add important --keep-forever --dry-run
says ", important]"
says "kept: as the rules say -> for ever"
on_terminal 1 n tag "dataset:$tree" --add important --keep-forever
says "not confirmed"
expect 1 show tag:important
expect 0 tag "dataset:$tree" --add important --keep-forever
says "kept: as the rules say -> for ever"
expect 1 forget tag:important
says "--allow-forget"
expect 0 show tag:important
says "for ever"
expect 0 tag tag:important --allow-forget --remove important
expect 1 show tag:important
expect 0 --json stats
[ "$(json stats stored_bytes)" -gt "$(json stats unused_bytes)" ] || fail "stats: more is unused than stored"
[ "$(json growth added_bytes)" -ge 0 ] || fail "stats: no growth"

step "paths are left out of a snapshot: what goes is shown, confirmed, and gone"
expect 0 backup "$work/two" --dataset rewritten
expect 0 rewrite dataset:rewritten --exclude x --dry-run
says "$work/two/a/x"
expect 0 ls dataset:rewritten
says "$work/two/a/x"
on_terminal 1 n rewrite dataset:rewritten --exclude x
on_terminal 0 y rewrite dataset:rewritten --exclude x
expect 0 ls dataset:rewritten
silent_about "$work/two/a/x"
says "$work/two/b/y"
expect 0 rewrite dataset:rewritten dataset:rewritten --exclude y --yes --json
[ "$(grep -c '"type":"rewrite"' "$work/out")" = 1 ] || fail "a snapshot that was named twice was written twice"
[ "$(json rewrite_plan paths)" = "['$work/two/b/y']" ] || fail "the plan does not name what goes"
[ "$(json rewrite records_removed)" -gt 0 ] || fail "nothing was left out"
expect 0 forget dataset:rewritten

step "what others named cannot speak to the terminal"
expect 0 backup "$work/two" --dataset $'red\e[31m' --tag $'blink\e[5m'
for command in snapshots "show latest" "forget --keep-last 9 --dry-run"; do
    # shellcheck disable=SC2086
    expect 0 $command
    silent_about $'\e['
done
expect 0 restore latest --dataset $'red\e[31m' --target "$work/red" --dry-run
silent_about $'\e['
expect 0 tag latest --dataset $'red\e[31m' --add more
silent_about $'\e['
expect 0 forget latest --dataset $'red\e[31m'

step "a time that the store contradicts"
commits=$HOME/.local/share/keepwell/repository/commits
find "$commits" -type f -exec touch -d '2001-01-01' {} +
expect 0 snapshots
says "flagged: captured after the store received it"
expect 0 forget --keep-last 1 --dry-run
says "flagged: captured after the store received it"
find "$commits" -type f -exec touch {} +
expect 0 snapshots
silent_about "flagged"

step "a copy with the same keys, and healing from it"
expect 0 copy --to "$work/copy"
expect 0 -r "$work/copy" check --read-data
expect 0 copy --to "$work/copy"
says "copied 0 snapshots"
victim=$(find "$HOME/.local/share/keepwell/repository/data" -type f | sort | head -n 1)
rm "$victim"
expect 13 check
expect 2 repair
expect 0 repair --from "$work/copy" --yes
expect 0 check --read-data

step "rot that only reading finds: every check remembers it, and a repair heals it"
victim=$(find "$HOME/.local/share/keepwell/repository/data" -type f -printf '%s %p\n' | sort -n | tail -n 1 | cut -d ' ' -f 2-)
chmod u+w "$victim"
printf rot | dd of="$victim" bs=1 seek=1000 conv=notrunc status=none
expect 0 check
expect 13 check --read-data
says "keepwell repair --from COPY"
expect 13 check
expect 0 repair --from "$work/copy" --yes
says "replaced 1 pack"
expect 0 check --read-data

step "one damaged pack of many files does not bury what is wrong"
mkdir "$work/many"
for number in $(seq 30); do seq "$number" 300 >"$work/many/$number"; done
expect 0 -r "$work/many-repository" init
expect 0 -r "$work/many-repository" backup "$work/many"
victim=$(find "$work/many-repository/data" -type f)
chmod u+w "$victim"
printf rot | dd of="$victim" bs=1 seek=400 conv=notrunc status=none
expect 13 -r "$work/many-repository" check --read-data
[ "$(grep -c "  affected: " "$work/out")" = 20 ] || fail "20 affected paths were expected"
says "and others"
expect 13 -r "$work/many-repository" check --verbose
[ "$(grep -c "  affected: " "$work/out")" = 30 ] || fail "30 affected paths were expected"

step "copies of a profile: what goes where, what is away, what is too old"
mkdir -p "$HOME/.config/keepwell" "$work/desk"
printf 'one' >"$work/desk/file" && head -c 500000 /dev/urandom >"$work/desk/random"
cat >"$HOME/.config/keepwell/config.toml" <<TOML
[profile.desk]
repository = "$work/desk-repository"
paths = ["$work/desk"]
retention = { last = 1 }
[[profile.desk.copy]]
name = "near"
to = "$work/near"
retention = { last = 2 }
prune = true
max-age = "7d"
[[profile.desk.copy]]
name = "far"
to = "$work/far"
only = "yearly"
verify = "30d"
[[profile.desk.copy]]
name = "safe"
to = "$work/safe/copy"
when-attached = true
TOML
export KEEPWELL_PROFILE=desk
expect 0 init
for n in 1 2 3; do
    echo "$n" >"$work/desk/file"
    expect 0 backup
done
expect 0 copy --dry-run
says "would copy"
[ ! -e "$work/near" ] || fail "a dry run made a copy"
expect 0 copy
says "not attached"
expect 0 copy --json
[ "$(json copy copied)" = 0 ] || fail "something was copied twice"
expect 0 -r "$work/near" snapshots --json
[ "$(wc -l <"$work/out")" = 2 ] || fail "two snapshots were to be kept nearby"
expect 0 -r "$work/far" snapshots --json
[ "$(wc -l <"$work/out")" = 1 ] || fail "one of the year was to be kept far away"
expect 0 forget --dry-run
says "would forget 2 snapshots and keep 1"
expect 0 -r "$work/near" forget --dry-run
says "would forget 0 snapshots and keep 2"
expect 2 -r "$work/far" forget --dry-run
says "the copy far keeps everything"
expect 0 copies
says "up to date"
says "not attached"
echo 4 >"$work/desk/file"
expect 0 backup
expect 0 copy --dry-run --to near
says "the copy near would forget:"
says "no rule keeps it"
on_terminal 130 $'\x03' copy --to near
says "Forget 1 snapshot at the copy near?"
says "interrupted"
on_terminal 0 n copy --to near
says "Forget 1 snapshot at the copy near?"
says "nothing was forgotten at the copy near"
expect 0 -r "$work/near" snapshots --json
[ "$(wc -l <"$work/out")" = 3 ] || fail "something was forgotten that was not confirmed"
on_terminal 0 y copy --to near
expect 0 -r "$work/near" snapshots --json
[ "$(wc -l <"$work/out")" = 2 ] || fail "nothing was forgotten at the copy"
echo 5 >"$work/desk/file"
expect 0 backup
expect 0 copy --to near --json
[ "$(json copy_forgets reason)" = "no rule keeps it" ] || fail "no reason for what the copy forgets"
[ "$(json prune_plan copy)" = near ] || fail "the plan of the prune at the copy was not shown"
expect 0 copy --to near

step "one listing across the copies, by name or by place; one that is away does not end it"
expect 0 snapshots --copy near --copy "$work/far" --copy safe
says "here, near"
says "here, $work/far"
says "safe: not attached"
expect 3 snapshots --copy near --copy "$work/nowhere" --json
[ "$(json held_snapshot held_by)" = "['here', 'near']" ] || fail "the newest snapshot is held here and near"
json store error | grep -q unreachable || fail "a store that is not there is not named"
expect 3 -r "$work/nowhere" snapshots --copy near --copy far
says "here: unreachable"
expect 10 -r "$work/nowhere" snapshots --copy "$work/nowhere"

step "a copy with keys of its own: by --to-key-file, by the profile, and in one listing with the others"
expect 0 -r "$work/foreign" --key-file "$work/foreign.key" init
expect 0 copy latest --to "$work/foreign" --to-key-file "$work/foreign.key"
says "copied 1 snapshot"
expect 0 -r "$work/foreign" --key-file "$work/foreign.key" restore "latest:$work/desk" --target "$work/from-foreign"
same "$work/desk" "$work/from-foreign"
expect 0 snapshots --copy "$work/foreign" --json
[ "$(json held_snapshot held_by)" = "['here', '$work/foreign']" ] || fail "the copy with other keys holds the newest"
cp "$HOME/.config/keepwell/config.toml" "$work/config.before"
cat >>"$HOME/.config/keepwell/config.toml" <<TOML
[[profile.desk.copy]]
name = "own-keys"
to = "$work/foreign"
key-file = "$work/foreign.key"
TOML
expect 0 copy --to own-keys --json
[ "$(json copy state)" = "up to date" ] && [ "$(json copy copied)" -gt 0 ] || fail "nothing was copied under the other keys"
expect 0 copy --to own-keys --json
[ "$(json copy copied)" = 0 ] || fail "something was copied twice under the other keys"
expect 0 copies
says "own-keys"
expect 0 snapshots --copy own-keys --copy near
says "here, own-keys, near"
cp "$work/config.before" "$HOME/.config/keepwell/config.toml"

step "copies of a profile, and what is refused"
expect 2 copy --to naer
says "Did you mean \`near\`?"
expect 2 copy --to near latest
mkdir -p "$work/safe" && cp -r "$work/near" "$work/safe/copy"
expect 0 copy --to safe
says "up to date"
rm -r "$work/safe"
expect 0 copies --json
[ "$(json copy_state state)" = "not attached" ] || fail "a copy that is away is not told"
sed -i 's/when-attached = true/when-attached = true\nmax-age = "1s"/' "$HOME/.config/keepwell/config.toml"
sleep 2
expect 15 copies
says "the copy safe is too old"
expect 15 copy
sed -i '/max-age = "1s"/d' "$HOME/.config/keepwell/config.toml"

step "a copy that is there and cannot be used is no copy that is away"
mkdir -p "$work/safe/copy" && echo junk >"$work/safe/copy/keepwell.json"
expect 1 copies
says "cannot be opened"
expect 13 copy --to safe
says "the copy safe: "
rm -r "$work/safe"
expect 0 copy --to safe

step "what a copy asks to be mounted is asked of it alone, and a dry run makes nothing there"
cp "$HOME/.config/keepwell/config.toml" "$work/config.toml"
sed -i 's|^paths = |require-mount = "/proc"\n&|' "$HOME/.config/keepwell/config.toml"
cat >>"$HOME/.config/keepwell/config.toml" <<TOML
[[profile.desk.copy]]
name = "fresh"
to = "$work/fresh-disk/copy"
when-attached = true
require-mount = "/"
TOML
expect 0 snapshots
says "does not lie on \`/proc\`"
says "going on with the copy near"
expect 1 backup
says "does not lie on \`/proc\`"
expect 0 -r "$work/near" snapshots
sed -i '/require-mount = "\/proc"/d' "$HOME/.config/keepwell/config.toml"
expect 0 copy --to fresh --dry-run
says "would copy"
[ ! -e "$work/fresh-disk" ] || fail "a dry run made a directory"
expect 0 copy --to fresh
says "up to date"

step "an interrupted copy: 130, and the next one is not begun"
head -c 4000000 /dev/urandom >"$work/desk/more"
expect 0 backup
expect 0 copy
cat >>"$HOME/.config/keepwell/config.toml" <<TOML
[[profile.desk.copy]]
name = "slow"
to = "$work/slow"
[[profile.desk.copy]]
name = "later"
to = "$work/later"
TOML
"$keepwell" copy --limit-upload 256KiB >>"$log" 2>&1 &
process=$!
wait_for "the copy does not begin" test -e "$work/slow"
sleep 1
kill -INT "$process"
code=0
wait "$process" || code=$?
[ "$code" = 130 ] || fail "interrupted: exit code $code"
[ ! -e "$work/later" ] || fail "the next copy was begun"
rm "$work/desk/more" && cp "$work/config.toml" "$HOME/.config/keepwell/config.toml"
expect 0 backup
expect 0 copy

step "a restore falls over to a copy, as a whole or for what is missing"
cp -a "$work/desk-repository" "$work/desk-whole"
find "$work/desk-repository/data" -type f -delete
expect 0 restore "latest:$work/desk" --target "$work/fallen"
says "is taken from the copy"
same "$work/desk" "$work/fallen"
expect 0 dump "latest:$work/desk/file"
find "$work/desk-repository/meta" -type f -exec truncate -s 100 {} +
expect 0 ls "latest:$work/desk"
says "$work/desk/random"
mv "$work/desk-repository" "$work/desk-gone"
expect 0 restore "latest:$work/desk" --target "$work/fallen2"
says "going on with the copy near"
same "$work/desk" "$work/fallen2"
expect 0 find random
for command in "snapshots" "show latest" "diff latest latest"; do
    # shellcheck disable=SC2086
    expect 0 $command
    says "going on with the copy near"
done
for elsewhere in "-r $work/nowhere" "-r $work/nowhere --json"; do
    # shellcheck disable=SC2086
    expect 10 $elsewhere restore latest --target "$work/not-of-a-copy"
    silent_about "going on with the copy"
done
KEEPWELL_REPOSITORY=$work/nowhere expect 10 snapshots
[ ! -e "$work/not-of-a-copy" ] || fail "a copy stood in for a repository that is none of the profile's"
expect 0 -r "$work/desk-repository" ls latest
says "going on with the copy near"
mkdir "$work/desk-repository" && cp "$work/near/keepwell.json" "$work/desk-repository"
desk_key=$(grep -A3 "$work/near" "$HOME/.config/keepwell/repositories.toml" | grep -o '/.*\.key' | head -n 1)
expect 0 --key-fd 3 --no-cache ls latest 3< <(cat "$desk_key") # it is read before the damage shows, and not again
says "going on with the copy near"
rm -r "$work/desk-repository"
expect 3 --key-fd 3 snapshots --copy near --copy far 3< <(cat "$desk_key")
says "here: unreachable"
silent_about "far: unreachable"
mv "$work/near" "$work/near-gone"
expect 0 ls "latest:$work/desk"
says "the copy near cannot be used"
says "going on with the copy far"
mv "$work/near-gone" "$work/near"
rm -r "$work/desk-gone" && mv "$work/desk-whole" "$work/desk-repository"
expect 0 check --read-data
unset KEEPWELL_PROFILE
rm "$HOME/.config/keepwell/config.toml"

step "another repository, with a passphrase"
export KEEPWELL_REPOSITORY=$work/second
echo secret >"$work/passphrase" && echo wrong >"$work/wrong"
expect 0 init --passphrase --passphrase-file "$work/passphrase"
expect 1 init --passphrase --passphrase-file "$work/passphrase"
says "already"
expect 12 snapshots
says "no terminal"
expect 12 snapshots --passphrase-file "$work/wrong"
expect 12 snapshots --passphrase-file "$work/no-such-file"
expect 0 backup "$tree/odd" --passphrase-file "$work/passphrase"
KEEPWELL_PASSPHRASE_COMMAND="cat $work/passphrase" expect 0 snapshots
KEEPWELL_PASSPHRASE_FD=3 expect 0 snapshots 3<"$work/passphrase"
mkdir "$work/again" && touch "$work/again/file"
second=$(grep -A3 "$work/second" "$HOME/.config/keepwell/repositories.toml" | grep -o '/.*\.key')
KEEPWELL_PASSPHRASE_FD=3 expect 0 restore "latest:$tree/odd" --target "$work/again" --yes 3< <(cat "$work/passphrase")
KEEPWELL_PASSPHRASE_FD=3 expect 0 forget --keep-last 9 --prune 3< <(cat "$work/passphrase")
(unset KEEPWELL_REPOSITORY && KEEPWELL_PASSPHRASE_FD=3 expect 0 --key-file "$second" snapshots 3< <(cat "$work/passphrase"))
expect 0 key passphrase --remove --passphrase-file "$work/passphrase"
expect 0 snapshots
ln -s "$second" "$work/linked.key"
expect 0 --key-file "$work/linked.key" key passphrase --new-passphrase-file "$work/passphrase"
[ -L "$work/linked.key" ] || fail "the symlink was replaced, and the plain key stayed behind it"
expect 12 snapshots
expect 0 key passphrase --remove --passphrase-file "$work/passphrase"

step "exit codes: no repository, wrong key, nonsense"
expect 10 -r "$work/nowhere" snapshots
expect 12 --key-file "$key" snapshots
expect 12 --key-file "$work/passphrase" snapshots
expect 2 snapshots --no-such-option
expect 2 backup "$work/does-not-exist"
expect 1 -r s3://bucket snapshots
says "no region is given"

step "a credential that cannot read"
expect 0 key enroll --name web1 --role writer --output "$work/writer.key"
says "cannot read"
export KEEPWELL_KEY_FILE=$work/writer.key
expect 0 backup "$tree/odd" --dataset by-writer --json
expect 0 backup "$tree/odd" --dataset by-writer --json
[ "$(json backup bytes_read)" = 0 ] || fail "a writer reads unchanged files again"
expect 0 snapshots
says "cannot decrypt"
for command in "ls latest" "restore latest --target $work/no" "dump latest:$tree/odd/random" "check" "forget --keep-last 1" "prune"; do
    # shellcheck disable=SC2086
    expect 12 $command
    says "this credential cannot"
done
expect 12 key enroll --name x --role writer
unset KEEPWELL_KEY_FILE
expect 0 restore "latest:$tree/odd" --target "$work/by-writer" --dataset by-writer
same "$tree/odd" "$work/by-writer"

step "revoked: what it wrote stays, what it writes does not count"
expect 0 key revoke web1 --yes
expect 0 key list
says "revoked from"
expect 0 key revoke web1 --yes # as if the first had been interrupted before the keys were rotated
expect 12 --key-file "$work/writer.key" backup "$tree/odd"
says "was revoked"
expect 0 restore "latest:$tree/odd" --target "$work/by-writer2" --dataset by-writer
expect 0 backup "$tree/odd"
expect 0 check --read-data

step "a reader, another owner, a recovery kit alone on a fresh machine"
expect 0 key enroll --name desk --role reader --output "$work/reader.key"
expect 0 --key-file "$work/reader.key" restore "latest:$tree/odd" --target "$work/by-reader"
expect 12 --key-file "$work/reader.key" backup "$tree/odd"
says "a writer or keeper backs up"
touch "$work/by-reader/stray"
expect 1 --key-file "$work/reader.key" restore "latest:$tree/odd" --target "$work/by-reader" --yes
says "this credential cannot back up what stands in the target"
expect 0 key enroll --name attic --role keeper --output "$work/keeper.key"
mkdir "$work/by-keeper" && echo old >"$work/by-keeper/stray"
expect 0 --key-file "$work/keeper.key" restore "latest:$tree/odd" --target "$work/by-keeper" --yes
says "To undo:"
expect 0 --key-file "$work/keeper.key" restore "latest:$work/by-keeper" --dataset safety --target "$work/by-keeper" --delete --yes
[ "$(ls "$work/by-keeper")" = stray ] || fail "a keeper's restore was not undone"
cp -a "$KEEPWELL_REPOSITORY" "$work/ahead"
# With a cache of its own: what this host has seen of the trust chain of one store may not be gone later.
KEEPWELL_CACHE_DIR=$work/ahead.cache expect 0 -r "$work/ahead" key enroll --name late --role reader --output "$work/late.key"
expect 0 key enroll --name late --role reader --output "$work/late.key" # as if it had been interrupted after the file
says "going on with the key"
expect 1 key enroll --name late --role reader --output "$work/late.key"
says "exists already"
expect 0 --key-file "$work/late.key" restore "latest:$tree/odd" --target "$work/by-late"
expect 0 key enroll --name bob --role owner --output "$work/owner.key"
expect 0 --key-file "$work/owner.key" check --read-data
expect 0 key kit --output "$work/kit.txt"
unset KEEPWELL_REPOSITORY
HOME=$work/fresh expect 0 --key-file "$work/kit.txt" restore "latest:$tree/odd" --target "$work/by-kit"
same "$tree/odd" "$work/by-kit"
export KEEPWELL_REPOSITORY=$work/second

step "a key and its passphrase from a descriptor, a command, the environment, systemd's credentials"
expect 0 key kit --output "$work/kit-file.txt" --new-passphrase-file "$work/passphrase"
expect 0 key kit --output "$work/kit-command.txt" --new-passphrase-command "cat $work/passphrase"
mkdir "$work/credentials" && cp "$work/kit-command.txt" "$work/credentials/keepwell-key"
cp "$work/passphrase" "$work/credentials/keepwell-passphrase" && chmod 600 "$work/credentials"/*
(
    export HOME=$work/nobody # where no key is remembered
    expect 12 snapshots
    expect 12 --key-file "$work/kit-file.txt" snapshots
    expect 0 --key-file "$work/kit-file.txt" --passphrase-file "$work/passphrase" snapshots
    expect 0 --key-fd 3 snapshots 3<"$second"
    expect 0 --key-fd 3 snapshots 3< <(cat "$second")
    KEEPWELL_KEY_FD=3 expect 0 snapshots 3<"$second"
    KEEPWELL_KEY_FD=three expect 2 snapshots
    KEEPWELL_KEY_FD=three expect 0 --key-file "$second" snapshots
    KEEPWELL_KEY_COMMAND="cat $second" expect 0 snapshots
    KEEPWELL_KEY_COMMAND=false expect 12 snapshots
    CREDENTIALS_DIRECTORY=$work/credentials expect 0 snapshots
    echo wrong >"$work/credentials/keepwell-passphrase"
    CREDENTIALS_DIRECTORY=$work/credentials expect 12 snapshots
) || exit 1

step "names that no trust record takes are refused before anything is made"
expect 2 key domain ""
expect 2 key enroll --name "" --role writer --output "$work/nameless.key"
[ ! -e "$work/nameless.key" ] || fail "a key file without a name was written"

step "a domain is erased: its data is gone, and only that"
expect 0 key domain customer
expect 0 backup "$tree/odd" --domain customer --dataset customer
expect 0 restore "latest:$tree/odd" --target "$work/customer" --dataset customer
expect 0 key erase customer --yes
says "proven gone"
expect 14 restore "latest:$tree/odd" --target "$work/erased" --dataset customer
says "was erased"
expect 0 check --read-data
expect 0 prune
expect 0 check --read-data
expect 0 snapshots
says "erased"
expect 0 find random
says "lies in an erased domain"
says "$tree/odd/random"
expect 14 find random --in dataset:customer
expect 0 restore "latest:$tree/odd" --target "$work/others" --dataset by-writer
cat >"$HOME/.config/keepwell/config.toml" <<TOML
[profile.default]
repository = "$work/second"
[[profile.default.copy]]
to = "$work/second-copy"
TOML
expect 0 copy --dry-run
says "lies in an erased domain and is left out"
expect 0 copy
says "lies in an erased domain and is left out"
expect 0 copies --json
[ "$(json copy_state missing)" = 0 ] || fail "a copy lacks what nobody can copy any more"
rm "$HOME/.config/keepwell/config.toml"
unset KEEPWELL_REPOSITORY

step "profiles"
cat >"$HOME/.config/keepwell/config.toml" <<TOML
[profile.odd]
repository = "$work/second"
paths = ["$tree/odd"]
excludes = ["random"]
tags = ["from-profile"]
compression-level = 5
[profile.odd.retention]
last = 2
daily = "all"
TOML
expect 0 --profile odd backup
expect 0 --profile odd show dataset:odd
says "from-profile"
expect 0 --profile odd ls latest
silent_about "odd/random"
expect 0 --profile odd forget --dry-run
KEEPWELL_PROFILE=odd expect 0 snapshots
expect 2 --profile odx backup
says "Did you mean \`odd\`?"
expect 2 --profile odd backup --dataset ""
sed -i 's/^tags = .*/dataset = ""/' "$HOME/.config/keepwell/config.toml"
expect 2 --profile odd backup
says "the name of the dataset is empty"
sed -i 's/^paths/pahts/' "$HOME/.config/keepwell/config.toml"
expect 2 --profile odd backup
says "config.toml:3:1: the key \`pahts\` is unknown"
says "Did you mean \`paths\`?"
rm "$HOME/.config/keepwell/config.toml"

step "an unreadable file is named, and the exit code says so"
if [ "$(id -u)" != 0 ]; then
    chmod 000 "$tree/odd/random"
    expect 3 backup "$tree/odd"
    chmod 4711 "$tree/odd/random"
fi

step "a file that turns out shorter than it said is named, also as root"
short=/sys/devices/system/cpu/online # says that it has a page
if [ "$(stat -c %s "$short" 2>/dev/null)" = 4096 ]; then
    expect 3 backup "$tree/odd" "$short" --dataset short
    says "$short"
    says "changed while it was read"
fi

step "interrupted: 130, and nothing is lost"
head -c 200000000 /dev/urandom >"$tree/large"
"$keepwell" backup "$tree" --limit-upload 2MiB --cache-dir "$work/interrupted" >>"$log" 2>&1 &
process=$!
wait_for "the backup does not begin" has_alive "$work/interrupted"
sleep 1
kill -INT "$process"
code=0
wait "$process" || code=$?
[ "$code" = 130 ] || fail "interrupted: exit code $code"
rm "$tree/large"
expect 0 check --read-data
expect 0 backup "$tree"

step "another process was in the way: 11, and nothing is lost"
head -c 50000000 /dev/urandom >"$tree/large"
"$keepwell" backup "$tree" --limit-upload 2MiB --cache-dir "$work/stalled" >>"$log" 2>&1 &
process=$!
wait_for "the backup does not begin" has_alive "$work/stalled"
alive=$(alive_in "$work/stalled")
cp "$alive" "$work/alive" && mv "$work/alive" "$alive" # not locked: as if the process had died
expect 0 prune --cache-dir "$work/stalled"
says "1 session that showed no sign of life"
code=0
wait "$process" || code=$?
[ "$code" = 11 ] || fail "fenced: exit code $code"
rm "$tree/large"
expect 0 check --read-data
expect 0 backup "$tree"

step "trust and hint are damaged: put back from a copy"
expect 0 copy --to "$work/whole"
place=$HOME/.local/share/keepwell/repository
chmod -R u+w "$place"
printf rot >"$place/trust/0000000001"
rm "$place/keepwell.json"
expect 13 snapshots
says "it is missing, and there are commits"
says "repair --from"
expect 13 init
says "it is missing, and there are commits"
says "repair --from"
expect 0 repair --from "$work/whole" --yes
says "put back trust/0000000001"
expect 0 check --read-data
expect 0 backup "$tree"

step "a store that was set back is refused by who remembers its newest snapshot"
cp -a "$place" "$work/set-back"
expect 0 backup "$tree"
expect 0 snapshots --last 1 --json
witness=$(json snapshot witness)
expect 0 show latest
says "$witness"
expect 0 restore latest --target "$work/expected" --expect "$witness"
says "as new as expected"
expect 13 -r "$work/set-back" restore latest --target "$work/not-expected" --expect "$witness"
says "the store shows less than is known"
[ ! -e "$work/not-expected" ] || fail "something was restored from a store that was set back"
expect 0 -r "$work/set-back" restore latest --target "$work/set-back-restored"
says "Whether there was a newer one was not checked"
expect 2 restore latest --target "$work/not-expected" --expect latest
expect 0 key enroll --name other --role writer --output "$work/other.key"
expect 0 --key-file "$work/other.key" backup "$tree/odd" --dataset by-other
expect 0 restore latest --dataset by-other --target "$work/expected-of-other" --expect "$witness"
says "The newest snapshot of the expected writer here is $witness: as new as expected."
says "Whether there was a newer one was not checked"

step "doctor, cache, completions, man, version"
expect 0 doctor
expect 10 -r "$work/nowhere" doctor
says "\`keepwell init\` makes one"
expect 1 doctor --as-writer
says "This writer can delete objects."
KEEPWELL_KEY_FILE=$second expect 0 doctor
says "$work/second is on"
KEEPWELL_KEY_FILE=$second expect 0 check --without-key
expect 2 -r s3://bucket policy lifecycle --principal arn:aws:iam::1:user/x
expect 2 -r gs://bucket/web policy reader
expect 2 -r s3://bucket policy reader --kms-key alias/backups
says "no ARN of a key"
expect 0 -r s3://bucket policy reader --kms-key arn:aws:kms:eu-central-1:123456789012:key/1234
says "kms:Decrypt"
group=/subscriptions/s1/resourceGroups/g1
for command in "gs://bucket/web policy roles" "gs://bucket/web policy lifecycle" \
    "gs://bucket/web policy writer --any-writer --within p1 --principal serviceAccount:web1@p1.iam.gserviceaccount.com" \
    "azblob://bucket/web policy roles --within $group" "azblob://bucket/web policy lifecycle" \
    "azblob://bucket/web?account=acme policy writer --any-writer --within $group"; do
    # shellcheck disable=SC2086
    expect 0 -r $command
    python3 -m json.tool "$work/out" >/dev/null || fail "$command: not JSON"
done
expect 0 cache
expect 0 cache clear
expect 0 backup "$tree"
for shell in bash zsh fish; do expect 0 completions "$shell"; done
code=0
"$keepwell" completions bash >/dev/full 2>"$work/err" || code=$?
[ "$code" = 1 ] || fail "completions onto a full disk: exit code $code"
grep -q '^error: write the completions: No space left' "$work/err" || fail "$(cat "$work/err")"
expect 0 man
expect 0 man --directory "$work/man"
[ -s "$work/man/keepwell-backup.1" ] || fail "no manual page of backup"
expect 0 version
for command in "" init backup snapshots ls find show diff dump restore check repair forget unforget prune copy copies key tag stats cache doctor completions man version; do
    # shellcheck disable=SC2086
    expect 0 help $command
done

step "everything under --json is an object per line"
for command in "snapshots" "ls latest" "show latest" "check" "stats" "key list" "forget --keep-last 100" "prune" "doctor" "cache" "version" "find random"; do
    # shellcheck disable=SC2086
    expect 0 --json $command
    python3 -c 'import json,sys; [json.loads(line)["type"] for line in open(sys.argv[1])]' "$work/out" || fail "$command: not JSON"
done
expect 10 --json -r "$work/nowhere" snapshots
[ "$(json error code)" = 10 ] || fail "the error is not told as JSON"
expect 2 --json restore latest
[ "$(json error message)" = "the following required arguments were not provided: --target <DIR>" ] ||
    fail "what is missing on the command line is not told as JSON"
expect 2 --json key
json error message | grep -q "ends too early" || fail "the help is told as what is wrong"

echo "$steps steps passed"
