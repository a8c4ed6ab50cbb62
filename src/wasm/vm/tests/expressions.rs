//! Expressions, as a guest makes and evaluates them.

use super::*;

#[test]
fn expressions_see_attributes_and_give_envoys_forms() {
    let stream = stream(&connection());
    let mut bench = Bench::with_stream(&stream);
    let text = |text: &str| Ok(text.as_bytes().to_vec());
    assert_eq!(bench.set("mine", b"set"), OK);
    for (expression, value) in [
        ("request.url_path + '!'", text("/path!")),
        ("request.headers['X-Twice']", text("a,b")),
        ("request.headers['none']", Err(FAILURE)),
        ("'none' in request.headers", Ok(vec![0])),
        (
            "request.headers.exists(name, name == 'x-twice')",
            Ok(vec![1]),
        ),
        ("size(request.headers) == 6", Ok(vec![1])),
        ("has(request.path) && !has(request.nosuch)", Ok(vec![1])),
        ("request.size + 1", Ok(13i64.to_le_bytes().to_vec())),
        (
            "request.time > timestamp('2020-01-01T00:00:00Z')",
            Ok(vec![1]),
        ),
        ("request", Err(NO_FORM)),
        ("nosuch", Err(FAILURE)),
        ("mine == b'set'", Ok(vec![1])),
        ("metadata.filter_metadata.ns.key", text("value")),
        ("metadata.filter_metadata.ns == {'a': 1}", Ok(vec![0])),
        ("plugin_name", text("bench")),
        ("1 / 0", Err(FAILURE)),
        ("null", Err(NO_FORM)),
        (
            "duration('1.5s')",
            Ok(1_500_000_000i64.to_le_bytes().to_vec()),
        ),
        (
            "[true]",
            Ok(b"\x01\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0".to_vec()),
        ),
        (
            "string(1234567.5) + string(0.1) + string(duration('1500ms'))",
            text("1.2345675e+060.11.500s"),
        ),
        ("int(' 5') + int(true)", Ok(6i64.to_le_bytes().to_vec())),
        (
            "duration('1.5s').getMilliseconds()",
            Ok(500i64.to_le_bytes().to_vec()),
        ),
        ("'abc'.matches('b') && startsWith('abc', 'a')", Ok(vec![1])),
        ("'abc'.matches('(')", Err(FAILURE)),
        // These do not come into being.
        ("1 +", Err(BAD_ARGUMENT)),
        ("", Err(BAD_ARGUMENT)),
        ("nosuch(1)", Err(BAD_ARGUMENT)),
        ("size()", Err(BAD_ARGUMENT)),
        ("'abc'.lowerAscii()", Err(BAD_ARGUMENT)),
        ("Foo{a: 1}", Err(BAD_ARGUMENT)),
    ] {
        assert_eq!(bench.evaluate(expression), value, "{expression}");
    }
    // Those of a root are known to its streams, and the other way round.
    bench.enter_root();
    let token = bench.foreign("expr_create", b"request.path").expect("made");
    assert_eq!(bench.foreign("expr_evaluate", &token), Err(FAILURE));
    bench.enter_stream(&stream);
    let path = bench.foreign("expr_evaluate", &token);
    assert_eq!(path, text("/path?query#fragment"));
    assert_eq!(bench.foreign("expr_evaluate", b"x"), Err(BAD_ARGUMENT));
}

#[test]
fn expressions_end_whatever_they_are() {
    let mut bench = Bench::new();
    let list = format!("[{}]", ["1"; 50].join(", "));
    let nested = (0..6).fold("true".to_owned(), |inner, n| {
        format!("{list}.all(x{n}, {inner})")
    });
    assert_eq!(bench.evaluate(&nested), Err(FAILURE));
    let mapped = (0..6).fold("1".to_owned(), |inner, n| {
        format!("{list}.map(x{n}, {inner})")
    });
    assert_eq!(bench.evaluate(&mapped), Err(FAILURE));
    for deep in [
        "(".repeat(10_000),
        "-".repeat(10_000),
        "[".repeat(10_000),
        format!("{}1{}", "(".repeat(5_000), ")".repeat(5_000)),
        format!("{}1", "!".repeat(20_000)),
        "1+".repeat(10_000) + "1",
        "a.".repeat(10_000) + "a",
        "a?b:".repeat(5_000) + "c",
        "{1:".repeat(5_000),
    ] {
        // A refusal, or a result: the host goes on.
        let _ = bench.evaluate(&deep);
    }
    let nested = format!("size({}1{}) == 1", "[".repeat(30), "]".repeat(30));
    assert_eq!(bench.evaluate(&nested), Ok(vec![1]));
    assert_eq!(
        bench.evaluate("'a'.matches('(a{1000}){1000}')"),
        Err(FAILURE)
    );
    assert_eq!(bench.evaluate("true"), Ok(vec![1]));
}

