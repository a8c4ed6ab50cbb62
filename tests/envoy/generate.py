#!/usr/bin/env python3
"""Differential tests of made-up configurations: routes, matchers, actions, header rules, connection-manager options, filters
and access logs at random, and requests over HTTP/1 and HTTP/2 that come near to what they match.

    generate.py [--seed N] [--rounds N] [--requests N] [arguments of run.py]

Every round is a suite of its own, from its seed alone: `generate.py --seed 7 --rounds 1` repeats the seventh. The values are few,
so that they meet; what is compared is what `run.py` compares. Left out is what Envoy itself does at random (weights that choose),
and what `run.py` cannot tell apart (ids).
"""

import argparse
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

from made import filters, logs
from made.values import HOSTS, NAMES, TYPE, VALUES, Draw, header_match, header_option, header_rules, query_match

HERE = pathlib.Path(__file__).resolve().parent

def route_match(draw):
    kind = draw.choice(["prefix"] * 4 + ["path"] * 3 + ["path_separated_prefix", "safe_regex", "safe_regex"])
    if kind == "path_separated_prefix":
        match = {kind: draw.clean_path()}
    elif kind == "safe_regex":
        match = {kind: {"regex": draw.choice(["/a.*", "/[ab]", "/(a|ab)/.*", ".*/b", "/a/?", "(?i)/ab.*", "/[^/]+/[0-9]+", ".*"])}}
    else:
        match = {kind: draw.path()}
    if kind != "safe_regex" and draw.maybe(0.25):
        match["case_sensitive"] = False
    if draw.maybe(0.3):
        match["headers"] = [header_match(draw) for _ in range(draw.randint(1, 2))]
    if draw.maybe(0.2):
        match["query_parameters"] = [query_match(draw) for _ in range(draw.randint(1, 2))]
    if draw.maybe(0.05):
        match["grpc"] = {}
    if draw.maybe(0.05):
        match["runtime_fraction"] = {"default_value": {"numerator": draw.choice([0, 100])}}
    return match


def regex_rewrite(draw):
    return {
        "pattern": {"regex": draw.choice(["/a", "a(.)", "^/", "[0-9]+", "(/[^/]*)(.*)", "b$"])},
        "substitution": draw.choice(["/x", "\\0", "\\\\", "", "z"]) if draw.maybe(0.7) else "/y\\0",
    }


def forward(draw, kinds):
    action = {}
    target = draw.choice(["cluster"] * 6 + ["cluster_header", "weighted_clusters"])
    if target == "cluster":
        action["cluster"] = draw.choice(["up"] * 8 + ["dead", "empty"] + draw.second)
    elif target == "cluster_header":
        action["cluster_header"] = draw.choice(["x-a", "x-cluster"])
    else:
        chosen = {"name": draw.choice(["up", *draw.second[:1]]), "weight": draw.choice([1, 50])}
        header_rules(draw, chosen)
        filters.per_route(draw, chosen, kinds, 0.4)
        if draw.maybe(0.3):
            chosen["host_rewrite_literal"] = "weighted.test"
        clusters = [chosen, {"name": "dead", "weight": 0}]
        draw.shuffle(clusters)
        action[target] = {"clusters": clusters}
    rewrite = draw.choice([None] * 4 + ["prefix_rewrite", "prefix_rewrite", *(["regex_rewrite"] * (not draw.second))])
    if rewrite == "prefix_rewrite":
        rootless = [] if draw.second else ["new"]
        action[rewrite] = draw.choice(["/", "/new", "/new/", "/n?x=1", *rootless])
    elif rewrite == "regex_rewrite":
        action[rewrite] = regex_rewrite(draw)
    loose = [] if draw.second else ["header", "path"]
    host = draw.choice([None] * 6 + ["literal", "auto", *loose])
    if host == "literal":
        action["host_rewrite_literal"] = "rewritten.test"
    elif host == "header":
        action["host_rewrite_header"] = draw.choice(["x-a", "x-b"])
    elif host == "auto":
        action["auto_host_rewrite"] = True
    elif host == "path":
        action["host_rewrite_path_regex"] = {"pattern": {"regex": "^/([^/]+).*$"}, "substitution": "\\1.test"}
    if draw.maybe(0.15):
        action["append_x_forwarded_host"] = True
    if draw.maybe(0.2):
        action["timeout"] = draw.choice(["0s", "7s", "20s"])
    if draw.maybe(0.1):
        action["cluster_not_found_response_code"] = draw.choice(["NOT_FOUND", "INTERNAL_SERVER_ERROR"])
    if draw.maybe(0.1):
        action["idle_timeout"] = "9s"
    return action


