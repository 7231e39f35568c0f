//! `keepwell policy`.

mod azure;
mod gcs;
mod s3;
#[cfg(test)]
mod tests;

use anyhow::Result;
use clap::ValueEnum;
use keepwell_catalog::access::Role;
use keepwell_crypto::MemberId;
use keepwell_storage::{COMMON_PARTITION, Place, is_amazons};
use serde_json::Value;

use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::location::Location;
use crate::open;

const EXAMPLES: &str = "\
Examples:
  keepwell -r s3://backups/web policy writer --member 7d585ad0ff126942 > writer.json
  keepwell -r s3://backups/web policy lifecycle > lifecycle.json
  aws iam create-policy --policy-name keepwell-web1 --policy-document file://writer.json
  aws iam attach-user-policy --user-name web1 --policy-arn arn:aws:iam::123456789012:policy/keepwell-web1
  aws s3api put-bucket-lifecycle-configuration --bucket backups --lifecycle-configuration file://lifecycle.json

  keepwell -r gs://backups/web policy roles > roles.json
  keepwell -r gs://backups/web policy writer --member 7d585ad0ff126942 --within my-project \\
    --principal serviceAccount:web1@my-project.iam.gserviceaccount.com > web1.json

  group=/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/backups
  keepwell -r 'azblob://backups/web?account=acme' policy roles --within $group > roles.json
  keepwell -r 'azblob://backups/web?account=acme' policy writer --member 7d585ad0ff126942 --within $group > web1.json

The guide (storage-safety) says how Google's and Azure's tools take them. All lifecycle rules of a bucket or account are set
at once: add what stands there already. `keepwell doctor`, run with the credentials that got the policy, tries whether it holds.";

/// Days after which the parts of broken uploads are removed.
const ABORT_DAYS: u32 = 7;
/// Days for which what was deleted can be brought back.
const OLD_VERSION_DAYS: u32 = 30;

/// Print an access policy or lifecycle rules for the bucket of the repository
///
/// The policy lets a role do what it needs in this bucket and beneath this prefix, and nothing else. On Amazon's S3, on Google
/// Cloud Storage and on Azure a writer becomes write-once: it cannot replace an object either. Other S3 services know no such
/// condition: there a bucket that keeps versions is what helps. Nothing is changed anywhere.
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
    /// Whom the policy of the bucket names: on S3 a user, such as `arn:aws:iam::123456789012:user/web1` [default: a policy for
    /// the user, which names nobody]; on Google a member, such as `serviceAccount:NAME@PROJECT.iam.gserviceaccount.com`
    #[arg(long, value_name = "NAME")]
    principal: Option<String>,
    /// Where custom roles are: a Google project, or an Azure resource group, as `/subscriptions/ID/resourceGroups/NAME`
    #[arg(long, value_name = "PLACE")]
    within: Option<String>,
    /// Which S3 service it is [default: Amazon's unless the location names an endpoint of another]
    #[arg(long, value_enum, value_name = "SERVICE")]
    r#for: Option<Service>,
    /// The key of Amazon's key service that the bucket encrypts with, by its ARN [default: `kms-key` of the location]
    #[arg(long, value_name = "ARN")]
    kms_key: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// A backup host.
    Writer,
    /// Somebody who restores and checks.
    Reader,
    /// Somebody who forgets and prunes.
    Keeper,
    /// Custom roles for Google and Azure, which the policies there grant; made once.
    Roles,
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

/// Where a repository is in a service that knows policies.
#[derive(Debug, Clone, Copy)]
struct Target<'a> {
    /// The bucket or container.
    bucket: &'a str,
    /// What every key begins with; empty, or ending in `/`.
    prefix: &'a str,
    /// The partition of Amazon's cloud; other services have none.
    partition: &'a str,
}

/// Runs `policy`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let location = open::location(ctx)?;
    let Some((bucket, prefix)) = location.bucket() else {
        return Err(Complaint::usage(format!("`{location}` is no bucket"))
            .hint("Policies are printed for `s3://`, `gs://` and `azblob://` locations.")
            .into());
    };
    let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
    let target = Target { bucket, prefix: &prefix, partition: COMMON_PARTITION };
    check(&args, &location)?;
    let role = match args.what {
        What::Writer if args.any_writer => Some(Role::Writer(None)),
        What::Writer => Some(Role::Writer(Some(writer(ctx, args.member).await?))),
        What::Reader => Some(Role::Reader),
        What::Keeper => Some(Role::Keeper),
        What::Roles | What::Lifecycle => None,
    };
    let document = match location.place() {
        Place::Gcs { .. } => google(&args, target, role)?,
        Place::Azblob { .. } => microsoft(ctx, &args, &location, target, role)?,
        _ => amazon(ctx, &args, &location, target, role)?,
    };
    ctx.printer.raw(format!("{document:#}\n").as_bytes())?;
    Ok(Exit::Done)
}

