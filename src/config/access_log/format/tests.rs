//! Tests of `config::access_log::format`.

use super::*;
use crate::config::access_log::{Field, FormatHeader, HeaderChoice, PathSource, TimePart};

/// What Envoy 1.40 accepts, with and without arguments, and this build, too.
const ACCEPTED: &str = include_str!("accepted.txt");

#[test]
fn accepts_what_envoy_accepts() {
    for line in ACCEPTED.lines() {
        let format = Format::parse(line);
        assert!(format.is_ok(), "{line}: {format:?}");
    }
    assert!(ACCEPTED.lines().count() > 150);
}

#[test]
fn refuses_in_envoys_words() {
    for (source, reason) in [
        (
            "%",
            "Incorrect configuration: %. Couldn't find valid command at position 0",
        ),
        (
            "a%",
            "Incorrect configuration: a%. Couldn't find valid command at position 1",
        ),
        (
            "%FOO",
            "Incorrect configuration: %FOO. Couldn't find valid command at position 0",
        ),
        (
            "%req(a)%",
            "Incorrect configuration: %req(a)%. Couldn't find valid command at position 0",
        ),
        (
            "%REQ(A)x%",
            "Incorrect configuration: %REQ(A)x%. Couldn't find valid command at position 0",
        ),
        (
            "%REQ(A):x%",
            "Incorrect configuration: %REQ(A):x%. Couldn't find valid command at position 0",
        ),
        (
            "%REQ(a):99999999999999999999%",
            "Incorrect configuration: %REQ(a):99999999999999999999%. Couldn't find valid command at position 0",
        ),
        ("%NOPE%", "Not supported field in StreamInfo: NOPE"),
        (
            "%REQ_WITHOUT_QUERY(:PATH)%",
            "Not supported field in StreamInfo: REQ_WITHOUT_QUERY",
        ),
        (
            "%UPSTREAM_HOST(x)%",
            "UPSTREAM_HOST does not take any parameters or length",
        ),
        (
            "%PROTOCOL:3%",
            "PROTOCOL does not take any parameters or length",
        ),
        ("%REQ%", "REQ requires parameters"),
        ("%REQ()%", "REQ requires parameters"),
        (
            "%REQ(a?b?c)%",
            "More than 1 alternative header specified in token: a?b?c",
        ),
        (
            "%REQ(a b)%",
            "Invalid header configuration. Format string contains invalid characters.",
        ),
        (
            "%START_TIME:3%",
            "START_TIME does not allow length to be specified.",
        ),
        (
            "%START_TIME(%n)%",
            "Invalid header configuration. Format string contains newline.",
        ),
        (
            "%COMMON_DURATION(A)%",
            "Invalid common duration configuration: A.",
        ),
        (
            "%COMMON_DURATION(A:B:s)%",
            "Invalid common duration precision: s.",
        ),
        ("%METADATA(FOO:a)%", "FOO is not supported type of metadata"),
        (
            "%PATH(XX)%",
            "Invalid PATH option: 'XX', only 'WQ'/'NQ' are allowed",
        ),
        (
            "%PATH(WQ:FOO)%",
            "Invalid PATH option: 'FOO', only 'ORIG'/'PATH'/'ORIG_OR_PATH' are allowed",
        ),
        (
            "%QUERY_PARAMS(RAW)%",
            "Invalid QUERY_PARAMS option: 'RAW', only 'ORIG'/'DECODED' are allowed",
        ),
        (
            "%FILTER_STATE%",
            "Invalid filter state configuration, key cannot be empty.",
        ),
        (
            "%FILTER_STATE(a:FOO)%",
            "Invalid filter state serialize type, only support PLAIN/TYPED/FIELD.",
        ),
        (
            "%FILTER_STATE(a:FIELD)%",
            "Invalid filter state serialize type, FIELD should be used with the field name.",
        ),
        (
            "%GRPC_STATUS(FOO)%",
            "GrpcStatusFormatter only supports CAMEL_STRING, SNAKE_STRING or NUMBER. Got: FOO",
        ),
        (
            "%REQUESTED_SERVER_NAME(HOST_ONLY)%",
            "Invalid REQUESTED_SERVER_NAME option: 'HOST_ONLY', only 'SNI_ONLY'/'SNI_FIRST'/'HOST_FIRST' are allowed",
        ),
        (
            "%XFCC_VALUE(x)%",
            "XFCC_VALUE command does not support subcommand: x",
        ),
        ("%XFCC_VALUE%", "XFCC_VALUE command requires a subcommand"),
        (
            "%COALESCE({})%",
            "COALESCE: JSON configuration must contain 'operators' array",
        ),
    ] {
        let error = Format::parse(source).expect_err(source);
        assert_eq!(error.to_string(), reason, "{source}");
    }
}

#[test]
fn expressions_are_refused_by_name() {
    let error = Format::parse("%CEL(request.method)%").expect_err("no CEL");
    assert!(error.to_string().contains("CEL"), "{error}");
}

#[test]
fn reads_text_operators_lengths_and_percents() {
    let format = Format::parse("a%%b%REQ(X-A?:PATH):5%c%PROTOCOL%%%").expect("valid");
    assert_eq!(
        *format.parts,
        [
            FormatPart::Text("a%b".into()),
            FormatPart::Operator {
                operator: Operator::RequestHeader(HeaderChoice {
                    main: FormatHeader::Header(http::HeaderName::from_static("x-a")),
                    alternative: Some(FormatHeader::Path),
                }),
                max_len: Some(5),
            },
            FormatPart::Text("c".into()),
            FormatPart::Operator {
                operator: Operator::Field(Field::Protocol),
                max_len: None,
            },
            FormatPart::Text("%".into()),
        ]
    );
}

#[test]
fn arguments_may_hold_parentheses_and_percents() {
    let format = Format::parse("%START_TIME(%Y)x%m)%").expect("valid");
    let [
        FormatPart::Operator {
            operator: Operator::Time { format, .. },
            ..
        },
    ] = &*format.parts
    else {
        panic!("one operator");
    };
    assert_eq!(
        *format.parts,
        [TimePart::Year, TimePart::Text(")x".into()), TimePart::Month]
    );
}

#[test]
fn path_defaults_to_the_original_with_its_query() {
    let format = Format::parse("%PATH%").expect("valid");
    assert_eq!(
        *format.parts,
        [FormatPart::Operator {
            operator: Operator::Path {
                query: true,
                source: PathSource::OriginalOrCurrent,
            },
            max_len: None,
        }]
    );
}

#[test]
fn knows_literals() {
    assert_eq!(Format::parse("").expect("valid").as_literal(), Some(""));
    assert_eq!(
        Format::parse("100%%").expect("valid").as_literal(),
        Some("100%")
    );
    assert_eq!(
        Format::parse("%PROTOCOL%").expect("valid").as_literal(),
        None
    );
}

proptest::proptest! {
    #[test]
    fn never_panics(source in ".{0,80}") {
        let _ = Format::parse(&source);
    }

    #[test]
    fn never_panics_on_operators(name in "[A-Z_]{1,20}", params in "[a-z:%()?{}\" ]{0,20}") {
        let _ = Format::parse(&format!("%{name}({params})%"));
    }
}