def redirect(draw):
    action = {}
    if draw.maybe(0.3):
        action["host_redirect"] = draw.choice(["to.test", "to.test:81"])
    if draw.maybe(0.3):
        action["port_redirect"] = draw.choice([80, 443, 8080])
    scheme = draw.choice([None, None, "https_redirect", "scheme_redirect"])
    if scheme == "https_redirect":
        action[scheme] = draw.maybe(0.8)
    elif scheme == "scheme_redirect":
        action[scheme] = draw.choice(["http", "https", "HTTPS", "ftp"])
    path = draw.choice([None, "path_redirect", "prefix_rewrite", "regex_rewrite"])
    if path == "path_redirect":
        action[path] = draw.choice(["/to", "/to?y=1", "to", "/to#f"])
    elif path == "prefix_rewrite":
        action[path] = draw.choice(["/", "/new", "/new/"])
    elif path == "regex_rewrite":
        action[path] = regex_rewrite(draw)
    if draw.maybe(0.3):
        action["strip_query"] = True
    if draw.maybe(0.4):
        action["response_code"] = draw.choice(["FOUND", "SEE_OTHER", "TEMPORARY_REDIRECT", "PERMANENT_REDIRECT"])
    return action


def route(draw, index, kinds):
    match = route_match(draw)
    made = {"match": match, "name": f"route{index}"}
    action = draw.choice(["route"] * 5 + ["redirect"] * 2 + ["direct_response"] * 2 + ["non_forwarding_action"] * draw.maybe(0.3))
    if action == "route":
        made[action] = forward(draw, kinds)
    elif action == "redirect":
        made[action] = redirect(draw)
    elif action == "direct_response":
        made[action] = {"status": draw.choice([200, 200, 201, 204, 304, 404, 500, 503])}
        # With a body Envoy frames these two against the rules.
        if made[action]["status"] not in (204, 304) and draw.maybe(0.7):
            made[action]["body"] = {"inline_string": f"route {index}"}
    else:
        made[action] = {}
    if draw.maybe(0.4):
        header_rules(draw, made)
    if draw.maybe(0.3):
        made["metadata"] = {"filter_metadata": {"r": {"k": draw.choice(["text", 3, True, None, [1, "a"], {"b": 1}])}}}
    return filters.per_route(draw, made, kinds, 0.2)


def virtual_hosts(draw, kinds):
    taken, hosts = set(), []
    for index in range(draw.randint(2, 5)):
        domains = []
        for _ in range(draw.randint(1, 3)):
            domain = draw.choice(HOSTS)
            form = draw.choice(["exact", "exact", "suffix", "prefix", "port"])
            if form == "suffix":
                domain = "*" + domain[draw.choice([1, 2]) :]
            elif form == "prefix":
                domain = domain[: draw.choice([2, 4])] + "*"
            elif form == "port":
                domain += ":8080"
            if domain.lower() not in taken and domain != "*":
                taken.add(domain.lower())
                domains.append(domain)
        if domains:
            hosts.append({"name": f"vhost{index}", "domains": domains})
    if draw.maybe(0.8):
        hosts.append({"name": "all", "domains": ["*"]})
    for host in hosts:
        host["routes"] = [route(draw, index, kinds) for index in range(draw.randint(1, 8))]
        if draw.maybe(0.4):
            header_rules(draw, host)
        if draw.maybe(0.1):
            host["require_tls"] = draw.choice(["ALL", "EXTERNAL_ONLY"])
        if draw.maybe(0.1):
            host["include_request_attempt_count"] = True
        if draw.maybe(0.1):
            host["include_attempt_count_in_response"] = True
        if draw.maybe(0.2):
            host["metadata"] = {"filter_metadata": {"v": {"k": draw.choice(["text", 25, [True]])}}}
        filters.per_route(draw, host, kinds, 0.2)
    return hosts


