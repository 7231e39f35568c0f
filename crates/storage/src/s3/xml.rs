//! The answers of an S3 service, from XML. Whoever calls bounds the length of the text.

use quick_xml::events::Event;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::control::{ARCHIVES, LifecycleRule, ObjectLock, Transition, Versioning, When};

/// Reads one document with that root.
///
/// A server that does not know a question may answer another one, such as a listing, which must not count as "nothing set".
fn read<T: DeserializeOwned>(root: &str, text: &[u8]) -> Result<T, String> {
    let mut reader = quick_xml::Reader::from_reader(text);
    loop {
        match reader.read_event().map_err(|error| error.to_string())? {
            Event::Start(tag) | Event::Empty(tag) if tag.local_name().as_ref() == root => break,
            Event::Start(_) | Event::Empty(_) | Event::Eof => {
                return Err(format!("the answer is no `{root}`"));
            }
            _ => {}
        }
    }
    quick_xml::de::from_reader(text).map_err(|error| error.to_string())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct VersioningConfiguration {
    status: Option<String>,
}

/// Reads the answer to `?versioning`.
pub(super) fn versioning(text: &[u8]) -> Result<Versioning, String> {
    match read::<VersioningConfiguration>("VersioningConfiguration", text)?.status.as_deref() {
        None | Some("") => Ok(Versioning::Off),
        Some("Enabled") => Ok(Versioning::Enabled),
        Some("Suspended") => Ok(Versioning::Suspended),
        Some(other) => Err(format!("unknown status `{}`", other.escape_debug())),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct LockConfiguration {
    object_lock_enabled: Option<String>,
    rule: Option<LockRule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct LockRule {
    default_retention: Option<DefaultRetention>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DefaultRetention {
    mode: Option<String>,
    days: Option<u32>,
    years: Option<u32>,
}

/// Reads the answer to `?object-lock`.
pub(super) fn object_lock(text: &[u8]) -> Result<ObjectLock, String> {
    let lock: LockConfiguration = read("ObjectLockConfiguration", text)?;
    if lock.object_lock_enabled.as_deref() != Some("Enabled") {
        return Ok(ObjectLock::Off);
    }
    let Some(default) = lock.rule.and_then(|rule| rule.default_retention) else {
        return Ok(ObjectLock::On);
    };
    let days = default.days.unwrap_or(0).saturating_add(default.years.unwrap_or(0).saturating_mul(365));
    let mode = default.mode.unwrap_or_default();
    if days == 0 || mode.is_empty() {
        return Ok(ObjectLock::On);
    }
    Ok(ObjectLock::Default { mode, days })
}

#[derive(Deserialize)]
struct LifecycleConfiguration {
    #[serde(rename = "Rule", default)]
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Rule {
    #[serde(rename = "ID", default)]
    id: String,
    #[serde(default)]
    status: String,
    prefix: Option<String>,
    filter: Option<Filter>,
    expiration: Option<Expiration>,
    #[serde(rename = "Transition", default)]
    transitions: Vec<Move>,
    noncurrent_version_expiration: Option<OldVersions>,
    abort_incomplete_multipart_upload: Option<Abort>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Filter {
    prefix: Option<String>,
    tag: Option<Tag>,
    and: Option<And>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct And {
    prefix: Option<String>,
    #[serde(rename = "Tag", default)]
    tags: Vec<Tag>,
}

#[derive(Deserialize)]
struct Tag {}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Expiration {
    days: Option<u32>,
    date: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Move {
    #[serde(default)]
    storage_class: String,
    days: Option<u32>,
    date: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct OldVersions {
    noncurrent_days: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Abort {
    days_after_initiation: Option<u32>,
}

/// Reads the answer to `?lifecycle`.
pub(super) fn lifecycle(text: &[u8]) -> Result<Vec<LifecycleRule>, String> {
    Ok(read::<LifecycleConfiguration>("LifecycleConfiguration", text)?.rules.into_iter().map(rule).collect())
}

fn rule(rule: Rule) -> LifecycleRule {
    let when = |days: Option<u32>, date| days.map(When::Days).or(Option::map(date, When::Date));
    let filter = rule.filter.unwrap_or(Filter { prefix: None, tag: None, and: None });
    let and = filter.and.unwrap_or(And { prefix: None, tags: Vec::new() });
    LifecycleRule {
        id: rule.id,
        enabled: rule.status == "Enabled",
        prefix: rule.prefix.or(filter.prefix).or(and.prefix).unwrap_or_default(),
        tagged: filter.tag.is_some() || !and.tags.is_empty(),
        // A rule that only removes expired delete markers has neither.
        expires: rule.expiration.and_then(|expiration| when(expiration.days, expiration.date)),
        transitions: rule
            .transitions
            .into_iter()
            .map(|transition| Transition {
                archive: ARCHIVES.contains(&transition.storage_class.as_str()),
                class: transition.storage_class,
                when: when(transition.days, transition.date).unwrap_or(When::Days(0)),
            })
            .collect(),
        old_versions_expire_days: rule.noncurrent_version_expiration.and_then(|old| old.noncurrent_days),
        abort_incomplete_days: rule
            .abort_incomplete_multipart_upload
            .and_then(|abort| abort.days_after_initiation),
    }
}

#[derive(Deserialize)]
struct EncryptionConfiguration {
    #[serde(rename = "Rule", default)]
    rules: Vec<EncryptionRule>,
}

#[derive(Deserialize)]
struct EncryptionRule {
    #[serde(rename = "ApplyServerSideEncryptionByDefault")]
    default: Option<EncryptionDefault>,
}

#[derive(Deserialize)]
struct EncryptionDefault {
    #[serde(rename = "SSEAlgorithm")]
    algorithm: Option<String>,
}

/// Reads the answer to `?encryption`.
pub(super) fn encryption(text: &[u8]) -> Result<Option<String>, String> {
    let mut rules =
        read::<EncryptionConfiguration>("ServerSideEncryptionConfiguration", text)?.rules.into_iter();
    Ok(rules.find_map(|rule| rule.default?.algorithm))
}

/// A retention lock of an object, as written.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Retention {
    pub(super) mode: Option<String>,
    pub(super) retain_until_date: Option<String>,
}

/// Reads the answer to `?retention`.
pub(super) fn retention(text: &[u8]) -> Result<Retention, String> {
    read("Retention", text)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct LegalHold {
    status: Option<String>,
}

/// Reads the answer to `?legal-hold`.
pub(super) fn legal_hold(text: &[u8]) -> Result<bool, String> {
    Ok(read::<LegalHold>("LegalHold", text)?.status.as_deref() == Some("ON"))
}

/// What a refusal says.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Refusal {
    pub(super) code: String,
    pub(super) message: String,
}

/// Reads the body of an answer that is no success; empty where it is none of S3's.
pub(super) fn refusal(text: &[u8]) -> Refusal {
    read("Error", text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versioning_has_three_states() {
        let document = |inside: &str| {
            format!(
                r#"<?xml version="1.0"?><VersioningConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{inside}</VersioningConfiguration>"#
            )
        };
        let cases = [
            ("", Versioning::Off),
            ("<Status>Enabled</Status><MfaDelete>Disabled</MfaDelete>", Versioning::Enabled),
            ("<Status>Suspended</Status>", Versioning::Suspended),
        ];
        for (inside, expected) in cases {
            assert_eq!(versioning(document(inside).as_bytes()), Ok(expected));
        }
        assert!(versioning(document("<Status>Maybe</Status>").as_bytes()).is_err());
        assert!(versioning(b"<html>").is_err());
    }

    #[test]
    fn the_answer_to_another_question_is_refused() {
        let listing = b"<ListBucketResult><Name>b</Name></ListBucketResult>";
        assert!(versioning(listing).is_err() && lifecycle(listing).is_err());
        assert!(object_lock(listing).is_err() && encryption(listing).is_err() && lifecycle(b"").is_err());
    }

    #[test]
    fn a_lock_may_have_a_default() {
        let document = |inside: &str| format!("<ObjectLockConfiguration>{inside}</ObjectLockConfiguration>");
        let enabled = "<ObjectLockEnabled>Enabled</ObjectLockEnabled>";
        assert_eq!(object_lock(document("").as_bytes()), Ok(ObjectLock::Off));
        assert_eq!(object_lock(document(enabled).as_bytes()), Ok(ObjectLock::On));
        let default = |time: &str| {
            let rule =
                format!("<Rule><DefaultRetention><Mode>COMPLIANCE</Mode>{time}</DefaultRetention></Rule>");
            object_lock(document(&format!("{enabled}{rule}")).as_bytes())
        };
        let locked = |days| Ok(ObjectLock::Default { mode: "COMPLIANCE".into(), days });
        assert_eq!(default("<Days>30</Days>"), locked(30));
        assert_eq!(default("<Years>2</Years>"), locked(730));
        assert_eq!(default(&format!("<Years>{}</Years>", u32::MAX)), locked(u32::MAX));
    }

    #[test]
    fn lifecycle_rules_of_all_ages_are_read() {
        let text = br#"<LifecycleConfiguration>
            <Rule><ID>old style</ID><Prefix>logs/</Prefix><Status>Enabled</Status><Expiration><Days>30</Days></Expiration></Rule>
            <Rule><ID>cold</ID><Filter><Prefix>x/data/</Prefix></Filter><Status>Enabled</Status>
                <Transition><Days>1</Days><StorageClass>GLACIER</StorageClass></Transition>
                <NoncurrentVersionTransition><NoncurrentDays>3</NoncurrentDays></NoncurrentVersionTransition>
                <Transition><Date>2027-01-01T00:00:00Z</Date><StorageClass>DEEP_ARCHIVE</StorageClass></Transition></Rule>
            <Rule><ID>tags</ID><Filter><And><Prefix>y/</Prefix><Tag><Key>a</Key><Value>b</Value></Tag><Tag><Key>c</Key><Value>d</Value></Tag></And></Filter>
                <Status>Disabled</Status><Expiration><Date>2027-01-01T00:00:00Z</Date></Expiration></Rule>
            <Rule><ID>tidy</ID><Filter/><Status>Enabled</Status><Expiration><ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker></Expiration>
                <NoncurrentVersionExpiration><NoncurrentDays>21</NoncurrentDays></NoncurrentVersionExpiration>
                <AbortIncompleteMultipartUpload><DaysAfterInitiation>7</DaysAfterInitiation></AbortIncompleteMultipartUpload></Rule>
        </LifecycleConfiguration>"#;
        let rules = lifecycle(text).unwrap();
        let on = |id: &str, prefix: &str| LifecycleRule {
            id: id.into(),
            enabled: true,
            prefix: prefix.into(),
            ..LifecycleRule::default()
        };
        let date = When::Date("2027-01-01T00:00:00Z".into());
        let moves = vec![
            Transition { class: "GLACIER".into(), archive: true, when: When::Days(1) },
            Transition { class: "DEEP_ARCHIVE".into(), archive: true, when: date.clone() },
        ];
        let expected = [
            LifecycleRule { expires: Some(When::Days(30)), ..on("old style", "logs/") },
            LifecycleRule { transitions: moves, ..on("cold", "x/data/") },
            LifecycleRule { enabled: false, tagged: true, expires: Some(date), ..on("tags", "y/") },
            LifecycleRule {
                old_versions_expire_days: Some(21),
                abort_incomplete_days: Some(7),
                ..on("tidy", "")
            },
        ];
        assert_eq!(rules, expected);
    }

    #[test]
    fn encryption_is_read() {
        let text = b"<ServerSideEncryptionConfiguration><Rule><ApplyServerSideEncryptionByDefault>\
            <SSEAlgorithm>aws:kms</SSEAlgorithm><KMSMasterKeyID>k</KMSMasterKeyID></ApplyServerSideEncryptionByDefault>\
            <BucketKeyEnabled>true</BucketKeyEnabled></Rule></ServerSideEncryptionConfiguration>";
        assert_eq!(encryption(text), Ok(Some("aws:kms".into())));
    }

    #[test]
    fn a_refusal_that_is_no_xml_is_empty() {
        let refused =
            refusal(b"<Error><Code>AccessDenied</Code><Message>no</Message><RequestId>1</RequestId></Error>");
        assert_eq!(refused, Refusal { code: "AccessDenied".into(), message: "no".into() });
        assert_eq!(refusal(b"gateway timeout"), Refusal::default());
        assert_eq!(refusal(b""), Refusal::default());
    }
}
