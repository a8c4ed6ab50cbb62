//! Tests of `wasm::spec`.

use super::*;
use crate::pb::envoy::config::core::v3 as core;

fn vm(code: core::data_source::Specifier) -> wasm::VmConfig {
    wasm::VmConfig {
        code: Some(core::AsyncDataSource {
            specifier: Some(core::async_data_source::Specifier::Local(
                core::DataSource {
                    specifier: Some(code),
                    watched_directory: None,
                },
            )),
        }),
        ..Default::default()
    }
}

fn plugin() -> wasm::PluginConfig {
    wasm::PluginConfig {
        name: "p".to_owned(),
        vm: Some(wasm::plugin_config::Vm::VmConfig(vm(
            core::data_source::Specifier::InlineBytes(b"\0asm".to_vec()),
        ))),
        ..Default::default()
    }
}

fn with_vm(change: impl FnOnce(&mut wasm::VmConfig)) -> wasm::PluginConfig {
    let mut plugin = plugin();
    if let Some(wasm::plugin_config::Vm::VmConfig(vm)) = &mut plugin.vm {
        change(vm);
    }
    plugin
}

fn refused(proto: wasm::PluginConfig) -> String {
    PluginSpec::parse(proto).expect_err("refused").to_string()
}

#[test]
fn every_runtime_of_envoys_is_ours_but_the_native_one() {
    for runtime in RUNTIMES {
        let spec = PluginSpec::parse(with_vm(|vm| vm.runtime = (*runtime).to_owned()));
        assert!(spec.is_ok(), "{runtime}");
    }
    let error = refused(with_vm(|vm| {
        vm.runtime = "envoy.wasm.runtime.null".to_owned()
    }));
    assert!(
        error.starts_with("vm_config.runtime: No Wasm runtime"),
        "{error}"
    );
}

#[test]
fn the_failure_policy_and_its_deprecated_form_exclude_each_other() {
    #[allow(deprecated, reason = "the field under test")]
    let parse = |policy, fail_open| {
        PluginSpec::parse(wasm::PluginConfig {
            failure_policy: policy as i32,
            fail_open,
            ..plugin()
        })
        .map(|spec| spec.failure)
    };
    use wasm::FailurePolicy as P;
    assert_eq!(parse(P::Unspecified, false), Ok(FailurePolicy::Closed));
    assert_eq!(
        parse(P::Unspecified, true),
        Ok(FailurePolicy::Open { crashing: true })
    );
    assert_eq!(
        parse(P::FailOpen, false),
        Ok(FailurePolicy::Open { crashing: false })
    );
    assert_eq!(
        parse(P::FailReload, false),
        Ok(FailurePolicy::Reload {
            backoff: Duration::from_secs(1)
        })
    );
    assert!(parse(P::FailOpen, true).is_err());
}

#[test]
fn local_code_is_read_at_once() {
    let error = refused(with_vm(|vm| {
        *vm = self::vm(core::data_source::Specifier::Filename(
            "/nonexistent.wasm".to_owned(),
        ));
    }));
    assert!(
        error.starts_with(
            "vm_config.code.local.filename: Failed to load Wasm code from /nonexistent.wasm"
        ),
        "{error}"
    );
    let error = refused(with_vm(|vm| {
        *vm = self::vm(core::data_source::Specifier::InlineBytes(Vec::new()));
    }));
    assert!(error.contains("it is empty"), "{error}");
    assert!(refused(with_vm(|vm| vm.code = None)).starts_with("vm_config.code: "));
}

