# Runs in the guest of scripts/nas.sh, as root. /vm has the binaries; /dev/vda is what the server exports, /dev/vdb a
# small disk that it exports too, /dev/vdc holds what is backed up and restored.
set -u

failures=0
way=-
say() { printf '%-9s %s\n' "$way" "$*"; }
pass() { say "ok      $*"; }
fail() {
    failures=$((failures + 1))
    say "FAILED  $*"
    [ ! -s /tmp/out ] || tail -n 15 /tmp/out | sed 's/^/            | /'
}
quote() { # what a person reads
    grep -vE '^(backup: .*)?\s*$' /tmp/out | tail -n "${1:-4}" | sed 's/^/            | /'
}
await() { # SECONDS CONDITION…
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.2
    done
}

# kw HOST ARGUMENTS…: keepwell as on a host of its own, with its own cache.
kw() {
    local host=$1
    shift
    env -i PATH="$PATH" HOME="/guest/home.$host" LC_ALL=C.UTF-8 timeout -k 5 "${limit:-600}" \
        /vm/keepwell --no-progress -y "$@" >/tmp/out 2>&1 </dev/null
}
expect() { # CODE WHAT HOST ARGUMENTS…
    local wanted=$1 what=$2 began=$SECONDS code=0
    shift 2
    kw "$@" || code=$?
    if [ "$code" = "$wanted" ]; then pass "$what ($((SECONDS - began)) s)"; else fail "$what: exit code $code, not $wanted"; fi
}
says() { grep -qE -- "$1" /tmp/out || fail "nothing says: $1"; }
compare() { # WHAT
    rm -rf /guest/restored
    expect 0 "restore, $1" a -r "$2" restore latest --target /guest/restored
    local differences
    differences=$(rsync -aHAXc --delete -n --itemize-changes /guest/tree/ /guest/restored/guest/tree/ 2>&1 | head -n 5)
    if [ -z "$differences" ]; then pass "rsync -aHAXc finds no difference"; else fail "it differs: $differences"; fi
    rm -rf /guest/restored
}

# --- the server

prepare() {
    printf '%s\n' '_rpc:x:500:65534::/run/rpcbind:/bin/false' 'statd:x:501:65534::/var/lib/nfs:/bin/false' >>/etc/passwd
    echo '127.0.0.1 localhost' >/etc/hosts
    mount -t tmpfs state /var/lib/nfs
    mkdir -p /var/lib/nfs/{rpc_pipefs,sm,sm.bak,v4recovery} /run/rpcbind /run/sendsigs.omit.d /var/lib/samba/private \
        /var/log/samba /var/cache/samba /run/samba/ncalrpc /srv/nas /srv/small /mnt/a /mnt/b /guest
    touch /var/lib/nfs/{etab,rmtab,state,xtab}
    chown -R 501 /var/lib/nfs/sm /var/lib/nfs/sm.bak
    local disk
    for disk in a b c; do mkfs.ext4 -q "/dev/vd$disk"; done
    mount /dev/vda /srv/nas && mount /dev/vdb /srv/small && mount -o acl,user_xattr /dev/vdc /guest
    rm -rf /srv/{nas,small}/lost+found
    chmod 777 /srv/nas /srv/small
    modprobe -a nfsd cifs loop vfat nls_cp437 nls_ascii 2>/dev/null
    mount -t nfsd nfsd /proc/fs/nfsd
    mount -t rpc_pipefs pipefs /var/lib/nfs/rpc_pipefs
    : >/etc/fstab
}

start_nfs() {
    rpcbind
    rpc.statd
    # As on most NAS: root of the clients is nobody, writes are answered when they are durable.
    cat >/etc/exports <<X
/srv *(ro,no_subtree_check,fsid=0,insecure)
/srv/nas *(rw,sync,root_squash,no_subtree_check,fsid=1,insecure)
/srv/small *(rw,sync,root_squash,no_subtree_check,fsid=2,insecure)
X
    exportfs -ra
    echo 10 >/proc/fs/nfsd/nfsv4leasetime
    echo 10 >/proc/fs/nfsd/nfsv4gracetime
    rpc.nfsd 8
    rpc.mountd
}

