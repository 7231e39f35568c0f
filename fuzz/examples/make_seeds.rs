//! Writes a few valid inputs per fuzz target under `corpus/<target>/`.
//!
//! Run it in `fuzz/` after a change of a format: `cargo run --example make_seeds`.

use std::error::Error;
use std::fs;

use backup_core::pack::{FrameInfo, PackDirectory};
use keepwell_catalog::{
    Commit, CommitKind, ContentName, Entry, EntryKind, Extent, IndexEntry, Kept, List, ListedObject,
    Manifest, MapBuilder, MapKey, Marks, MemoryNodes, NodeSource, ObjectName, PackClass, PackRef, Plan,
    PlanName, Problem, RecipeWriter, Retired, RetiredSnapshot, SegmentBuilder, Session, SessionKind,
    Statistics, push_entry,
};
use keepwell_crypto::keyfile::{KeyFile, MemberKeys, OwnerKeys};
use keepwell_crypto::keyring::{DomainKeys, GroupKeys, Keyring};
use keepwell_crypto::trust::{Body, Chain, Domain, Group, KeyringRef, Member, Owner, Revoke, Roles};
use keepwell_crypto::{
    ChunkId, Digest, DomainId, GroupId, IdKey, Identity, MemberId, RepositoryId, Signed, SigningKey,
    SnapshotId, StoreId, seal,
};

/// A configuration of the command with something of most kinds.
const CONFIG: &str = r#"
[profile.nightly]
repository = "s3://bucket/host"
key-file = "~/.config/keepwell/host.key"
paths = ["/home", "~/notes"]
excludes = ["*.tmp"]
tags = ["nightly"]
one-file-system = true

[profile.nightly.limits]
upload = "2MiB"

[profile.nightly.retention]
daily = 7
within = "30d"

[profile.nightly.storage]
region = "eu-central-1"

[[profile.nightly.copy]]
to = "/mnt/disk/backup"
max-age = "3d"
"#;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const SECRET: &str = "AGE-SECRET-KEY-1GQ9778VQXMMJVE8SK7J6VT8UJ4HDQAJUVSFCWCM02D8GEWQ72PVQ2Y5J33";

fn save(target: &str, name: &str, bytes: &[u8]) -> Result<()> {
    fs::create_dir_all(format!("corpus/{target}"))?;
    Ok(fs::write(format!("corpus/{target}/{name}"), bytes)?)
}

fn main() -> Result<()> {
    crypto()?;
    text()?;
    entries()?;
    tree()?;
    recipe()?;
    keys()?;
    records()?;
    index()?;
    pack()
}

fn crypto() -> Result<()> {
    let key = SigningKey::from_seed(&[3; 32]);
    for kind in ["commit", "trust"] {
        let signed = Signed::sign(&key, RepositoryId::from_bytes([5; 16]), kind, vec![0xa1, 0, 1]);
        save("signed_envelope", kind, &signed.to_bytes())?;
    }
    let identity = Identity::parse(SECRET)?;
    save("sealed", "short", &seal(&[identity.recipient()], b"plain text")?)?;
    save("sealed", "two_recipients", &seal(&[identity.recipient(), Identity::generate().recipient()], b"")?)?;
    save("key_text", "identity", SECRET.as_bytes())?;
    save("key_text", "recipient", identity.recipient().to_string().as_bytes())?;
    save("key_text", "signing", key.to_secret_string().expose().as_bytes())?;
    save("key_text", "verifying", key.verifying_key().to_string().as_bytes())?;
    save("key_text", "chunk", "0f".repeat(32).as_bytes())
}

fn text() -> Result<()> {
    save("storage_key", "pack", format!("data/0f/{}-01234567", "0f".repeat(32)).as_bytes())?;
    save("storage_key", "kept", b"gc/0000000042-0badcafe.kept")?;
    save("location", "directory", b"file:///srv/backup")?;
    save(
        "location",
        "bucket",
        b"s3://bucket/a/prefix?region=eu-central-1&endpoint=https://s3.example.org:9000",
    )?;
    save("location", "server", b"sftp://user@[::1]:2222/srv/my%20backup?identity-file=/home/me/.ssh/id")?;
    save("location", "service", b"opendal:swift?container=c&timeout-seconds=5")?;
    save("config", "profiles", CONFIG.as_bytes())?;
    save("config", "mistake", "[profile.nightly]\nrepositroy = \"/srv/ä\"\n".as_bytes())?;
    save("map_key", "file", MapKey::from_components(["home", "ann", "notes.txt"])?.as_bytes())?;
    save("map_key", "escaped", MapKey::from_components([&b"a\0b\x01c\xff"[..]])?.as_bytes())
}