#[test]
fn remote_code_needs_a_sum_a_cluster_and_a_timeout() {
    let remote = |uri: &str, sha256: &str, timeout: bool| {
        with_vm(|vm| {
            vm.code = Some(core::AsyncDataSource {
                specifier: Some(core::async_data_source::Specifier::Remote(
                    core::RemoteDataSource {
                        http_uri: Some(core::HttpUri {
                            uri: uri.to_owned(),
                            timeout: timeout.then_some(google::protobuf::Duration {
                                seconds: 5,
                                nanos: 0,
                            }),
                            http_upstream_type: Some(core::http_uri::HttpUpstreamType::Cluster(
                                "code".to_owned(),
                            )),
                        }),
                        sha256: sha256.to_owned(),
                        retry_policy: None,
                    },
                )),
            });
        })
    };
    let sum = Digest::of(b"x").to_string();
    let spec = PluginSpec::parse(remote("https://h:1/a.wasm?b", &sum, true)).expect("valid");
    let Code::Remote(code) = &spec.code else {
        panic!("remote")
    };
    assert_eq!(
        code.origin,
        Origin::Cluster {
            cluster: "code".into(),
            https: true,
            authority: "h:1".into(),
            path: "/a.wasm?b".into(),
        }
    );
    assert_eq!(code.sha256, Some(Digest::of(b"x")));
    assert!(refused(remote("http://h/a", "", true)).contains("remote.sha256: "));
    assert!(refused(remote("http://h/a", "zz", true)).contains("remote.sha256"));
    assert!(refused(remote("http://h/a", &sum, false)).contains("http_uri.timeout"));
    assert!(refused(remote("http://h/a", "nil", true)).contains("remote.sha256"));
    assert!(refused(remote("ftp://h/a", &sum, true)).contains("ftp"));
}

#[test]
fn a_struct_is_json_and_wrapped_values_are_bare() {
    use google::protobuf::{Value, value::Kind};
    let fields = [
        ("b", Kind::NumberValue(3.0)),
        ("a", Kind::StringValue("x\"".to_owned())),
    ];
    let value = pb::Struct {
        fields: fields
            .into_iter()
            .map(|(name, kind)| (name.to_owned(), Value { kind: Some(kind) }))
            .collect(),
    };
    let any = |name: &str, value: Vec<u8>| {
        Some(pb::Any {
            type_url: format!("type.googleapis.com/google.protobuf.{name}"),
            value,
        })
    };
    let see = |any| configuration_bytes(any).expect("valid");
    assert_eq!(
        see(any("Struct", value.encode_to_vec())),
        r#"{"a":"x\"","b":3}"#
    );
    assert_eq!(
        see(any("StringValue", "hi".to_owned().encode_to_vec())),
        "hi"
    );
    assert_eq!(see(any("BytesValue", b"by".to_vec().encode_to_vec())), "by");
    assert_eq!(see(None), "");
}

#[test]
fn the_key_is_all_that_a_guest_can_see() {
    let key = |proto| PluginSpec::parse(proto).expect("valid").key();
    let base = key(plugin());
    assert_eq!(base, key(plugin()));
    assert_ne!(
        base,
        key(wasm::PluginConfig {
            root_id: "r".to_owned(),
            ..plugin()
        })
    );
    assert_ne!(
        base,
        key(with_vm(|vm| {
            vm.environment_variables = Some(wasm::EnvironmentVariables {
                host_env_keys: Vec::new(),
                key_values: [("A".to_owned(), "1".to_owned())].into(),
            });
        }))
    );
}

#[test]
fn of_a_reloads_backoff_the_base_is_what_counts() {
    let reload = |base: Option<i64>, max: Option<i64>| {
        let seconds = |seconds| google::protobuf::Duration { seconds, nanos: 0 };
        PluginSpec::parse(wasm::PluginConfig {
            failure_policy: wasm::FailurePolicy::FailReload as i32,
            reload_config: Some(wasm::ReloadConfig {
                backoff: Some(core::BackoffStrategy {
                    base_interval: base.map(seconds),
                    max_interval: max.map(seconds),
                }),
            }),
            ..plugin()
        })
        .map(|spec| spec.failure)
        .map_err(|error| error.to_string())
    };
    let backoff = Duration::from_secs(2);
    let taken = Ok(FailurePolicy::Reload { backoff });
    assert_eq!(reload(Some(2), None), taken);
    assert_eq!(reload(Some(2), Some(1)), taken);
    for (base, max, field) in [
        (None, None, "base_interval"),
        (Some(0), None, "base_interval"),
        (Some(315_576_000_000), None, "base_interval"),
        (Some(2), Some(0), "max_interval"),
    ] {
        let error = reload(base, max).expect_err("refused");
        let path = format!("reload_config.backoff.{field}: ");
        assert!(error.starts_with(&path), "{error}");
    }
}

#[test]
fn code_that_never_ends_is_not_read() {
    let error = refused(with_vm(|vm| {
        *vm = self::vm(core::data_source::Specifier::Filename(
            "/dev/zero".to_owned(),
        ));
    }));
    assert!(error.ends_with("it is no regular file"), "{error}");
}

