#!/usr/bin/env python3
"""Writes cases.json, whose tokens and signatures have to be computed: `python3 tests/usecases/cases.py`."""

import base64
import hashlib
import hmac
import json
import pathlib

SECRET = b"plenipo-example-secret-32-bytes!"
ISSUER = "https://issuer.example"
FAR = 4102444800
CASES = []


def case(listener, name, path="/echo", method="GET", headers=(), **more):
    entry = {"id": f"{listener}/{name}", "listener": listener, "method": method, "path": path, "host": "test"}
    if headers:
        entry["headers"] = [list(header) for header in headers]
    CASES.append(entry | more)


def raw(listener, name, head, body="", **more):
    """A request whose framing is the case's own; `head` is of lines."""
    text = "\r\n".join([head[0], "host: test", *head[1:]]) + "\r\n\r\n" + body
    CASES.append({"id": f"{listener}/{name}", "listener": listener, "raw": text, **more})


def chunks(*pieces, trailer=""):
    return [f"{len(piece):x}\r\n{piece}\r\n" for piece in pieces if piece] + [f"0\r\n{trailer}\r\n"]


# ---------------------------------------------------------------------------------------------------------------------
# Tokens
# ---------------------------------------------------------------------------------------------------------------------


def b64url(data):
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def token(claims=None, header=None, secret=SECRET, digest=hashlib.sha256, payload=None):
    header = header if isinstance(header, str) else json.dumps({"alg": "HS256", "typ": "JWT"} | (header or {}))
    claims = {"iss": ISSUER, "sub": "ada", "role": "admin", "exp": FAR} | (claims or {})
    claims = {name: value for name, value in claims.items() if value is not None}
    signed = b64url(header.encode()) + "." + b64url(payload if payload is not None else json.dumps(claims).encode())
    return signed + "." + b64url(hmac.new(secret, signed.encode(), digest).digest())


def jwt(name, value, headers=(), **more):
    case("jwt_auth", name, headers=[("authorization", value), *headers], **more)


def bearer(name, text, **more):
    jwt(name, f"Bearer {text}", **more)


GOOD = token()
HEAD, PAYLOAD, SIGNATURE = GOOD.split(".")
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

bearer("good", GOOD)
bearer("good_post", GOOD, method="POST", body='{"a": 1}')
bearer("good_head", GOOD, method="HEAD")
bearer("spoofed", GOOD, headers=[("x-jwt-sub", "root"), ("X-Jwt-Role", "root"), ("x-jwt-role", "root")])
bearer("spoofed_absent", token({"role": None}), headers=[("x-jwt-role", "root")])
bearer("kid", token(header={"kid": "example"}))
bearer("kid_unknown", token(header={"kid": "other"}))
bearer("kid_number", token(header={"kid": 1}))
jwt("scheme_case", f"bEARER {GOOD}")
jwt("scheme_spaces", f"Bearer   {GOOD}")
jwt("scheme_basic", "Basic YWRhOmFkYQ==")
jwt("scheme_none", GOOD)
jwt("scheme_alone", "Bearer")
case("jwt_auth", "missing")
case("jwt_auth", "missing_spoofed", headers=[("x-jwt-sub", "root")])
case("jwt_auth", "in_query", path=f"/echo?access_token={GOOD}")
case("jwt_auth", "twice", headers=[("authorization", f"Bearer {GOOD}"), ("authorization", "Bearer x")])
case("jwt_auth", "twice_good", headers=[("authorization", f"Bearer {GOOD}")] * 2)
jwt("not_utf8", "Bearer \xff\xfe")
jwt("empty", "")
bearer("expired", token({"exp": 1}))
bearer("expired_fraction", token({"exp": 1.5}))
bearer("exp_missing", token({"exp": None}))
bearer("exp_text", token({"exp": "4102444800"}))
bearer("exp_fraction", token({"exp": FAR + 0.5}))
bearer("exp_huge", token({"exp": 1e300}))
bearer("exp_negative", token({"exp": -1}))
bearer("nbf_past", token({"nbf": 1}))
bearer("nbf_future", token({"nbf": FAR}))
bearer("nbf_text", token({"nbf": "1"}))
bearer("iss_wrong", token({"iss": "https://other.example"}))
bearer("iss_prefix", token({"iss": ISSUER + "/"}))
bearer("iss_missing", token({"iss": None}))
bearer("iss_list", token({"iss": [ISSUER]}))
bearer("aud_any", token({"aud": ["a", "b"]}))
for alg in ["none", "None", "NONE", "", "HS384", "HS512", "RS256", "ES256", "hs256", "HS256 "]:
    bearer(f"alg_{alg or 'empty'}".replace(" ", "_space"), token(header={"alg": alg}))
