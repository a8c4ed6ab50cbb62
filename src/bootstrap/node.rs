//! Who we say we are to control planes.

use super::version;
use crate::pb::envoy::config::core::v3::node::UserAgentVersionType;
use crate::pb::envoy::config::core::v3::{BuildVersion, Node};
use crate::pb::envoy::r#type::v3::SemanticVersion;
use crate::pb::google::protobuf::value::Kind;
use crate::pb::{Struct, google};

/// Fills in name and version. Consul reads the version only where the name is exactly `envoy`, and refuses old ones;
/// istioctl prints the metadata.
pub(super) fn complete(mut node: Node) -> Node {
    let (major_number, minor_number, patch) = version::ENVOY;
    let text = |text: &str| google::protobuf::Value {
        kind: Some(Kind::StringValue(text.to_owned())),
    };
    let metadata = [
        ("revision.sha", version::REVISION),
        ("revision.status", version::STATUS),
        ("build.type", version::BUILD_TYPE),
        ("ssl.version", version::TLS),
        ("plenipo.version", version::PRODUCT),
    ];
    node.user_agent_name = "envoy".to_owned();
    node.user_agent_version_type =
        Some(UserAgentVersionType::UserAgentBuildVersion(BuildVersion {
            version: Some(SemanticVersion {
                major_number,
                minor_number,
                patch,
            }),
            metadata: Some(Struct {
                fields: metadata
                    .into_iter()
                    .map(|(name, value)| (name.to_owned(), text(value)))
                    .collect(),
            }),
        }));
    node
}
