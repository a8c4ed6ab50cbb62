//! Tests of `wasm::spec`.

use super::*;

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
        (&*code.authority, &*code.path, code.https),
        ("h:1", "/a.wasm?b", true)
    );
    assert_eq!(code.sha256, Digest::of(b"x"));
    assert!(refused(remote("http://h/a", "", true)).contains("remote.sha256: "));
    assert!(refused(remote("http://h/a", "zz", true)).contains("remote.sha256"));
    assert!(refused(remote("http://h/a", &sum, false)).contains("http_uri.timeout"));
    assert!(refused(remote("oci://h/a", &sum, true)).contains("oci"));
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
fn a_variable_named_twice_is_refused() {
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
