#!/usr/bin/env bash
# Boots a Debian kernel in qemu with this machine's files beneath it, read-only, and runs a script as root in it.
# Nothing of the machine is changed but for qemu, which is installed if it is missing; what else the guest needs is
# downloaded and unpacked into the work directory. The guest has no network but its own loopback.
#
# usage: source scripts/vm/boot.sh
#        vm_prepare WORK PACKAGE…        downloads and unpacks kernel and packages
#        vm_start WORK LOG SCRIPT [DISK…]  boots; sets `vm_pid`; SCRIPT finds DISK… as /dev/vda, /dev/vdb, …, what lies
#                                          in WORK/extra/vm as /vm, and the variables of /vm/parameters
#        Of the last disk every write and flush is logged in the file `vm_log_writes`, if that is set.
#
# environment: KEEPWELL_VM_ACCEL   kvm or tcg; by default kvm if a kernel boots with it, else tcg (10 to 20 times slower)
#              KEEPWELL_VM_MEMORY  of the guest, default 1500M

vm_prepare() {
    local work=$1
    shift
    mkdir -p "$work/debs/partial" "$work/extra"
    if ! command -v qemu-system-x86_64 >/dev/null; then
        echo "installing qemu-system-x86 by apt" >&2
        local sudo=
        [ "$(id -u)" = 0 ] || sudo=sudo
        $sudo apt-get update -q >&2
        $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends qemu-system-x86 >&2
    fi
    if [ "$(cat "$work/unpacked" 2>/dev/null)" != "$*" ]; then
        echo "downloading a kernel and $* (into $work, nothing is installed)" >&2
        local image
        image=$(apt-cache depends linux-image-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
        [ -n "$image" ] || { echo "apt knows no linux-image-amd64: run apt-get update" >&2; return 1; }
        (cd "$work/debs" && apt-get download "$image" >&2)
        apt-get install -qy --no-install-recommends --download-only \
            -o Debug::NoLocking=1 -o Dir::Cache::archives="$work/debs" busybox-static kmod "$@" >&2
        local deb
        for deb in "$work"/debs/*.deb; do dpkg -x "$deb" "$work/extra"; done
        # On Debian /lib and its like are links into /usr; a directory of that name would hide the machine's.
        local name
        for name in bin sbin lib lib64; do
            [ -d "$work/extra/$name" ] || continue
            mkdir -p "$work/extra/usr/$name"
            cp -a "$work/extra/$name/." "$work/extra/usr/$name/"
            rm -rf "${work:?}/extra/$name"
        done
        mkdir -p "$work/extra/vm" # the script's directory in the guest
        echo "$*" >"$work/unpacked"
    fi
    vm_initramfs "$work"
    vm_accel "$work"
}

vm_initramfs() {
    local work=$1 root=$1/initramfs busybox=$1/extra/usr/bin/busybox modules module
    [ -x "$busybox" ] || busybox=$(command -v busybox)
    modules=$(basename "$(ls -d "$work"/extra/usr/lib/modules/*)")
    [ -e "$work/extra/usr/lib/modules/$modules/modules.dep.bin" ] || vm_depmod "$work" "$modules"
    mkdir -p "$root/bin" "$root/lib" "$root"/{proc,sys,dev,host,extra,top,root}
    cp "$busybox" "$root/bin/busybox"
    {
        echo "#!/bin/busybox sh"
        echo "B=/bin/busybox; \$B mount -t proc proc /proc; \$B mount -t sysfs sys /sys; \$B mount -t devtmpfs dev /dev"
        for module in virtio_pci virtio_blk 9pnet_virtio 9p overlay; do
            vm_with_dependencies "$work" "$modules" "$module"
        done | awk '!seen[$0]++' | while read -r module; do
            cp "$work/extra/usr/lib/modules/$modules/$module" "$root/lib/"
            echo "\$B insmod /lib/$(basename "$module")"
        done
        cat <<'INIT'
share() { $B mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=512000,cache=loose "$1" "$2"; }
share host /host && share extra /extra && $B mount -t tmpfs top /top && $B mkdir /top/upper /top/work
$B mount -t overlay -o lowerdir=/extra:/host,upperdir=/top/upper,workdir=/top/work root /root
for d in proc sys dev run tmp mnt srv home root; do $B mkdir -p /root/$d; done
$B mount --move /proc /root/proc; $B mount --move /sys /root/sys; $B mount --move /dev /root/dev
for d in run tmp mnt srv home root; do $B mount -t tmpfs -o mode=755 $d /root/$d; done
$B chmod 1777 /root/tmp
exec $B switch_root /root /bin/bash /vm/start
INIT
    } >"$root/init"
    chmod +x "$root/init"
    (cd "$root" && find . | "$busybox" cpio -o -H newc 2>/dev/null | gzip -1) >"$work/initramfs.gz"
    cat >"$work/extra/vm/start" <<'START'
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts; mount -t tmpfs shm /dev/shm
ln -sf /proc/self/fd /dev/fd
hostname guest; ip link set lo up 2>/dev/null || busybox ifconfig lo 127.0.0.1 up
[ ! -e /vm/parameters ] || source /vm/parameters
bash /vm/script </dev/null
echo "VM-EXIT $?"
sync
echo o >/proc/sysrq-trigger
while :; do sleep 1; done
START
}

vm_depmod() { # WORK VERSION
    local kmod=$1/extra/usr/bin/kmod
    [ -x "$kmod" ] || kmod=$(command -v kmod)
    (
        export LD_LIBRARY_PATH=$1/extra/usr/lib/x86_64-linux-gnu
        exec -a depmod "$kmod" -b "$1/extra/usr" "$2"
    )
}

vm_with_dependencies() { # WORK VERSION MODULE: the files to insert, in order
    awk -v name="$3" '
        { file = $1; sub(/:$/, "", file); short = file; sub(/.*\//, "", short); sub(/\.ko.*/, "", short)
          gsub("-", "_", short); of[short] = file; rest = $0; sub(/^[^:]*: */, "", rest); needs[file] = rest }
        END { if (of[name]) { n = split(needs[of[name]], part, " "); for (i = n; i > 0; i--) print part[i]; print of[name] } }
    ' "$1/extra/usr/lib/modules/$2/modules.dep"
}