def connection_manager(draw, name, access_log):
    # Upstreams of HTTP/2: the library takes them no authority that is none of a URL, and no path without a slash.
    draw.second = ["two"] * 6 + ["two_dead"] if draw.maybe() else []
    chain, kinds = filters.chain(draw)
    table = {"name": f"{name}_routes", "virtual_hosts": virtual_hosts(draw, kinds)}
    filters.per_route(draw, table, kinds, 0.2)
    if draw.maybe(0.3):
        header_rules(draw, table)
    if draw.maybe(0.2):
        table["most_specific_header_mutations_wins"] = True
    if draw.maybe(0.2):
        table["ignore_port_in_host_matching"] = True
    if draw.maybe(0.2):
        table["internal_only_headers"] = ["x-b"]
    router = {"@type": TYPE + "filters.http.router.v3.Router"}
    if draw.maybe(0.2):
        router["suppress_envoy_headers"] = True
    manager = {
        "@type": TYPE + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "route_config": table,
        "http_filters": [*chain, {"name": "router", "typed_config": router}],
        "access_log": [access_log, *logs.access_logs(draw)],
    }
    options = {
        "normalize_path": [True, False],
        "merge_slashes": [True],
        "path_with_escaped_slashes_action": ["KEEP_UNCHANGED", "REJECT_REQUEST", "UNESCAPE_AND_REDIRECT", "UNESCAPE_AND_FORWARD"],
        "use_remote_address": [True],
        "xff_num_trusted_hops": [1, 2],
        "skip_xff_append": [True],
        "via": ["via-name"],
        "server_name": ["name"],
        "server_header_transformation": ["APPEND_IF_ABSENT", "PASS_THROUGH"],
        "generate_request_id": [False],
        "preserve_external_request_id": [True],
        "always_set_request_id_in_response": [True],
        "headers_with_underscores": [None],
        "scheme_header_transformation": [{"scheme_to_overwrite": "https"}],
        "forward_client_cert_details": ["SANITIZE", "FORWARD_ONLY", "ALWAYS_FORWARD_ONLY"],
        "strip_trailing_host_dot": [True],
        "internal_address_config": [{"unix_sockets": True}, {"cidr_ranges": [{"address_prefix": "127.0.0.0", "prefix_len": 8}]}],
        "request_timeout": ["30s"],
        "append_x_forwarded_port": [True],
    }
    for option, values in options.items():
        if values != [None] and draw.maybe(0.15):
            manager[option] = draw.choice(values)
    port = draw.choice([None] * 4 + ["strip_matching_host_port", "strip_any_host_port"])
    if port:
        manager[port] = True
    if draw.maybe(0.2):
        manager["common_http_protocol_options"] = {
            "headers_with_underscores_action": draw.choice(["ALLOW", "REJECT_REQUEST", "DROP_HEADER"])
        }
    if draw.maybe(0.3):
        manager["http_protocol_options"] = draw.choice([
            {"accept_http_10": True},
            {"accept_http_10": True, "default_host_for_http_10": "a.test"},
            {"enable_trailers": True},
            {"header_key_format": {"proper_case_words": {}}},
            {"allow_absolute_url": False},
        ])  # fmt: skip
    if draw.maybe(0.25):
        manager["local_reply_config"] = logs.local_replies(draw, header_option)
        # With a body Envoy frames these two against the rules.
        for host in table["virtual_hosts"]:
            for entry in host["routes"]:
                if entry.get("direct_response", {}).get("status") in (204, 304):
                    entry["direct_response"]["status"] = 404
    return manager


def cluster(name, port, **more):
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    endpoints = [{"lb_endpoints": [{"endpoint": {"hostname": "host.test", "address": address}}]}] if port else []
    return {
        "name": name,
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": endpoints},
    } | more


HTTP2 = {
    "typed_extension_protocol_options": {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": TYPE + "upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
    },
    "metadata": {"filter_metadata": {"c": {"k": "of two"}}},
}


def bootstrap(draw, listeners):
    routing = (HERE / "routing" / "envoy.yaml").read_text()
    begin = routing.index("json_format: &format\n") + len("json_format: &format\n")
    access = []
    for line in routing[begin : routing.index("route_config:", begin)].splitlines():
        key, _, value = line.strip().partition(": ")
        if value.startswith('"'):
            access.append((key, json.loads(value)))
    log = {
        "name": "log",
        "typed_config": {
            "@type": TYPE + "access_loggers.file.v3.FileAccessLog",
            "path": "@log@",
            "log_format": {"json_format": dict(access)},
        },
    }
    made = []
    for name in listeners:
        manager = connection_manager(draw, name, log)
        address = {"socket_address": {"address": "127.0.0.1", "port_value": f"@{name}@"}}
        made.append({
            "name": name,
            "address": address,
            "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
        })  # fmt: skip
    return {
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": "@admin@"}}},
        "static_resources": {
            "listeners": made,
            "clusters": [
                cluster("up", "@upstream@"),
                cluster("two", "@upstream2@", **HTTP2),
                cluster("dead", "@dead@"),
                cluster("two_dead", "@dead@", **HTTP2),
                cluster("empty", None),
            ],
        },
    }


