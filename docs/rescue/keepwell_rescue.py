#!/usr/bin/env python3
"""Reads a Keepwell repository without Keepwell: Python 3.9+, the `age` and `zstd` commands, and docs/format.md.

usage: keepwell_rescue.py REPOSITORY KEY list
       keepwell_rescue.py REPOSITORY KEY restore SNAPSHOT DIRECTORY [--verify]
       keepwell_rescue.py REPOSITORY KEY scrub

REPOSITORY is a local directory (fetch a bucket with any tool first). KEY is a key file or a recovery kit in plain text;
one protected by a passphrase is opened first with `age -d kit.age > kit.txt`. SNAPSHOT is `latest` or the first digits
of an id. DIRECTORY is new or empty. Exit status: 0 done, 1 failed, 3 restored but some entries were not.

Always checked: the genesis pin, the links of the trust chain, SHA-256 names of the objects that are read, snapshot ids,
and what age authenticates. `--verify` adds the Ed25519 signatures and the chunk ids (keyed BLAKE3) in plain Python:
complete, but about 1 MB/s. Without it nothing proves who wrote a snapshot, so restore as a user without privileges.
"""
import collections
import datetime
import functools
import hashlib
import os
import pathlib
import re
import stat
import struct
import subprocess
import sys

Location = collections.namedtuple("Location", "pack domain frame_offset frame_length offset length")


class Damage(Exception):
    """The repository does not say what it should; the text says where."""


# What bytes raise that are not a record of this format.
MALFORMED = (Damage, OSError, LookupError, ValueError, TypeError, AttributeError, struct.error)


# -- CBOR (RFC 8949), the subset of docs/format.md §1 ------------------------------------------------------------------

def cbor(data):
    value, end = cbor_item(data, 0)
    if end != len(data):
        raise Damage(f"{len(data) - end} bytes after the end of a record")
    return value


def cbor_item(data, at):
    major, info = data[at] >> 5, data[at] & 31
    at += 1
    if info >= 24:
        size = {24: 1, 25: 2, 26: 4, 27: 8}[info]
        info, at = int.from_bytes(data[at:at + size], "big"), at + size
    if major < 2:
        return (info if major == 0 else -1 - info), at
    if major < 4:
        raw = bytes(data[at:at + info])
        return (raw if major == 2 else raw.decode()), at + info
    if major == 4:
        items = []
        for _ in range(info):
            item, at = cbor_item(data, at)
            items.append(item)
        return items, at
    if major == 5:
        table = {}
        for _ in range(info):
            key, at = cbor_item(data, at)
            table[key], at = cbor_item(data, at)
        return table, at
    return {20: False, 21: True, 22: None}[info], at


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at


# -- age and zstd ------------------------------------------------------------------------------------------------------

