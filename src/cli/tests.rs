//! Tests of `cli`.

use super::*;

fn argv(words: &[&str]) -> Result<Command, Exit> {
    parse(
        std::iter::once("envoy")
            .chain(words.iter().copied())
            .map(OsString::from),
    )
}

fn options(words: &[&str]) -> Options {
    match argv(words) {
        Ok(Command::Proxy(options)) => *options,
        other => panic!("{words:?}: {other:?}"),
    }
}

fn refused(words: &[&str]) -> String {
    let exit = argv(words).expect_err("must be refused");
    assert_eq!((exit.code, exit.stdout.as_str()), (1, ""), "{words:?}");
    exit.stderr
}

#[test]
fn defaults_are_envoys() {
    let options = options(&[]);
    assert_eq!(options.mode, Mode::Serve);
    assert_eq!(options.log_level, Level::Info);
    assert_eq!(options.drain_time, Duration::from_secs(600));
    assert_eq!(options.parent_shutdown_time, Duration::from_secs(900));
    assert_eq!(options.file_flush_interval, Duration::from_secs(10));
    assert_eq!(options.socket_path, "@envoy_domain_socket");
    assert!(options.concurrency >= 1);
    assert!(options.config_path.is_none() && options.warnings.is_empty());
}

#[test]
fn a_flag_and_its_value_may_be_one_argument() {
    let yaml = "--config-yaml admin: {address: {socket_address: {address: 127.0.0.1, port_value: 26001}}}\nnode: {}";
    let options = options(&[
        "--service-cluster foo",
        "--service-node bar",
        yaml,
        "--log-level warn",
        "--cpuset-threads",
        "--drain-strategy immediate",
        "--drain-time-s 60",
        "--mode validate",
    ]);
    assert_eq!(options.service_cluster.as_deref(), Some("foo"));
    assert_eq!(options.service_node.as_deref(), Some("bar"));
    assert!(options.config_yaml.unwrap().starts_with("admin: {address"));
    assert_eq!(options.log_level, Level::Warning);
    assert_eq!(options.drain_strategy, DrainStrategy::Immediate);
    assert_eq!(options.drain_time, Duration::from_secs(60));
    assert_eq!(options.mode, Mode::Validate);
    assert_eq!(
        options.warnings,
        ["--cpuset-threads: it is now the default behavior and no longer required."]
    );
}

#[test]
fn what_launchers_pass_is_taken() {
    // istio-agent
    let istio = options(&[
        "-c",
        "etc/istio/proxy/envoy-rev.json",
        "--drain-time-s",
        "45",
        "--drain-strategy",
        "immediate",
        "--local-address-ip-version",
        "v4",
        "--file-flush-interval-msec",
        "1000",
        "--disable-hot-restart",
        "--allow-unknown-static-fields",
        "-l",
        "warning",
        "--component-log-level",
        "misc:error,wasm:debug",
        "--skip-deprecated-logs",
        "--enable-core-dump",
        "--concurrency",
        "2",
    ]);
    assert_eq!(istio.component_log_levels.len(), 2);
    assert_eq!(
        (istio.concurrency, istio.file_flush_interval.as_millis()),
        (2, 1000)
    );
    assert!(istio.allow_unknown_static_fields && istio.skip_deprecated_logs);
    // func-e
    let func_e = options(&[
        "-c",
        "x.yaml",
        "--admin-address-path",
        "a",
        "--",
        "--run-id",
        "17",
    ]);
    assert_eq!(func_e.admin_address_path, Some(PathBuf::from("a")));
    // Consul, also older ones
    let consul = options(&[
        "--config-path",
        "/dev/fd/63",
        "--disable-hot-restart",
        "--v2-config-only",
        "--max-obj-name-len",
        "1024",
    ]);
    assert_eq!(consul.config_path, Some(PathBuf::from("/dev/fd/63")));
    assert_eq!(consul.warnings.len(), 2);
}