start_smb() {
    cat >/etc/samba/smb.conf <<X
[global]
  server role = standalone server
  log file = /var/log/samba/log
  smb ports = 445
  disable netbios = yes
  load printers = no
[nas]
  path = /srv/nas
  read only = no
[exact]
  path = /srv/nas
  read only = no
  case sensitive = yes
[small]
  path = /srv/small
  read only = no
[fat]
  path = /srv/fat
  read only = no
X
    printf 'secret\nsecret\n' | smbpasswd -s -a root >/dev/null
    smbd -D
}

server_stop() { case $way in nfs*) rpc.nfsd 0 ;; smb*) kill -9 $(pidof smbd) ;; esac; }
server_start() { case $way in nfs*) rpc.nfsd 8 ;; smb*) smbd -D ;; esac; }

# attach CLIENT [SHARE]: two clients share nothing, neither connection nor cache.
attach() {
    local client=$1 share=${2:-nas}
    mkdir -p "/mnt/$client"
    case $way in
        nfs3*) mount -t nfs -o "vers=3,nosharecache${options:+,$options}" "localhost:/srv/$share" "/mnt/$client" ;;
        nfs4*) mount -t nfs -o "vers=4.2,nosharecache${options:+,$options}" "localhost:/$share" "/mnt/$client" ;;
        smb*) mount -t cifs -o "username=root,password=secret,vers=3.1.1,nosharesock,file_mode=0600,dir_mode=0700${options:+,$options}" \
            "//127.0.0.1/$share" "/mnt/$client" ;;
    esac && return
    fail "cannot mount $share"
    return 1
}
detach() { umount "/mnt/$1" 2>/dev/null || umount -lf "/mnt/$1" 2>/dev/null; }
clean() { find /srv/nas /srv/small -mindepth 1 -delete; }

make_tree() {
    mkdir -p /guest/tree /guest/home.a
    cp -a /usr/lib/python3/dist-packages /guest/tree/ 2>/dev/null
    cp -a /usr/share/zoneinfo /guest/tree/
    head -c 24000000 /dev/urandom >/guest/tree/random
    ln /guest/tree/random /guest/tree/hard-link
    truncate -s 20M /guest/tree/hole
    setfattr -n user.note -v 'an attribute' /guest/tree/random 2>/dev/null
    mkfifo /guest/tree/pipe
    echo "a tree of $(find /guest/tree | wc -l) names, $(du -sm /guest/tree | cut -f1) MiB"
}
change_tree() {
    head -c 24000000 /dev/urandom >"/guest/tree/new"
    date >>/guest/tree/zoneinfo/changed
}

# --- what is tried

first_steps() {
    expect 0 "init" a -r /mnt/a/repo init
    rm -rf /guest/home.b
    cp -a /guest/home.a /guest/home.b
    local code=0
    kw a -r /mnt/a/repo doctor || code=$?
    [ "$code" = 0 ] && pass "doctor" || fail "doctor: exit code $code"
    quote 12
    # The other client has looked, and found nothing; what the first one stores now must be there for it at once.
    kw b -r /mnt/b/repo snapshots
    expect 0 "a small backup" a -r /mnt/a/repo backup /guest/tree/zoneinfo/Europe
    seen 1
    expect 0 "first backup" a -r /mnt/a/repo backup /guest/tree
    seen 2
    change_tree
    expect 0 "second backup" a -r /mnt/a/repo backup /guest/tree
    seen 3
    expect 0 "check --read-data by the other client" b -r /mnt/b/repo check --read-data
    compare "by the first" /mnt/a/repo
}

