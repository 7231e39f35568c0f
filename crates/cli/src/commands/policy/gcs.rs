//! Policies for Google Cloud Storage: custom roles of one permission each, bound under conditions on the name of an object.
//!
//! Who may create and not delete cannot replace an object either: Google wants both rights for that.

use keepwell_catalog::access::{Action, Grant, Role, grants};
use serde_json::{Value, json};

use super::{ABORT_DAYS, OLD_VERSION_DAYS, Target};

/// The custom roles: id, what for, permission. A binding has one condition, so rights for different objects need roles of
/// their own.
const ROLES: [(&str, &str, &str); 5] = [
    (INSPECT, "ask how a bucket is set up", "storage.buckets.get"),
    (LIST, "list objects", "storage.objects.list"),
    ("keepwellRead", "read objects", "storage.objects.get"),
    ("keepwellCreate", "create objects where there are none", "storage.objects.create"),
    ("keepwellDelete", "delete objects", "storage.objects.delete"),
];
const INSPECT: &str = "keepwellInspect";
const LIST: &str = "keepwellList";

/// Comparisons in one condition: a condition has at most 12 operators between them.
const CLAUSES_MAX: usize = 12;

/// The custom roles by their ids, each as `gcloud iam roles create ID --file` takes it.
pub(super) fn roles() -> Value {
    let role = |(id, what, permission): (&str, &str, &str)| {
        let definition = json!({
            "title": format!("Keepwell: {what}"),
            "stage": "GA",
            "includedPermissions": [permission],
        });
        (id.to_owned(), definition)
    };
    Value::Object(ROLES.into_iter().map(role).collect())
}

/// The bindings that let a role do its work, as a policy of the bucket that has nothing else.
pub(super) fn policy(
    target: Target<'_>,
    role: Role,
    project: &str,
    principal: &str,
) -> Result<Value, String> {
    let named = |byte: u8| byte.is_ascii_alphanumeric() || b"-.:".contains(&byte);
    if project.is_empty() || !project.bytes().all(named) {
        return Err(format!("`{}` is no id of a project", project.escape_debug()));
    }
    if !principal.contains(':') || principal.contains(|c: char| c.is_control() || c.is_whitespace()) {
        let shown = principal.escape_debug();
        return Err(format!("`{shown}` is no member: it begins with its kind, such as `serviceAccount:`"));
    }
    let binding = |id: &str, condition: Option<Value>| {
        let mut binding = json!({ "role": format!("projects/{project}/roles/{id}"), "members": [principal] });
        if let Some(condition) = condition {
            binding["condition"] = condition;
        }
        binding
    };
    let mut bindings = vec![binding(INSPECT, None), binding(LIST, listing(target))];
    let granted = grants(role);
    for (action, id) in [
        (Action::Read, "keepwellRead"),
        (Action::Create, "keepwellCreate"),
        (Action::Delete, "keepwellDelete"),
    ] {
        let clauses: Vec<_> = granted
            .iter()
            .filter(|grant| grant.action == action)
            .map(|grant| clause(target, grant))
            .collect();
        if clauses.contains(&None) {
            bindings.push(binding(id, None));
            continue;
        }
        let clauses: Vec<String> = clauses.into_iter().flatten().collect();
        for part in clauses.chunks(CLAUSES_MAX) {
            bindings.push(binding(id, Some(condition(id, &part.join(" || ")))));
        }
    }
    Ok(json!({ "version": 3, "bindings": bindings }))
}

/// Listing beneath the prefix. Beside the listing itself, the right decides whether an absent object is "not found".
fn listing(target: Target<'_>) -> Option<Value> {
    let prefix = target.prefix;
    if prefix.is_empty() {
        return None;
    }
    let listed = format!(
        "api.getAttribute(\"storage.googleapis.com/objectListPrefix\", \"\").startsWith(\"{prefix}\")"
    );
    let objects = format!("resource.name.startsWith(\"{}\")", object(target, ""));
    Some(condition(LIST, &format!("{objects} || {listed}")))
}

/// Whether a request is for objects of the grant; nothing where it is for all objects of the bucket.
fn clause(target: Target<'_>, grant: &Grant) -> Option<String> {
    let key = &grant.prefix;
    let name = object(target, key);
    match key.ends_with('/') || key.is_empty() {
        true if key.is_empty() && target.prefix.is_empty() => None,
        true => Some(format!("resource.name.startsWith(\"{name}\")")),
        false => Some(format!("resource.name == \"{name}\"")),
    }
}

/// As Google names an object. No character of a key or of the name of a bucket needs an escape.
fn object(target: Target<'_>, key: &str) -> String {
    format!("projects/_/buckets/{}/objects/{}{key}", target.bucket, target.prefix)
}

fn condition(title: &str, expression: &str) -> Value {
    json!({ "title": title, "expression": expression })
}

/// Rules that remove what nobody sees and is paid for, and nothing of ours.
pub(super) fn lifecycle(target: Target<'_>) -> Value {
    let rule = |kind: &str, mut condition: Value| {
        if !target.prefix.is_empty() {
            condition["matchesPrefix"] = json!([target.prefix]);
        }
        json!({ "action": { "type": kind }, "condition": condition })
    };
    json!({ "lifecycle": { "rule": [
        rule("AbortIncompleteMultipartUpload", json!({ "age": ABORT_DAYS })),
        rule("Delete", json!({ "isLive": false, "daysSinceNoncurrentTime": OLD_VERSION_DAYS })),
    ] } })
}
