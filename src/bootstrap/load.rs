//! The text of the bootstrap: a file by its extension, a text merged over it, overrides of the node.

use std::io;
use std::path::{Path, PathBuf};

use prost::Message as _;

use crate::pb::envoy::config::bootstrap::v3::Bootstrap;
use crate::pb::envoy::config::bootstrap::v3::bootstrap::application_log_config::log_format::LogFormat;
use crate::pb::envoy::config::core::v3::Locality;
use crate::pb::{self, Format, Parsed, UnknownField};

/// What the command line says of the bootstrap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// `--config-path`.
    pub path: Option<PathBuf>,
    /// `--config-yaml`.
    pub yaml: Option<String>,
    /// `--service-node`.
    pub node_id: Option<String>,
    /// `--service-cluster`.
    pub node_cluster: Option<String>,
    /// `--service-zone`.
    pub node_zone: Option<String>,
    /// `--allow-unknown-static-fields`.
    pub allow_unknown_fields: bool,
    /// `--skip-deprecated-logs`.
    pub skip_deprecated: bool,
}

/// Why there is no bootstrap; worded as Envoy does.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Neither a file nor a text.
    #[error(
        "At least one of --config-path or --config-yaml or Options::configProto() should be non-empty"
    )]
    Nothing,
    /// The file cannot be read.
    #[error("Invalid path: {}{}", path.display(), because(error))]
    File {
        /// As given.
        path: PathBuf,
        /// The reason; not a `source`, since the text has it.
        error: io::Error,
    },
    /// The file is not text.
    #[error("{} is not UTF-8 text", .0.display())]
    NotText(PathBuf),
    /// A format that this build does not read.
    #[error("{}: text protobuf is not supported: use YAML, JSON or binary", .0.display())]
    TextProto(PathBuf),
    /// It is not a bootstrap.
    #[error(transparent)]
    Text(#[from] pb::Error),
}

/// Envoy says no more than the path; a reason that is not the usual one is worth a word.
fn because(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => String::new(),
        _ => format!(" ({error})"),
    }
}

/// A bootstrap as written.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The message, merged and overridden.
    pub proto: Bootstrap,
    /// Oddities for the log, once it is set up.
    pub warnings: Vec<String>,
    /// How many fields were not known (`server.static_unknown_fields`).
    pub unknown_fields: usize,
}

/// Reads the bootstrap.
///
/// # Errors
/// Where there is none, it cannot be read, does not fit, or has unknown fields that are not allowed.
pub fn load(source: &Source) -> Result<Loaded, LoadError> {
    let mut loaded = Loaded {
        proto: Bootstrap::default(),
        warnings: Vec::new(),
        unknown_fields: 0,
    };
    let path = source
        .path
        .as_deref()
        .filter(|path| !path.as_os_str().is_empty());
    let yaml = source.yaml.as_deref().filter(|yaml| !yaml.is_empty());
    if path.is_none() && yaml.is_none() {
        return Err(LoadError::Nothing);
    }
    if let Some(path) = path {
        let parsed = read_file(path)?;
        loaded.proto = loaded.take(parsed, source)?;
    }
    if let Some(yaml) = yaml {
        let over = loaded.take(pb::from_text(yaml, Format::Yaml)?, source)?;
        // Decoding into a message is protobuf's own merge.
        loaded
            .proto
            .merge(over.encode_to_vec().as_slice())
            .map_err(|error| pb::Error::Malformed {
                message: "envoy.config.bootstrap.v3.Bootstrap".to_owned(),
                reason: error.to_string(),
            })?;
    }
    override_node(&mut loaded.proto, source);
    Ok(loaded)
}