seen() { # COUNT
    local count
    kw b -r /mnt/b/repo snapshots --json
    count=$(grep -c '"type":"snapshot"' /tmp/out)
    if [ "$count" = "$1" ]; then pass "another client sees it at once"; else fail "another client sees $count of $1 snapshots"; fi
}

kernel() {
    if timeout 300 python3 /vm/two-clients.py /mnt/a /mnt/b >/tmp/out 2>&1; then pass "two clients:"; else fail "two clients"; fi
    quote 4
    find /srv/nas -mindepth 1 -delete
}

suite() {
    [ -x /vm/conformance ] || return 0
    local began=$SECONDS at=a
    # The suite wants upper and lower case told apart, as no repository does; Samba does so when it is told to.
    case $way in smb*) at=exact && attach exact exact ;; esac
    mkdir -p "/mnt/$at/suite"
    if TMPDIR=/mnt/$at/suite timeout 900 /vm/conformance local_fs_on_the_disk >/tmp/out 2>&1; then
        pass "the suite of the store ($((SECONDS - began)) s)"
    else
        fail "the suite of the store"
    fi
    [ $at = a ] || detach exact
    rm -rf /srv/nas/suite
}

# Two clients claim, commit and prune at once.
racers() {
    local round code_a code_b
    for round in 1 2 3; do
        date >>/guest/tree/zoneinfo/changed
        env -i PATH="$PATH" HOME=/guest/home.b timeout 300 /vm/keepwell --no-progress -y -r /mnt/b/repo backup /guest/tree/zoneinfo >/tmp/out.b 2>&1 &
        local other=$!
        code_a=0 code_b=0
        kw a -r /mnt/a/repo backup /guest/tree/dist-packages || code_a=$?
        wait $other || code_b=$?
        case "$code_a/$code_b" in 0/0) ;; *) cat /tmp/out.b >>/tmp/out; fail "two at once: exit codes $code_a and $code_b"; return ;; esac
    done
    pass "three times two backups at once by two clients"
    env -i PATH="$PATH" HOME=/guest/home.b timeout 300 /vm/keepwell --no-progress -y -r /mnt/b/repo forget --keep-last 1 --prune >/tmp/out.b 2>&1 &
    other=$!
    code_a=0 code_b=0
    kw a -r /mnt/a/repo backup /guest/tree || code_a=$?
    wait $other || code_b=$?
    case "$code_a/$code_b" in 0/0 | 11/0) pass "a backup beside a prune by another client (exit codes $code_a/$code_b)" ;; *)
        cat /tmp/out.b >>/tmp/out
        fail "a backup beside a prune: exit codes $code_a and $code_b" ;;
    esac
    expect 0 "check after that" a -r /mnt/a/repo check --read-data
}

# Begins a backup that takes a while, and waits until it has stored something.
begin_slow() {
    head -c 30000000 /dev/urandom >/guest/tree/random.slow
    find /srv/nas/repo -type f | sort >/tmp/before
    env -i PATH="$PATH" HOME=/guest/home.a timeout -k 5 "${limit:-240}" /vm/keepwell --no-progress -y -v --limit-upload 2MiB \
        -r /mnt/a/repo backup /guest/tree >/tmp/out 2>&1 </dev/null &
    slow=$!
    await 60 something_new || fail "the slow backup stores nothing"
}
something_new() { find /srv/nas/repo/data -type f | sort | comm -13 /tmp/before - | grep -q .; }

killed() {
    begin_slow
    pkill -9 -P $slow
    wait $slow 2>/dev/null
    local left
    left=$(find /srv/nas/repo/.tmp -type f | wc -l)
    pass "killed in the middle; left in .tmp: $left"
    expect 0 "backup again" a -r /mnt/a/repo backup /guest/tree
    expect 0 "check after a kill" a -r /mnt/a/repo check --read-data
    [ "$(find /srv/nas/repo -name '.nfs*' -o -name '.smb*' | wc -l)" = 0 ] || fail "names of the client's own are left: $(find /srv/nas/repo -name '.nfs*' -o -name '.smb*')"
}

