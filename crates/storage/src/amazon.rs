//! How Amazon's cloud is divided, for whoever names something of it.

/// The partition of most of Amazon's regions, and of what other services call theirs.
pub const COMMON_PARTITION: &str = "aws";

/// The partition of Amazon's cloud that a region lies in: every ARN of something there begins with it.
pub fn aws_partition(region: &str) -> &'static str {
    if region.starts_with("cn-") {
        "aws-cn"
    } else if region.starts_with("us-gov-") {
        "aws-us-gov"
    } else {
        COMMON_PARTITION
    }
}

/// Whether an endpoint is Amazon's own, as those are that its regions in China need, and those of private networks.
pub fn is_amazons(endpoint: &str) -> bool {
    let rest = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
    let host = rest.split(['/', ':', '?']).next().unwrap_or_default().to_ascii_lowercase();
    [".amazonaws.com", ".amazonaws.com.cn"].iter().any(|domain| host.ends_with(domain))
}

/// The partition of a bucket: of its region, unless the endpoint is of another service.
#[cfg(feature = "s3")]
pub(crate) fn partition_of(endpoint: Option<&str>, region: Option<&str>) -> &'static str {
    match endpoint {
        Some(endpoint) if !is_amazons(endpoint) => COMMON_PARTITION,
        _ => aws_partition(region.unwrap_or_default()),
    }
}

#[cfg(all(test, feature = "s3"))]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_that_of_the_region_where_the_service_is_amazons() {
        for (endpoint, region, partition) in [
            (None, Some("eu-central-1"), "aws"),
            (None, Some("us-gov-west-1"), "aws-us-gov"),
            (Some("https://s3.cn-north-1.amazonaws.com.cn"), Some("cn-north-1"), "aws-cn"),
            (Some("b.s3.us-gov-west-1.amazonaws.com"), Some("us-gov-west-1"), "aws-us-gov"),
            (Some("https://s3.example:9000"), Some("cn-north-1"), "aws"),
            (None, None, "aws"),
        ] {
            assert_eq!(partition_of(endpoint, region), partition, "{endpoint:?} {region:?}");
        }
    }
}