#[test]
fn a_variable_named_twice_is_refused() {
    let error = refused(with_vm(|vm| {
        vm.environment_variables = Some(wasm::EnvironmentVariables {
            host_env_keys: vec!["A".to_owned(), "A".to_owned()],
            ..wasm::EnvironmentVariables::default()
        });
    }));
    assert!(
        error.contains("host_env_keys[1]: Key A is duplicated"),
        "{error}"
    );
    let error = refused(with_vm(|vm| {
        vm.environment_variables = Some(wasm::EnvironmentVariables {
            host_env_keys: vec!["A".to_owned()],
            key_values: [("A".to_owned(), "1".to_owned())].into(),
        });
    }));
    assert!(
        error.contains("host_env_keys[0]: Key A is duplicated"),
        "{error}"
    );
}

#[test]
fn a_watched_directory_must_be_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("a.wasm");
    std::fs::write(&file, b"\0asm").expect("a file");
    let text = |path: &std::path::Path| path.to_str().expect("UTF-8").to_owned();
    let with = |specifier, directory: &str| {
        with_vm(|vm| {
            let source = core::DataSource {
                specifier: Some(specifier),
                watched_directory: Some(core::WatchedDirectory {
                    path: directory.to_owned(),
                    watch_modify: true,
                }),
            };
            let specifier = core::async_data_source::Specifier::Local(source);
            vm.code = Some(core::AsyncDataSource {
                specifier: Some(specifier),
            });
        })
    };
    let file = core::data_source::Specifier::Filename(text(&file));
    let spec = PluginSpec::parse(with(file.clone(), &text(folder.path()))).expect("valid");
    let Code::Local { watched, .. } = &spec.code else {
        panic!("it is local");
    };
    let watched = watched.as_ref().expect("watched");
    assert_eq!(
        (&*watched.directory, watched.writes),
        (&*text(folder.path()), true)
    );
    for directory in ["", "/nowhere", "/dev/null"] {
        let error = refused(with(file.clone(), directory));
        let place = "vm_config.code.local.watched_directory.path: ";
        assert!(error.starts_with(place), "{error}");
    }
    // There is nothing to watch.
    let inline = core::data_source::Specifier::InlineBytes(b"\0asm".to_vec());
    assert!(PluginSpec::parse(with(inline, "/nowhere")).is_ok());
}

/// As istiod sends it.
fn istio(uri: &str, sha256: &str, variables: &[(&str, &str)]) -> wasm::PluginConfig {
    with_vm(|vm| {
        vm.code = Some(core::AsyncDataSource {
            specifier: Some(core::async_data_source::Specifier::Remote(
                core::RemoteDataSource {
                    http_uri: Some(core::HttpUri {
                        uri: uri.to_owned(),
                        timeout: Some(google::protobuf::Duration {
                            seconds: 30,
                            nanos: 0,
                        }),
                        http_upstream_type: Some(core::http_uri::HttpUpstreamType::Cluster(
                            "_".to_owned(),
                        )),
                    }),
                    sha256: sha256.to_owned(),
                    retry_policy: None,
                },
            )),
        });
        let pairs = variables.iter();
        vm.environment_variables = Some(wasm::EnvironmentVariables {
            host_env_keys: Vec::new(),
            key_values: pairs
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        });
    })
}

fn of_istio(uri: &str, sha256: &str, variables: &[(&str, &str)]) -> (PluginSpec, Remote) {
    let spec = PluginSpec::parse(istio(uri, sha256, variables)).expect("valid");
    let Code::Remote(remote) = spec.code.clone() else {
        panic!("remote")
    };
    (spec, remote)
}

const POLICY: &str = "ISTIO_META_WASM_IMAGE_PULL_POLICY";
const VERSION: &str = "ISTIO_META_WASM_PLUGIN_RESOURCE_VERSION";
const SECRET: &str = "ISTIO_META_WASM_IMAGE_PULL_SECRET";