# SECONDS: how long the server is away.
server_away() {
    local away=$1 code=0 began
    begin_slow
    server_stop
    sleep "$away"
    began=$SECONDS
    server_start
    wait $slow || code=$?
    say "note    the server was away for $away s in the middle of a backup: exit code $code, $((SECONDS - began)) s after it came back"
    quote 5
    [ $code = 0 ] || [ $code = 1 ] || fail "exit code $code"
    await 60 ls /mnt/a/repo || fail "the mount does not come back"
    expect 0 "backup after that" a -r /mnt/a/repo backup /guest/tree
    expect 0 "check after that" a -r /mnt/a/repo check --read-data
    compare "after that" /mnt/a/repo
}

# The server is away for good, as far as this client can tell.
server_gone() {
    begin_slow
    server_stop
    local code=0 began=$SECONDS
    await "$1" process_ended
    if process_ended; then
        wait $slow || code=$?
        pass "the server stays away: the backup ends with $code after $((SECONDS - began)) s"
        quote 5
    else
        pass "the server stays away: the backup waits (given $1 s)"
        kill -TERM "$(pgrep -P $slow)" 2>/dev/null
        await 20 process_ended && pass "and can be interrupted" || say "note    and SIGTERM does not end it while the server is away"
    fi
    server_start
    await 90 process_ended || fail "the backup does not end after the server came back"
    wait $slow 2>/dev/null
    await 60 ls /mnt/a/repo
    expect 0 "backup after that" a -r /mnt/a/repo backup /guest/tree
}
process_ended() { ! kill -0 $slow 2>/dev/null || grep -q '^State:.*Z' "/proc/$slow/status"; }

full() {
    attach small small || return
    expect 0 "init on a small export" a -r /mnt/small/repo init
    expect 1 "a backup that does not fit" a -r /mnt/small/repo backup /guest/tree
    says 'no space left|quota'
    quote 3
    local left
    left=$(find /srv/small/repo/.tmp -type f | wc -l)
    [ "$left" = 0 ] && pass "nothing is left in .tmp" || fail "$left files are left in .tmp"
    expect 0 "a small backup fits afterwards" a -r /mnt/small/repo backup /guest/tree/zoneinfo/Europe
    expect 0 "check of the full export" a -r /mnt/small/repo check --read-data
    detach small
}

read_only() {
    mount -o remount,bind,ro /mnt/a 2>/dev/null || { say "note    cannot be mounted again read-only"; return; }
    expect 1 "a backup to a read-only mount" a -r /mnt/a/repo backup /guest/tree
    says 'read-only'
    quote 3
    compare "from a read-only mount" /mnt/a/repo
    mount -o remount,bind,rw /mnt/a
}

forget_and_prune() {
    expect 0 "forget --keep-last 1 --prune" a -r /mnt/a/repo forget --keep-last 1 --prune --max-unused 0
    quote 3
    expect 0 "check after the prune" b -r /mnt/b/repo check --read-data
    compare "after the prune" /mnt/a/repo
}

copies() {
    rm -rf /guest/local
    mkdir -p /guest/home.c
    expect 0 "init on a disk" c -r /guest/local init
    expect 0 "backup to a disk" c -r /guest/local backup /guest/tree/zoneinfo
    expect 0 "copy to the mount" c -r /guest/local copy --to /mnt/a/copy
    expect 0 "check of the copy" c -r /mnt/a/copy check --read-data
    rm -rf /guest/local
}

