//! `keepwell policy`.

use anyhow::Result;
use clap::ValueEnum;
use keepwell_catalog::access::{Action, Role, grants};
use keepwell_crypto::MemberId;
use serde_json::{Value, json};

use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::open;

const EXAMPLES: &str = "\
Examples:
  keepwell -r s3://backups/web policy writer --member 7d585ad0ff126942 > writer.json
  keepwell -r s3://backups/web policy lifecycle > lifecycle.json
  aws iam put-user-policy --user-name web1 --policy-name keepwell --policy-document file://writer.json
  aws s3api put-bucket-lifecycle-configuration --bucket backups --lifecycle-configuration file://lifecycle.json

`keepwell doctor`, run with the credentials that got the policy, tries whether it holds.";

/// Days after which the parts of broken uploads are removed.
const ABORT_DAYS: u32 = 7;
/// Days for which what was deleted can be brought back.
const OLD_VERSION_DAYS: u32 = 30;

/// Print an access policy or lifecycle rules for the bucket of the repository
///
/// The policy lets a role do what it needs in this bucket and beneath this prefix, and nothing else. On Amazon's S3 it makes
/// a writer write-once: it cannot replace an object either. Other services know no such condition: there a bucket that
/// keeps versions is what helps. Nothing is changed anywhere.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// For whom, or the lifecycle rules that suit a repository
    what: What,
    /// The member that a writer's policy is for, by id [default: that of the key]
    #[arg(long, value_name = "ID", conflicts_with = "any_writer")]
    member: Option<MemberId>,
    /// One policy for all writers; each can then end or block the sessions of the others
    #[arg(long)]
    any_writer: bool,
    /// Make it a bucket policy for this user, such as `arn:aws:iam::123456789012:user/web1`
    #[arg(long, value_name = "ARN")]
    principal: Option<String>,
    /// Where the bucket is [default: Amazon's unless the location names an endpoint]
    #[arg(long, value_enum, value_name = "SERVICE")]
    r#for: Option<Service>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// A backup host.
    Writer,
    /// Somebody who restores and checks.
    Reader,
    /// Somebody who forgets and prunes.
    Keeper,
    /// Rules by which the bucket tidies up.
    Lifecycle,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Service {
    /// Amazon S3.
    Aws,
    /// Another S3-compatible service, such as MinIO or Ceph.
    S3,
}

/// Runs `policy`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    if args.what == What::Lifecycle && args.principal.is_some() {
        return Err(
            Complaint::usage("lifecycle rules are for the whole bucket, not for a `--principal`").into()
        );
    }
    let location = open::location(ctx)?;
    let Some((bucket, prefix)) = location.bucket() else {
        return Err(Complaint::usage(format!("`{location}` is no bucket of an S3 service"))
            .hint("Policies are printed for `s3://` locations so far.")
            .into());
    };
    let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
    let service = args.r#for.unwrap_or(if location.has_endpoint(ctx)? { Service::S3 } else { Service::Aws });
    let document = match args.what {
        What::Lifecycle => lifecycle(&prefix),
        What::Writer => {
            let member = if args.any_writer { None } else { Some(writer(ctx, args.member).await?) };
            policy(bucket, &prefix, Role::Writer(member), service)
        }
        What::Reader => policy(bucket, &prefix, Role::Reader, service),
        What::Keeper => policy(bucket, &prefix, Role::Keeper, service),
    };
    let document = match &args.principal {
        Some(principal) => for_principal(document, principal),
        None => document,
    };
    ctx.printer.raw(format!("{document:#}\n").as_bytes())?;
    Ok(Exit::Done)
}

async fn writer(ctx: &Context, named: Option<MemberId>) -> Result<MemberId> {
    if let Some(member) = named {
        return Ok(member);
    }
    let opened = open::repository(ctx).await?;
    opened.progress.end();
    opened.repository.access().member().ok_or_else(|| {
        Complaint::usage("the key is no member's, so whose policy is meant?")
            .hint("Name the member with `--member ID`; `keepwell key list` shows them.")
            .into()
    })
}