unsigned = b64url(b'{"alg":"none"}') + "." + PAYLOAD
bearer("alg_none_unsigned", unsigned + ".")
bearer("alg_none_two_parts", unsigned)
bearer("unsigned", f"{HEAD}.{PAYLOAD}.")
bearer("alg_missing", token(header='{"typ": "JWT"}'))
bearer("alg_twice", token(header='{"alg": "HS256", "alg": "none"}'))
bearer("alg_null", token(header='{"alg": null}'))
bearer("hs384_digest", token(digest=hashlib.sha384))
bearer("crit", token(header={"crit": ["exp"]}))
bearer("header_list", token(header="[]"))
bearer("header_text", token(header="HS256"))
bearer("wrong_key", token(secret=b"x" * 32))
bearer("empty_key", token(secret=b""))
bearer("tampered", f"{HEAD}.{b64url(json.dumps({'iss': ISSUER, 'sub': 'root', 'exp': FAR}).encode())}.{SIGNATURE}")
bearer("signature_short", GOOD[:-4])
bearer("signature_long", GOOD + "AAAA")
bearer("signature_other_bits", GOOD[:-1] + ALPHABET[ALPHABET.index(GOOD[-1]) ^ 1])
bearer("padding", GOOD + "=")
bearer("padding_in_head", f"{b64url(json.dumps({'alg': 'HS256'}).encode())}=.{PAYLOAD}.{SIGNATURE}")
bearer("alphabet", f"{HEAD}.{PAYLOAD}.{SIGNATURE[:-2]}+/")
bearer("space_inside", f"{HEAD}.{PAYLOAD} .{SIGNATURE}")
bearer("parts_two", f"{HEAD}.{PAYLOAD}")
bearer("parts_four", GOOD + ".x")
bearer("parts_five", GOOD + ".x.y")
bearer("parts_empty", "..")
bearer("garbage", "x.y.z")
bearer("long", GOOD + "A" * 9000)
bearer("payload_text", token(payload=b"ada"))
bearer("payload_list", token(payload=b"[]"))
bearer("payload_empty", token(payload=b""))
bearer("payload_not_utf8", token(payload=b'{"sub": "\xff"}'))
bearer("claim_object", token({"sub": {"a": 1}}))
bearer("claim_newline", token({"sub": "ada\r\nx-admin: 1"}))
bearer("claim_nul", token({"sub": "a\0b"}))
bearer("claim_number", token({"sub": 42, "role": True}))
bearer("claim_unicode", token({"sub": "Zoë"}))
bearer("claim_empty", token({"sub": ""}))

# ---------------------------------------------------------------------------------------------------------------------
# Signed requests
# ---------------------------------------------------------------------------------------------------------------------

DATE = "Sun, 06 Nov 1994 08:49:37 GMT"


def digest(body):
    return hashlib.sha256(body.encode("latin1")).hexdigest()


def signed(body=None, method="GET", path="/echo", date=DATE, hexes=None, secret=SECRET, key="example", **over):
    hexes = hexes or digest(body or "")
    mac = hmac.new(secret, f"{method}\n{path}\n{date}\n{hexes}".encode(), hashlib.sha256).digest()
    headers = {"date": date, "authorization": f"HMAC-SHA256 {key}:{base64.b64encode(mac).decode()}"}
    if body is not None:
        headers["x-content-sha256"] = hexes
    return [(name, value) for name, value in (headers | over).items() if value is not None]


def lines(headers):
    return [f"{name}: {value}" for name, value in headers]


