//! Decides requests as the services do, by what is printed.

use keepwell_catalog::access::{Action, grants};
use serde_json::json;

use super::*;

mod encryption;
mod rules;

const OWN: [u8; 8] = [7; 8];
const OTHER: &str = "0000000000000000";
const PROJECT: &str = "p1";
const PRINCIPAL: &str = "serviceAccount:web1@p1.iam.gserviceaccount.com";
const GROUP: &str = "/subscriptions/s1/resourceGroups/g1";
const ACTIONS: [Action; 3] = [Action::Read, Action::Create, Action::Delete];

fn roles() -> [Role; 4] {
    [Role::Writer(Some(MemberId::from_bytes(OWN))), Role::Writer(None), Role::Reader, Role::Keeper]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Provider {
    Aws,
    OtherS3,
    Google,
    Azure,
}

const PROVIDERS: [Provider; 4] = [Provider::Aws, Provider::OtherS3, Provider::Google, Provider::Azure];

/// A role's rights beneath a prefix of the bucket `b`, as printed, and read again from the text.
struct Printed {
    provider: Provider,
    policy: Value,
    custom: Value,
}

impl Printed {
    fn new(provider: Provider, prefix: &str, role: Role) -> Self {
        let target = Target { bucket: "b", prefix, partition: "aws" };
        let (policy, custom) = match provider {
            Provider::Aws => (s3::policy(target, role, Service::Aws, None), Value::Null),
            Provider::OtherS3 => (s3::policy(target, role, Service::S3, None), Value::Null),
            Provider::Google => (gcs::policy(target, role, PROJECT, PRINCIPAL).unwrap(), gcs::roles()),
            Provider::Azure => {
                (azure::assignment(target, role, GROUP, "acme").unwrap(), azure::roles(GROUP).unwrap())
            }
        };
        let again = |document: Value| serde_json::from_str(&format!("{document:#}")).unwrap();
        Self { provider, policy: again(policy), custom: again(custom) }
    }

    /// Whether an object of the bucket may be read, created where there is none, or deleted.
    fn object(&self, action: Action, key: &str) -> bool {
        match self.provider {
            Provider::Aws | Provider::OtherS3 => {
                let right = match action {
                    Action::Read => "s3:GetObject",
                    Action::Create => "s3:PutObject",
                    Action::Delete => "s3:DeleteObject",
                };
                aws(&self.policy, right, &format!("arn:aws:s3:::b/{key}"), &[CREATES, IF_ABSENT])
            }
            Provider::Google => {
                let right = match action {
                    Action::Read => "storage.objects.get",
                    Action::Create => "storage.objects.create",
                    Action::Delete => "storage.objects.delete",
                };
                self.google(right, &format!("projects/_/buckets/b/objects/{key}"), "")
            }
            Provider::Azure => {
                let right = match action {
                    Action::Read => "read",
                    Action::Create => "add/action",
                    Action::Delete => "delete",
                };
                self.azure(right, false, key)
            }
        }
    }

    /// Whether an object that is there may be replaced.
    fn replace(&self, key: &str) -> bool {
        match self.provider {
            Provider::Aws | Provider::OtherS3 => {
                aws(&self.policy, "s3:PutObject", &format!("arn:aws:s3:::b/{key}"), &[CREATES])
            }
            Provider::Google => self.object(Action::Create, key) && self.object(Action::Delete, key),
            Provider::Azure => self.azure("write", false, key),
        }
    }

    fn list(&self, prefix: &str) -> bool {
        match self.provider {
            Provider::Aws | Provider::OtherS3 => {
                aws(&self.policy, "s3:ListBucket", "arn:aws:s3:::b", &[("s3:prefix", prefix)])
            }
            Provider::Google => self.google("storage.objects.list", "projects/_/buckets/b", prefix),
            Provider::Azure => self.azure("read", true, prefix),
        }
    }

    fn google(&self, permission: &str, resource: &str, list_prefix: &str) -> bool {
        self.policy["bindings"].as_array().unwrap().iter().any(|binding| {
            assert_eq!(binding["members"], json!([PRINCIPAL]));
            let id = binding["role"].as_str().unwrap().strip_prefix("projects/p1/roles/").unwrap();
            let includes = names(&self.custom[id]["includedPermissions"]).iter().any(|one| one == permission);
            includes
                && binding["condition"]["expression"].as_str().is_none_or(|expression| {
                    expression.split(" || ").any(|clause| cel(clause, resource, list_prefix))
                })
        })
    }

    fn azure(&self, right: &str, lists: bool, path: &str) -> bool {
        let right = format!("Microsoft.Storage/storageAccounts/blobServices/containers/blobs/{right}");
        let role = self.custom.as_object().unwrap().values().find(|role| role["Name"] == self.policy["role"]);
        let granted = names(&role.unwrap()["DataActions"]).contains(&right);
        granted && self.policy["condition"].as_str().is_none_or(|text| abac(text, &right, lists, path))
    }
}

const CREATES: (&str, &str) = ("s3:ObjectCreationOperation", "true");
const IF_ABSENT: (&str, &str) = ("s3:if-none-match", "*");

/// A refusal that matches wins, then a permission; conditions by their keys.
fn aws(policy: &Value, action: &str, resource: &str, conditions: &[(&str, &str)]) -> bool {
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

/// With at most one star.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        Some((start, end)) => {
            text.len() >= start.len() + end.len() && text.starts_with(start) && text.ends_with(end)
        }
        None => text == pattern,
    }
}

