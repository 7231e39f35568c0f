//! What every capture can be told about its snapshot.

use anyhow::Result;
use backup_core::{BackupOptions, Repository};
use clap::builder::NonEmptyStringValueParser;

use crate::commands::key;
use crate::context::Context;
use crate::exit::Complaint;
use crate::text;

/// Options of every kind of backup.
#[derive(Debug, clap::Args)]
pub struct About {
    /// Name of the host that the data belongs to [default: this machine]
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    host: Option<String>,
    /// A label for the snapshot; may be repeated
    #[arg(long, value_name = "TAG", value_parser = NonEmptyStringValueParser::new())]
    tag: Vec<String>,
    /// A sentence about the snapshot
    #[arg(long, value_name = "TEXT", default_value = "")]
    description: String,
    /// Read back and prove everything that was stored before the snapshot counts
    #[arg(long)]
    verify: bool,
    /// zstd level, 1 (fast) to 22 (small) [default: 3]
    #[arg(long, value_name = "LEVEL", value_parser = clap::value_parser!(i32).range(1..=22))]
    compression_level: Option<i32>,
    /// Do not let `forget` remove the snapshot before this time
    #[arg(long, value_name = "TIME")]
    keep_until: Option<String>,
    /// Never let `forget` remove the snapshot
    #[arg(long)]
    keep_forever: bool,
    /// Seal the content to this erasable domain (see `keepwell key domain`)
    #[arg(long, value_name = "NAME")]
    domain: Option<String>,
}

impl About {
    /// The options of the engine, with what the profile says where nothing was said here.
    pub fn options(&self, ctx: &Context, repository: &Repository, dataset: String) -> Result<BackupOptions> {
        let profile = &ctx.profile;
        let level = self
            .compression_level
            .or(profile.compression_level)
            .unwrap_or(BackupOptions::default().compression_level);
        let host = self.host.clone().unwrap_or_else(|| ctx.host());
        let tags = [profile.tags.as_slice(), &self.tag].concat();
        // Nobody could name it, and no rule or filter would mean it.
        for (what, name) in
            [("dataset", &dataset), ("host", &host)].into_iter().chain(tags.iter().map(|tag| ("tag", tag)))
        {
            if name.is_empty() {
                return Err(Complaint::usage(format!("the name of the {what} is empty")).into());
            }
        }
        Ok(BackupOptions {
            dataset,
            host,
            tags,
            description: self.description.clone(),
            time_zone: jiff::tz::TimeZone::system().iana_name().unwrap_or("UTC").to_owned(),
            compression_level: level,
            verify: self.verify,
            domain: self.domain.as_deref().map(|name| key::domain_named(repository, name)).transpose()?,
            keep_until: self
                .keep_until
                .as_deref()
                .map(|time| text::time_to_come(time, ctx.now()))
                .transpose()?,
            keep_forever: self.keep_forever,
            program: concat!("keepwell ", env!("CARGO_PKG_VERSION")).to_owned(),
            ..BackupOptions::default()
        })
    }
}
