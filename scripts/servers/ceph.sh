#!/usr/bin/env bash
# A small Ceph (one monitor, one OSD, one gateway) on loopback: a real S3 server with versions, object lock, lifecycle
# rules and bucket policies. No authentication inside the cluster.
#
# usage: ceph.sh start DIR [memstore|bluestore]      memstore (the default) keeps objects in memory, bluestore in DIR
#        ceph.sh stop DIR
#
# Besides the owner of the buckets there are users without any right of their own, for bucket policies to name:
# `arn:aws:iam:::user/writer`, `…/writer2`, `…/keeper` and `…/reader`.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

USERS=(writer writer2 keeper reader)

server_start() {
    packages ceph-common ceph-mon ceph-osd radosgw uuid-runtime python3 curl
    local store=${1:-memstore} port user key
    port=$(free_port)
    mkdir -p "$DIR"/{mon,osd,run,log}
    configure "$store" "$port" "$(free_port)" "$(free_port)"
    start_cluster
    ceph_run radosgw -n client.rgw.a
    wait_for 120 radosgw answers "http://127.0.0.1:$port/"

    local owner_secret
    owner_secret=$(secret)
    create_user keepwell KEEPWELL "$owner_secret"
    s3_put "$owner_secret" "http://127.0.0.1:$port/keepwell" </dev/null
    s3_put "$owner_secret" "http://127.0.0.1:$port/versioned" </dev/null
    s3_put "$owner_secret" "http://127.0.0.1:$port/versioned?versioning" \
        <<<'<VersioningConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Status>Enabled</Status></VersioningConfiguration>'
    s3_put "$owner_secret" "http://127.0.0.1:$port/locked" 'x-amz-bucket-object-lock-enabled:true' </dev/null

    setting ENDPOINT "http://127.0.0.1:$port"
    setting REGION default
    setting BUCKET keepwell
    setting VERSIONED_BUCKET versioned
    setting LOCKED_BUCKET locked
    setting ACCESS_KEY KEEPWELL
    setting SECRET_KEY "$owner_secret"
    for user in "${USERS[@]}"; do
        key=$(secret)
        create_user "$user" "${user^^}" "$key"
        setting "${user^^}_ACCESS_KEY" "${user^^}"
        setting "${user^^}_SECRET_KEY" "$key"
    done
    setting PORT "$port"
}

# A command of Ceph, with our configuration; daemons put themselves into the background.
ceph_run() { timeout 120 "$1" -c "$DIR/ceph.conf" "${@:2}" </dev/null >>"$DIR/ceph.log" 2>&1 3>&-; }

start_cluster() {
    local osd
    osd=$(uuidgen)
    monmaptool --create --fsid "$(sed -n 's/^fsid = //p' "$DIR/ceph.conf")" \
        --addv a "$(sed -n 's/^mon host = //p' "$DIR/ceph.conf")" "$DIR/monmap" >>"$DIR/ceph.log"
    ceph_run ceph-mon -i a --mkfs --monmap "$DIR/monmap"
    ceph_run ceph-mon -i a
    wait_for 60 ceph-mon ceph_run ceph osd create "$osd"
    ceph_run ceph-osd -i 0 --mkfs --no-mon-config --osd-uuid "$osd"
    ceph_run ceph osd crush add osd.0 1.0 root=default host=localhost
    ceph_run ceph-osd -i 0
    wait_for 60 ceph-osd osd_is_up
}

osd_is_up() { timeout 10 ceph -c "$DIR/ceph.conf" osd stat 2>/dev/null | grep -q '1 up'; }

configure() {
    local store=$1 port=$2 mon_v1=$3 mon_v2=$4
    cat >"$DIR/ceph.conf" <<X
[global]
fsid = $(uuidgen)
mon host = [v2:127.0.0.1:$mon_v2,v1:127.0.0.1:$mon_v1]
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
public network = 127.0.0.0/8
ms bind ipv6 = false
auth cluster required = none
auth service required = none
auth client required = none
ms mon client mode = crc
run dir = $DIR/run
admin socket = $DIR/run/\$name.asok
pid file = $DIR/pids/\$name
log file = $DIR/log/\$name
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
mon pg warn min per osd = 0
# The file system may be nearly full for reasons that are not ours.
mon data avail warn = 3
mon data avail crit = 2
[mon.a]
mon data = $DIR/mon
[osd]
osd data = $DIR/osd
osd objectstore = $store
osd memory target = 1073741824
memstore device bytes = 8589934592
bluestore block size = 21474836480
[client.rgw.a]
rgw frontends = beast endpoint=127.0.0.1:$port
rgw data = $DIR/run
rgw enable usage log = false
X
}

create_user() {
    ceph_run radosgw-admin -n client.rgw.a user create --uid="$1" --display-name="$1" --access-key="$2" --secret-key="$3"
}

# A signed PUT as the owner of the buckets: SECRET URL [HEADER:VALUE], with its body on standard input.
s3_put() {
    ACCESS_KEY=KEEPWELL SECRET_KEY=$1 REGION=default /usr/bin/python3 "$HERE/s3_request.py" PUT "${@:2}"
}

server_stop() { end_processes client.rgw.a osd.0 mon.a; }

main "$@"
