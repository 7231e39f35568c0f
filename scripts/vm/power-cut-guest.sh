# Runs in the guest of scripts/power-cut.sh, as root. /dev/vda keeps the key; /dev/vdb is the disk whose writes are
# logged (PHASE=work), or /dev/vdb, /dev/vdc, … are disks as a power cut left them (PHASE=check).
set -u
mkdir -p /guest /srv/repo /keys

kw() {
    env -i PATH="$PATH" HOME=/guest/home LC_ALL=C.UTF-8 timeout -k 10 "${limit:-600}" /vm/keepwell --no-progress -y "$@" >/tmp/out 2>&1 </dev/null
}
hash_of() { (cd "$1" && find . -type f | sort | xargs sha256sum | sha256sum | cut -d' ' -f1); }

noted=0
# Not flushed: what a cut leaves is decided by the flushes of the program alone.
note() {
    printf '%s' "$*" >/tmp/note
    truncate -s 512 /tmp/note
    dd if=/tmp/note of=/dev/vdb bs=512 seek=$(((1000 << 11) + noted)) oflag=direct conv=notrunc status=none
    noted=$((noted + 1))
}
newest() { kw -r /srv/repo/r snapshots --json && sed -n 's/.*"type":"snapshot".*"id":"\([0-9a-f]*\)".*/\1/p' /tmp/out | tail -n 1; }
all() { kw -r /srv/repo/r snapshots --json && sed -n 's/.*"type":"snapshot".*"id":"\([0-9a-f]*\)".*/\1/p' /tmp/out; }

work() {
    local round snapshot
    mkfs.ext4 -q /dev/vda && mount /dev/vda /keys
    mkfs.ext4 -q -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 /dev/vdb 960M
    mount /dev/vdb /srv/repo
    mkdir -p /guest/tree /guest/home
    kw -r /srv/repo/r init || { cat /tmp/out; return 1; }
    cp -a /guest/home/.config /keys/ && umount /keys
    sync
    note begin
    for round in $(seq 12); do
        head -c 2000000 /dev/urandom >"/guest/tree/large.$((round % 4))"
        mkdir -p "/guest/tree/small"
        for file in $(seq 40); do head -c 700 /dev/urandom >"/guest/tree/small/$file.$((round % 2))"; done
        kw -r /srv/repo/r backup /guest/tree || { cat /tmp/out; return 1; }
        snapshot=$(newest)
        note committed "$snapshot" "$(hash_of /guest/tree)"
        if [ $((round % 4)) = 0 ]; then
            for old in $(all | head -n -2); do note forgetting "$old"; done
            kw -r /srv/repo/r forget --keep-last 2 --prune --max-unused 0 || { cat /tmp/out; return 1; }
        fi
    done
    echo "$noted notes; $(grep -E '^|stored' /tmp/out | tail -n 1)"
}

examine() { # LETTER
    local id tree count=0 verdict=whole waits=
    mount "/dev/vd$1" /srv/repo || { echo "LOST vd$1: cannot be mounted"; return; }
    rm -rf /guest/home && mkdir -p /guest/home && cp -a /keys/.config /guest/home/
    kw -r /srv/repo/r check --read-data || { verdict=damaged; echo "LOST vd$1: check"; tail -n 8 /tmp/out; }
    while read -r id tree; do
        rm -rf /guest/back
        if kw -r /srv/repo/r restore "$id" --target /guest/back --no-safety-snapshot && [ "$(hash_of /guest/back/guest/tree)" = "$tree" ]; then
            count=$((count + 1))
        else
            verdict=damaged
            echo "LOST vd$1: $id"
            tail -n 5 /tmp/out
        fi
    done <"/vm/demanded.$1"
    local left
    left=$(find /srv/repo/r/.tmp -type f 2>/dev/null | wc -l)
    mkdir -p /guest/again && echo again >/guest/again/file
    kw -r /srv/repo/r backup /guest/again || { verdict=damaged; echo "LOST vd$1: no backup any more"; tail -n 5 /tmp/out; }
    # It waits for a session that the cut left open, since it cannot know that its host is gone: that is interrupted.
    limit=15 kw -r /srv/repo/r prune || case $? in 124 | 130 | 137) waits=', a prune waits' ;; *)
        verdict=damaged
        echo "LOST vd$1: no prune any more"
        tail -n 5 /tmp/out ;;
    esac
    kw -r /srv/repo/r check --read-data || { verdict=damaged; echo "LOST vd$1: check after the next backup and prune"; tail -n 5 /tmp/out; }
    echo "vd$1: $verdict, $count of $(wc -l <"/vm/demanded.$1") demanded snapshots restored; left in .tmp: $left$waits"
    umount /srv/repo
}

if [ "$PHASE" = work ]; then
    work
    exit
fi
mount -o ro /dev/vda /keys
for disk in /dev/vd[b-z]; do examine "${disk#/dev/vd}"; done