#[test]
fn what_istiod_says_to_its_agent_is_for_us() {
    let (spec, remote) = of_istio(
        "oci://reg.test/a:v1",
        "nil",
        &[
            (POLICY, "Always"),
            (VERSION, "7"),
            (SECRET, "hunter2"),
            ("ISTIO_META_OTHER", "x"),
            ("MINE", "1"),
        ],
    );
    assert_eq!(remote.sha256, None);
    assert_eq!(remote.pull.policy, PullPolicy::Always);
    assert_eq!(&*remote.pull.resource_version, "7");
    assert_eq!(remote.pull.secret, Some(Secret("hunter2".into())));
    let left: Vec<_> = spec.environment.keys().map(|name| &**name).collect();
    assert_eq!(left, ["MINE"]);
    assert!(!format!("{spec:?}").contains("hunter2"));
    // A guest whose code is at hand sees no secret either, but what else there is.
    let mut local = istio("oci://a", "", &[(SECRET, "x"), ("ISTIO_META_OTHER", "x")]);
    if let Some(wasm::plugin_config::Vm::VmConfig(vm)) = &mut local.vm {
        vm.code = self::vm(core::data_source::Specifier::InlineBytes(b"\0asm".to_vec())).code;
    }
    let spec = PluginSpec::parse(local).expect("valid");
    let left: Vec<_> = spec.environment.keys().map(|name| &**name).collect();
    assert_eq!(left, ["ISTIO_META_OTHER"]);
}

#[test]
fn sources_without_a_cluster_are_told_by_their_uri() {
    let image = |uri| match of_istio(uri, "", &[]).1.origin {
        Origin::Image(reference) => reference.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(image("oci://reg.test/a:v1"), "reg.test/a:v1");
    assert_eq!(image("reg.test/a"), "reg.test/a:latest");
    for uri in [
        "https://h.test/a.wasm",
        "http://h.test/a.wasm",
        "https://h.test?sig=x",
        "https://[::1]:1/a",
    ] {
        assert_eq!(of_istio(uri, "nil", &[]).1.origin, Origin::Direct);
    }
    let sum = Digest::of(b"x");
    let (_, remote) = of_istio("oci://reg.test/a:v1", &format!("sha256:{sum}"), &[]);
    assert_eq!(remote.pin(), Some(sum));
    let (_, remote) = of_istio(&format!("oci://reg.test/a@sha256:{sum}"), "nil", &[]);
    assert_eq!((remote.pin(), remote.sha256), (Some(sum), None));
    for (uri, part) in [
        (
            "oci://reg.test/A",
            "http_uri.uri: 'oci://reg.test/A' is not the name of an image",
        ),
        ("https:///a", "http_uri.uri: must be http://host/path"),
        ("https://me:word@h.test/a", "http_uri.uri: credentials"),
        ("https://h.test:99999/a", "http_uri.uri: "),
    ] {
        let error = refused(istio(uri, "nil", &[]));
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn the_pull_policy_is_that_of_kubernetes() {
    let policy = |uri, variables: &[_]| of_istio(uri, "", variables).1.pull.policy;
    use PullPolicy as P;
    for (uri, said, policy_of_it) in [
        ("oci://reg.test/a:v1", "", P::IfNotPresent),
        ("oci://reg.test/a:v1", "Always", P::Always),
        ("oci://reg.test/a", "", P::Always),
        ("oci://reg.test/a:latest", "UNSPECIFIED_POLICY", P::Always),
        ("oci://reg.test/a:latest", "IfNotPresent", P::IfNotPresent),
        ("https://h.test/latest", "", P::IfNotPresent),
    ] {
        assert_eq!(policy(uri, &[(POLICY, said)]), policy_of_it, "{uri} {said}");
    }
    assert_eq!(policy("oci://reg.test/a:v1", &[]), P::IfNotPresent);
}

#[test]
fn a_version_is_another_one_where_its_code_may_be() {
    let key = |uri, sha256, variables: &[_]| of_istio(uri, sha256, variables).0.key();
    let (v1, v2) = ([(VERSION, "1")], [(VERSION, "2")]);
    let sum = Digest::of(b"x").to_string();
    // Of a tag that stays, a new version of the resource is no news.
    let tag = "oci://reg.test/a:1";
    assert_eq!(key(tag, "", &v1), key(tag, "nil", &v2));
    assert_ne!(key(tag, "", &v1), key("oci://reg.test/a:2", "", &v1));
    // Of one that does not stay it is; with a sum never.
    let latest = "oci://reg.test/a";
    assert_ne!(key(latest, "", &v1), key(latest, "", &v2));
    assert_eq!(key(latest, &sum, &v1), key(latest, &sum, &v2));
    // The place and the secret of what has a sum do not matter.
    let with_secret = [(SECRET, "x")];
    assert_eq!(
        key(latest, &sum, &[]),
        key("oci://mirror.test/b", &sum, &with_secret)
    );
}