fn file(chunks: u8) -> Entry {
    let mut entry = Entry::new(EntryKind::File);
    (entry.mode, entry.uid, entry.mtime) = (0o644, 1000, (1_700_000_000, 5));
    for number in 0..chunks {
        entry.content.push(Extent::Chunk {
            id: ChunkId::from_bytes([number; 32]),
            offset: 0,
            length: 1 << 20,
        });
    }
    entry.content.push(Extent::Hole { length: 4096 });
    entry.size = (u64::from(chunks) << 20) + 4096;
    entry
}

fn entries() -> Result<()> {
    let mut rich = file(2);
    rich.xattrs = vec![(b"user.a".to_vec(), b"1".to_vec())];
    (rich.user, rich.group) = (Some("ann".into()), Some("staff".into()));
    rich.attributes.insert("etag".to_owned(), vec![1, 2]);
    save("entry", "file", &rich.encode()?)?;
    let mut link = Entry::new(EntryKind::Symlink);
    link.link_target = Some(b"../target".to_vec());
    save("entry", "symlink", &link.encode()?)?;
    let mut hard = Entry::new(EntryKind::HardLink);
    hard.hard_link = Some(MapKey::from_components(["a", "b"])?);
    save("entry", "hard_link", &hard.encode()?)?;
    let mut device = Entry::new(EntryKind::CharDevice);
    device.device = Some((1, 3));
    save("entry", "device", &device.encode()?)?;
    // A sub-key record: one chunk extent and one hole, after a u32 with their length.
    let mut record = 8192u32.to_be_bytes().to_vec();
    record.extend_from_slice(&[0x82, 0x83, 0x58, 32]);
    record.extend_from_slice(&[9; 32]);
    record.extend_from_slice(&[0x19, 0x10, 0, 1, 0x82, 0xf6, 0x19, 0x10, 0]);
    save("extents", "chunk_and_hole", &record)
}

fn leaf(records: &[(MapKey, Entry)]) -> Result<Vec<u8>> {
    let id_key = IdKey::from_bytes([7; 32]);
    let mut builder = MapBuilder::new(id_key.boundary());
    let mut nodes = MemoryNodes::new(id_key);
    for (key, entry) in records {
        push_entry(&mut builder, key, entry, &mut nodes)?;
    }
    let root = builder.finish(&mut nodes)?;
    Ok(nodes.node(&root.id)?.to_vec())
}

fn tree() -> Result<()> {
    let with_length = |node: &[u8]| [&(node.len() as u16).to_be_bytes()[..], node].concat();
    let key = |name: &str| MapKey::from_components([name]);
    let first = leaf(&[(key("a")?, file(1)), (key("b")?, file(40))])?;
    let second = leaf(&[(key("bb")?, file(0))])?;
    save("tree_node", "empty", &with_length(&leaf(&[])?))?;
    save("tree_node", "leaf", &with_length(&first))?;
    // Level 1: [1, [[0, "a", child 1, 3 records], [0, "bb", child 2, 1 record]]].
    let child = |number: u8, entries: u8, key: &[u8]| {
        let mut record = vec![0x84, 0, 0x40 + key.len() as u8];
        record.extend_from_slice(key);
        record.extend_from_slice(&[0x58, 32]);
        record.extend_from_slice(&[number; 32]);
        record.push(entries);
        record
    };
    let root = [vec![0x82, 1, 0x82], child(1, 3, b"a\0"), child(2, 1, b"bb\0")].concat();
    save("tree_node", "two_levels", &[with_length(&root), with_length(&first), with_length(&second)].concat())
}

fn recipe() -> Result<()> {
    let mut writer = RecipeWriter::new(Vec::new())?;
    writer.push(b"a\0", &[1; 16], &file(1).encode()?)?;
    writer.push(b"b\0c\0", &[2; 16], &file(0).encode()?)?;
    let stored = writer.finish()?;
    save("recipe", "frame", &stored)?;
    save("recipe", "plain", &zstd::decode_all(stored.as_slice())?[8..])
}

