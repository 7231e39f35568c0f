#!/usr/bin/env python3
"""Makes a disk as a power cut would leave it, from a log of writes as qemu's `blklogwrites` makes it.

usage: write_log.py LOG SEED DISK DEMANDED [no-flush]

The moment is random. What was written before the last flush is there; of what came after it each sector of 4 KiB is
there or not, at random: it is whole, as ext4 demands of a disk for its superblock. Sectors beyond the file system hold what the guest noted, in the order of the log:
`committed SNAPSHOT HASH` after a backup had returned, `forgetting SNAPSHOT` before it was forgotten. What is demanded
of the disk, `SNAPSHOT HASH` on each line, goes to DEMANDED. Times of the host play no part.
With `no-flush` the disk has ignored every flush since the work began.
"""

import random
import struct
import sys

FLUSH, DISCARD = 1, 4
NOTES_AT = 1000 << 20  # where the notes begin; the file system ends before
DISK_BYTES = 1 << 30
SECTOR = 4096


def read_log(path):
    """Yields (flags, offset, length, where the data is in the log)."""
    with open(path, "rb") as log:
        magic, version, count, sector = struct.unpack("<QQQI", log.read(28))
        if magic != 0x6A736677736872 or version != 1:
            sys.exit(f"{path} is no log of writes")
        at = sector
        for _ in range(count):
            log.seek(at)
            first, sectors, flags, _ = struct.unpack("<QQQQ", log.read(32))
            at += sector
            length = sectors * sector
            yield flags, first * sector, length, at
            if not flags & DISCARD:
                at += length


def main():
    path, seed, disk_path, demanded_path = sys.argv[1:5]
    chance = random.Random(seed)
    entries = list(read_log(path))
    log = open(path, "rb")

    def data(entry):
        log.seek(entry[3])
        return log.read(entry[2])

    notes = [(at, data(entry).rstrip(b"\0").decode().split()) for at, entry in enumerate(entries)
             if entry[1] >= NOTES_AT and entry[2] and not entry[0] & DISCARD]
    begin = next(at for at, words in notes if words == ["begin"])
    cut = chance.randrange(begin, len(entries) + 1)
    flushed = max((at for at in range(cut) if entries[at][0] & FLUSH), default=0)
    if sys.argv[5:] == ["no-flush"]:
        flushed = begin
    chance_of_sector = chance.choice([0.0, 0.1, 0.5, 0.9])

    missing = 0
    with open(disk_path, "wb") as disk:
        disk.truncate(DISK_BYTES)
        for at, entry in enumerate(entries[:cut]):
            flags, offset, length, _ = entry
            if not length or offset >= NOTES_AT:
                continue
            if flags & DISCARD:
                continue  # a disk may do so, or not
            body = data(entry)
            if at < flushed:
                disk.seek(offset)
                disk.write(body)
                continue
            for start in range(0, length, SECTOR):
                if chance.random() < chance_of_sector:
                    disk.seek(offset + start)
                    disk.write(body[start:start + SECTOR])
                else:
                    missing += 1

    demanded = {}
    for at, words in notes:
        if at >= cut:
            break
        if words[0] == "committed":
            demanded[words[1]] = words[2]
        elif words[0] == "forgetting":
            demanded.pop(words[1], None)
    with open(demanded_path, "w") as out:
        out.writelines(f"{snapshot} {tree}\n" for snapshot, tree in demanded.items())
    print(f"cut at entry {cut} of {len(entries)}, {cut - flushed} after the last flush, {missing} sectors lost; "
          f"{len(demanded)} snapshots demanded")


main()