def run(command, data=None):
    done = subprocess.run(command, input=data, capture_output=True)
    if done.returncode:
        raise Damage(f"`{' '.join(map(str, command))}`: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def unzstd(data):
    return run(["zstd", "-dcq"], bytes(data))


class Repository:
    def __init__(self, root, key_text, verify):
        self.root, self.verify = pathlib.Path(root), verify
        self.identities = re.findall(r"AGE-SECRET-KEY-1[0-9A-Z]+", key_text)
        pin = re.search(r"genesis\W+([0-9a-f]{64})", key_text)
        if not self.identities or not pin:
            raise Damage("the key names no AGE-SECRET-KEY-1… or no genesis fingerprint")
        # Public keys by id: of owners in force, of who may sign commits, of who may or might sign retirements.
        self.owners, self.writers, self.keepers = {}, {}, {}
        self.id_keys, self.revoked_from = {}, {}
        self.read_trust(pin.group(1))
        self.read_keyrings()
        self.locations = None

    # -- objects -------------------------------------------------------------------------------------------------------

    def names(self, prefix):
        """Names of the objects below a prefix, sorted."""
        top = self.root / prefix
        return sorted(str(p.relative_to(self.root)) for p in top.rglob("[!.]*") if p.is_file()) if top.is_dir() else []

    def sealed(self, name):
        """The plaintext of an age file; a content object must have the SHA-256 that its name says."""
        stored = (self.root / name).read_bytes()
        said = re.fullmatch(r"([0-9a-f]{64})-[0-9a-f]{8}", name.rsplit("/", 1)[-1])
        if said and hashlib.sha256(stored).hexdigest() != said.group(1):
            raise Damage(f"`{name}` is damaged: its SHA-256 is not its name")
        return run(["age", "-d", "-i", "-", str(self.root / name)], "\n".join(self.identities).encode())

    def signed(self, name, kind):
        """The payload of a signed record, and who says to have signed it."""
        envelope = cbor((self.root / name).read_bytes())
        if envelope[0] != kind:
            raise Damage(f"`{name}` is a record of kind `{envelope[0]}`, not `{kind}`")
        return envelope, cbor(envelope[1])

    def check_signature(self, name, envelope, public_keys):
        if envelope[2] not in public_keys:
            raise Damage(f"`{name}` is signed by nobody who may")
        if self.verify is None:
            return
        kind = envelope[0].encode()
        message = b"keepwell.v1.signed\0" + self.id + struct.pack(">I", len(kind)) + kind + envelope[1]
        if not self.verify.ed25519(public_keys[envelope[2]], message, envelope[3]):
            raise Damage(f"the signature of `{name}` does not verify")

    def genuine(self, folder, kind, public_keys, place):
        """(name, signer, payload) of the records that stand where they say and that somebody signed who may."""
        for name in self.names(folder):
            try:
                envelope, payload = self.signed(name, kind)
                if place(payload) != name:
                    raise Damage(f"`{name}` belongs elsewhere")
                self.check_signature(name, envelope, public_keys)
            except MALFORMED as error:
                print(f"warning: `{name}` does not count: {error!r}", file=sys.stderr)
                continue
            yield name, envelope[2], payload

    # -- trust chain and keys (§4, §5) ---------------------------------------------------------------------------------

    def read_trust(self, pin):
        previous = None
        for number, name in enumerate(self.names("trust")):
            stored = (self.root / name).read_bytes()
            envelope, payload = self.signed(name, "trust")
            if name != f"trust/{number:010}" or payload[0] != number or payload.get(1) != previous:
                raise Damage(f"`{name}` does not follow the record before it")
            previous = hashlib.sha256(stored).digest()
            tag, body = payload[3]
            if number == 0:
                if previous.hex() != pin:
                    raise Damage(f"this is not the repository of the key: its genesis is {previous.hex()}")
                self.id = body[0]
                self.owners = {owner[0]: owner[3] for owner in body[2]}
            self.check_signature(name, envelope, self.owners)
            if tag == 1:
                # Roles are bits: 1 writer, 4 keeper, who may sign commits too.
                self.writers.update({body[0][0]: body[0][2]} if body[0][4] & 5 else {})
                self.keepers.update({body[0][0]: body[0][2]} if body[0][4] & 4 else {})
            elif tag == 2:
                self.revoked_from[body[0]] = body[1]
            elif tag == 6 and 0 in body:
                self.owners[body[0][0]] = body[0][3]
            # What an owner or keeper retired stays so when he has gone.
            self.keepers.update(self.owners)
            if tag == 6 and 1 in body:
                self.owners.pop(body[1], None)
        if previous is None:
            raise Damage("there is no `trust/0000000000`: this is not a repository")

    def read_keyrings(self):
        """Opens every keyring that the key opens: a member its own, an owner all of them."""
        found, domains = [], []
        for name in self.names("keys"):
            try:
                content = cbor(unzstd(self.sealed(name)))
            except MALFORMED as error:
                if "no identity matched" not in str(error) and not name.startswith("keys/erasable/"):
                    print(f"warning: `{name}` cannot be read: {error}", file=sys.stderr)
                continue
            if name.startswith("keys/erasable/"):
                domains.append(content)
                continue
            for group in content[2]:
                found += group[1]
                domains += group[2]
        for domain in domains:
            found += domain[3]
            # Somebody may have forged keys of an erasable domain; a chunk has its id under the genuine one.
            self.id_keys.setdefault(domain[0], set()).add(domain[1])
        if not found:
            raise Damage("the key opens no keyring")
        self.identities += sorted(set(found) - set(self.identities))

    # -- snapshots (§10, §11, §13) -------------------------------------------------------------------------------------

    def snapshots(self):
        """(snapshot id, manifest) of every snapshot that is not retired, oldest first."""
        retired = set()
        for _, _, payload in self.genuine("retired", "retired", self.keepers, lambda p: f"retired/{p[1]:010}"):
            retired |= {(payload[0], writer, number) for writer, number, _ in payload[3]}
        found = []
        ends = self.genuine("commits", "commit", {**self.keepers, **self.writers}, lambda p: f"commits/{p[1].hex()}/{p[2]:010}")
        for name, signer, commit in ends:
            if commit[3] != 0 or (commit[0], commit[1], commit[2]) in retired:
                continue
            if signer != commit[1] or signer not in self.writers or commit[2] >= self.revoked_from.get(signer, commit[2] + 1):
                print(f"warning: `{name}` does not count: its signer may not write it, or is revoked", file=sys.stderr)
                continue
            try:
                found.append((commit[8].hex(), self.manifest(commit)))
            except MALFORMED as error:
                print(f"warning: the snapshot of `{name}` cannot be read: {error!r}", file=sys.stderr)
        return sorted(found, key=lambda snapshot: snapshot[1][9])

    def manifest(self, commit):
        plain = unzstd(self.sealed(commit[7] if "/" in commit[7] else "manifests/" + commit[7]))
        if hashlib.sha256(plain).digest() != commit[8]:
            raise Damage("its manifest is not the one that it names")
        manifest = cbor(plain)
        # What is looked at of each, also of those that nobody wants; nanoseconds as 64 bits hold them.
        is_one = isinstance(manifest[9], int) and abs(manifest[9]) < 2**63 and isinstance(manifest[13], bytes)
        if not is_one or not all(isinstance(text, str) for text in (manifest[4], manifest[5])):
            raise Damage("its manifest is none")
        b" ".join(manifest.get(6, []))
        return manifest

    # -- chunks (§6, §7, §8) -------------------------------------------------------------------------------------------

    def read_index(self):
        self.locations = collections.defaultdict(list)
        for name in self.names("index"):
            try:
                self.read_segment(name)
            except MALFORMED as error:
                print(f"warning: `{name}` cannot be read, chunks may be missing: {error}", file=sys.stderr)

    def read_segment(self, name):
        plain = self.sealed(name)
        if plain[-8:] != b"KWINDX\0\x01":
            raise Damage(f"`{name}` is not an index segment of version 1")
        offset, length = struct.unpack_from("<QI", plain, len(plain) - 104)
        tables = cbor(unzstd(plain[offset + 8:offset + length]))
        for _, block_offset, stored, entries, _ in tables[4]:
            self.read_block(unzstd(plain[block_offset:block_offset + stored]), entries, tables[3])

    def read_block(self, block, entries, packs):
        if struct.unpack_from("<I", block)[0] != entries:
            raise Damage("an index block does not hold what its table says")
        at = 4 + 32 * entries
        for i in range(entries):
            numbers = []
            for _ in range(5):
                number, at = varint(block, at)
                numbers.append(number)
            pack = packs[numbers[0]]
            self.locations[bytes(block[4 + 32 * i:36 + 32 * i])].append(Location(pack[0], pack[3], *numbers[1:]))

    @functools.lru_cache(maxsize=8)
    def pack(self, name):
        for kind in ("data", "meta"):
            path = name if "/" in name else f"{kind}/{name[:2]}/{name}"
            if (self.root / path).is_file():
                return self.sealed(path)
        raise Damage(f"pack `{name}` is missing")

    @functools.lru_cache(maxsize=16)
    def frame(self, pack, offset, length):
        return unzstd(memoryview(self.pack(pack))[offset:offset + length])

    def chunk(self, chunk_id, kind):
        """The bytes of a chunk, from the first of its places that is sound."""
        if self.locations is None:
            self.read_index()
        problem = "no index lists it"
        for place in self.locations.get(chunk_id, ()):
            try:
                data = self.frame(place.pack, place.frame_offset, place.frame_length)[place.offset:place.offset + place.length]
            except Damage as error:
                problem = error
                continue
            keys = self.id_keys.get(place.domain, ())
            if len(data) == place.length and (self.verify is None or any(self.verify.blake3(bytes([kind]) + data, key) == chunk_id for key in keys)):
                return data
            problem = f"pack `{place.pack}` holds other bytes"
        raise Damage(f"chunk {chunk_id.hex()}: {problem}")

    # -- the tree (§9) -------------------------------------------------------------------------------------------------

    def records(self, node_id, broken, wanted_level=None):
        """(key, value) of every record below a node, in order. What is wrong with one that cannot be read, `broken` hears."""
        try:
            level, records = cbor(self.chunk(node_id, 1))
            if level > 63 or wanted_level not in (None, level):
                raise Damage(f"node {node_id.hex()} is of another level")
        except MALFORMED as error:
            broken(error)
            return
        key = b""
        for record in records:
            key = key[:record[0]] + record[1]
            if level == 0:
                yield key, record[2]
            else:
                yield from self.records(record[2], broken, level - 1)


def split_key(key):
    """Components of a key, and the tag of the sub-key that follows them, if one does."""
    components, at = [], 0
    while at < len(key):
        end = key.index(0, at)
        if end == at:
            return tuple(components), key[at + 1]
        components.append(key[at:end].replace(b"\1\1", b"\0").replace(b"\1\2", b"\1"))
        at = end + 1
    return tuple(components), None


# -- restore -----------------------------------------------------------------------------------------------------------

class Restore:
    def __init__(self, repository, target):
        self.repository, self.target = repository, os.fsencode(target)
        self.directories, self.problems = {(): None}, 0

    def run(self, root_node):
        os.makedirs(self.target, exist_ok=True)
        if os.listdir(self.target):
            raise Damage(f"`{os.fsdecode(self.target)}` is not empty")
        entry = None
        for key, value in self.repository.records(root_node, lambda error: self.problem("a part of the tree", error)):
            components, tag = split_key(key)
            if tag is None:
                self.finish(entry)
                entry = components, value, []
            elif tag == 1 and entry and entry[0] == components:
                entry[2].append(value)
        self.finish(entry)
        for components, entry in reversed(list(self.directories.items())):
            if entry is not None:
                self.attributes(os.path.join(self.target, *components), entry)

    def problem(self, what, error):
        self.problems += 1
        print(f"not restored: {what}: {error}", file=sys.stderr)

    def finish(self, found):
        """Restores an entry, of which all records of extents have been met."""
        if found is None:
            return
        components, value, more = found
        try:
            entry = cbor(value)
            extents = entry.get(6, []) + [extent for record in more for extent in cbor(record)]
            if len(more) != entry.get(13, 0) or sum(extent[1] for extent in extents) != entry.get(5, 0):
                raise Damage("its extents do not add up to its size")
            self.entry(self.path(components), components, entry, extents)
        except MALFORMED as error:
            self.problem(f"`{b'/'.join(components).decode(errors='replace')}`", error)

    def path(self, components):
        """The path of an entry; its parents become directories, never links."""
        if any(c in (b".", b"..") or b"/" in c or b"\0" in c for c in components):
            raise Damage("the name is not a file name")
        for depth in range(1, len(components)):
            if components[:depth] not in self.directories:
                os.mkdir(os.path.join(self.target, *components[:depth]))
                self.directories[components[:depth]] = None
        return os.path.join(self.target, *components)

    def entry(self, path, components, entry, extents):
        kind = entry[0]
        if kind == 1:
            if components and components not in self.directories:
                os.mkdir(path, 0o700)
            self.directories[components] = entry
            return
        if kind in (0, 8):
            self.file(path, entry, extents)
        elif kind == 2:
            os.symlink(entry[7], path)
        elif kind == 3:
            os.mkfifo(path)
        elif kind in (4, 5):
            os.mknod(path, (stat.S_IFCHR if kind == 4 else stat.S_IFBLK) | 0o600, os.makedev(*entry[9]))
        elif kind == 6:
            return
        elif kind == 7:
            os.link(self.path(split_key(entry[10])[0]), path, follow_symlinks=False)
            return
        else:
            raise Damage(f"entries of kind {kind} are not files")
        self.attributes(path, entry)

    def file(self, path, entry, extents):
        with open(path, "xb") as out:
            for chunk_id, length, *offset in extents:
                if chunk_id is None:
                    out.seek(length, os.SEEK_CUR)
                    continue
                start = offset[0] if offset else 0
                data = self.repository.chunk(chunk_id, 0)[start:start + length]
                if len(data) != length:
                    raise Damage(f"chunk {chunk_id.hex()} is shorter than its extent")
                out.write(data)
            out.truncate(entry.get(5, 0))

    def attributes(self, path, entry):
        """Owner, then mode (a change of owner clears setuid), then extended attributes, then times."""
        link = entry[0] == 2
        if os.geteuid() == 0:
            os.chown(path, entry.get(2, 0), entry.get(3, 0), follow_symlinks=False)
        if not link:
            # An object of an object store (8) may have none.
            os.chmod(path, entry.get(1, 0o644 if entry[0] == 8 else 0))
        for name, value in entry.get(8, []):
            try:
                os.setxattr(path, name, value, follow_symlinks=False)
            except OSError as error:
                self.problems += 1
                print(f"xattr `{name.decode(errors='replace')}` of `{os.fsdecode(path)}`: {error}", file=sys.stderr)
        seconds, nanoseconds = entry.get(4, [0, 0])
        os.utime(path, ns=(seconds * 10**9 + nanoseconds,) * 2, follow_symlinks=False)


# -- commands ----------------------------------------------------------------------------------------------------------

def scrub(root):
    """Compares every content object with its name; needs no key (and `sha256sum` can do the same)."""
    bad = total = 0
    for path in sorted(pathlib.Path(root).rglob("*")):
        said = re.fullmatch(r"([0-9a-f]{64})-[0-9a-f]{8}", path.name)
        if said and path.is_file():
            total += 1
            if hashlib.sha256(path.read_bytes()).hexdigest() != said.group(1):
                bad += 1
                print(f"damaged: {path.relative_to(root)}")
    print(f"{total} content objects, {bad} damaged")
    return 1 if bad else 0


def main(argv):
    verify = None
    if "--verify" in argv:
        argv.remove("--verify")
        import keepwell_verify as verify
    if len(argv) < 3 or (argv[2], len(argv)) not in (("list", 3), ("scrub", 3), ("restore", 5)):
        print(__doc__, file=sys.stderr)
        return 2
    if argv[2] == "scrub":
        return scrub(argv[0])
    repository = Repository(argv[0], pathlib.Path(argv[1]).read_text(), verify)
    snapshots = repository.snapshots()
    if argv[2] == "list":
        for snapshot_id, m in snapshots:
            paths = b" ".join(m.get(6, [])).decode(errors="replace")
            print(snapshot_id[:8], datetime.datetime.fromtimestamp(m[9] // 10**9, datetime.timezone.utc).strftime("%FT%TZ"), m[5], m[4], paths)
        return 0
    chosen = [s for s in snapshots if argv[3] == "latest" or s[0].startswith(argv[3])][-1:]
    if not chosen:
        raise Damage(f"no snapshot `{argv[3]}`")
    restore = Restore(repository, argv[4])
    restore.run(chosen[0][1][13])
    print(f"snapshot {chosen[0][0][:8]} restored to {argv[4]}, {restore.problems} problems" + ("" if verify else "; signatures and chunk ids were not checked (--verify)"))
    return 3 if restore.problems else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (Damage, OSError) as error:
        sys.exit(f"error: {error}")
    except MALFORMED as error:
        sys.exit(f"error: a record is damaged, or newer than this reader: {error!r}")