#[test]
fn more_is_taken_than_envoy_takes() {
    let options = options(&[
        "--config-path=a b.yaml",
        "--mode=validate",
        "--concurrency=0",
        "--bootstrap-version",
        "3",
    ]);
    assert_eq!(options.config_path, Some(PathBuf::from("a b.yaml")));
    assert_eq!(options.mode, Mode::Validate);
    assert_eq!(options.concurrency, 1, "0 means 1");
    let of = |words: &[&str]| self::options(words).concurrency;
    assert_eq!(of(&["--concurrency", " 2"]), 2);
    assert_eq!(of(&["--concurrency", ""]), of(&[]), "the default");
}

#[test]
fn parse_errors_are_envoys() {
    assert_eq!(
        refused(&["--no-such-flag"]),
        "PARSE ERROR: Argument: --no-such-flag\n             Couldn't find match for argument\n\n\
         For complete USAGE and HELP type: \n   envoy --help\n\n--no-such-flag -- Couldn't find match for argument\n"
    );
    for (words, text) in [
        (
            &["ok.yaml"][..],
            "Argument: ok.yaml\n             Couldn't find match for argument",
        ),
        (
            &["-cok.yaml"],
            "Argument: -cok.yaml\n             Couldn't find match for argument",
        ),
        (
            &["-c", "a", "-c", "a"],
            "Argument: -c (--config-path)\n             Argument already set!",
        ),
        (
            &["-l", "info", "--log-level", "debug"],
            "Argument: -l (--log-level)\n             Argument already set!",
        ),
        (
            &["--concurrency", "x"],
            "Argument: (--concurrency)\n             Couldn't read argument value from string 'x'",
        ),
        (
            &["--concurrency"],
            "Argument: (--concurrency)\n             Missing a value for this argument!",
        ),
        (
            &["--disable-hot-restart", "x"],
            "Argument: x\n             Couldn't find match for argument",
        ),
        (
            &["--disable-hot-restart x"],
            "Argument: --disable-hot-restart x\n             Couldn't find match",
        ),
    ] {
        let stderr = refused(words);
        assert!(
            stderr.starts_with(&format!("PARSE ERROR: {text}")),
            "{words:?}: {stderr}"
        );
    }
}

#[test]
fn value_errors_are_envoys() {
    for (words, text) in [
        (
            &["-l", "loud"][..],
            "error: invalid log level specified 'loud'\n",
        ),
        (
            &["-l", "INFO"],
            "error: invalid log level specified 'INFO'\n",
        ),
        (&["--mode", "foo"], "error: unknown mode 'foo'\n"),
        (
            &["--component-log-level", "nosuch:debug"],
            "error: invalid component specified 'nosuch'\n",
        ),
        (
            &["--component-log-level", "upstream:loud"],
            "error: invalid log level specified 'loud'\n",
        ),
        (
            &["--component-log-level", "upstream"],
            "error: component log level not correctly specified 'upstream'\n",
        ),
        (
            &["--component-log-level", "upstream:debug,"],
            "error: component log level not correctly specified ''\n",
        ),
        (
            &["--component-log-level", "upstream:debug:x"],
            "error: component log level not correctly specified 'upstream:debug:x'\n",
        ),
        (
            &["--stats-tag", "a:"],
            "error: misformatted stats-tag 'a:' contains invalid char in ''\n",
        ),
        (
            &["--local-address-ip-version", "v5"],
            "error: unknown IP address version 'v5'\n",
        ),
        // Envoy names the mode here, by mistake.
        (
            &["--drain-strategy", "foo"],
            "error: unknown drain-strategy 'foo'\n",
        ),
        (&["--stats-tag", "a"], "error: misformatted stats-tag 'a'\n"),
        (
            &["--stats-tag", "a.b:c"],
            "error: misformatted stats-tag 'a.b:c' contains invalid char in 'a.b'\n",
        ),
        (
            &["--restart-epoch", "1", "--use-dynamic-base-id"],
            "error: cannot use --restart-epoch=1 with --use-dynamic-base-id\n",
        ),
        (
            &[
                "--enable-fine-grain-logging",
                "--component-log-level",
                "source/server/*:debug",
            ],
            "error: --component-log-level will not work with --enable-fine-grain-logging\n",
        ),
    ] {
        assert_eq!(refused(words), text, "{words:?}");
    }
}

