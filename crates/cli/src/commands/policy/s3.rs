//! Policies in the language of AWS, which S3 services share.

use keepwell_catalog::access::{Action, Role, grants};
use keepwell_storage::aws_partition;
use serde_json::{Value, json};

use super::{ABORT_DAYS, OLD_VERSION_DAYS, Service, Target};

/// Most characters of a managed policy, white space not counted. One within a user's own record has 2048, too few for ours.
pub(super) const POLICY_CHARACTERS_MAX: usize = 6144;

const CHINA: &str = "aws-cn";

/// The key that a request wants to be encrypted with.
const KMS_KEY: &str = "s3:x-amz-server-side-encryption-aws-kms-key-id";

/// The statements that let a role do its work, and keep a writer from everything else whatever other policies say.
///
/// `key` is the ARN of the key that the bucket encrypts with. The right to it is [`with_key`]'s.
pub(super) fn policy(target: Target<'_>, role: Role, service: Service, key: Option<&str>) -> Value {
    let Target { bucket, prefix, partition } = target;
    let whole_bucket = format!("arn:{partition}:s3:::{bucket}");
    let objects = |under: &str| {
        let star = if under.is_empty() || under.ends_with('/') { "*" } else { "" };
        format!("{whole_bucket}/{prefix}{under}{star}")
    };
    let granted = grants(role);
    let resources = |action: Action| -> Vec<String> {
        granted.iter().filter(|grant| grant.action == action).map(|grant| objects(&grant.prefix)).collect()
    };
    let allow = |sid: &str, actions: &[&str], resources: Vec<String>| json!({ "Sid": sid, "Effect": "Allow", "Action": actions, "Resource": resources });
    let mut listing = allow("KeepwellList", &["s3:ListBucket"], vec![whole_bucket.clone()]);
    if !prefix.is_empty() {
        listing["Condition"] = json!({ "StringLike": { "s3:prefix": [format!("{prefix}*")] } });
    }
    let mut statements = vec![
        listing,
        allow(
            "KeepwellAskAboutBucket",
            &known(
                service,
                &[
                    "s3:GetBucketVersioning",
                    "s3:GetBucketObjectLockConfiguration",
                    "s3:GetLifecycleConfiguration",
                    "s3:GetEncryptionConfiguration",
                ],
            ),
            vec![whole_bucket.clone()],
        ),
        allow("KeepwellRead", &["s3:GetObject"], resources(Action::Read)),
    ];
    let creates = resources(Action::Create);
    if !creates.is_empty() {
        statements.push(allow("KeepwellCreate", &["s3:PutObject", "s3:AbortMultipartUpload"], creates));
        statements.extend(creating(&objects(""), service, key));
    }
    match role {
        Role::Keeper => statements.push(allow(
            "KeepwellMaintain",
            &[
                "s3:DeleteObject",
                "s3:GetObjectRetention",
                "s3:GetObjectLegalHold",
                "s3:PutObjectRetention",
                "s3:RestoreObject",
            ],
            vec![objects("")],
        )),
        Role::Reader => statements.push(allow("KeepwellThaw", &["s3:RestoreObject"], vec![objects("data/")])),
        Role::Writer(_) => statements.push(json!({
            "Sid": "KeepwellNeverDestroy",
            "Effect": "Deny",
            "Action": known(service, &[
                "s3:BypassGovernanceRetention", "s3:DeleteBucket", "s3:DeleteBucketPolicy", "s3:DeleteObject",
                "s3:DeleteObjectVersion", "s3:PutBucketObjectLockConfiguration", "s3:PutBucketPolicy",
                "s3:PutBucketVersioning", "s3:PutEncryptionConfiguration", "s3:PutLifecycleConfiguration",
                "s3:PutObjectLegalHold", "s3:PutObjectRetention",
            ]),
            "Resource": [whole_bucket, objects("")],
        })),
    }
    if matches!(role, Role::Writer(_)) {
        // Not granted above; but some services let everybody read what he stored himself.
        statements.push(json!({
            "Sid": "KeepwellNeverReadContent",
            "Effect": "Deny",
            "Action": "s3:GetObject",
            "Resource": [objects("data/"), objects("meta/"), objects("manifests/")],
        }));
    }
    json!({ "Version": "2012-10-17", "Statement": statements })
}

/// Actions without those that not every service knows: Ceph refuses a policy that names one it does not know.
fn known<'a>(service: Service, actions: &[&'a str]) -> Vec<&'a str> {
    let everywhere = |action: &&&str| service == Service::Aws || !action.ends_with("EncryptionConfiguration");
    actions.iter().filter(everywhere).copied().collect()
}

