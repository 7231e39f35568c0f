#!/usr/bin/env bash
# The independent reader (docs/rescue) restores what our own command wrote, and every repository in tests/fixtures/repo:
# what one of the two does and docs/format.md does not say shows here.
#
# A fixture is a directory with `repository/`, `key.toml` and `expected.tar`, what its latest snapshot holds.
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
    local keepwell repository=$work/repository
    cargo build --locked --quiet -p keepwell-cli
    keepwell=$(cargo metadata --locked --no-deps --format-version 1 | python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/debug/keepwell
    export KEEPWELL_KEY_FILE=$work/key.toml KEEPWELL_CACHE_DIR=$work/cache KEEPWELL_CONFIG=/dev/null
    make_tree "$work/tree"
    "$keepwell" -q -r "$repository" init
    "$keepwell" -q -r "$repository" backup "$work/tree"
    echo more >>"$work/tree/a"
    "$keepwell" -q -r "$repository" backup "$work/tree"
    "${reader[@]}" "$repository" "$work/key.toml" list
    "${reader[@]}" "$repository" "$work/key.toml" scrub
    "${reader[@]}" "$repository" "$work/key.toml" restore latest "$work/restored"
    same "$work/tree" "$work/restored$work/tree"
    small_and_verified "$keepwell"
}

# --verify is slow, so it gets a small tree.
small_and_verified() { # KEEPWELL
    mkdir "$work/small"
    cp -r docs/rescue "$work/small"
    "$1" -q -r "$work/small-repository" --key-file "$work/small.toml" init
    "$1" -q -r "$work/small-repository" --key-file "$work/small.toml" backup "$work/small"
    "${reader[@]}" "$work/small-repository" "$work/small.toml" restore latest "$work/verified" --verify
    same "$work/small" "$work/verified$work/small"
}

fixtures() {
    local fixture name
    for fixture in tests/fixtures/repo/*/; do
        [ -d "$fixture/repository" ] || continue
        name=$(basename "$fixture")
        mkdir "$work/$name.expected"
        tar --acls --xattrs -xf "$fixture/expected.tar" -C "$work/$name.expected"
        "${reader[@]}" "$fixture/repository" "$fixture/key.toml" restore latest "$work/$name.restored" --verify
        same "$work/$name.expected" "$work/$name.restored"
    done
}

our_own
fixtures
