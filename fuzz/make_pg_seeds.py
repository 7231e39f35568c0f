#!/usr/bin/env python3
"""Writes valid inputs for fuzz targets of what others than us have written, and of statements, under `corpus/<target>/`.

Run it in `fuzz/`. What is ours `cargo run --example make_seeds` writes.
"""
import io
import json
import pathlib
import struct
import tarfile

PAGE = 8192


def save(target, name, content):
    directory = pathlib.Path("corpus") / target
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_bytes(content)


def archive_head(minor):
    """The head of an archive of pg_dump: numbers of 4 bytes, offsets of 8, custom."""
    number = lambda value: struct.pack("<BI", value < 0, abs(value))
    text = lambda value: number(len(value)) + value
    compression = b"\x00" if minor >= 15 else number(-1)
    time = b"".join(map(number, [5, 4, 3, 2, 0, 126, 0]))
    return b"PGDMP\x01" + bytes([minor, 0, 4, 8, 1]) + compression + time + text(b"clinic") + text(b"15.3")


def archive():
    """A small archive of a base backup."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in [("backup_label", b"START WAL LOCATION: 0/3000028\n"), ("base/5/", None), ("base/5/1259", b"page" * 200)]:
            info = tarfile.TarInfo(name)
            info.mode, info.mtime, info.uid, info.gid = 0o600, 1_700_000_000, 26, 26
            info.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            info.size = len(content or b"")
            tar.addfile(info, io.BytesIO(content or b""))
    return out.getvalue()[: 512 * 9]


def incremental(blocks, length):
    """An incremental file as PostgreSQL 17 sends it."""
    out = struct.pack(f"<{3 + len(blocks)}I", 0xD3AE1F0D, len(blocks), length, *blocks)
    if blocks:
        out = out.ljust(PAGE, b"\x00")
    return out + b"".join(bytes([block]) * PAGE for block in blocks)


def record(xid, info, manager, main):
    """A record of the log with main data alone; its checksum is nobody's concern here."""
    length = 24 + 2 + len(main)
    return struct.pack("<IIQBBHI", length, xid, 0, info, manager, 0, 0) + bytes([255, len(main)]) + main


def page(address, records, rest=0):
    """The first page of a segment of 1 MiB."""
    info = 2 | (1 if rest else 0)
    head = struct.pack("<HHIQII", 0xD116, info, 1, address, rest, 0) + struct.pack("<QII", 7, 1 << 20, PAGE)
    out = head
    for one in records:
        out += one
        out += b"\x00" * (-len(out) % 8)
    return out[:PAGE].ljust(PAGE, b"\x00")


def log():
    """Two segments: transactions, a restore point, and a record that goes on in the second."""
    time = struct.pack("<q", 800_000_000_000_000)
    point = time + b"before the upgrade".ljust(64, b"\x00")
    long = record(9, 0, 1, time)
    head = [record(7, 0x00, 1, time), record(8, 0x20, 1, time), record(0, 0x70, 0, point)]
    used = 40 + sum(len(one) + -len(one) % 8 for one in head)
    # A record as long as the page and 16 bytes more.
    body = struct.pack("<IIQBBHI", PAGE - used + 16, 9, 0, 0, 10, 0, 0).ljust(PAGE, b"\x01")
    first = page(1 << 20, [*head, body])
    second = page(2 << 20, [b"\x01" * 16, long], rest=16)
    # The target cuts at 97 times the first byte, modulo the length and 1.
    return bytes([253]) + (first + second)[: 253 * 97 - PAGE - 1]


CLUSTER = {
    "format": 1, "system_identifier": "7710603854990343878", "server_version_num": 150018, "timeline": 2,
    "start_lsn": "0/3000028", "stop_lsn": "0/3000100", "start_time": "2026-11-21T12:00:00Z",
    "stop_time": "2026-11-21T12:00:01.5Z", "from_standby": False, "wal_segment_size": 16777216,
    "block_size": 8192, "data_checksums": True, "data_directory": "/var/lib/postgresql/15/main",
    "tablespaces": [{"oid": 16406, "location": "/srv/fast", "name": "fast"}],
    "databases": [{"oid": 5, "name": "postgres", "size": 7000000}], "settings": {"max_connections": "100"},
}
DUMP = {
    "format": 1, "server_version_num": 150018, "version": "PostgreSQL 15.18", "from_standby": False,
    "program_major": 17, "start_time": "2026-11-21T12:00:00Z", "stop_time": "2026-11-21T12:00:01Z",
    "passwords": True, "tablespaces": ["fast"],
    "databases": [{"name": "clinic", "tables": 1, "rows": 2, "bytes": 30}], "left_out": ["nothing"],
}
DATABASE = {
    "format": 1, "name": "clinic", "encoding": "UTF8", "collate": "C", "ctype": "C", "provider": "c",
    "locale": None, "icu_rules": None, "collation_version": None, "owner": "ann", "connection_limit": -1,
    "comment": None, "privileges": [{"role": None, "privilege": "CONNECT", "grantable": False}],
    "settings": [{"role": "ann", "name": "work_mem", "value": "4MB"}],
    "extensions": [{"name": "plpgsql", "version": "1.0"}],
    "tables": [{"oid": 16400, "schema": "public", "name": "visits", "columns": ["id", "at"], "rows": 2, "hash": "0f" * 16,
                "bytes": 30, "parts": 1, "condition": None, "root": ["public", "all_visits"]}],
    "sequences": [{"schema": "public", "name": "ids", "last_value": 2, "is_called": True, "table": 16400}],
    "foreign_keys": [{"oid": 16500, "name": "of", "from": 16400, "to": 16300, "partitioned": False}],
    "large_objects": 0,
}
STATEMENT = '{\n  "type": "pg_verify_report",\n  "sound": true'


def main():
    save("pg_archive_head", "v14", archive_head(14))
    save("pg_archive_head", "v16", archive_head(16))
    save("pg_base_backup", "archive", b"\x7f" + archive())
    save("pg_base_backup", "no_block", b"\x05" + incremental([], 4))
    save("pg_base_backup", "one_block", b"\xff" + incremental([3], 5))
    save("pg_log", "two_segments", log())
    for name, value in [("cluster", CLUSTER), ("dump", DUMP), ("database", DATABASE)]:
        save("pg_descriptions", name, json.dumps(value).encode())
    save("statement", "object", f"{STATEMENT}\n}}\n".encode())
    signed = f'{STATEMENT},\n  "repository": "{"05" * 16}",\n  "signer": "{"0f" * 8}"'
    save("statement", "signed", f'{signed},\n  "signature": "{"ab" * 64}"\n}}\n'.encode())


main()