/// What everybody who stores is kept from: replacing what is there, and keys of their own that only they could read with.
fn creating(all: &str, service: Service, key: Option<&str>) -> Vec<Value> {
    if service == Service::S3 {
        return Vec::new(); // other services do not know these conditions, and some refuse everything then
    }
    // That a request names a key at all, and another one.
    let mut foreign = json!({ "Null": { KMS_KEY: "false" } });
    if let Some(key) = key {
        foreign["ArnNotEquals"] = json!({ KMS_KEY: key });
    }
    vec![
        json!({
            "Sid": "KeepwellWriteOnce",
            "Effect": "Deny",
            "Action": "s3:PutObject",
            "Resource": all,
            // Parts of an upload carry no condition; their completion does.
            "Condition": { "Null": { "s3:if-none-match": "true" }, "Bool": { "s3:ObjectCreationOperation": "true" } },
        }),
        json!({
            "Sid": "KeepwellNoForeignKeys",
            "Effect": "Deny",
            "Action": "s3:PutObject",
            "Resource": all,
            "Condition": { "Null": { "s3:x-amz-server-side-encryption-customer-algorithm": "false" } },
        }),
        json!({
            "Sid": "KeepwellNoOtherKey",
            "Effect": "Deny",
            "Action": "s3:PutObject",
            "Resource": all,
            "Condition": foreign,
        }),
    ]
}

/// Adds the right to use a key of the key service, for objects of this repository and through S3 alone. Decrypting is part of
/// storing too: an upload in parts reads them back. A bucket's policy cannot grant it.
pub(super) fn with_key(mut document: Value, target: Target<'_>, role: Role, key: &str) -> Value {
    let Target { bucket, prefix, partition } = target;
    let stores = grants(role).iter().any(|grant| grant.action == Action::Create);
    let actions: &[&str] = if stores { &["kms:Decrypt", "kms:GenerateDataKey"] } else { &["kms:Decrypt"] };
    let mut through = vec!["s3.*.amazonaws.com"];
    if partition == CHINA {
        through.push("s3.*.amazonaws.com.cn"); // as its endpoints are called
    }
    let statement = json!({
        "Sid": "KeepwellUseKey",
        "Effect": "Allow",
        "Action": actions,
        "Resource": [key],
        "Condition": { "StringLike": {
            "kms:ViaService": through,
            // The object, or the bucket where that has a bucket key.
            "kms:EncryptionContext:aws:s3:arn":
                [format!("arn:{partition}:s3:::{bucket}/{prefix}*"), format!("arn:{partition}:s3:::{bucket}")],
        } },
    });
    if let Some(statements) = document["Statement"].as_array_mut() {
        statements.push(statement);
    }
    document
}

/// The partition of Amazon's cloud, which every ARN begins with: that of one that is given, or else of the region. A policy
/// with the ARNs of another is refused, or grants nothing.
pub(super) fn partition<'a>(arns: [Option<&'a str>; 2], region: Option<&str>) -> &'a str {
    let mut named = arns.into_iter().flatten().filter_map(|arn| arn.strip_prefix("arn:")?.split(':').next());
    named.next().unwrap_or_else(|| aws_partition(region.unwrap_or_default()))
}

/// Whether a text names one key as policies do. An alias or an id alone means nothing there.
pub(super) fn is_key(text: &str) -> bool {
    let parts: Vec<&str> = text.split(':').collect();
    let ["arn", partition, "kms", region, account, resource] = parts[..] else { return false };
    let plain = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    [partition, region, account].into_iter().all(plain) && resource.strip_prefix("key/").is_some_and(plain)
}

/// Makes a policy of the bucket of it, for one user.
pub(super) fn for_principal(mut document: Value, principal: &str) -> Value {
    for statement in document["Statement"].as_array_mut().into_iter().flatten() {
        statement["Principal"] = json!({ "AWS": principal });
    }
    document
}

/// Rules that remove what nobody sees and is paid for, and nothing of ours.
pub(super) fn lifecycle(target: Target<'_>) -> Value {
    json!({ "Rules": [{
        "ID": "keepwell-tidy",
        "Status": "Enabled",
        "Filter": { "Prefix": target.prefix },
        "AbortIncompleteMultipartUpload": { "DaysAfterInitiation": ABORT_DAYS },
        "NoncurrentVersionExpiration": { "NoncurrentDays": OLD_VERSION_DAYS },
        "Expiration": { "ExpiredObjectDeleteMarker": true },
    }] })
}