fn holds(condition: &Value, given: &[(&str, &str)]) -> bool {
    let value = |key: &str| given.iter().find(|(name, _)| *name == key).map(|(_, value)| *value);
    condition.as_object().into_iter().flatten().all(|(operator, keys)| {
        keys.as_object().unwrap().iter().all(|(key, wanted)| match operator.as_str() {
            "Null" => (wanted == "true") == value(key).is_none(),
            "Bool" => value(key) == wanted.as_str(),
            "ArnNotEquals" => value(key) != wanted.as_str(), // also where there is none
            "StringLike" => value(key).is_some_and(|text| names(wanted).iter().any(|p| matches(p, text))),
            other => panic!("{other}"),
        })
    })
}

/// One comparison of Google's.
fn cel(clause: &str, resource: &str, list_prefix: &str) -> bool {
    let between = |start: &str, end: &str| clause.strip_prefix(start).and_then(|rest| rest.strip_suffix(end));
    let listed = "api.getAttribute(\"storage.googleapis.com/objectListPrefix\", \"\").startsWith(\"";
    if let Some(prefix) = between("resource.name.startsWith(\"", "\")") {
        resource.starts_with(prefix)
    } else if let Some(name) = between("resource.name == \"", "\"") {
        resource == name
    } else if let Some(prefix) = between(listed, "\")") {
        list_prefix.starts_with(prefix)
    } else {
        panic!("{clause}")
    }
}

/// A condition of Azure's: parts that all must hold, each `((!(what is asked)) OR (comparisons))`.
fn abac(condition: &str, right: &str, lists: bool, path: &str) -> bool {
    assert_eq!(condition.matches('(').count(), condition.matches(')').count(), "{condition}");
    let whole = condition.strip_prefix("((!(").unwrap();
    whole.split(" AND ((!(").all(|part| {
        let (asked, allowed) = part.split_once(")) OR (").unwrap();
        let named = format!("ActionMatches{{'{right}'}}");
        let is_asked = match asked.strip_prefix(&named) {
            None => false,
            Some("") => true,
            Some(" AND NOT SubOperationMatches{'Blob.List'}") => !lists,
            Some(" AND SubOperationMatches{'Blob.List'}") => lists,
            Some(other) => panic!("{other}"),
        };
        let clauses = allowed.strip_suffix("))").unwrap();
        !is_asked || clauses.split(" OR ").any(|clause| compare(clause, lists, path))
    })
}

fn compare(clause: &str, lists: bool, path: &str) -> bool {
    let words: Vec<&str> = clause.split(' ').collect();
    let [attribute, operator, value] = words[..] else { panic!("{clause}") };
    let wanted = if lists {
        "@Request[Microsoft.Storage/storageAccounts/blobServices/containers/blobs:prefix]"
    } else {
        "@Resource[Microsoft.Storage/storageAccounts/blobServices/containers/blobs:path]"
    };
    assert_eq!(attribute, wanted, "{clause}");
    let value = value.strip_prefix('\'').and_then(|value| value.strip_suffix('\'')).unwrap();
    match operator {
        "StringStartsWith" => path.starts_with(value),
        "StringEquals" => path == value,
        other => panic!("{other}"),
    }
}