# Some machines have a /dev/kvm that boots no ordinary kernel, so it is tried.
vm_accel() {
    local work=$1
    vm_accel=${KEEPWELL_VM_ACCEL:-}
    [ -z "$vm_accel" ] && [ -s "$work/accel" ] && vm_accel=$(cat "$work/accel")
    if [ -z "$vm_accel" ]; then
        vm_accel=tcg
        if [ -w /dev/kvm ]; then
            timeout 30 qemu-system-x86_64 -accel kvm -m 512 -display none -monitor none -no-reboot \
                -kernel "$work"/extra/boot/vmlinuz-* -append 'console=ttyS0 panic=-1' -serial "file:$work/kvm.log" \
                >/dev/null 2>&1 || true
            grep -aq 'Kernel panic' "$work/kvm.log" 2>/dev/null && vm_accel=kvm
        fi
    fi
    echo "$vm_accel" >"$work/accel"
    [ "$vm_accel" = kvm ] || echo "no usable /dev/kvm: the guest is emulated, which takes 10 to 20 times as long" >&2
}

vm_start() {
    local work=$1 log=$2 script=$3 disks=() disk cpu=max
    shift 3
    [ "$vm_accel" = tcg ] || cpu=host
    for disk in "$@"; do disks+=(-drive "file=$disk,if=virtio,format=raw,cache=writeback"); done
    if [ -n "${vm_log_writes:-}" ]; then
        disks[-1]=driver=blklogwrites,if=virtio,file.driver=raw,file.file.driver=file,file.file.filename=$disk
        disks[-1]+=,log.driver=raw,log.file.driver=file,log.file.filename=$vm_log_writes
    fi
    cp "$script" "$work/extra/vm/script" # /tmp of the machine is not seen in the guest
    : >"$log"
    nice qemu-system-x86_64 -accel "$vm_accel" -cpu "$cpu" -smp 1 -m "${KEEPWELL_VM_MEMORY:-1500M}" -display none \
        -monitor none -nic none -no-reboot -kernel "$work"/extra/boot/vmlinuz-* -initrd "$work/initramfs.gz" \
        -append 'console=ttyS0 quiet panic=-1 mitigations=off' -serial "file:$log" \
        -fsdev local,id=host,path=/,security_model=none,readonly=on,multidevs=remap \
        -device virtio-9p-pci,fsdev=host,mount_tag=host \
        -fsdev "local,id=extra,path=$work/extra,security_model=none,readonly=on" \
        -device virtio-9p-pci,fsdev=extra,mount_tag=extra "${disks[@]}" 2>"$work/qemu.err" &
    vm_pid=$!
}