OLD = "hmac_old"
ORDER = '{"item": 1}'
case(OLD, "get", headers=signed())
case(OLD, "get_with_digest", headers=signed(""))
case(OLD, "query", path="/echo?a=1&b=%20", headers=signed(path="/echo?a=1&b=%20"))
case(OLD, "spoofed", headers=[*signed(), ("x-signed-by", "root")])
case(OLD, "post", method="POST", headers=signed(ORDER, "POST"), body=ORDER)
case(OLD, "post_other_body", method="POST", headers=signed(ORDER, "POST"), body='{"item": 2}')
case(OLD, "post_longer_body", method="POST", headers=signed(ORDER, "POST"), body=ORDER + " ")
case(OLD, "post_no_digest", method="POST", headers=signed(None, "POST"), body=ORDER)
case(OLD, "post_unsigned_digest", method="POST", headers=[*signed(None, "POST"), ("x-content-sha256", digest(ORDER))], body=ORDER)
case(OLD, "post_no_body", method="POST", headers=signed(ORDER, "POST"))
raw(OLD, "post_empty", ["POST /echo HTTP/1.1", *lines(signed("", "POST")), "content-length: 0"])
raw(OLD, "post_empty_chunked", ["POST /echo HTTP/1.1", *lines(signed("", "POST")), "transfer-encoding: chunked"], "0\r\n\r\n")
raw(OLD, "post_empty_chunked_wrong", ["POST /echo HTTP/1.1", *lines(signed(ORDER, "POST")), "transfer-encoding: chunked"], "0\r\n\r\n")
chunked = ["POST /echo HTTP/1.1", *lines(signed(ORDER, "POST")), "transfer-encoding: chunked"]
raw(OLD, "chunked", chunked, "".join(chunks(ORDER[:4], ORDER[4:])))
raw(OLD, "chunked_pieces", chunked, pieces=chunks(ORDER[:4], ORDER[4:8], ORDER[8:]))
raw(OLD, "chunked_wrong", chunked, pieces=chunks(ORDER[:4], "x", ORDER[5:]))
raw(OLD, "chunked_trailers", chunked, pieces=chunks(ORDER, trailer="x-t: v\r\n"))
raw(OLD, "chunked_trailers_wrong", chunked, pieces=chunks(ORDER[1:], trailer="x-t: v\r\n"))
raw(OLD, "pieces", ["POST /echo HTTP/1.1", *lines(signed(ORDER, "POST")), f"content-length: {len(ORDER)}"], pieces=list(ORDER))
long = "a" * 300000
raw(OLD, "long", ["POST /echo HTTP/1.1", *lines(signed(long, "POST")), f"content-length: {len(long)}"], "@fill@", fill=["a", len(long)])
# As much as passes the limit, and no more: how much is read of the rest is chance.
head = ["POST /echo HTTP/1.1", *lines(signed("", "POST", hexes=digest("b"))), f"content-length: {3 << 20}"]
raw(OLD, "too_long", head, "@fill@", fill=["a", (1 << 20) + 1])
case(OLD, "none")
case(OLD, "scheme", headers=signed(authorization="Bearer x"))
case(OLD, "no_colon", headers=signed(authorization="HMAC-SHA256 example"))
case(OLD, "not_base64", headers=signed(authorization="HMAC-SHA256 example:!!!"))
case(OLD, "no_mac", headers=signed(authorization="HMAC-SHA256 example:"))
case(OLD, "not_utf8", headers=signed(authorization="HMAC-SHA256 \xff:AAAA"))
case(OLD, "unknown_key", headers=signed(key="other"))
case(OLD, "wrong_secret", headers=signed(secret=b"x" * 32))
case(OLD, "other_path", path="/echo?a=2", headers=signed(path="/echo?a=1"))
case(OLD, "other_method", method="DELETE", headers=signed())
case(OLD, "no_date", headers=[h for h in signed() if h[0] != "date"])
case(OLD, "changed_date", headers=[h for h in signed() if h[0] != "date"] + [("date", "Mon, 07 Nov 1994 08:49:37 GMT")])
case(OLD, "bad_date", headers=signed(date="yesterday"))
case(OLD, "digest_upper", method="POST", headers=signed(ORDER, "POST", hexes=digest(ORDER).upper()), body=ORDER)
case(OLD, "digest_short", method="POST", headers=signed(ORDER, "POST", hexes=digest(ORDER)[:10]), body=ORDER)
case(OLD, "twice", headers=[*signed(), signed()[1]])
case("hmac_auth", "too_old", headers=signed())
case("hmac_auth", "too_new", headers=signed(date="Fri, 01 Jan 2100 00:00:00 GMT"))
case("hmac_auth", "none")

# ---------------------------------------------------------------------------------------------------------------------
# Redaction
# ---------------------------------------------------------------------------------------------------------------------


def said(name, body, query="", **more):
    case("redact_json", name, path="/say" + query, method="POST", body=body, **more)