/// Names as the page of the format has them, for a writer; the first column of its table of names.
fn names_of_the_format(writer: &str) -> Vec<String> {
    let page = include_str!("../../../../../docs/format.md");
    let block = page.split("```").nth(1).unwrap().strip_prefix("text\n").unwrap();
    let names = block.lines().flat_map(|line| line.split(" §").next().unwrap().split_whitespace());
    let placed = |name: &str| {
        let name = name.trim_end_matches(',').replace("<writer>", writer).replace("<member>", writer);
        let mut plain = String::new();
        for (n, part) in name.split(['<', '>']).enumerate() {
            plain.push_str(if n % 2 == 1 { "0000000001" } else { part });
        }
        plain.replace('…', "0000000001")
    };
    names.filter(|name| name.contains('/') || name.contains(".json")).map(placed).collect()
}

#[test]
fn the_format_has_no_name_that_nobody_decided_about() {
    let mut tops: Vec<String> =
        names_of_the_format(OTHER).iter().map(|name| name.split('/').next().unwrap().to_owned()).collect();
    tops.push("probe".into()); // its own table, among what is reserved
    tops.sort();
    tops.dedup();
    // What only owners and keepers store.
    let mut decided: Vec<String> =
        ["attest", "audit", "gc", "keepwell.json", "keys", "ledger", "retired", "trust"]
            .map(Into::into)
            .into();
    let creates = grants(Role::Writer(None)).into_iter().filter(|grant| grant.action == Action::Create);
    decided.extend(creates.map(|grant| grant.prefix.trim_end_matches('/').to_owned()));
    decided.sort();
    assert_eq!(tops, decided);
}

#[test]
fn every_service_is_asked_for_what_a_role_needs_and_for_nothing_else() {
    let mut decisions = 0;
    for (provider, prefix, role) in everything() {
        let (printed, granted) = (Printed::new(provider, prefix, role), grants(role));
        let own = MemberId::from_bytes(OWN).to_string();
        let names = names_of_the_format(&own).into_iter().chain(names_of_the_format(OTHER));
        for name in names.chain(["probe/0123".into(), "keepwell.json2".into(), "nothing/x".into()]) {
            for action in ACTIONS {
                let expected = granted.iter().any(|grant| grant.covers(action, &name));
                let decided = printed.object(action, &format!("{prefix}{name}"));
                assert_eq!(decided, expected, "{provider:?} {prefix:?} {role:?} {action:?} {name}");
                if !prefix.is_empty() {
                    for elsewhere in ["", "other/", "hos", "host2/"] {
                        let outside = format!("{elsewhere}{name}");
                        assert!(
                            !printed.object(action, &outside),
                            "{provider:?} {role:?} {action:?} {outside}"
                        );
                    }
                }
                decisions += 1;
            }
        }
    }
    assert!(decisions > 2000, "{decisions}");
}

fn everything() -> impl Iterator<Item = (Provider, &'static str, Role)> {
    PROVIDERS.into_iter().flat_map(|provider| {
        ["", "host/", "a/deep/place/"]
            .into_iter()
            .flat_map(move |prefix| roles().into_iter().map(move |role| (provider, prefix, role)))
    })
}

#[test]
fn nobody_but_the_keeper_may_delete_and_a_writer_replaces_nothing() {
    for (provider, prefix, role) in everything() {
        let printed = Printed::new(provider, prefix, role);
        for name in names_of_the_format(&MemberId::from_bytes(OWN).to_string()) {
            let key = format!("{prefix}{name}");
            assert_eq!(
                printed.object(Action::Delete, &key),
                role == Role::Keeper,
                "{provider:?} {role:?} {key}"
            );
            // Other S3 services have no condition for it; the guide and `doctor` say so.
            if role != Role::Keeper && provider != Provider::OtherS3 {
                assert!(!printed.replace(&key), "{provider:?} {role:?} {key}");
            }
        }
    }
}

