#!/usr/bin/env bash
# The independent reader (docs/rescue) restores what our own command wrote, and every repository in tests/fixtures/repo:
# what one of the two does and docs/format.md does not say shows here.
#
# Of a fixture the reader must restore every snapshot, and to the same as our command does; that this is what was backed
# up is the business of tests/e2e/tests/fixtures.rs.
set -euo pipefail
cd "$(dirname "$0")/.."

reader=(python3 -B docs/rescue/keepwell_rescue.py)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

make_tree() { # DIR: one of everything that a file system holds
    mkdir -p "$1"/{sub/deep,empty-directory}
    (
        cd "$1"
        echo hello >a
        ln a hard-link
        ln -s a link
        ln -s /nowhere sub/dangling
        mkfifo sub/fifo
        : >empty
        printf z >"$(printf 'odd\001name\377')"
        head -c 60000000 /dev/urandom >many-extents
        truncate -s 50M sparse
        printf x | dd of=sparse bs=1 seek=30000000 conv=notrunc status=none
        cp -r "$OLDPWD/docs" sub/deep/docs
        chmod 4755 empty
        chmod 1777 sub/deep
        setfattr -n user.note -v remember a
        setfacl -m u:12345:r a
        if [ "$(id -u)" = 0 ]; then
            mknod sub/null c 1 3
            chown 12345:54321 sparse
        fi
        touch -d '2001-02-03 04:05:06.789' a
        touch -d '1969-12-31 00:00:00' sub/deep
    )
}

same() { # EXPECTED RESTORED
    local differences
    differences=$(rsync -aHAXnc --itemize-changes --delete "$1/" "$2/")
    [ -z "$differences" ] || { echo "$differences"; return 1; }
}

our_own() {
    local repository=$work/repository
    export KEEPWELL_KEY_FILE=$work/key.toml
    make_tree "$work/tree"
    "$keepwell" -q -r "$repository" init
    "$keepwell" -q -r "$repository" backup "$work/tree"
    echo more >>"$work/tree/a"
    "$keepwell" -q -r "$repository" backup "$work/tree"
    "${reader[@]}" "$repository" "$work/key.toml" list
    "${reader[@]}" "$repository" "$work/key.toml" scrub
    "${reader[@]}" "$repository" "$work/key.toml" restore latest "$work/restored"
    same "$work/tree" "$work/restored$work/tree"
    small_and_verified
}

# --verify is slow, so it gets a small tree.
small_and_verified() {
    mkdir "$work/small"
    cp -r docs/rescue "$work/small"
    "$keepwell" -q -r "$work/small-repository" --key-file "$work/small.toml" init
    "$keepwell" -q -r "$work/small-repository" --key-file "$work/small.toml" backup "$work/small"
    "${reader[@]}" "$work/small-repository" "$work/small.toml" restore latest "$work/verified" --verify
    same "$work/small" "$work/verified$work/small"
}

fixtures() {
    local fixture name key snapshot snapshots restored top
    for fixture in tests/fixtures/repo/*; do
        name=$(basename "$fixture") key=$work/$name.toml
        cp -r "$fixture/repository" "$work/$name"
        install -m 600 "$fixture/key.toml" "$key"
        snapshots=$("${reader[@]}" "$work/$name" "$key" list | cut -d ' ' -f 1)
        [ "$(wc -w <<<"$snapshots")" = "$(ls "$fixture/expected" | wc -l)" ] ||
            { echo "$fixture: the reader lists other snapshots than there should be: $snapshots" >&2; return 1; }
        for snapshot in $snapshots; do
            restored=$work/$name.$snapshot
            "${reader[@]}" "$work/$name" "$key" restore "$snapshot" "$restored" --verify
            "$keepwell" -q -r "$work/$name" --key-file "$key" restore "$snapshot" --target "$restored.ours"
            for top in "$restored"/*; do same "$restored.ours/${top##*/}" "$top"; done
        done
    done
}

# What anybody who can write to the storage might leave there changes nothing: copies of genuine records in other places, and
# garbage.
planted() {
    local repository=$work/planted key=$work/planted.toml before one other
    cp -r tests/fixtures/repo/v1/repository "$repository"
    install -m 600 tests/fixtures/repo/v1/key.toml "$key"
    before=$("${reader[@]}" "$repository" "$key" list --verify)
    read -r one other < <(cd "$repository/commits" && echo *)
    cp "$repository/commits/$other/0000000000" "$repository/commits/$one/0000000099"
    cp "$repository/commits/$other/0000000000" "$repository/commits/$other/0000000099"
    cp "$repository/retired/$(ls "$repository/retired" | head -n 1)" "$repository/retired/0000000099"
    echo garbage >"$repository/commits/$one/0000000100"
    echo garbage >"$repository/retired/0000000100"
    echo garbage >"$repository/keys/$one/0000000099"
    echo garbage >"$(echo "$repository"/index/*)/garbage"
    [ "$before" = "$("${reader[@]}" "$repository" "$key" list --verify 2>"$work/warnings")" ]
    [ "$(grep -c 'does not count' "$work/warnings")" = 5 ]
    "${reader[@]}" "$repository" "$key" restore latest "$work/planted.restored"
    # A commit whose manifest is another one costs its own snapshot.
    one=$(head -n 1 <<<"$before" | cut -c 1-8)
    python3 - "$repository/commits" "$one" <<'ALTER'
import pathlib, sys
for commit in pathlib.Path(sys.argv[1]).glob("*/*"):
    commit.write_bytes(commit.read_bytes().replace(bytes.fromhex(sys.argv[2]), bytes(4)))
ALTER
    [ "$(tail -n +2 <<<"$before")" = "$("${reader[@]}" "$repository" "$key" list 2>/dev/null)" ]
}

cargo build --locked --quiet --workspace --bins --tests
keepwell=$(cargo metadata --locked --no-deps --format-version 1 | python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/debug/keepwell
# `init` remembers a repository in the directory of the configuration.
export KEEPWELL_CACHE_DIR=$work/cache KEEPWELL_CONFIG=/dev/null XDG_CONFIG_HOME=$work/config XDG_DATA_HOME=$work/data
our_own
fixtures
planted