unmounted() {
    begin_slow
    if umount /mnt/a 2>/tmp/umount; then fail "it can be unmounted in the middle of a backup"; else pass "umount in the middle: $(tr '\n' ' ' </tmp/umount)"; fi
    umount -l /mnt/a
    local code=0
    wait $slow || code=$?
    say "note    umount -l in the middle: exit code $code"
    quote 3
    echo "localhost:/srv/nas /mnt/a nfs noauto 0 0" >/etc/fstab
    expect 10 "a backup when fstab has it and it is not mounted" a -r /mnt/a/repo backup /guest/tree
    quote 3
    says 'is not mounted'
    : >/etc/fstab
    [ -z "$(ls -A /mnt/a)" ] || fail "something was made beneath the mount point"
    expect 10 "a backup when nothing says what should be there" a -r /mnt/a/repo backup /guest/tree
    quote 3
    [ -z "$(ls -A /mnt/a)" ] || say "note    it made a repository beneath the mount point"
    rm -rf /mnt/a/repo
    attach a
    expect 0 "check when it is mounted again" a -r /mnt/a/repo check
}

# What the client holds is gone on the server.
stale() {
    kw a -r /mnt/a/repo snapshots
    begin_slow
    rm -rf /srv/nas/repo
    local code=0
    wait $slow || code=$?
    say "note    the server lost the repository in the middle of a backup: exit code $code"
    quote 4
    [ $code != 0 ] || fail "a backup into nothing succeeded"
}

requests() { # how often an NFS client had to rename, which only a removal of an open file makes it do
    awk '/mounted on \/mnt\/a /{on=1} /mounted on/&&!/\/mnt\/a /{on=0} on&&/ RENAME:/{print $2}' /proc/self/mountstats
}

everything() { # WAY OPTIONS
    way=$1 options=${2:-}
    clean
    rm -rf /guest/home.?
    mkdir -p /guest/home.a
    attach a
    attach b
    say "note    $(grep ' /mnt/a ' /proc/mounts | cut -c1-150)"
    kernel
    first_steps
    suite
    racers
    killed
    server_away 20
    forget_and_prune
    copies
    full
    read_only
    case $way in nfs*) [ "$(requests)" = 0 ] && pass "no file was removed while it was open" || say "note    $(requests) renames: files removed while open" ;; esac
    unmounted
    stale
    detach a
    detach b
}

server_only() { # WAY OPTIONS
    way=$1 options=${2:-}
    clean
    rm -rf /guest/home.?
    mkdir -p /guest/home.a
    attach a
    expect 0 "init" a -r /mnt/a/repo init
    expect 0 "first backup" a -r /mnt/a/repo backup /guest/tree
    server_gone "$3"
    detach a
}

# A share on FAT has neither links nor an exclusive rename.
fat() {
    way=smb-fat options=
    mkdir -p /srv/fat
    truncate -s 64M /guest/fat.img
    /usr/sbin/mkfs.vfat /guest/fat.img >/dev/null 2>&1 && mount -o loop,umask=0 /guest/fat.img /srv/fat || { say "note    no FAT here"; return; }
    attach fat fat
    echo one >/mnt/fat/one
    ln /mnt/fat/one /mnt/fat/two 2>/tmp/out && fail "FAT has links"
    quote 1
    rm -f /mnt/fat/one
    rm -rf /guest/home.f
    mkdir -p /guest/home.f
    expect 1 "init on a share on FAT is refused" f -r /mnt/fat/repo init
    quote 4
    detach fat
    umount /srv/fat
}

prepare
start_nfs
start_smb
make_tree
for one in ${KEEPWELL_NAS_WAYS:-nfs3 nfs4.2 smb3 nfs4-soft nfs4-hard smb-soft smb-hard smb-fat}; do
    case $one in
        nfs3 | nfs4.2 | smb3) everything $one ;;
        nfs4-soft) server_only $one soft,timeo=50,retrans=2 150 ;;
        nfs4-hard) server_only $one hard 60 ;;
        smb-soft) server_only $one soft 150 ;;
        smb-hard) server_only $one hard 60 ;;
        smb-fat) fat ;;
    esac
done
way=-
if [ $failures = 0 ]; then say "all of it passed"; else say "$failures failed"; fi
exit $((failures > 0))