def near(draw, route):
    """A path that may match."""
    match = route["match"]
    path = match.get("path") or match.get("prefix") or match.get("path_separated_prefix") or draw.path()
    change = draw.choice(["as it is"] * 4 + ["longer", "segment", "case", "other", "slash", "encoded"])
    if change == "longer":
        path += draw.choice(["x", "b", ".", "%20"])
    elif change == "segment":
        path = path.rstrip("/") + draw.path()
    elif change == "case":
        path = path.swapcase()
    elif change == "other":
        path = draw.path()
    elif change == "slash":
        path = path.replace("/", "//", 1) if draw.maybe() else path + "/"
    elif change == "encoded":
        path = path.replace("a", "%61", 1)
    if draw.maybe(0.3):
        path += "?" + draw.choice(["q=1", "q=one&r=2", "q", "q=", "r=o&q=one", "a%20b=1", "q=%6Fne", "x=1?y", "q=1#f", "&&q=1", ""])
    return path.replace(" ", "%20")


def headers_near(draw, route):
    headers = []
    for match in route["match"].get("headers", []):
        if not match["name"].startswith(":") and match["name"] != "host" and draw.maybe(0.8):
            wanted = match.get("string_match", {})
            value = next((v for k, v in wanted.items() if k in ("exact", "prefix", "suffix", "contains")), draw.choice(VALUES))
            headers.append([match["name"], value.swapcase() if draw.maybe(0.2) else value])
    if "grpc" in route["match"]:
        headers.append(["content-type", "application/grpc"])
    for name in draw.some(NAMES, 3):
        headers.append([name, draw.choice(VALUES)])
    more = [
        ["x-forwarded-for", "10.0.0.1"], ["x-forwarded-for", "1.2.3.4, 10.0.0.9"], ["x-forwarded-for", "garbage"],
        ["x-forwarded-proto", "https"], ["x-forwarded-proto", "HTTPS"], ["x-forwarded-proto", "bad"],
        ["te", "trailers"], ["user-agent", "Envoy/HC"], ["x-envoy-force-trace", "true"],
        ["x-envoy-original-path", "/was"], ["x-envoy-upstream-rq-timeout-ms", "500"], ["x-envoy-expected-rq-timeout-ms", "5"],
        ["x-envoy-internal", "true"], ["x-envoy-external-address", "1.1.1.1"], ["x_under", "1"], ["x-cluster", "up"],
        ["x-cluster", "none"], ["content-type", "application/grpc"], ["content-type", "application/grpc+proto"],
        ["x-forwarded-port", "1"], ["forwarded", "for=1.1.1.1"], ["x-forwarded-client-cert", "By=x"], ["via", "1.1 other"],
        ["x-envoy-max-retries", "2"], ["x-envoy-decorator-operation", "op"], ["te", "trailers"], ["te", "gzip"],
        ["connection", "keep-alive"], ["connection", "close"], ["keep-alive", "timeout=5"], ["proxy-connection", "close"],
        ["x-envoy-force-trace", "1"], ["x-client-trace-id", "t"], ["grpc-timeout", "1S"], ["referer", "http://x/"],
        ["authorization", "b"], ["x-b3-sampled", "1"], ["expect", "other"], ["x-envoy-attempt-count", "7"],
        ["x-envoy-hedge-on-per-try-timeout", "true"], ["x-envoy-ip-tags", "t"], ["x-envoy-downstream-service-cluster", "me"],
    ]  # fmt: skip
    headers += draw.some(more, 2)
    draw.shuffle(headers)
    return headers


AUTHORITY = re.compile(r"([A-Za-z0-9.-]+|\[::1\])(:[0-9]+)?")