/// Each link of the chain makes twice of what it has, which is gigabytes soon.
#[test]
fn expressions_do_not_make_more_than_they_may() {
    let stream = stream(&connection());
    let mut bench = Bench::with_stream(&stream);
    let number = |number: i64| Ok(number.to_le_bytes().to_vec());
    for (first, twice, made) in [
        ("'a'", "x + x", 1024),
        ("b'a'", "x + x", 1024),
        ("['a']", "x + x", 1024),
        ("'a'", "[x, x]", 2),
        ("'a'", "{1: x, 2: x}", 2),
    ] {
        let chain = |links| {
            let links = format!(".map(x, {twice})").repeat(links);
            format!("[{first}]{links}.map(x, size(x))[0]")
        };
        assert_eq!(bench.evaluate(&chain(10)), number(made), "{first} {twice}");
        assert_eq!(bench.evaluate(&chain(45)), Err(FAILURE), "{first} {twice}");
    }
    // Nor by what swallows errors.
    let chain = ".map(x, x + x)".repeat(45);
    let swallowed = format!("['a']{chain}[0] == '' || true");
    assert_eq!(bench.evaluate(&swallowed), Err(FAILURE));
    // Nor of attributes.
    assert_eq!(bench.set("mine", &[b'x'; 16 << 10]), OK);
    let copies = |copies: usize| format!("size([{}])", ["mine"; 2000][..copies].join(","));
    assert_eq!(bench.evaluate(&copies(100)), number(100));
    assert_eq!(bench.evaluate(&copies(2000)), Err(FAILURE));
    let ones = ["1"; 1500].join(",");
    let mapped = |of: &str| format!("size([{ones}].map(x, {of}))");
    assert_eq!(bench.evaluate(&mapped("mine")), Err(FAILURE));
    assert_eq!(bench.evaluate(&mapped("request.path")), number(1500));
    let inner = format!("[mine].exists(m, [{ones}].exists(x, [m].exists(y, false)))");
    assert_eq!(bench.evaluate(&inner), Err(FAILURE));
}

/// What is compiled or read in each step takes seconds, of steps that are few enough.
#[test]
fn expressions_compute_no_longer_than_they_may() {
    let mut bench = Bench::with_stream(&stream(&connection()));
    let ones = (0..1000).map(|number| number.to_string());
    let ones = ones.collect::<Vec<_>>().join(",");
    let patterns = |of: &str| {
        format!("[{ones}].all(x, !'a'.matches('(b|[c-z]{{1,200}}){{1,9}}' + string({of})))")
    };
    assert_eq!(bench.evaluate(&patterns("1")), Ok(vec![1]));
    assert_eq!(bench.evaluate(&patterns("x")), Err(FAILURE));
    assert_eq!(bench.set("mine", &[b'x'; 30 << 10]), OK);
    let texts = |of: &str| {
        let inner = format!("[{ones}].all(x, [1, 2, 3, 4].all(y, !t.matches('x[^x]')))");
        format!("[string({of})].all(t, {inner})")
    };
    assert_eq!(bench.evaluate(&texts("request.path")), Ok(vec![1]));
    assert_eq!(bench.evaluate(&texts("'xxx'")), Ok(vec![1]));
    assert_eq!(bench.evaluate(&texts("mine")), Err(FAILURE));
}

#[test]
fn what_expressions_add_and_keep_is_what_it_is() {
    let mut bench = Bench::new();
    for truth in [
        "1 + 2 == 3 && 1u + 2u == 3u && 1.5 + 1.0 == 2.5",
        "'a' + 'b' + '' == 'ab' && b'a' + b'b' == b'ab'",
        "[1] + ['a'] + [] == [1, 'a']",
        "duration('1s') + duration('2s') == duration('3s')",
        "timestamp('2020-01-01T00:00:00Z') + duration('1s') == timestamp('2020-01-01T00:00:01Z')",
        "duration('1s') + timestamp('2020-01-01T00:00:00Z') == timestamp('2020-01-01T00:00:01Z')",
        "[1, 2, 3].map(x, x + 1) == [2, 3, 4]",
        "[1, 2, 3].map(x, x > 1, [x] + [x]) == [[2, 2], [3, 3]]",
        "[1, 2, 3].filter(x, x != 2) == [1, 3] && {'a': 1}.map(x, x) == ['a']",
        "[1, 2, 3].exists_one(x, x == 2) && [1, 2].all(x, x > 0)",
        "[[1, 2], [3]].map(x, x.map(y, y + size(x))) == [[3, 4], [4]]",
        "{'a' + 'b': [1 + 1]}['ab'][0] == 2",
        "'a' in ['a', 'b'] && !(1 in {'a' + '': 1})",
        "['ab', 'b'].all(x, x.contains('b') && contains(x, 'b') && x.endsWith('b') && x >= 'ab')",
        "['12'].all(x, int(x) == 12 && string(12) == x && size(x) == 2 && x.size() == 2)",
        "['a', 'b'].filter(x, x.matches('^a') || matches(x, 'c')) == ['a']",
        "[{'a': 1}].map(x, x['a'] + x.a) == [2] && ['a'].all(x, x in {'a': 1} && [1][0] == 1)",
        "[duration('61s')].all(x, x.getMinutes() == 1 && has({'a': x}.a))",
    ] {
        assert_eq!(bench.evaluate(truth), Ok(vec![1]), "{truth}");
    }
    for wrong in [
        "1 + 'a' == 1",
        "'a' + 1 == 'a'",
        "1 + 1u == 2",
        "1 + 1.0 == 2",
        "[1] + 1 == [1]",
        "true + true",
        "null + 1",
        "9223372036854775807 + 1",
        "18446744073709551615u + 1u",
        "b'a' + 'a'",
        "[1, 2].map(x, 1, x)",
        "[1, 2].filter(x, x)",
        "1.map(x, x)",
    ] {
        assert_eq!(bench.evaluate(wrong), Err(FAILURE), "{wrong}");
    }
    // A list of which the library would copy all that it has with each element.
    let long = format!("size([{}].map(x, [x, x])) == 5000", ["1"; 5000].join(","));
    assert_eq!(bench.evaluate(&long), Ok(vec![1]));
}
