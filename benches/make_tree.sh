#!/usr/bin/env bash
# Makes a tree to measure with.
#
# usage: benches/make_tree.sh real DIR [BYTES]    copies of what this machine has: programs, libraries, documents, sources,
#                                                 in a fixed order until BYTES (default 3.0 GB, about 112,000 files)
#        benches/make_tree.sh small DIR [COUNT]   COUNT (default 1,000,000) files of 0 to 4 KiB, always the same ones
set -euo pipefail

real() {
    local dir=$1 budget=${2:-3000000000}
    local sources=(/usr/share /usr/include /usr/bin "${CARGO_HOME:-$HOME/.cargo}/registry/src" /usr/lib/x86_64-linux-gnu
        /usr/lib/gcc /usr/lib/python3 /usr/lib/llvm* "${RUSTUP_HOME:-$HOME/.rustup}"/toolchains/stable*/share /usr/lib "${RUSTUP_HOME:-$HOME/.rustup}/toolchains")
    mkdir -p "$dir"
    for source in "${sources[@]}"; do
        [ ! -d "$source" ] || find "$source" -xdev \( -type f -o -type l \) -printf '%s %p\0' | LC_ALL=C sort -z -k 2
    done | python3 -c '
import sys
budget, used, seen = int(sys.argv[1]), 0, set()
for record in sys.stdin.buffer.read().split(b"\0")[:-1]:
    size, path = record.split(b" ", 1)
    if path not in seen and used + int(size) <= budget:
        used += int(size)
        seen.add(path)
        sys.stdout.buffer.write(path + b"\0")
' "$budget" | tar -P --null --no-recursion -T - -cf - | tar -x -f - -C "$dir" --transform 's,^/,,'
}

small() {
    python3 - "$1" "${2:-1000000}" <<'PY'
import os, random, sys
directory, count = sys.argv[1], int(sys.argv[2])
rng = random.Random(1)
words = [rng.randbytes(rng.randint(3, 12)) for _ in range(4096)]
for number in range(count):
    parent = f"{directory}/{number // 100000:02}/{number // 500 % 200:03}"
    if number % 500 == 0:
        os.makedirs(parent, exist_ok=True)
    size = int(4096 * rng.random() ** 3)
    with open(f"{parent}/{number:07}.txt", "wb") as out:
        out.write(b" ".join(rng.choices(words, k=size // 8 + 1))[:size])
PY
}

case ${1:-} in
real | small) [ $# -ge 2 ] && "$@" ;;
*) sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
printf '%s: %d files, %d directories, %d bytes\n' "$2" "$(find "$2" ! -type d | wc -l)" "$(find "$2" -type d | wc -l)" \
    "$(find "$2" -type f -printf '%s\n' | awk '{ n += $1 } END { printf "%.0f", n }')"
