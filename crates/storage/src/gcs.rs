//! What Google Cloud Storage says about a bucket, by its JSON interface.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use reqsign_core::ProvideCredentialChain;
use reqsign_google::{
    Credential, DefaultCredentialProvider, RequestSigner, StaticCredentialProvider, TokenCredentialProvider,
};
use serde::Deserialize;
use url::Url;

use crate::connect::ConnectOptions;
use crate::control::{Answer, BucketFacts, LifecycleRule, ObjectLock, Transition, Versioning, When};
use crate::location::Settings;
use crate::signed::Link;

/// Google's own.
pub(crate) const ENDPOINT: &str = "https://storage.googleapis.com";
/// What tokens are asked for; OpenDAL asks for the same.
const SCOPE: &str = "https://www.googleapis.com/auth/devstorage.read_write";
/// What it takes to ask.
const RIGHT: &str = "storage.buckets.get";
/// The settings that matter here.
const FIELDS: &str = "versioning,lifecycle,retentionPolicy,softDeletePolicy,encryption";
const DAY_SECONDS: u64 = 24 * 60 * 60;

/// Asks about one bucket.
pub(crate) struct Client {
    link: Link<Credential>,
    url: Url,
}

impl fmt::Debug for Client {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Client").field("url", &self.url.as_str()).finish_non_exhaustive()
    }
}

impl Client {
    /// A client with the credentials that the store itself uses, or none if the endpoint is no URL: the store says so.
    pub(crate) fn new(
        bucket: &str,
        settings: &Settings,
        options: &ConnectOptions,
        http: crate::remote::transport::Http,
        timeout: Duration,
    ) -> Option<Self> {
        let mut url = Url::parse(settings.endpoint.as_deref().unwrap_or(ENDPOINT)).ok()?;
        url.path_segments_mut().ok()?.pop_if_empty().extend(["storage", "v1", "b", bucket]);
        url.query_pairs_mut().append_pair("fields", FIELDS);
        let signer = RequestSigner::new("storage").with_scope(SCOPE);
        Some(Self { link: Link::new(http, timeout, credentials(options), signer), url })
    }

    /// Asks for all settings at once; a refusal is an answer.
    pub(crate) async fn facts(&self) -> BucketFacts {
        let request = Request::builder().method(Method::GET).uri(self.url.as_str()).body(Bytes::new());
        let Ok(request) = request else { return unanswered(&Answer::Unknown("no such request".into())) };
        let response = match self.link.send("probe", "bucket", &request).await {
            Ok(response) => response,
            Err(error) => return unanswered(&Answer::Unknown(error.message)),
        };
        match response.status {
            status if status.is_success() => match serde_json::from_slice::<Bucket>(&response.body) {
                Ok(bucket) => bucket.facts(),
                Err(error) => unanswered(&Answer::Unknown(format!("the answer is not understood: {error}"))),
            },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => unanswered(&Answer::Denied(RIGHT)),
            status => unanswered(&Answer::Unknown(format!("the store answered {status}"))),
        }
    }
}

fn credentials(options: &ConnectOptions) -> ProvideCredentialChain<Credential> {
    let mut chain = ProvideCredentialChain::new();
    if let Some(token) = &options.credentials.token {
        chain = chain.push(TokenCredentialProvider::new(token.expose()));
    }
    if let Some(account) = &options.credentials.service_account {
        chain = chain.push(StaticCredentialProvider::new(account.expose()).with_scope(SCOPE));
    }
    if options.ambient {
        chain = chain.push(DefaultCredentialProvider::new());
    }
    chain
}