#[test]
fn no_policy_has_a_right_that_no_role_needs() {
    for (provider, prefix, role) in everything() {
        let text = Printed::new(provider, prefix, role).policy.to_string();
        for wide in ["s3:*", "\"*\"", "roles/storage.", "roles/owner", "Storage Blob Data"] {
            assert!(!text.contains(wide), "{provider:?} {role:?}: {wide}");
        }
    }
    let mut permissions: Vec<String> = gcs::roles()
        .as_object()
        .unwrap()
        .values()
        .flat_map(|role| names(&role["includedPermissions"]))
        .collect();
    let expected = ["buckets.get", "objects.list", "objects.get", "objects.create", "objects.delete"];
    let mut expected = expected.map(|right| format!("storage.{right}")).to_vec();
    permissions.sort();
    expected.sort();
    assert_eq!(permissions, expected);
    for (role, rights) in azure::roles(GROUP).unwrap().as_object().unwrap() {
        let rights = names(&rights["DataActions"]);
        for never in
            ["deleteBlobVersion", "permanentDelete", "runAsSuperUser", "immutableStorage", "*", "move"]
        {
            assert!(!rights.iter().any(|right| right.contains(never)), "{role}: {never}");
        }
        let destroys = rights.iter().any(|right| right.ends_with("/delete") || right.ends_with("/write"));
        assert_eq!(destroys, role == "keeper", "{role}");
    }
}

#[test]
fn listing_is_limited_to_the_prefix() {
    for (provider, prefix, role) in everything() {
        let printed = Printed::new(provider, prefix, role);
        assert!(printed.list(&format!("{prefix}commits/")), "{provider:?} {role:?}");
        if !prefix.is_empty() {
            assert!(
                printed.list(prefix) && !printed.list("") && !printed.list("other/"),
                "{provider:?} {role:?}"
            );
        }
    }
}

#[test]
fn an_amazon_writer_is_write_once_and_brings_no_keys_of_its_own() {
    let policy = Printed::new(Provider::Aws, "host/", Role::Writer(None)).policy;
    let key = "arn:aws:s3:::b/host/data/7b/x";
    let put = |conditions: &[_]| aws(&policy, "s3:PutObject", key, conditions);
    assert!(put(&[CREATES, IF_ABSENT]));
    assert!(!put(&[CREATES]), "would replace what is there");
    assert!(put(&[("s3:ObjectCreationOperation", "false")]), "a part of an upload");
    let own_key = ("s3:x-amz-server-side-encryption-customer-algorithm", "AES256");
    assert!(!put(&[CREATES, IF_ABSENT, own_key]));
    for action in ["s3:DeleteObjectVersion", "s3:PutLifecycleConfiguration", "s3:PutObjectRetention"] {
        assert!(!aws(&policy, action, key, &[]), "{action}");
    }
}

#[test]
fn an_endpoint_of_amazons_own_gets_what_amazon_knows() {
    let ctx = Context::of_profiles("");
    let printed = |place: &str| {
        let args = Args {
            what: What::Writer,
            member: None,
            any_writer: true,
            principal: None,
            within: None,
            r#for: None,
            kms_key: None,
        };
        let target = Target { bucket: "b", prefix: "", partition: "aws" };
        let location = Location::parse(place).unwrap();
        amazon(&ctx, &args, &location, target, Some(Role::Writer(None))).unwrap().to_string()
    };
    for (place, bucket) in [
        ("s3://b?region=eu-central-1", "arn:aws:s3:::b/"),
        ("s3://b?region=us-gov-west-1", "arn:aws-us-gov:s3:::b/"),
        ("s3://b?region=eu-1&endpoint=https://S3.dualstack.eu-1.amazonaws.com/", "arn:aws:s3:::b/"),
        ("s3://b?region=cn-north-1&endpoint=https://s3.cn-north-1.amazonaws.com.cn", "arn:aws-cn:s3:::b/"),
    ] {
        let policy = printed(place);
        assert!(policy.contains("s3:if-none-match") && policy.contains(bucket), "{place}: {policy}");
    }
    for place in ["s3://b?endpoint=https://minio:9000", "s3://b?endpoint=https://x.amazonaws.com.evil.org"] {
        let policy = printed(place);
        assert!(!policy.contains("s3:if-none-match") && policy.contains("arn:aws:s3:::b/"), "{place}");
    }
}