fn keys() -> Result<()> {
    let identity = Identity::parse(SECRET)?;
    let (root, signing) = (SigningKey::from_seed(&[3; 32]), SigningKey::from_seed(&[4; 32]));
    let owner = OwnerKeys { identity: identity.clone(), root };
    let member = MemberKeys { identity: identity.clone(), signing, roles: Roles::WRITER | Roles::READER };
    let mut file = KeyFile {
        repository: RepositoryId::from_bytes([5; 16]),
        genesis: Digest::of(b"genesis"),
        name: "ann \"laptop\"".to_owned(),
        owner: Some(owner),
        member: Some(member),
        store_hint: Some("/srv/backup".to_owned()),
    };
    save("key_file", "both", file.to_toml().expose().as_bytes())?;
    file.owner = None;
    save("key_file", "member", file.to_toml().expose().as_bytes())?;
    let domain = DomainKeys {
        id: DomainId::from_bytes([2; 4]),
        id_key: IdKey::from_bytes([7; 32]),
        recipient: identity.recipient(),
        identities: vec![identity.clone()],
    };
    save("keyring", "domain", &domain.to_bytes())?;
    let group = GroupKeys {
        id: GroupId::from_bytes([1; 4]),
        index_identities: vec![identity],
        domains: vec![domain],
    };
    let member = MemberId::from_bytes([6; 8]);
    let keyring = Keyring { repository: file.repository, member, groups: vec![group] };
    save("keyring", "keyring", &keyring.to_bytes())?;
    save("keyring", "writer", &keyring.without_read_keys().to_bytes())?;
    trust()
}

/// A chain with one record of every kind; the seed holds their bodies.
fn trust() -> Result<()> {
    let identity = Identity::parse(SECRET)?;
    let (root, second) = (SigningKey::from_seed(&[3; 32]), SigningKey::from_seed(&[8; 32]));
    let owner = |name: &str, key: &SigningKey| Owner {
        name: name.to_owned(),
        recipient: identity.recipient(),
        key: key.verifying_key(),
    };
    let repository = RepositoryId::from_bytes([5; 16]);
    let (mut chain, genesis) = Chain::genesis(&root, 0, repository, vec![owner("ann", &root)])?;
    save("trust_chain", "genesis", &genesis)?;
    let (group, domain) = (GroupId::from_bytes([1; 4]), DomainId::from_bytes([2; 4]));
    let member_key = SigningKey::from_seed(&[4; 32]);
    let member = Member {
        name: "web-1".to_owned(),
        key: member_key.verifying_key(),
        recipient: identity.recipient(),
        roles: Roles::WRITER,
        group,
    };
    let id = member.id();
    let keyring = |n: u64| KeyringRef { name: format!("keys/{id}/{n:010}"), digest: Digest::of(b"keyring") };
    let name = "default".to_owned();
    let recipient = identity.recipient();
    let bodies = [
        Body::Group(Group { id: group, name: name.clone(), recipient: recipient.clone(), epoch: 0 }),
        Body::Domain(Domain { id: domain, group, name, recipient, erasable: false, epoch: 0 }),
        Body::Enrol { member, keyring: keyring(0) },
        Body::Keyring { member: id, keyring: keyring(1) },
        Body::AddOwner(owner("bob", &second)),
        Body::RemoveOwner(second.member_id()),
        Body::Revoke(Revoke { member: id, first_refused: 5, reason: "lost".to_owned() }),
    ];
    let mut seed = Vec::new();
    for body in bodies {
        let record = Signed::from_bytes(&chain.append(&root, 1, body)?)?;
        // The payload is a map of 0: n, 1: previous (32 bytes), 2: time, 3: body.
        let body = &record.payload[1 + 2 + 1 + 34 + 2 + 1..];
        seed.extend_from_slice(&(body.len() as u16).to_be_bytes());
        seed.extend_from_slice(body);
    }
    save("trust_chain", "every_kind", &seed)
}