#[test]
fn stats_tags_repeat() {
    let options = options(&["--stats-tag", "a:b", "--stats-tag", "c:d:e"]);
    assert_eq!(
        options.stats_tags,
        [("a".into(), "b".into()), ("c".into(), "d:e".into())]
    );
}

#[test]
fn versions_are_where_tools_look_for_them() {
    let exit = argv(&["--version", "--no-such"]).unwrap_err();
    assert_eq!((exit.code, exit.stderr.as_str()), (0, ""));
    let line = exit.stdout.strip_prefix("\nenvoy  version: ").unwrap();
    let parts: Vec<_> = line.trim_end().split('/').collect();
    assert_eq!(parts.len(), 5, "kuma-dp wants five parts");
    assert_eq!((parts[0].len(), parts[1]), (40, "1.40.0"));
    assert!(exit.stdout.ends_with("\n\n"));

    let exit = argv(&["--hot-restart-version"]).unwrap_err();
    assert_eq!(
        (exit.code, exit.stdout.as_str(), exit.stderr.as_str()),
        (0, "", "11.104\n")
    );
}

#[test]
fn help_is_printed_and_lists_every_flag_of_envoys() {
    for word in ["-h", "--help"] {
        let exit = argv(&[word, "--no-such"]).unwrap_err();
        assert_eq!((exit.code, exit.stderr.as_str()), (0, ""));
        for line in include_str!("../../tests/golden/cli/flags.txt").lines() {
            assert!(exit.stdout.contains(&format!("--{line}")), "{line}");
        }
    }
}

#[test]
fn the_first_word_may_be_a_command_of_ours() {
    assert_eq!(
        argv(&["demo", "--once"]),
        Ok(Command::Demo(DemoArgs { once: true }))
    );
    assert_eq!(
        argv(&["control-plane", "xds", "--listen", "127.0.0.1:1"]),
        Ok(Command::ControlPlane(ControlPlaneArgs {
            folder: "xds".into(),
            listen: "127.0.0.1:1".parse().unwrap(),
        }))
    );
    #[cfg(feature = "wasm")]
    assert_eq!(
        argv(&["plugin", "inspect", "x", "--json"]),
        Ok(Command::Plugin(Box::new(PluginCommand::Inspect(
            plugin::InspectArgs {
                source: "x".into(),
                json: true,
                registry: plugin::RegistryArgs::default(),
            }
        ))))
    );
    #[cfg(feature = "wasm")]
    for (words, code) in [
        (&["plugin"][..], 2),
        (&["plugin", "run"], 2),
        (&["plugin", "run", "x", "--callout", "no-answer"], 2),
        (&["plugin", "run", "x", "--log-level", "loud"], 2),
        (&["plugin", "run", "x", "--timeout", "-1"], 2),
        (
            &["plugin", "diff", "x", "y", "--cases", "z", "--config", "c"],
            2,
        ),
        (&["plugin", "run", "--help"], 0),
    ] {
        assert_eq!(argv(words).unwrap_err().code, code, "{words:?}");
    }
    assert_eq!(argv(&["control-plane"]).unwrap_err().code, 1);
    assert_eq!(argv(&["demo", "--help"]).unwrap_err().code, 0);
}

#[test]
fn server_info_prints_every_option_that_envoy_prints() {
    let golden: serde_json::Value =
        serde_json::from_str(include_str!("../../tests/golden/admin/server_info.json")).unwrap();
    let golden = golden["command_line_options"].as_object().unwrap();
    let ours = options(&[
        "-c",
        "bootstrap.yaml",
        "--concurrency",
        "1",
        "--admin-address-path",
        "run/admin_addr",
        "--service-zone",
        "zz",
        "--file-flush-interval-msec",
        "200",
        "--drain-time-s",
        "5",
        "--disable-hot-restart",
        "--file-flush-min-size-kb",
        "0",
    ])
    .to_json();
    let ours = ours.as_object().unwrap();
    for ((name, value), (their_name, their_value)) in ours.iter().zip(golden) {
        assert_eq!((name, value), (their_name, their_value));
    }
    assert_eq!(ours.len(), golden.len());
}
