//! Keys of the key service, and how long a policy may be.

use super::*;

const KEY: &str = "arn:aws:kms:eu-central-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab";
const NAMED: &str = "s3:x-amz-server-side-encryption-aws-kms-key-id";
const CONTEXT: &str = "kms:EncryptionContext:aws:s3:arn";
const VIA: (&str, &str) = ("kms:ViaService", "s3.eu-central-1.amazonaws.com");

fn printed(prefix: &str, role: Role) -> Value {
    let target = Target { bucket: "b", prefix, partition: "aws" };
    s3::with_key(s3::policy(target, role, Service::Aws, Some(KEY)), target, role, KEY)
}

#[test]
fn whoever_stores_may_use_the_key_both_ways_and_a_reader_decrypts() {
    for prefix in ["", "host/"] {
        for role in roles() {
            let policy = printed(prefix, role);
            let object = format!("arn:aws:s3:::b/{prefix}data/7b/x");
            for context in [object.as_str(), "arn:aws:s3:::b"] {
                let may = |action: &str| aws(&policy, action, KEY, &[(CONTEXT, context), VIA]);
                assert!(may("kms:Decrypt"), "{role:?} {context}");
                assert_eq!(may("kms:GenerateDataKey"), role != Role::Reader, "{role:?} {context}");
                assert!(!may("kms:CreateGrant") && !may("kms:ScheduleKeyDeletion"), "{role:?}");
            }
        }
    }
}

#[test]
fn the_key_opens_nothing_elsewhere() {
    let policy = printed("host/", Role::Keeper);
    let may = |key: &str, conditions: &[_]| aws(&policy, "kms:Decrypt", key, conditions);
    let object = (CONTEXT, "arn:aws:s3:::b/host/data/7b/x");
    assert!(may(KEY, &[object, VIA]));
    assert!(!may(KEY, &[(CONTEXT, "arn:aws:s3:::b/other/x"), VIA]), "another prefix");
    assert!(!may(KEY, &[(CONTEXT, "arn:aws:s3:::other/host/x"), VIA]), "another bucket");
    assert!(!may(KEY, &[object, ("kms:ViaService", "ebs.eu-central-1.amazonaws.com")]), "another service");
    assert!(!may(KEY, &[object]), "not through a service");
    assert!(!may("arn:aws:kms:eu-central-1:123456789012:key/other", &[object, VIA]));
}

#[test]
fn nothing_is_stored_under_another_key() {
    let object = "arn:aws:s3:::b/host/data/7b/x";
    let other = (NAMED, "arn:aws:kms:eu-central-1:999999999999:key/0000");
    for (key, names_ours) in [(Some(KEY), true), (None, false)] {
        let target = Target { bucket: "b", prefix: "host/", partition: "aws" };
        let policy = s3::policy(target, Role::Writer(None), Service::Aws, key);
        let put =
            |named: &[_]| aws(&policy, "s3:PutObject", object, &[&[CREATES, IF_ABSENT][..], named].concat());
        assert!(put(&[]), "by the default of the bucket");
        assert!(!put(&[other]), "{key:?}");
        assert_eq!(put(&[(NAMED, KEY)]), names_ours);
    }
}

#[test]
fn a_policy_of_a_bucket_grants_no_key() {
    let target = Target { bucket: "b", prefix: "", partition: "aws" };
    let policy = s3::policy(target, Role::Keeper, Service::Aws, Some(KEY));
    let text = s3::for_principal(policy, "arn:aws:iam::1:user/x").to_string();
    assert!(
        text.contains(KEY) && !text.contains("\"kms:"),
        "the key is named, and no action of the key service: {text}"
    );
}

#[test]
fn a_key_is_named_by_its_arn() {
    assert!(s3::is_key(KEY));
    for no_key in [
        "",
        "1234abcd-12ab-34cd-56ef-1234567890ab",
        "alias/backups",
        "arn:aws:kms:eu-central-1:123456789012:alias/backups",
        "arn:aws:kms:eu-central-1:123456789012:key/*",
        "arn:aws:kms:eu-central-1:123456789012:key/",
        "arn:aws:iam:eu-central-1:123456789012:key/1",
        "arn:aws:kms:eu-central-1:123456789012:key/1:2",
    ] {
        assert!(!s3::is_key(no_key), "{no_key}");
    }
}

#[test]
fn policies_fit_into_what_amazon_takes() {
    let bucket = "b".repeat(63);
    let target = Target { bucket: &bucket, prefix: "a-prefix-of-some-length/", partition: "aws" };
    for role in roles() {
        let policy = s3::with_key(s3::policy(target, role, Service::Aws, Some(KEY)), target, role, KEY);
        let characters = policy.to_string().len();
        assert!(characters <= s3::POLICY_CHARACTERS_MAX, "{role:?}: {characters}");
    }
}

#[test]
fn a_policy_names_its_bucket_as_the_partition_does_that_it_is_in() {
    let (key, user) = (KEY.replace("arn:aws:", "arn:aws-cn:"), "arn:aws-us-gov:iam::1:user/x");
    assert_eq!(s3::partition([None, None], None), "aws");
    assert_eq!(s3::partition([None, Some(KEY)], Some("eu-central-1")), "aws");
    assert_eq!(s3::partition([None, None], Some("cn-north-1")), "aws-cn");
    assert_eq!(s3::partition([None, None], Some("us-gov-west-1")), "aws-us-gov");
    assert_eq!(s3::partition([Some(user), None], None), "aws-us-gov");
    assert_eq!(s3::partition([Some("123456789012"), Some(&key)], None), "aws-cn");
    for role in roles() {
        let target = Target { bucket: "b", prefix: "host/", partition: "aws-cn" };
        let policy = s3::policy(target, role, Service::Aws, Some(&key));
        let policy = s3::with_key(policy, target, role, &key);
        let text = policy.to_string();
        assert_eq!(text.matches("arn:").count(), text.matches("arn:aws-cn:").count(), "{role:?}: {text}");
        assert!(aws(&policy, "s3:ListBucket", "arn:aws-cn:s3:::b", &[("s3:prefix", "host/")]), "{role:?}");
        for via in ["s3.cn-north-1.amazonaws.com", "s3.cn-north-1.amazonaws.com.cn"] {
            let conditions = [(CONTEXT, "arn:aws-cn:s3:::b/host/data/7b/x"), ("kms:ViaService", via)];
            assert!(aws(&policy, "kms:Decrypt", &key, &conditions), "{role:?} {via}");
        }
    }
}
