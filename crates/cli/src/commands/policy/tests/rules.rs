//! Lifecycle rules, and what may be asked of which service.

use clap::Parser;

use super::*;

#[test]
fn lifecycle_rules_are_safe() {
    for prefix in ["", "host/"] {
        let target = Target { bucket: "b", prefix, partition: "aws" };
        let amazon = s3::lifecycle(target);
        let [rule] = &amazon["Rules"].as_array().unwrap()[..] else { panic!("{amazon}") };
        let expiration = rule["Expiration"].as_object().unwrap();
        assert!(!expiration.contains_key("Days") && !expiration.contains_key("Date"), "{rule}");
        assert!(rule.get("Transitions").is_none() && rule["Filter"]["Prefix"] == prefix);
        assert_eq!(rule["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"], 7);

        let google = gcs::lifecycle(target);
        for rule in google["lifecycle"]["rule"].as_array().unwrap() {
            let condition = &rule["condition"];
            match rule["action"]["type"].as_str().unwrap() {
                "AbortIncompleteMultipartUpload" => assert_eq!(condition["age"], 7),
                "Delete" => {
                    assert_eq!(
                        (&condition["isLive"], &condition["daysSinceNoncurrentTime"]),
                        (&json!(false), &json!(30))
                    );
                }
                other => panic!("{other}"),
            }
            // An empty prefix is none.
            let expected = if prefix.is_empty() { Value::Null } else { json!([prefix]) };
            assert_eq!(condition["matchesPrefix"], expected);
        }

        let azure = azure::lifecycle(target);
        let [rule] = &azure["rules"].as_array().unwrap()[..] else { panic!("{azure}") };
        let actions = rule["definition"]["actions"].as_object().unwrap();
        assert_eq!(actions.keys().collect::<Vec<_>>(), ["version"], "the newest stays where it is");
        assert_eq!(rule["definition"]["filters"]["prefixMatch"], json!([format!("b/{prefix}")]));
    }
}

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

#[test]
fn what_means_nothing_for_a_service_is_refused() {
    let sound = |place: &str, line: &str| {
        let words = std::iter::once("policy").chain(line.split(' '));
        check(&Line::parse_from(words).args, &Location::parse(place).unwrap()).is_ok()
    };
    for (place, line, expected) in [
        ("s3://b", "reader --principal arn:x", true),
        ("s3://b", "lifecycle --principal arn:x", false),
        ("s3://b", "roles", false),
        ("s3://b", "reader --within p", false),
        ("s3://b", "reader --kms-key arn:x", true),
        ("s3://b", "lifecycle --kms-key arn:x", false),
        ("gs://b", "reader --kms-key arn:x", false),
        ("gs://b", "roles", true),
        ("gs://b", "reader --within p --principal user:a@b", true),
        ("gs://b", "reader --for s3", false),
        ("azblob://b", "reader --within /x", true),
        ("azblob://b", "reader --principal x", false),
    ] {
        assert_eq!(sound(place, line), expected, "{place} {line}");
    }
}