fn read_file(path: &Path) -> Result<Parsed<Bootstrap>, LoadError> {
    let bytes = std::fs::read(path).map_err(|error| LoadError::File {
        path: path.to_owned(),
        error,
    })?;
    let extension = path
        .extension()
        .and_then(|extension| extension.to_str())
        .map(str::to_ascii_lowercase);
    let binary = |message: Result<Bootstrap, prost::DecodeError>| {
        let message = message.map_err(|error| pb::Error::Malformed {
            message: "envoy.config.bootstrap.v3.Bootstrap".to_owned(),
            reason: error.to_string(),
        })?;
        Ok(Parsed {
            unknown_fields: Vec::new(),
            deprecated: Default::default(),
            warnings: Vec::new(),
            message,
        })
    };
    match extension.as_deref() {
        Some("pb") => {
            let mut parsed = binary(Bootstrap::decode(bytes.as_slice()))?;
            let unknown = pb::unknown_fields("/envoy.config.bootstrap.v3.Bootstrap", &bytes);
            parsed.unknown_fields = unknown
                .into_iter()
                .map(|name| UnknownField {
                    path: String::new(),
                    message: "envoy.config.bootstrap.v3.Bootstrap".to_owned(),
                    name,
                    enum_value: false,
                    line: 0,
                })
                .collect();
            Ok(parsed)
        }
        Some("pb_length_delimited") => binary(Bootstrap::decode_length_delimited(bytes.as_slice())),
        Some("pb_text") => Err(LoadError::TextProto(path.to_owned())),
        _ => {
            let text = String::from_utf8(bytes).map_err(|_| LoadError::NotText(path.to_owned()))?;
            Ok(pb::from_text(&text, Format::of_path(path))?)
        }
    }
}

impl Loaded {
    fn take(&mut self, parsed: Parsed<Bootstrap>, source: &Source) -> Result<Bootstrap, LoadError> {
        self.warnings.extend(parsed.warnings.iter().cloned());
        if !source.skip_deprecated {
            self.warnings.extend(parsed.deprecated.iter().map(|field| {
                format!("Deprecated field: Using deprecated option '{field}'. It may go in a later release of the API.")
            }));
        }
        if !source.allow_unknown_fields {
            return Ok(parsed.strict()?);
        }
        self.unknown_fields += parsed.unknown_fields.len();
        self.warnings.extend(parsed.unknown_fields.iter().map(|field| {
            format!("Unknown field: type envoy.config.bootstrap.v3.Bootstrap reason INVALID_ARGUMENT: invalid JSON in envoy.config.bootstrap.v3.Bootstrap, {field}")
        }));
        Ok(parsed.message)
    }
}

fn override_node(proto: &mut Bootstrap, source: &Source) {
    let (id, cluster, zone) = (&source.node_id, &source.node_cluster, &source.node_zone);
    if id.is_none() && cluster.is_none() && zone.is_none() {
        return;
    }
    let node = proto.node.get_or_insert_default();
    if let Some(id) = id {
        node.id.clone_from(id);
    }
    if let Some(cluster) = cluster {
        node.cluster.clone_from(cluster);
    }
    if let Some(zone) = zone {
        node.locality
            .get_or_insert_with(Locality::default)
            .zone
            .clone_from(zone);
    }
}

/// The log pattern that `application_log_config` asks for: `text_format`, or `json_format` as one line.
///
/// # Errors
/// A JSON format that holds `%v`, which is not escaped (Envoy refuses it, too).
pub fn log_format(proto: &Bootstrap) -> Result<Option<String>, String> {
    let format = proto
        .application_log_config
        .as_ref()
        .and_then(|config| config.log_format.as_ref())
        .and_then(|format| format.log_format.as_ref());
    match format {
        None => Ok(None),
        Some(LogFormat::TextFormat(text)) => Ok(Some(text.clone())),
        Some(LogFormat::JsonFormat(fields)) => {
            let text = pb::to_json(fields).to_string();
            if text.contains("%v") {
                return Err(
                    "setJsonLogFormat error: INVALID_ARGUMENT: Usage of %v is unavailable for JSON log formats"
                        .to_owned(),
                );
            }
            Ok(Some(text))
        }
    }
}
