#!/usr/bin/env bash
# The main job, for real, on a fresh machine: builds `keepwell`, backs up a directory into the default repository of a
# temporary home, restores it, and proves with rsync that both are the same in content, modes, times, links, ACLs and
# attributes (and, as root, owners).
#
# usage: scripts/first-run.sh [PATH]      default: /usr/share
#
# environment: KEEPWELL   a binary to use instead of building one
set -euo pipefail
cd "$(dirname "$0")/.."

path=$(realpath "${1:-/usr/share}")
command -v rsync >/dev/null || { echo "rsync is missing: apt-get install rsync" >&2; exit 2; }

if [ -z "${KEEPWELL:-}" ]; then
    command -v cargo >/dev/null || { echo "cargo is missing: Rust 1.95 or newer, from https://rustup.rs" >&2; exit 2; }
    echo "building keepwell; the first time that takes about six minutes on two cores" >&2
    cargo build --release --locked -p keepwell-cli
    target=${CARGO_TARGET_DIR:-target}
    KEEPWELL=$target/release/keepwell
fi
keepwell=$(realpath "$KEEPWELL")

home=$(mktemp -d)
trap 'chmod -R u+rwX "$home" && rm -rf "$home"' EXIT
# A process of its own: no setting of this machine's user, nothing left behind.
run() {
    local status=0
    printf '$ keepwell %s\n' "$*"
    env -i HOME="$home" PATH="$PATH" "$keepwell" "$@" || status=$?
    # 3: done, but something was left out, as owners are for anybody but root; it has been named above.
    [ $status = 0 ] || [ $status = 3 ] || exit $status
}

run backup "$path"
run backup "$path"
run snapshots
run restore latest --target "$home/restored"

echo "\$ rsync -aHAXc --delete -n --itemize-changes $path/ RESTORED$path/"
differences=$(rsync -aHAXc --delete -n --itemize-changes "$path/" "$home/restored$path/")
if [ -n "$differences" ]; then
    printf '%s\n' "$differences" | head -n 50
    echo "the restored directory differs (lines above: $(printf '%s\n' "$differences" | wc -l) in all)" >&2
    exit 1
fi
echo "nothing differs"