VISA = "4111 1111 1111 1111"
SECRETS = '{"mail": "ada@example.com", "card": "4111 1111 1111 1111", "n": 4111111111111111, "ok": [1, -2.5e3, true, null]}'
said("both", SECRETS)
said("nothing", '{"a": 1, "b": "no secrets", "c": [ ]}')
said("spaced", '{ "a" : "x@y.zz" ,\n "b" : 2 }')
said("luhn_wrong", '{"card": "4111 1111 1111 1112", "n": 4111111111111112}')
said("amex", '{"card": "378282246310005", "dash": "5555-5555-5555-4444"}')
said("too_few_digits", '{"n": 123456789012}')
said("long_number", '{"n": 41111111111111114111111111111111}')
said("escaped", '{"mail": "ada\\u0040example.com", "card": "\\u0034111 1111 1111 1111", "q": "a\\"b@c.dd\\""}')
said("member_name", '{"ada@example.com": 1}')
said("several", '["a@b.cc, d@e.ff; 4111111111111111 378282246310005"]')
said("deep", "[" * 100 + '"a@b.cc"' + "]" * 100)
said("surrogate", '{"a": "\\ud800 a@b.cc"}')
said("unicode", '{"name": "Zo\xc3\xab", "mail": "zoe@example.com"}')
said("top_level_text", '"a@b.cc"')
said("not_json", "mail a@b.cc, {")
said("truncated_json", '{"mail": "a@b.cc')
said("not_utf8", '{"mail": "a@b.cc", "x": "\xff"}')
said("not_utf8_clean", '{"x": "\xff"}')
said("text", SECRETS, "?type=text/plain")
said("no_type", SECRETS, "?type=")
said("charset", SECRETS, "?type=application/json;%20charset=utf-8")
said("suffix", SECRETS, "?type=application/problem%2Bjson")
said("case", SECRETS, "?type=Application/JSON")
said("chunked", SECRETS, "?pieces=1")
said("pieces", SECRETS, "?pieces=20")
said("trailer", SECRETS, "?pieces=3&trailer=1")
said("trailer_clean", '{"a": 1}', "?pieces=3&trailer=1")
case("redact_json", "empty", path="/say", method="POST", headers=[("content-length", "0")])
case("redact_json", "empty_chunked", path="/say?pieces=1", method="POST", headers=[("content-length", "0")])
said("gzip", SECRETS, "?type=application/json%0d%0acontent-encoding:%20gzip")
said("identity", SECRETS, "?type=application/json%0d%0acontent-encoding:%20identity")
said("etag", SECRETS, '?type=application/json%0d%0aetag:%20"1"%0d%0acontent-md5:%20x')
said("etag_clean", "{}", '?type=application/json%0d%0aetag:%20"1"')
case("redact_json", "request_headers", headers=[("accept-encoding", "gzip"), ("range", "bytes=0-10"), ("if-range", "x")])
case("redact_json", "echo_secret", headers=[("x-mail", "ada@example.com"), ("x-card", VISA)])
case("redact_json", "direct", path="/customer")
case("redact_json", "head", path="/echo", method="HEAD")
case("redact_json", "head_direct", path="/customer", method="HEAD")
for path in ["204", "304", "nolength", "partial", "garbage", "close"]:
    case("redact_json", f"up_{path}", path=f"/{path}")
case("redact_json", "error_page", path="/status/500", headers=[("x-mail", "ada@example.com")])
filled = '{"a": "@fill@ a@b.cc"}'
said("large", filled, fill=["x", 60000])
said("large_pieces", filled, "?pieces=9", fill=["x", 60000])
said("too_long", filled, fill=["x", 70000])
said("too_long_pieces", filled, "?pieces=9", fill=["x", 70000])
said("too_long_text", filled, "?type=text/plain", fill=["x", 70000])

# ---------------------------------------------------------------------------------------------------------------------
# GraphQL
# ---------------------------------------------------------------------------------------------------------------------

JSON = ("content-type", "application/json")


def gql(name, body, headers=(JSON,), path="/graphql", **more):
    body = body if isinstance(body, str) else json.dumps(body)
    case("graphql_route", name, path=path, method="POST", headers=headers, body=body, **more)


def query(name, text, operation=None):
    gql(name, {"query": text} | ({"operationName": operation} if operation is not None else {}))