#[test]
fn other_s3_services_are_asked_for_nothing_that_some_do_not_know() {
    for role in roles() {
        let text = Printed::new(Provider::OtherS3, "host/", role).policy.to_string();
        for unknown in ["EncryptionConfiguration", "if-none-match", "ObjectCreationOperation"] {
            assert!(!text.contains(unknown), "{role:?}: {unknown}");
        }
    }
}

#[test]
fn conditions_stay_within_what_the_services_take() {
    let deep = "a-prefix-of-some-length/beneath-another/";
    for role in roles() {
        let bindings = Printed::new(Provider::Google, deep, role).policy["bindings"].clone();
        for binding in bindings.as_array().unwrap() {
            let expression = binding["condition"]["expression"].as_str().unwrap_or_default();
            assert!(expression.matches("||").count() < 12, "{role:?}: {expression}");
        }
        let condition = Printed::new(Provider::Azure, deep, role).policy["condition"].clone();
        assert!(condition.as_str().is_none_or(|text| text.len() < 8192), "{role:?}");
    }
    let endless = format!("{}/", "p".repeat(500));
    let target = Target { bucket: "b", prefix: &endless, partition: "aws" };
    assert!(azure::assignment(target, Role::Writer(None), GROUP, "acme").is_err());
}

#[test]
fn a_google_policy_is_as_the_tool_takes_it() {
    let policy = Printed::new(Provider::Google, "host/", Role::Reader).policy;
    let objects = "resource.name.startsWith(\"projects/_/buckets/b/objects/host/\")";
    let listed = "api.getAttribute(\"storage.googleapis.com/objectListPrefix\", \"\").startsWith(\"host/\")";
    let expected = json!({ "version": 3, "bindings": [
        { "role": "projects/p1/roles/keepwellInspect", "members": [PRINCIPAL] },
        { "role": "projects/p1/roles/keepwellList", "members": [PRINCIPAL],
          "condition": { "title": "keepwellList", "expression": format!("{objects} || {listed}") } },
        { "role": "projects/p1/roles/keepwellRead", "members": [PRINCIPAL],
          "condition": { "title": "keepwellRead", "expression": objects } },
    ] });
    assert_eq!(policy, expected);
    let whole = Printed::new(Provider::Google, "", Role::Keeper).policy.to_string();
    assert!(!whole.contains("condition"), "{whole}");
    for (project, principal) in [("", PRINCIPAL), ("a/b", PRINCIPAL), ("p", "web1"), ("p", "user:a b")] {
        let target = Target { bucket: "b", prefix: "", partition: "aws" };
        assert!(gcs::policy(target, Role::Reader, project, principal).is_err(), "{project} {principal}");
    }
}

#[test]
fn an_azure_assignment_is_as_the_tool_takes_it() {
    let assignment = Printed::new(Provider::Azure, "host/", Role::Reader).policy;
    let blobs = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs";
    let expected = json!({
        "role": "Keepwell reader",
        "scope": "/subscriptions/s1/resourceGroups/g1/providers/Microsoft.Storage/storageAccounts/acme/blobServices/default/containers/b",
        "condition": format!(
            "((!(ActionMatches{{'{blobs}/read'}} AND NOT SubOperationMatches{{'Blob.List'}})) OR (@Resource[{blobs}:path] \
             StringStartsWith 'host/')) AND ((!(ActionMatches{{'{blobs}/read'}} AND SubOperationMatches{{'Blob.List'}})) OR \
             (@Request[{blobs}:prefix] StringStartsWith 'host/'))"
        ),
        "conditionVersion": "2.0",
    });
    assert_eq!(assignment, expected);
    assert_eq!(Printed::new(Provider::Azure, "", Role::Keeper).policy.as_object().unwrap().len(), 2);
    for group in [
        "",
        "g1",
        "/subscriptions/s1",
        "/subscriptions//resourceGroups/g1",
        "/subscriptions/s1/resourceGroups/g1/x",
    ] {
        assert!(azure::roles(group).is_err(), "{group}");
    }
}