def request(draw, index, listener, manager):
    host = draw.choice(manager["route_config"]["virtual_hosts"])
    wanted = draw.choice(host["routes"])
    domain = draw.choice(host["domains"] * 4 + HOSTS)
    domain = domain.replace("*", draw.choice(["", "x", "a", "b.a"]))
    change = draw.choice([None] * 6 + ["upper", "port", "dot", "odd"])
    if change == "upper":
        domain = domain.upper()
    elif change == "port":
        domain = domain.split(":")[0] + draw.choice([":80", ":8080", f":@{listener}@", ":"])
    elif change == "dot":
        domain += draw.choice([".", ".:80"])
    elif change == "odd":
        domain = draw.choice(["", "[::1]", "[::1]:80", "1.2.3.4:5", "a_b", "a.test,b.a.test"])
    if '"two"' in json.dumps(manager) and not AUTHORITY.fullmatch(domain):
        domain = "a.test"
    made = {
        "id": f"{listener}/{index}",
        "listener": listener,
        "path": near(draw, wanted),
        "host": domain,
        "headers": headers_near(draw, wanted) + filters.headers_for(draw, manager),
    }
    if "query_parameter_mutations" in json.dumps(manager):
        made["path"] = made["path"].split("?")[0] + draw.choice(["", "?q=1", "?q=1&q=2"])
    preflight = any(name == "access-control-request-method" for name, _ in made["headers"]) and draw.maybe(0.8)
    made["method"] = draw.choice(METHODS) if not preflight else "OPTIONS"
    # How much of a body has been read when a delayed request is answered is a matter of buffers.
    waits = '"delay"' in json.dumps(manager)
    if made["method"] in ("POST", "PUT") and draw.maybe(0.7) and not waits:
        made["body"] = draw.choice(["body", "{}"])
    if draw.maybe(0.3):
        made["headers"].append(["x-answer", answer(draw, made["method"])])
    trailers = draw.choice([[["x-t", "v"]], [["x-t", "1"], ["x-a", "2"], ["x-b", ""]]]) if draw.maybe(0.1) and not waits else []
    if trailers and draw.maybe():
        made["headers"].append(["te", "trailers"])
    slashes = manager.get("path_with_escaped_slashes_action") == "REJECT_REQUEST" and "%" in made["path"]
    if "#" in made["path"] or slashes:
        trailers = [] if "#" in made["path"] else trailers
        # Refused before it is routed, but for the log where the client says a protocol.
        made["headers"] = [header for header in made["headers"] if header[0] != "x-forwarded-proto"]
    version = draw.random()
    if version < 0.05 and not trailers:
        made["version"] = "HTTP/1.0"
    elif version < 0.08 and "#" not in made["path"]:
        whole = f"{draw.choice(['http', 'http', 'https', 'HTTP', 'ftp'])}://{domain}{made['path']}"
        made["path"] = whole
    elif version < 0.4:
        return over_http2(draw, made, trailers)
    # Whether the body has been read when a connection fails is seen for lengths alone (`info.held`).
    unread = manager.get("path_with_escaped_slashes_action") in ("REJECT_REQUEST", "UNESCAPE_AND_REDIRECT")
    if trailers and not unread and not re.search(r'"cluster": "(two_)?dead"', json.dumps(manager)):
        return with_trailers(made, trailers)
    return made


METHODS = ["GET"] * 6 + ["POST", "POST", "PUT", "HEAD", "OPTIONS", "DELETE", "TRACE", "get", "FOO"]


def answer(draw, method):
    """What the upstream is asked to answer with."""
    wanted = [f"status={draw.choice([200, 200, 201, 204, 301, 304, 404, 500, 503])}"]
    more = [
        "h=x-a:up", "h=x-a:1&h=x-a:2", "h=server:own", "h=content-type:application/grpc&h=grpc-status:5", "h=x-envoy-x:1",
        "h=x-multi:a&h=x-multi:b", "h=set-cookie:a=b&h=set-cookie:c=d", "h=access-control-allow-origin:x", "h=x-b:",
        "h=x-envoy-upstream-service-time:7", "h=location:/there", "h=date:then", "h=via:1.1 up", "h=x-request-id:own",
        "h=x-envoy-immediate-health-check-fail:1", "h=x-envoy-degraded:1", "h=cache-control:no-store",
    ]  # fmt: skip
    wanted += draw.some(more, 2)
    # What Envoy logs of a body and trailers that no client may get is left out.
    if draw.maybe(0.4) and method != "HEAD" and wanted[0] not in ("status=204", "status=304"):
        wanted.append(draw.choice(["chunked=1", "t=x-t:v", "t=grpc-status:5&t=grpc-message:no&t=x-t:w", "t=x-t:1&t=x-t:2&t=x-a:3"]))
    return "&".join(wanted)


# What belongs to a connection of HTTP/1 breaks a message of HTTP/2, by rules that the suite `h2` is about.
HOP = ("connection", "keep-alive", "proxy-connection")


