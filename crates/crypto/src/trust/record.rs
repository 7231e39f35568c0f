//! The CBOR form of trust records.

use std::convert::Infallible;

use minicbor::{Decoder, Encoder};

use super::body::{Body, Domain, Erase, Group, KeyringRef, Member, Owner, Revoke, Roles};
use crate::cbor::{self, CborError, Decoded, fields, items, need};
use crate::ids::{Digest, MemberId};
use crate::recipient::Recipient;
use crate::sign::VerifyingKey;

type Out = Encoder<Vec<u8>>;
type Encoded = Result<(), minicbor::encode::Error<Infallible>>;

/// The payload of `trust/<n>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub n: u64,
    pub previous: Option<Digest>,
    pub time: i64,
    pub body: Body,
}

impl Record {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::new(Vec::new());
        cbor::infallible(|| {
            e.map(3 + u64::from(self.previous.is_some()))?.u8(0)?.u64(self.n)?;
            if let Some(previous) = self.previous {
                e.u8(1)?.encode(previous)?;
            }
            e.u8(2)?.i64(self.time)?.u8(3)?.array(2)?;
            encode_body(&mut e, &self.body)
        });
        e.into_writer()
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, CborError> {
        cbor::check(bytes)?;
        let mut d = Decoder::new(bytes);
        let record = decode_record(&mut d);
        record.map_err(|e| CborError { at: e.position().unwrap_or(d.position()), reason: reason_of(&e) })
    }
}

fn reason_of(error: &minicbor::decode::Error) -> &'static str {
    if error.is_missing_value() {
        "a field is missing"
    } else if error.is_unknown_variant() {
        "a kind of record that this version does not know"
    } else if error.is_type_mismatch() {
        "a field has the wrong type"
    } else {
        "a field has an invalid value"
    }
}