/// The same for every question.
fn unanswered(why: &Answer<()>) -> BucketFacts {
    fn as_answer<T>(why: &Answer<()>) -> Answer<T> {
        match why {
            Answer::Unknown(why) => Answer::Unknown(why.clone()),
            Answer::Known(()) | Answer::Denied(_) => Answer::Denied(RIGHT),
        }
    }
    BucketFacts {
        versioning: as_answer(why),
        lock: as_answer(why),
        lifecycle: as_answer(why),
        encryption: as_answer(why),
        undelete_days: as_answer(why),
        clears_uploads: true,
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bucket {
    versioning: Option<Enabled>,
    lifecycle: Option<Lifecycle>,
    retention_policy: Option<RetentionPolicy>,
    soft_delete_policy: Option<SoftDeletePolicy>,
    encryption: Option<Encryption>,
}

#[derive(Deserialize)]
struct Enabled {
    #[serde(default)]
    enabled: bool,
}

/// Numbers of 64 bits are texts in this interface.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RetentionPolicy {
    retention_period: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SoftDeletePolicy {
    retention_duration_seconds: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Encryption {
    default_kms_key_name: Option<String>,
}

#[derive(Deserialize)]
struct Lifecycle {
    #[serde(default)]
    rule: Vec<Rule>,
}

#[derive(Deserialize)]
struct Rule {
    action: Action,
    #[serde(default)]
    condition: Condition,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Action {
    #[serde(rename = "type")]
    kind: String,
    storage_class: Option<String>,
}

/// All that are given must hold.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Condition {
    age: Option<u32>,
    created_before: Option<String>,
    is_live: Option<bool>,
    num_newer_versions: Option<u32>,
    days_since_noncurrent_time: Option<u32>,
    noncurrent_time_before: Option<String>,
    days_since_custom_time: Option<u32>,
    custom_time_before: Option<String>,
    matches_prefix: Vec<String>,
    matches_suffix: Vec<String>,
}

impl Bucket {
    fn facts(self) -> BucketFacts {
        let on = self.versioning.is_some_and(|versioning| versioning.enabled);
        let seconds = |text: Option<String>| text.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        let retained = self.retention_policy.map_or(0, |policy| seconds(policy.retention_period));
        let soft = self.soft_delete_policy.map_or(0, |policy| seconds(policy.retention_duration_seconds));
        let rules = self.lifecycle.map_or_else(Vec::new, |lifecycle| lifecycle.rule);
        let key = self.encryption.and_then(|encryption| encryption.default_kms_key_name);
        BucketFacts {
            versioning: Answer::Known(if on { Versioning::Enabled } else { Versioning::Off }),
            lock: Answer::Known(match retained {
                0 => ObjectLock::Off,
                seconds => ObjectLock::Retention { days: days(seconds.div_ceil(DAY_SECONDS)) },
            }),
            lifecycle: Answer::Known(
                rules.into_iter().enumerate().flat_map(|(n, rule)| rule.split(n + 1)).collect(),
            ),
            // Google encrypts everything; the question is whose key it is.
            encryption: Answer::Known(Some(
                key.map_or_else(|| "Google's keys".into(), |key| format!("`{key}`")),
            )),
            undelete_days: Answer::Known(days(soft / DAY_SECONDS)),
            clears_uploads: true,
        }
    }
}

fn days(days: u64) -> u32 {
    u32::try_from(days).unwrap_or(u32::MAX)
}

impl Rule {
    /// One of ours for each prefix. Rules have no names there, so it is their place that names them.
    fn split(self, number: usize) -> Vec<LifecycleRule> {
        let condition = &self.condition;
        let mut rule = LifecycleRule {
            id: format!("{number}: {}", self.action.kind),
            enabled: true,
            tagged: condition.never_holds_for_ours(),
            ..LifecycleRule::default()
        };
        match self.action.kind.as_str() {
            "Delete" if condition.is_for_old_versions() => {
                rule.old_versions_expire_days = condition.old_versions_days();
            }
            "Delete" => rule.expires = Some(condition.when()),
            "SetStorageClass" if !condition.is_for_old_versions() => {
                // All classes of Google's can be read at once.
                let class = self.action.storage_class.unwrap_or_default();
                rule.transitions.push(Transition { class, archive: false, when: condition.when() });
            }
            "AbortIncompleteMultipartUpload" => rule.abort_incomplete_days = condition.age,
            _ => {}
        }
        if condition.matches_prefix.is_empty() {
            return vec![rule];
        }
        let with = |prefix: &String| LifecycleRule { prefix: prefix.clone(), ..rule.clone() };
        condition.matches_prefix.iter().map(with).collect()
    }
}

impl Condition {
    /// Whether it spares what is neither deleted nor overwritten.
    fn is_for_old_versions(&self) -> bool {
        self.is_live == Some(false)
            || self.num_newer_versions.is_some_and(|newer| newer > 0)
            || self.days_since_noncurrent_time.is_some()
            || self.noncurrent_time_before.is_some()
    }

    /// For how long an old version stays. One that goes by its whole age goes at once if it is old when it is deleted.
    fn old_versions_days(&self) -> Option<u32> {
        match (self.days_since_noncurrent_time, self.num_newer_versions, &self.noncurrent_time_before) {
            (Some(days), ..) => Some(days),
            // What is deleted has no newer version, or the rule is for what went before a date.
            (None, Some(1..), _) | (None, _, Some(_)) => None,
            (None, ..) => Some(0),
        }
    }

    /// Our objects have no time of their own choosing, and their names end in a hexadecimal digit, `.json` or `.kept`.
    fn never_holds_for_ours(&self) -> bool {
        let ends_ours = |suffix: &String| {
            let last = suffix.bytes().last();
            last.is_none_or(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'n' | b't'))
        };
        self.days_since_custom_time.is_some()
            || self.custom_time_before.is_some()
            || !self.matches_suffix.is_empty() && !self.matches_suffix.iter().any(ends_ours)
    }

    fn when(&self) -> When {
        match (&self.created_before, self.age) {
            (_, Some(days)) => When::Days(days),
            (Some(date), None) => When::Date(date.clone()),
            (None, None) => When::Days(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Danger;

    fn facts(text: &str) -> BucketFacts {
        serde_json::from_str::<Bucket>(text).unwrap().facts()
    }

    fn rules(text: &str) -> Vec<LifecycleRule> {
        let facts = facts(&format!(r#"{{"lifecycle": {{"rule": [{text}]}}}}"#));
        facts.lifecycle.known().unwrap().clone()
    }

    fn problems(text: &str) -> usize {
        let dangers = rules(text).into_iter().flat_map(|rule| rule.dangers("host/"));
        dangers.filter(|danger| matches!(danger, Danger::Problem(_))).count()
    }

    #[test]
    fn settings_of_a_bucket_with_everything_are_read() {
        let facts = facts(
            r#"{"versioning": {"enabled": true}, "retentionPolicy": {"retentionPeriod": "90000", "isLocked": true},
            "softDeletePolicy": {"retentionDurationSeconds": "604800", "effectiveTime": "2026-01-01T00:00:00Z"},
            "encryption": {"defaultKmsKeyName": "projects/p/k"}, "autoclass": {"enabled": true}}"#,
        );
        assert_eq!(facts.versioning, Answer::Known(Versioning::Enabled));
        assert_eq!(facts.lock, Answer::Known(ObjectLock::Retention { days: 2 }));
        assert_eq!(facts.undelete_days, Answer::Known(7));
        assert_eq!(facts.lifecycle, Answer::Known(Vec::new()));
        assert_eq!(facts.encryption, Answer::Known(Some("`projects/p/k`".into())));
    }

    #[test]
    fn settings_that_were_never_made_are_off() {
        let facts = facts("{}");
        assert_eq!(facts.versioning, Answer::Known(Versioning::Off));
        assert_eq!(facts.lock, Answer::Known(ObjectLock::Off));
        assert_eq!(facts.undelete_days, Answer::Known(0));
    }

    #[test]
    fn a_rule_that_deletes_what_is_live_is_a_problem_and_one_for_old_versions_is_not() {
        let delete = |condition: &str| {
            problems(&format!(r#"{{"action": {{"type": "Delete"}}, "condition": {{{condition}}}}}"#))
        };
        for (condition, expected) in [
            (r#""age": 30"#, 1),
            (r#""createdBefore": "2027-01-01""#, 1),
            (r#""age": 30, "isLive": true"#, 1),
            (r#""age": 30, "matchesPrefix": ["host/data/", "logs/"]"#, 1),
            (r#""age": 30, "matchesPrefix": ["logs/"]"#, 0),
            (r#""age": 30, "matchesSuffix": [".json"]"#, 1),
            (r#""age": 30, "matchesSuffix": [".log", ".zip"]"#, 0),
            (r#""daysSinceCustomTime": 1"#, 0),
            (r#""numNewerVersions": 0"#, 1),
            (r#""numNewerVersions": 3"#, 0),
            (r#""daysSinceNoncurrentTime": 30"#, 0),
            (r#""age": 30, "isLive": false"#, 0),
        ] {
            assert_eq!(delete(condition), expected, "{condition}");
        }
    }

    #[test]
    fn classes_can_all_be_read_at_once() {
        let text =
            r#"{"action": {"type": "SetStorageClass", "storageClass": "ARCHIVE"}, "condition": {"age": 1}}"#;
        assert_eq!(problems(text), 0);
        let [rule] = &rules(text)[..] else { panic!("one rule") };
        let notes = rule.dangers("");
        assert!(matches!(&notes[..], [Danger::Note(text)] if text.contains("ARCHIVE")), "{notes:?}");
    }

    #[test]
    fn the_rules_that_the_policy_command_prints_are_safe_and_known_as_tidy() {
        let printed = rules(
            r#"{"action": {"type": "AbortIncompleteMultipartUpload"}, "condition": {"age": 7, "matchesPrefix": ["host/"]}},
            {"action": {"type": "Delete"},
             "condition": {"daysSinceNoncurrentTime": 30, "isLive": false, "matchesPrefix": ["host/"]}}"#,
        );
        assert!(printed.iter().all(|rule| rule.dangers("host/").is_empty()), "{printed:?}");
        assert!(printed.iter().any(|rule| rule.cleans_uploads("host/")));
        assert!(printed.iter().any(|rule| rule.cleans_versions("host/")));
    }

    #[test]
    fn a_rule_that_forgets_old_versions_at_once_is_noted() {
        let text = r#"{"action": {"type": "Delete"}, "condition": {"age": 30, "isLive": false}}"#;
        let [rule] = &rules(text)[..] else { panic!("one rule") };
        assert_eq!(rule.old_versions_expire_days, Some(0));
    }
}