TWO = "query A { a } mutation B { b } query YearlyReport { c }"
query("shorthand", "{ a }")
query("query", "query A { a }")
query("query_anonymous", "query { a }")
query("mutation", "mutation { a }")
query("mutation_named", "mutation Rename($id: ID! = 1) @x(a: {b: 1}) { rename(id: $id) { id } }")
query("subscription", "subscription S { a }")
query("report", "query YearlyReport { a }")
query("of_two_a", TWO, "A")
query("of_two_b", TWO, "B")
query("of_two_report", TWO, "YearlyReport")
query("of_two_missing", TWO)
query("of_two_empty", TWO, "")
query("of_two_unknown", TWO, "C")
query("name_lies", "mutation B { b }", "A")
query("name_of_anonymous", "{ b }", "A")
query("fragment_first", "fragment F on T { mutation { x } } query A { ...F }")
query("braces_in_text", 'mutation { a(b: "}{") { c } }')
query("braces_in_block", 'mutation { a(b: """ \\""" }{ """) { c } }')
query("braces_in_comment", "# mutation X {\n{ a # }\n }")
query("default_with_braces", "query A($x: I = {a: [1, {b: 2}]}) { a }")
query("field_called_mutation", "{ mutation { a } }")
query("commas_and_mark", "\ufeff,,query A,{a}")
query("schema", "type T { a: Int }")
query("unbalanced", "mutation { a ")
query("too_many_closed", "mutation { a } }")
query("text_without_end", 'mutation { a(b: "x) { c } }')
query("empty_text", "")
query("not_ascii", "{ a(b: \"\u00eb\u2603\") }")
gql("persisted", {"operationName": "YearlyReport", "extensions": {"persistedQuery": {"version": 1}}})
gql("persisted_odd_name", {"operationName": "x\r\ny: z"})
gql("persisted_nothing", {"variables": {}})
gql("null_name", {"query": "mutation { a }", "operationName": None})
gql("null_query", {"query": None, "operationName": "YearlyReport"})
gql("number_query", {"query": 1})
gql("batch", [{"query": "mutation { a }"}])
gql("twice", '{"query": "{ a }", "query": "mutation { a }"}')
gql("not_json", "mutation { a }")
gql("truncated", '{"query": "mutation { a }"')
gql("trailing", '{"query": "mutation { a }"} x')
gql("not_utf8", '{"query": "mutation { a }", "x": "\xff"}')
gql("charset", {"query": "mutation { a }"}, [("content-type", "Application/JSON; charset=utf-8")])
gql("other_type", {"query": "mutation { a }"}, [("content-type", "text/plain")])
gql("no_type", {"query": "mutation { a }"}, [])
gql("other_path", {"query": "mutation { a }"}, path="/echo")
gql("spoofed", {"query": "{ a }"}, [JSON, ("x-graphql-type", "mutation"), ("x-graphql-operation", "YearlyReport")])
case("graphql_route", "get", path="/graphql?query=mutation{a}")
case("graphql_route", "get_spoofed", path="/graphql", headers=[("x-graphql-type", "mutation")])
raw("graphql_route", "empty", ["POST /graphql HTTP/1.1", "content-type: application/json", "content-length: 0"])
raw("graphql_route", "empty_chunked", ["POST /graphql HTTP/1.1", "content-type: application/json", "transfer-encoding: chunked"], "0\r\n\r\n")
body = '{"query": "mutation { a }"}'
framed = ["POST /graphql HTTP/1.1", "content-type: application/json", "transfer-encoding: chunked"]
raw("graphql_route", "chunked", framed, "".join(chunks(body[:5], body[5:])))
raw("graphql_route", "chunked_pieces", framed, pieces=chunks(body[:5], body[5:15], body[15:]))
raw("graphql_route", "chunked_trailers", framed, pieces=chunks(body[:5], body[5:], trailer="x-t: v\r\n"))
raw("graphql_route", "pieces", ["POST /graphql HTTP/1.1", "content-type: application/json", f"content-length: {len(body)}"], pieces=[body[:9], body[9:20], body[20:]])
raw("graphql_route", "expect", ["POST /graphql HTTP/1.1", "content-type: application/json", "expect: 100-continue", f"content-length: {len(body)}"], then=body)
gql("large", {"query": "mutation { a }", "x": "@fill@"}, fill=["y", 200000])
gql("too_long", {"query": "mutation { a }", "x": "@fill@"}, fill=["y", 270000])
raw("graphql_route", "too_long_chunked", framed, "%x\r\n@fill@" % 300000, fill=["a", 262145])

# ---------------------------------------------------------------------------------------------------------------------
# Limits: one case a bucket, since cases run at the same time
# ---------------------------------------------------------------------------------------------------------------------

case("tenant_rate_limit", "free", headers=[("x-tenant", "free")], times=5)
case("tenant_rate_limit", "gold", headers=[("x-tenant", "gold")], times=20)
case("tenant_rate_limit", "made_up", headers=[("x-tenant", "somebody")], times=4)
case("limit_open", "free", headers=[("x-tenant", "free")], times=4)
case("limit_open", "made_up", headers=[("x-tenant", "somebody")], times=5)
case("limit_open", "missing", times=5)
case("limit_open", "empty", headers=[("x-tenant", "")], times=5)
case("limit_open", "twice", headers=[("x-tenant", "free"), ("x-tenant", "gold")], times=5)
case("limit_open", "not_utf8", headers=[("x-tenant", "fr\xff")], times=5)

path = pathlib.Path(__file__).with_name("cases.json")
path.write_text("[\n" + ",\n".join(json.dumps(entry) for entry in CASES) + "\n]\n")