def over_http2(draw, case, trailers):
    headers = [[name, value] for name, value in case["headers"] if name not in HOP and (name, value) != ("te", "gzip")]
    fields = [
        [":method", case["method"]],
        [":scheme", draw.choice(["http"] * 5 + ["https"])],
        [":authority", case["host"] if AUTHORITY.fullmatch(case["host"]) else "a.test"],
        [":path", case["path"].split("#")[0]],
    ]
    plan = {"headers": fields + headers}
    if "body" in case:
        plan["body"] = case["body"]
    if trailers:
        plan |= {"body": case.get("body", "x"), "trailers": trailers}
    return {"id": case["id"], "listener": case["listener"], "h2": plan}


def with_trailers(case, trailers):
    """The same, chunked."""
    lines = [f"{case['method']} {case['path']} {case.get('version', 'HTTP/1.1')}", f"host: {case['host']}"]
    lines += [f"{name}: {value}" for name, value in [*case["headers"], ["transfer-encoding", "chunked"]]]
    body = case.get("body", "x")
    ends = "".join(f"{name}: {value}\r\n" for name, value in trailers)
    raw = "\r\n".join(lines) + f"\r\n\r\n{len(body):x}\r\n{body}\r\n0\r\n{ends}\r\n"
    return {"id": case["id"], "listener": case["listener"], "raw": raw}


def showing(logs, *operators):
    """The fields of the records that show any of these."""
    names = set()
    for log in logs:
        for name, value in log["typed_config"]["log_format"].get("json_format", {}).items():
            if any(operator in json.dumps(value) for operator in operators):
                names.add(f"log*.{name}")
    return sorted(names)


def suite(seed, folder, requests):
    draw = Draw(seed)
    listeners = [f"l{letter}" for letter in "abcdef"]
    config = bootstrap(draw, listeners)
    cases, managers = [], []
    for index in range(requests):
        listener = draw.choice(listeners)
        place = listeners.index(listener)
        manager = config["static_resources"]["listeners"][place]["filter_chains"][0]["filters"][0]["typed_config"]
        cases.append(request(draw, index, listener, manager))
        managers.append(manager)
    text = json.dumps(config, indent=1)
    # Ports are numbers where `run.py` puts them in.
    for name in ["admin", "upstream", "upstream2", "dead", *listeners]:
        text = text.replace(f'"@{name}@"', f"@{name}@")
    (folder / "envoy.yaml").write_text(text)
    rules = []
    for case, manager in zip(cases, managers):
        logs, http2 = manager["access_log"], case.get("h2", {})
        if "body" in http2:
            # What of a body without a length is there is not known where nobody reads it, and so not its end.
            durations = [name for name in showing(logs, "REQUEST_DURATION", "DS_RX_END") if name.startswith("log*.ms_")]
            rules += [f"{case['id']} {field} not read\n" for field in ["log.rx", *durations]]
        dropping = manager.get("common_http_protocol_options", {}).get("headers_with_underscores_action") == "DROP_HEADER"
        if "body" in http2 and dropping and any("_" in name for name, _ in http2["headers"]):
            # Envoy's codec remembers that it dropped a field, and tells it as the reason where it cuts the request behind an answer.
            fields = ["log.details", "log.flags", "log.flags_long", *showing(logs, "RESPONSE_CODE_DETAILS", "RESPONSE_FLAGS")]
            rules += [f"{case['id']} {field} dropped\n" for field in fields]
        # The codec tells no method of what it refuses; Envoy tells no length of an empty answer to HEAD.
        if (case.get("method"), case.get("version")) == ("HEAD", "HTTP/1.0") and "local_reply_config" in manager:
            rules.append(f"{case['id']} header.content-length refused\n")
    (folder / "deviations.txt").write_text("".join(rules))
    (folder / "cases.json").write_text(json.dumps(cases, indent=1))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="of the first round; the next ones count up")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--keep-suites", action="store_true", help="leave the suites where they were made")
    options, others = parser.parse_known_args()
    failed = []
    for seed in range(options.seed, options.seed + options.rounds):
        folder = pathlib.Path(tempfile.mkdtemp(prefix="generated-")) / f"seed-{seed}"
        folder.mkdir()
        suite(seed, folder, options.requests)
        if subprocess.run([sys.executable, str(HERE / "run.py"), "--suite", str(folder), *others]).returncode:
            failed.append(seed)
        if options.keep_suites:
            print(f"kept in {folder}")
        else:
            shutil.rmtree(folder.parent)
        sys.stdout.flush()
    print(f"{options.rounds} rounds from seed {options.seed}: {len(failed)} with differences that are not listed {failed or ''}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