fn records() -> Result<()> {
    let (store, writer) = (StoreId::from_bytes([1; 16]), MemberId::from_bytes([6; 8]));
    let name: ContentName = format!("{}-01234567", "0f".repeat(32)).parse()?;
    let snapshot = SnapshotId::from_bytes([4; 32]);
    let commit = Commit {
        store,
        writer,
        n: 7,
        kind: CommitKind::Snapshot,
        time: 1,
        previous: vec![(6, Digest::of(b"end"))],
        seen: vec![(MemberId::from_bytes([9; 8]), 3)],
        manifest: Some(name),
        snapshot: Some(snapshot),
        list: Some(Digest::of(b"list")),
        group: Some(GroupId::from_bytes([1; 4])),
        complete: true,
        logical_bytes: 1 << 40,
        capture: Some(-1),
        origin: Some(vec![0xa0]),
        state: vec![name],
        dataset_tag: Some([3; 16]),
        supersedes: vec![5],
    };
    let session =
        Session { store, writer, n: 7, k: 0, time: 1, kind: SessionKind::Writer, nonce: Some([9; 8]) };
    let object = ListedObject { name: format!("data/0f/{name}"), size: 1 << 24 };
    let list = List { store, writer, n: 7, objects: vec![object] };
    let forgotten = RetiredSnapshot { writer, seq: 7, reason: "not kept".to_owned() };
    let retired = Retired { store, n: 0, time: 1, snapshots: vec![forgotten], undone: vec![(writer, 3)] };
    let plan_name = PlanName::new(1, [7; 4]);
    let merged = vec![PlanName::new(0, [7; 4])];
    let plan = Plan { store, name: plan_name, time: 1, condemned: vec![format!("data/0f/{name}")], merged };
    let kept = Kept { store, name: plan_name, released: vec![format!("data/0f/{name}")] };
    let marks = Marks { store, n: 0, snapshots: vec![(snapshot, name.to_string())] };
    let encoded = [
        commit.encode(),
        session.encode(),
        list.encode(),
        retired.encode(),
        plan.encode(),
        kept.encode(),
        marks.encode(),
        manifest(writer, snapshot).encode(),
    ];
    for (kind, record) in encoded.iter().enumerate() {
        save("records", &format!("kind_{kind}"), &[&[kind as u8][..], record].concat())?;
    }
    save("object_name", "pack", format!("data/0f/{name}").as_bytes())?;
    save("object_name", "session", ObjectName::Session { writer, n: 1, k: 2 }.to_string().as_bytes())?;
    save("object_name", "kept", b"gc/0000000042.kept")?;
    save("sealed_record", "frame", &zstd::bulk::compress(&encoded[0], 3)?)
}

fn manifest(writer: MemberId, parent: SnapshotId) -> Manifest {
    Manifest {
        repository: RepositoryId::from_bytes([5; 16]),
        writer,
        seq: 7,
        dataset: "home".to_owned(),
        host: "web-1".to_owned(),
        paths: vec![b"/home".to_vec()],
        tags: vec!["nightly".to_owned()],
        capture_start: 1,
        capture_end: 2,
        time_zone: "Europe/Athens".to_owned(),
        group: GroupId::from_bytes([1; 4]),
        domain: DomainId::from_bytes([2; 4]),
        root: ChunkId::from_bytes([3; 32]),
        entries: 10,
        statistics: Statistics { files: 9, directories: 1, ..Statistics::default() },
        problems: vec![Problem { key: b"a\0".to_vec(), message: "permission denied".to_owned() }],
        problem_count: 1,
        source_kind: "files".to_owned(),
        parent: Some(parent),
        program: "0.1.0".to_owned(),
        original: None,
        keep_until: Some(3),
        keep_forever: false,
        description: "before the upgrade".to_owned(),
        extra: [("lsn".to_owned(), vec![1])].into(),
        later: Vec::new(),
    }
}

fn index() -> Result<()> {
    let name: ContentName = format!("{}-01234567", "0f".repeat(32)).parse()?;
    let mut builder = SegmentBuilder::new(GroupId::from_bytes([1; 4]), PackClass::Data);
    let pack = builder.add_pack(PackRef {
        name,
        size: 1 << 20,
        header_len: 200,
        domain: DomainId::from_bytes([2; 4]),
    });
    for number in 0..3 {
        let id = ChunkId::from_bytes([number; 32]);
        let offset = u32::from(number) * 100;
        builder.add(IndexEntry { id, pack, frame_offset: 0, frame_length: 250, offset, length: 100 });
    }
    let plain =
        builder.finish(RepositoryId::from_bytes([5; 16]), &SigningKey::from_seed(&[4; 32]), vec![])?;
    save("index_segment", "segment", &plain)?;
    // The plain content of a block: a count, ids, then five varints for each.
    let mut block = 2u32.to_le_bytes().to_vec();
    block.extend_from_slice(&[1; 32]);
    block.extend_from_slice(&[2; 32]);
    block.extend_from_slice(&[0, 0, 90, 0, 100, 0, 0, 90, 100, 0x80, 1]);
    save("index_segment", "block", &block)
}

fn pack() -> Result<()> {
    let chunks = vec![(ChunkId::from_bytes([1; 32]), 600), (ChunkId::from_bytes([2; 32]), 400)];
    let directory = PackDirectory { frames: vec![FrameInfo { stored: 900, plain: 1000, chunks }] };
    save("pack_directory", "directory", &directory.encode())?;
    let data = b"a chunk".repeat(20);
    save("frame", "frame", &zstd::bulk::compress(&data, 3)?)
}
