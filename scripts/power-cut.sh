#!/usr/bin/env bash
# Power cuts: a guest backs up, forgets and prunes on ext4 on a disk of which qemu logs every write and flush. From the
# log disks are made as a cut would have left them, at random moments: what was flushed is there, of what was written
# since then a random part of the sectors. Another guest mounts each, and everything that had been reported as stored
# must restore.
#
# Installs qemu by apt if it is missing; the kernel is only downloaded and unpacked. Takes half an hour where the guest
# must be emulated; 2 GB of memory, 5 GB in WORK.
#
# usage: scripts/power-cut.sh [CUTS [SEED]]      default: 40 cuts, a random seed, which is printed
#
# environment: KEEPWELL           the binary; default target/release/keepwell
#              KEEPWELL_NO_FLUSH  if set, the disk ignores flushes: the script must then find losses, and fails if it
#                                 does not
#              KEEPWELL_VM_WORK, KEEPWELL_VM_ACCEL, KEEPWELL_VM_MEMORY   see scripts/nas.sh
set -euo pipefail

root=$(realpath "$(dirname "$0")/..")
cuts=${1:-40} seed=${2:-$RANDOM$RANDOM}
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
    trap 'kill $vm_pid 2>/dev/null || true; rm -f "$work"/*.disk "$work/writes"' EXIT
fi
vm_prepare "$work" e2fsprogs
cp "$keepwell" "$work/extra/vm/keepwell"

phase() { # NAME: waits for the guest, shows what it said
    wait "$vm_pid" || true
    grep -av '^\[' "$work/log" | sed 's/\r$//'
    grep -aq '^VM-EXIT' "$work/log" || { echo "the guest died in the phase $1" >&2; cat "$work/qemu.err" >&2; exit 1; }
}

echo "seed $seed, $cuts cuts"
rm -f "$work/writes" "$work"/*.disk
truncate -s 1G "$work/cut.disk"
truncate -s 64M "$work/home.disk"
: >"$work/writes"
echo 'export PHASE=work' >"$work/extra/vm/parameters"
vm_log_writes=$work/writes vm_start "$work" "$work/log" "$root/scripts/vm/power-cut-guest.sh" "$work/home.disk" "$work/cut.disk"
phase work
grep -aq '^VM-EXIT 0' "$work/log" || exit 1

rm -f "$work/cut.disk"
lost=0 done=0
while [ "$done" -lt "$cuts" ]; do
    rm -f "$work"/cut-*.disk "$work"/extra/vm/demanded.*
    disks=()
    for letter in b c d e f g h i; do
        [ "$done" -lt "$cuts" ] || break
        python3 "$root/scripts/vm/write_log.py" "$work/writes" "$seed-$done" "$work/cut-$letter.disk" "$work/extra/vm/demanded.$letter" \
            ${KEEPWELL_NO_FLUSH:+no-flush}
        disks+=("$work/cut-$letter.disk")
        done=$((done + 1))
    done
    echo 'export PHASE=check' >"$work/extra/vm/parameters"
    vm_start "$work" "$work/log" "$root/scripts/vm/power-cut-guest.sh" "$work/home.disk" "${disks[@]}"
    phase check
    lost=$((lost + $(grep -ac '^LOST' "$work/log" || true)))
    grep -aq '^VM-EXIT 0' "$work/log" || lost=$((lost + 1))
done

if [ -n "${KEEPWELL_NO_FLUSH:-}" ]; then
    [ "$lost" -gt 0 ] || { echo "a disk that does not flush lost nothing: this test sees nothing" >&2; exit 1; }
    echo "without flushes the cuts lost something $lost times, as they must"
    exit 0
fi
[ "$lost" = 0 ] || { echo "LOST $lost times in $cuts cuts (seed $seed)" >&2; exit 1; }
echo "$cuts cuts: everything that was reported as stored restores"
