//! Policies for Azure Blob Storage: a custom role for each of ours, assigned to the container under conditions on paths.
//!
//! Who may add blobs and not write them cannot replace one: Azure wants the second right for a name that is taken, and for
//! uploads in parts.

use keepwell_catalog::access::{Action, Grant, Role, grants};
use serde_json::{Value, json};

use super::{OLD_VERSION_DAYS, Target};

const READ: &str = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/read";
const ADD: &str = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/add/action";
const WRITE: &str = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/write";
const DELETE: &str = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/delete";
const PATH: &str = "@Resource[Microsoft.Storage/storageAccounts/blobServices/containers/blobs:path]";
const PREFIX: &str = "@Request[Microsoft.Storage/storageAccounts/blobServices/containers/blobs:prefix]";

/// Longest condition that Azure takes.
const CONDITION_BYTES_MAX: usize = 8 << 10;

/// The rights of a role, and which of our actions each is.
fn rights(role: Role) -> &'static [(&'static str, Action)] {
    match role {
        Role::Writer(_) => &[(READ, Action::Read), (ADD, Action::Create)],
        Role::Reader => &[(READ, Action::Read)],
        Role::Keeper => {
            &[(READ, Action::Read), (ADD, Action::Create), (WRITE, Action::Create), (DELETE, Action::Delete)]
        }
    }
}

fn name(role: Role) -> &'static str {
    match role {
        Role::Writer(_) => "Keepwell writer",
        Role::Reader => "Keepwell reader",
        Role::Keeper => "Keepwell keeper",
    }
}

/// The custom roles, each as `az role definition create --role-definition` takes it.
pub(super) fn roles(group: &str) -> Result<Value, String> {
    check_group(group)?;
    let definition = |role: Role, what: &str| {
        let data: Vec<&str> = rights(role).iter().map(|(right, _)| *right).collect();
        json!({
            "Name": name(role),
            "IsCustom": true,
            "Description": what,
            "Actions": [],
            "NotActions": [],
            "DataActions": data,
            "NotDataActions": [],
            "AssignableScopes": [group],
        })
    };
    Ok(json!({
        "writer": definition(Role::Writer(None), "Backs up: adds blobs, and can neither replace nor delete one."),
        "reader": definition(Role::Reader, "Restores and checks backups."),
        "keeper": definition(Role::Keeper, "Forgets and prunes backups: deletes blobs, and no versions."),
    }))
}

/// What `az role assignment create` is told: the role, the container, and for what there.
pub(super) fn assignment(
    target: Target<'_>,
    role: Role,
    group: &str,
    account: &str,
) -> Result<Value, String> {
    check_group(group)?;
    let container = target.bucket;
    let mut assignment = json!({
        "role": name(role),
        "scope": format!(
            "{group}/providers/Microsoft.Storage/storageAccounts/{account}/blobServices/default/containers/{container}"
        ),
    });
    if let Some(condition) = condition(target, role) {
        if condition.len() > CONDITION_BYTES_MAX {
            return Err("the prefix of the repository is too long for a condition of Azure's".into());
        }
        assignment["condition"] = json!(condition);
        assignment["conditionVersion"] = json!("2.0");
    }
    Ok(assignment)
}

fn check_group(group: &str) -> Result<(), String> {
    let parts: Vec<&str> = group.split('/').collect();
    match &parts[..] {
        ["", "subscriptions", id, "resourceGroups", name] if !id.is_empty() && !name.is_empty() => Ok(()),
        _ => Err(format!("`{}` is no resource group's id", group.escape_debug())),
    }
}

/// For each right: that it is not asked for, or that the path is among those granted. Nothing if all paths are.
fn condition(target: Target<'_>, role: Role) -> Option<String> {
    let granted = grants(role);
    let mut parts = Vec::new();
    for (right, action) in rights(role) {
        let clauses: Option<Vec<String>> = granted
            .iter()
            .filter(|grant| grant.action == *action)
            .map(|grant| clause(target, grant))
            .collect();
        let Some(clauses) = clauses else { continue };
        // A listing is a read as well, of no path.
        let listing = if *right == READ { " AND NOT SubOperationMatches{'Blob.List'}" } else { "" };
        parts.push(format!("((!(ActionMatches{{'{right}'}}{listing})) OR ({}))", clauses.join(" OR ")));
    }
    if !target.prefix.is_empty() {
        parts.push(format!(
            "((!(ActionMatches{{'{READ}'}} AND SubOperationMatches{{'Blob.List'}})) OR ({PREFIX} StringStartsWith '{}'))",
            target.prefix
        ));
    }
    (!parts.is_empty()).then(|| parts.join(" AND "))
}

/// Whether the path is one of the grant; nothing where that is every path. No character of a key needs an escape.
fn clause(target: Target<'_>, grant: &Grant) -> Option<String> {
    let path = format!("{}{}", target.prefix, grant.prefix);
    match path.ends_with('/') || path.is_empty() {
        true if path.is_empty() => None,
        true => Some(format!("{PATH} StringStartsWith '{path}'")),
        false => Some(format!("{PATH} StringEquals '{path}'")),
    }
}

/// A rule that removes old versions, and nothing of ours. Parts of broken uploads go by themselves after a week.
pub(super) fn lifecycle(target: Target<'_>) -> Value {
    json!({ "rules": [{
        "name": "keepwell-tidy",
        "enabled": true,
        "type": "Lifecycle",
        "definition": {
            "filters": {
                "blobTypes": ["blockBlob"],
                "prefixMatch": [format!("{}/{}", target.bucket, target.prefix)],
            },
            "actions": { "version": { "delete": { "daysAfterCreationGreaterThan": OLD_VERSION_DAYS } } },
        },
    }] })
}