/// The statements that let a role do its work, and keep a writer from everything else whatever other policies say.
fn policy(bucket: &str, prefix: &str, role: Role, service: Service) -> Value {
    let objects = |under: &str| {
        let star = if under.is_empty() || under.ends_with('/') { "*" } else { "" };
        format!("arn:aws:s3:::{bucket}/{prefix}{under}{star}")
    };
    let granted = grants(role);
    let resources = |action: Action| -> Vec<String> {
        granted.iter().filter(|grant| grant.action == action).map(|grant| objects(&grant.prefix)).collect()
    };
    let allow = |sid: &str, actions: &[&str], resources: Vec<String>| json!({ "Sid": sid, "Effect": "Allow", "Action": actions, "Resource": resources });
    let mut listing = allow("KeepwellList", &["s3:ListBucket"], vec![format!("arn:aws:s3:::{bucket}")]);
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
            vec![format!("arn:aws:s3:::{bucket}")],
        ),
        allow("KeepwellRead", &["s3:GetObject"], resources(Action::Read)),
    ];
    let creates = resources(Action::Create);
    if !creates.is_empty() {
        statements.push(allow("KeepwellCreate", &["s3:PutObject", "s3:AbortMultipartUpload"], creates));
        statements.extend(creating(&objects(""), service));
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
            "Resource": [format!("arn:aws:s3:::{bucket}"), objects("")],
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
fn creating(all: &str, service: Service) -> Vec<Value> {
    if service == Service::S3 {
        return Vec::new(); // other services do not know these conditions, and some refuse everything then
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
    ]
}

fn for_principal(mut document: Value, principal: &str) -> Value {
    for statement in document["Statement"].as_array_mut().into_iter().flatten() {
        statement["Principal"] = json!({ "AWS": principal });
    }
    document
}

/// Rules that remove what nobody sees and is paid for, and nothing of ours.
fn lifecycle(prefix: &str) -> Value {
    json!({ "Rules": [{
        "ID": "keepwell-tidy",
        "Status": "Enabled",
        "Filter": { "Prefix": prefix },
        "AbortIncompleteMultipartUpload": { "DaysAfterInitiation": ABORT_DAYS },
        "NoncurrentVersionExpiration": { "NoncurrentDays": OLD_VERSION_DAYS },
        "Expiration": { "ExpiredObjectDeleteMarker": true },
    }] })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decides a request as the services do: a refusal that matches wins, then a permission; conditions by their keys.
    fn allowed(policy: &Value, action: &str, resource: &str, conditions: &[(&str, &str)]) -> bool {
        let effect = |wanted: &str| {
            policy["Statement"].as_array().unwrap().iter().any(|statement| {
                statement["Effect"] == wanted
                    && names(&statement["Action"]).iter().any(|name| name == action)
                    && names(&statement["Resource"]).iter().any(|pattern| matches(pattern, resource))
                    && holds(&statement["Condition"], conditions)
            })
        };
        effect("Allow") && !effect("Deny")
    }

    fn names(value: &Value) -> Vec<String> {
        match value {
            Value::String(one) => vec![one.clone()],
            Value::Array(many) => many.iter().map(|name| name.as_str().unwrap().to_owned()).collect(),
            other => panic!("{other}"),
        }
    }

    fn matches(pattern: &str, text: &str) -> bool {
        match pattern.strip_suffix('*') {
            Some(start) => text.starts_with(start),
            None => text == pattern,
        }
    }

    fn holds(condition: &Value, given: &[(&str, &str)]) -> bool {
        let value = |key: &str| given.iter().find(|(name, _)| *name == key).map(|(_, value)| *value);
        condition.as_object().into_iter().flatten().all(|(operator, keys)| {
            keys.as_object().unwrap().iter().all(|(key, wanted)| match operator.as_str() {
                "Null" => (wanted == "true") == value(key).is_none(),
                "Bool" => value(key) == wanted.as_str(),
                "StringLike" => value(key).is_some_and(|text| names(wanted).iter().any(|p| matches(p, text))),
                other => panic!("{other}"),
            })
        })
    }

    const CREATES: (&str, &str) = ("s3:ObjectCreationOperation", "true");
    const IF_ABSENT: (&str, &str) = ("s3:if-none-match", "*");

    fn key(key: &str) -> String {
        format!("arn:aws:s3:::b/host/{key}")
    }

    #[test]
    fn policies_allow_what_the_roles_need_and_nothing_else() {
        let member = MemberId::from_bytes([7; 8]);
        let keys = [
            "keepwell.json".to_owned(),
            "trust/0000000000".into(),
            "data/7b/x".into(),
            "meta/7b/x".into(),
            "manifests/x".into(),
            "index/g/x".into(),
            "gc/0000000001".into(),
            "probe/x".into(),
            format!("commits/{member}/0000000001"),
            "commits/0000000000000000/0000000001".into(),
            format!("state/{member}/x"),
            "state/0000000000000000/x".into(),
        ];
        for role in [Role::Writer(Some(member)), Role::Reader, Role::Keeper] {
            let policy = policy("b", "host/", role, Service::Aws);
            let granted = grants(role);
            for name in &keys {
                for (action, s3) in [
                    (Action::Create, "s3:PutObject"),
                    (Action::Read, "s3:GetObject"),
                    (Action::Delete, "s3:DeleteObject"),
                ] {
                    let expected = granted.iter().any(|grant| grant.covers(action, name));
                    let decided = allowed(&policy, s3, &key(name), &[CREATES, IF_ABSENT]);
                    assert_eq!(decided, expected, "{role:?} {s3} {name}");
                    assert!(!allowed(
                        &policy,
                        s3,
                        &format!("arn:aws:s3:::b/other/{name}"),
                        &[CREATES, IF_ABSENT]
                    ));
                }
            }
        }
    }

    #[test]
    fn a_writer_is_write_once_and_brings_no_keys_of_its_own() {
        let policy = policy("b", "host/", Role::Writer(None), Service::Aws);
        let put = |conditions: &[_]| allowed(&policy, "s3:PutObject", &key("data/7b/x"), conditions);
        assert!(put(&[CREATES, IF_ABSENT]));
        assert!(!put(&[CREATES]), "would replace what is there");
        assert!(put(&[("s3:ObjectCreationOperation", "false")]), "a part of an upload");
        let own_key = ("s3:x-amz-server-side-encryption-customer-algorithm", "AES256");
        assert!(!put(&[CREATES, IF_ABSENT, own_key]));
        for action in ["s3:DeleteObjectVersion", "s3:PutLifecycleConfiguration", "s3:PutObjectRetention"] {
            assert!(!allowed(&policy, action, &key("data/7b/x"), &[]), "{action}");
        }
    }

    #[test]
    fn other_services_are_asked_for_nothing_that_some_do_not_know() {
        for role in [Role::Writer(None), Role::Reader, Role::Keeper] {
            let text = policy("b", "host/", role, Service::S3).to_string();
            for unknown in ["EncryptionConfiguration", "if-none-match", "ObjectCreationOperation"] {
                assert!(!text.contains(unknown), "{role:?}: {unknown}");
            }
        }
    }

    #[test]
    fn listing_is_limited_to_the_prefix() {
        let policy = policy("b", "host/", Role::Reader, Service::Aws);
        let list = |prefix| allowed(&policy, "s3:ListBucket", "arn:aws:s3:::b", &[("s3:prefix", prefix)]);
        assert!(list("host/") && list("host/commits/") && !list("") && !list("other/"));
    }

    #[test]
    fn the_lifecycle_rules_are_safe_and_complete() {
        for prefix in ["", "host/"] {
            let rules = lifecycle(prefix);
            let rule = &rules["Rules"][0];
            assert_eq!(rules["Rules"].as_array().unwrap().len(), 1);
            let expiration = rule["Expiration"].as_object().unwrap();
            assert!(!expiration.contains_key("Days") && !expiration.contains_key("Date"), "{rule}");
            assert!(rule.get("Transitions").is_none());
            assert_eq!(rule["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"], 7);
        }
    }
}