/// Refuses what means nothing for this service.
fn check(args: &Args, location: &Location) -> Result<()> {
    let of_s3 = matches!(location.place(), Place::S3 { .. });
    let for_role = matches!(args.what, What::Writer | What::Reader | What::Keeper);
    let wrong = if args.principal.is_some() && !for_role {
        "roles and lifecycle rules are for everybody, not for a `--principal`"
    } else if args.principal.is_some() && matches!(location.place(), Place::Azblob { .. }) {
        "Azure is told the principal when the role is assigned, not by `--principal`"
    } else if args.r#for.is_some() && !of_s3 {
        "`--for` is for S3 services"
    } else if args.kms_key.is_some() && !(of_s3 && for_role) {
        "`--kms-key` is for policies of Amazon's S3: elsewhere the service itself uses the key"
    } else if args.within.is_some() && of_s3 {
        "`--within` is for the custom roles of Google and Azure"
    } else if args.what == What::Roles && of_s3 {
        "S3 services have no custom roles: the policies say everything"
    } else {
        return Ok(());
    };
    Err(Complaint::usage(wrong).into())
}

fn amazon(
    ctx: &Context,
    args: &Args,
    location: &Location,
    target: Target<'_>,
    role: Option<Role>,
) -> Result<Value> {
    let Some(role) = role else { return Ok(s3::lifecycle(target)) };
    let settings = location.settings(ctx);
    let other = settings.endpoint.as_deref().is_some_and(|endpoint| !is_amazons(endpoint));
    let service = args.r#for.unwrap_or(if other { Service::S3 } else { Service::Aws });
    let key = kms_key(args, service, settings.kms_key)?;
    let partition = match service {
        Service::Aws => {
            s3::partition([args.principal.as_deref(), key.as_deref()], settings.region.as_deref())
        }
        Service::S3 => COMMON_PARTITION,
    };
    let target = Target { partition, ..target };
    let policy = s3::policy(target, role, service, key.as_deref());
    if let Some(principal) = &args.principal {
        if key.is_some() {
            ctx.printer.warn(
                "the policy of a bucket cannot grant the use of a key: grant `kms:Decrypt`, and `kms:GenerateDataKey` to whoever \
                 stores, in the policy of the key or of the user",
            );
        }
        return Ok(s3::for_principal(policy, principal));
    }
    let policy = match &key {
        Some(key) => s3::with_key(policy, target, role, key),
        None => policy,
    };
    let characters = policy.to_string().len();
    if service == Service::Aws && characters > s3::POLICY_CHARACTERS_MAX {
        let max = s3::POLICY_CHARACTERS_MAX;
        return Err(Complaint::usage(format!(
            "the policy has {characters} characters, and Amazon takes {max}"
        ))
        .hint("Choose a shorter prefix for the repository, or a policy of the bucket: `--principal ARN`.")
        .into());
    }
    Ok(policy)
}

/// The key that a policy of Amazon's grants. Other services use theirs for everybody.
fn kms_key(args: &Args, service: Service, of_location: Option<String>) -> Result<Option<String>> {
    if service == Service::S3 {
        let wrong = "`--kms-key` is for Amazon's S3: other services use keys themselves";
        return if args.kms_key.is_none() { Ok(None) } else { Err(Complaint::usage(wrong).into()) };
    }
    match args.kms_key.clone().or(of_location) {
        Some(key) if !s3::is_key(&key) => {
            let shown = key.escape_debug();
            Err(Complaint::usage(format!("`{shown}` is no ARN of a key, which a policy needs"))
                .hint("Name it with `--kms-key arn:aws:kms:REGION:ACCOUNT:key/ID`; `aws kms describe-key` shows it.")
                .into())
        }
        key => Ok(key),
    }
}

fn google(args: &Args, target: Target<'_>, role: Option<Role>) -> Result<Value> {
    let Some(role) = role else {
        return Ok(if args.what == What::Roles { gcs::roles() } else { gcs::lifecycle(target) });
    };
    let project = args.within.as_deref().ok_or_else(|| {
        Complaint::usage("in which project are the custom roles?")
            .hint("Name it: `--within PROJECT`. `keepwell policy roles` prints them.")
    })?;
    let principal = args.principal.as_deref().ok_or_else(|| {
        Complaint::usage("whom is the policy for?")
            .hint("Name the member: `--principal serviceAccount:NAME@PROJECT.iam.gserviceaccount.com`.")
    })?;
    gcs::policy(target, role, project, principal).map_err(|why| Complaint::usage(why).into())
}

fn microsoft(
    ctx: &Context,
    args: &Args,
    location: &Location,
    target: Target<'_>,
    role: Option<Role>,
) -> Result<Value> {
    if args.what == What::Lifecycle {
        ctx.printer.warn(
            "Azure counts the age of an old version from when it was stored, not from when it was replaced or deleted: switch on \
             soft delete as well, which keeps for its own time what this rule removes.",
        );
        return Ok(azure::lifecycle(target));
    }
    let group = args.within.as_deref().ok_or_else(|| {
        Complaint::usage("in which resource group is the storage account?")
            .hint("Name it: `--within /subscriptions/ID/resourceGroups/NAME`.")
    })?;
    let done = match role {
        None => azure::roles(group),
        Some(role) => {
            let account = location.settings(ctx).account.ok_or_else(|| {
                Complaint::usage("no storage account is given").hint("Name it in the location: `?account=…`.")
            })?;
            azure::assignment(target, role, group, &account)
        }
    };
    done.map_err(|why| Complaint::usage(why).into())
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