fn decode_record(d: &mut Decoder<'_>) -> Decoded<Record> {
    let (mut n, mut previous, mut time, mut body) = (None, None, None, None);
    fields(d, |key, d| {
        match key {
            0 => n = Some(d.u64()?),
            1 => previous = Some(d.decode()?),
            2 => time = Some(d.i64()?),
            3 => body = Some(decode_body(d)?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(Record { n: need(n, 0)?, previous, time: need(time, 2)?, body: need(body, 3)? })
}

fn encode_body(e: &mut Out, body: &Body) -> Encoded {
    match body {
        Body::Genesis { repository, format, owners } => {
            e.u8(0)?.map(3)?.u8(0)?.encode(repository)?.u8(1)?.u64(*format)?;
            e.u8(2)?.array(owners.len() as u64)?;
            owners.iter().try_for_each(|owner| encode_owner(e, owner))
        }
        Body::Enrol { member, keyring } => {
            e.u8(1)?.map(3)?.u8(0)?;
            encode_member(e, member)?;
            encode_keyring(e, keyring)
        }
        Body::Revoke(revoke) => {
            e.u8(2)?.map(3)?.u8(0)?.encode(revoke.member)?;
            e.u8(1)?.u64(revoke.first_refused)?.u8(2)?.str(&revoke.reason)?.ok()
        }
        Body::Group(group) => {
            e.u8(3)?.map(4)?.u8(0)?.encode(group.id)?.u8(1)?.str(&group.name)?;
            e.u8(2)?.str(&group.recipient.to_string())?.u8(3)?.u64(group.epoch)?.ok()
        }
        Body::Domain(domain) => {
            e.u8(4)?.map(6)?.u8(0)?.encode(domain.id)?.u8(1)?.encode(domain.group)?;
            e.u8(2)?.str(&domain.name)?.u8(3)?.str(&domain.recipient.to_string())?;
            e.u8(4)?.bool(domain.erasable)?.u8(5)?.u64(domain.epoch)?.ok()
        }
        Body::Erase(erase) => {
            e.u8(5)?.map(4)?.u8(0)?.encode(erase.domain)?.u8(1)?.i64(erase.time)?;
            e.u8(2)?.encode(&erase.gone)?.u8(3)?.encode(&erase.unproven)?.ok()
        }
        Body::AddOwner(owner) => {
            e.u8(6)?.map(1)?.u8(0)?;
            encode_owner(e, owner)
        }
        Body::RemoveOwner(id) => e.u8(6)?.map(1)?.u8(1)?.encode(id)?.ok(),
        Body::Keyring { member, keyring } => {
            e.u8(7)?.map(3)?.u8(0)?.encode(member)?;
            encode_keyring(e, keyring)
        }
    }
}

fn decode_body(d: &mut Decoder<'_>) -> Decoded<Body> {
    if d.array()? != Some(2) {
        return Err(invalid("a body has two items"));
    }
    match d.u64()? {
        0 => decode_genesis(d),
        1 => decode_enrol(d),
        2 => decode_revoke(d),
        3 => decode_group(d),
        4 => decode_domain(d),
        5 => decode_erase(d),
        6 => decode_owner_change(d),
        7 => decode_new_keyring(d),
        tag => Err(minicbor::decode::Error::unknown_variant(i64::try_from(tag).unwrap_or(i64::MAX))),
    }
}

fn decode_genesis(d: &mut Decoder<'_>) -> Decoded<Body> {
    let (mut repository, mut format, mut owners) = (None, None, None);
    fields(d, |key, d| {
        match key {
            0 => repository = Some(d.decode()?),
            1 => format = Some(d.u64()?),
            2 => owners = Some(items(d, decode_owner)?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(Body::Genesis { repository: need(repository, 0)?, format: need(format, 1)?, owners: need(owners, 2)? })
}

fn decode_enrol(d: &mut Decoder<'_>) -> Decoded<Body> {
    let (member, keyring) = decode_given(d, decode_member)?;
    Ok(Body::Enrol { member, keyring })
}

fn decode_new_keyring(d: &mut Decoder<'_>) -> Decoded<Body> {
    let (member, keyring) = decode_given(d, |d| d.decode())?;
    Ok(Body::Keyring { member, keyring })
}

/// A keyring and whose it is.
fn decode_given<'b, M>(
    d: &mut Decoder<'b>,
    decode_whose: impl Fn(&mut Decoder<'b>) -> Decoded<M>,
) -> Decoded<(M, KeyringRef)> {
    let (mut whose, mut name, mut digest) = (None, None, None);
    fields(d, |key, d| {
        match key {
            0 => whose = Some(decode_whose(d)?),
            1 => name = Some(text(d)?),
            2 => digest = Some(d.decode()?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let keyring = KeyringRef { name: need(name, 1)?, digest: need(digest, 2)? };
    Ok((need(whose, 0)?, keyring))
}

fn decode_revoke(d: &mut Decoder<'_>) -> Decoded<Body> {
    let (mut member, mut first_refused, mut reason) = (None, None, None);
    fields(d, |key, d| {
        match key {
            0 => member = Some(d.decode()?),
            1 => first_refused = Some(d.u64()?),
            2 => reason = Some(text(d)?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let (member, first_refused) = (need(member, 0)?, need(first_refused, 1)?);
    Ok(Body::Revoke(Revoke { member, first_refused, reason: need(reason, 2)? }))
}

fn decode_group(d: &mut Decoder<'_>) -> Decoded<Body> {
    let (mut id, mut name, mut to, mut epoch) = (None, None, None, None);
    fields(d, |key, d| {
        match key {
            0 => id = Some(d.decode()?),
            1 => name = Some(text(d)?),
            2 => to = Some(recipient(d)?),
            3 => epoch = Some(d.u64()?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let (id, name) = (need(id, 0)?, need(name, 1)?);
    Ok(Body::Group(Group { id, name, recipient: need(to, 2)?, epoch: need(epoch, 3)? }))
}

fn decode_domain(d: &mut Decoder<'_>) -> Decoded<Body> {
    let (mut id, mut group, mut name, mut to, mut erasable, mut epoch) = (None, None, None, None, None, None);
    fields(d, |key, d| {
        match key {
            0 => id = Some(d.decode()?),
            1 => group = Some(d.decode()?),
            2 => name = Some(text(d)?),
            3 => to = Some(recipient(d)?),
            4 => erasable = Some(d.bool()?),
            5 => epoch = Some(d.u64()?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let (id, group, name) = (need(id, 0)?, need(group, 1)?, need(name, 2)?);
    let (erasable, epoch) = (need(erasable, 4)?, need(epoch, 5)?);
    Ok(Body::Domain(Domain { id, group, name, recipient: need(to, 3)?, erasable, epoch }))
}

fn decode_erase(d: &mut Decoder<'_>) -> Decoded<Body> {
    let (mut domain, mut time, mut gone, mut unproven) = (None, None, None, None);
    fields(d, |key, d| {
        match key {
            0 => domain = Some(d.decode()?),
            1 => time = Some(d.i64()?),
            2 => gone = Some(items(d, text)?),
            3 => unproven = Some(items(d, text)?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let (domain, time) = (need(domain, 0)?, need(time, 1)?);
    Ok(Body::Erase(Erase { domain, time, gone: need(gone, 2)?, unproven: need(unproven, 3)? }))
}

fn decode_owner_change(d: &mut Decoder<'_>) -> Decoded<Body> {
    let (mut added, mut removed) = (None, None);
    fields(d, |key, d| {
        match key {
            0 => added = Some(decode_owner(d)?),
            1 => removed = Some(d.decode::<MemberId>()?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    match (added, removed) {
        (Some(owner), None) => Ok(Body::AddOwner(owner)),
        (None, Some(id)) => Ok(Body::RemoveOwner(id)),
        _ => Err(invalid("an owner record either adds or removes")),
    }
}

fn encode_owner(e: &mut Out, owner: &Owner) -> Encoded {
    e.map(4)?.u8(0)?.encode(owner.id())?.u8(1)?.str(&owner.name)?;
    e.u8(2)?.str(&owner.recipient.to_string())?.u8(3)?.bytes(owner.key.as_bytes())?.ok()
}

fn decode_owner(d: &mut Decoder<'_>) -> Decoded<Owner> {
    let (mut id, mut name, mut to, mut key) = (None, None, None, None);
    fields(d, |number, d| {
        match number {
            0 => id = Some(d.decode::<MemberId>()?),
            1 => name = Some(text(d)?),
            2 => to = Some(recipient(d)?),
            3 => key = Some(verifying_key(d)?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let owner = Owner { name: need(name, 1)?, recipient: need(to, 2)?, key: need(key, 3)? };
    if need(id, 0)? == owner.id() { Ok(owner) } else { Err(invalid("an id is not that of its key")) }
}

fn encode_member(e: &mut Out, member: &Member) -> Encoded {
    e.map(6)?.u8(0)?.encode(member.id())?.u8(1)?.str(&member.name)?;
    e.u8(2)?.bytes(member.key.as_bytes())?.u8(3)?.str(&member.recipient.to_string())?;
    e.u8(4)?.u8(member.roles.bits())?.u8(5)?.encode(member.group)?.ok()
}

fn decode_member(d: &mut Decoder<'_>) -> Decoded<Member> {
    let (mut id, mut name, mut key, mut to, mut roles, mut group) = (None, None, None, None, None, None);
    fields(d, |number, d| {
        match number {
            0 => id = Some(d.decode::<MemberId>()?),
            1 => name = Some(text(d)?),
            2 => key = Some(verifying_key(d)?),
            3 => to = Some(recipient(d)?),
            4 => roles = Some(Roles::from_bits(d.u8()?).ok_or_else(|| invalid("unknown roles"))?),
            5 => group = Some(d.decode()?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let (name, key, recipient) = (need(name, 1)?, need(key, 2)?, need(to, 3)?);
    let member = Member { name, key, recipient, roles: need(roles, 4)?, group: need(group, 5)? };
    if need(id, 0)? == member.id() { Ok(member) } else { Err(invalid("an id is not that of its key")) }
}

/// Keys 1 and 2 of a map whose key 0 has been written.
fn encode_keyring(e: &mut Out, keyring: &KeyringRef) -> Encoded {
    e.u8(1)?.str(&keyring.name)?.u8(2)?.encode(keyring.digest)?.ok()
}

fn text(d: &mut Decoder<'_>) -> Decoded<String> {
    Ok(d.str()?.to_owned())
}

fn recipient(d: &mut Decoder<'_>) -> Decoded<Recipient> {
    d.str()?.parse().map_err(|_| invalid("not an age recipient"))
}

fn verifying_key(d: &mut Decoder<'_>) -> Decoded<VerifyingKey> {
    let bytes = d.bytes()?.try_into().map_err(|_| invalid("not an Ed25519 key"))?;
    VerifyingKey::from_bytes(bytes).map_err(|_| invalid("not an Ed25519 key"))
}

fn invalid(reason: &'static str) -> minicbor::decode::Error {
    minicbor::decode::Error::message(reason)
}
