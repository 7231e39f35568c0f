#!/usr/bin/env bash
# Directories on real NFS and SMB mounts: boots a Debian kernel in qemu that is server and client of both, and runs the
# command there: backups, restores compared with rsync, prunes, copies, two clients at once, a server that goes away,
# kills, a full export, mounts that are missing. What was learned with it is in docs/reliability.md.
#
# Installs qemu by apt if it is missing; kernel, nfs-kernel-server, samba and cifs-utils are only downloaded and unpacked.
# Takes an hour where the guest must be emulated, some minutes with /dev/kvm; 2 GB of memory, 5 GB in WORK.
#
# usage: scripts/nas.sh [WAY…]      nfs3 nfs4.2 smb3 (everything), nfs4-soft nfs4-hard smb-soft smb-hard (a server that
#                                   stays away), smb-fat (a share that can do too little); by default all
#
# environment: KEEPWELL               the binary; default target/release/keepwell
#              KEEPWELL_CONFORMANCE   the test binary `conformance` of crates/storage, to run the suite of the store too
#              KEEPWELL_VM_WORK       what is downloaded stays there; default a temporary directory
#              KEEPWELL_VM_ACCEL, KEEPWELL_VM_MEMORY   see scripts/vm/boot.sh
set -euo pipefail

root=$(realpath "$(dirname "$0")/..")
keepwell=${KEEPWELL:-${CARGO_TARGET_DIR:-$root/target}/release/keepwell}
[ -x "$keepwell" ] || { echo "there is no $keepwell: cargo build --release -p keepwell-cli" >&2; exit 2; }
command -v apt-get >/dev/null || { echo "this needs Debian or a relative of it: apt-get is missing" >&2; exit 2; }
source "$root/scripts/vm/boot.sh"

work=${KEEPWELL_VM_WORK:-}
vm_pid=
if [ -z "$work" ]; then
    work=$(mktemp -d)
    trap 'kill $vm_pid 2>/dev/null || true; rm -rf "$work"' EXIT
else
    mkdir -p "$work"
    trap 'kill $vm_pid 2>/dev/null || true; rm -f "$work"/*.disk' EXIT
fi

vm_prepare "$work" nfs-kernel-server nfs-common samba cifs-utils dosfstools e2fsprogs python3 rsync
cp "$keepwell" "$work/extra/vm/keepwell"
cp "$root/scripts/vm/two-clients.py" "$work/extra/vm/"
rm -f "$work/extra/vm/conformance"
[ -z "${KEEPWELL_CONFORMANCE:-}" ] || cp "$KEEPWELL_CONFORMANCE" "$work/extra/vm/conformance"
printf 'export KEEPWELL_NAS_WAYS=%q\n' "$*" >"$work/extra/vm/parameters"
for disk in nas:2G small:64M tree:4G; do
    rm -f "$work/${disk%:*}.disk"
    truncate -s "${disk#*:}" "$work/${disk%:*}.disk"
done

vm_start "$work" "$work/log" "$root/scripts/vm/nas-guest.sh" "$work"/{nas,small,tree}.disk
tail -f --pid="$vm_pid" "$work/log" 2>/dev/null
grep -aq '^VM-EXIT 0' "$work/log"
