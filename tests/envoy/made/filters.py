"""HTTP filters at random: which, in what order, and what routes, virtual hosts, tables and weighted clusters say about them."""

from .values import TYPE, header_match, header_option, string_match

FILTER_CONFIG = "type.googleapis.com/envoy.config.route.v3.FilterConfig"
HTTP = TYPE + "filters.http."
PER_ROUTE = {"mutation": "HeaderMutationPerRoute", "cors": "CorsPolicy", "fault": "HTTPFault"}
FOLDERS = {"mutation": "header_mutation", "cors": "cors", "fault": "fault", "health": "health_check"}

# How often trailers are mutated: never, since Plenipo refuses that.
TRAILERS = 0.0

ORIGINS = ["http://a.test", "https://a.test", "http://b.a.test:8080", "null", "one", ""]


def percent(draw):
    return draw.choice([{"numerator": 100}, {"numerator": 100}, {"numerator": 0}, {"numerator": 1000000, "denominator": "MILLION"}])


def mutation(draw, side):
    kind = draw.choice(["append"] * 5 + ["remove"] * 2 + ["remove_on_match"])
    if kind == "append":
        option = header_option(draw)
        # Filters see the flag of a head that the codec refuses; Envoy sets it later.
        if side == "response" and "RESPONSE_FLAGS" in option["header"]["value"]:
            option["header"]["value"] = "%RESPONSE_CODE_DETAILS%"
        return {kind: option}
    if kind == "remove":
        return {kind: draw.choice(["x-a", "X-B", "accept", "server", "date", "x-new", "cookie", "content-type", "x-none"])}
    match = draw.choice([{"prefix": "x-"}, {"exact": "accept"}, {"suffix": "-a"}, {"contains": "OO", "ignore_case": True}, {"safe_regex": {"regex": "x-[ab]"}}])
    return {kind: {"key_matcher": match}}


def query_mutation(draw):
    """Of one parameter: Envoy sorts and decodes all of a query that it changes, Plenipo does not touch the others."""
    if draw.maybe(0.3):
        return {"remove": draw.choice(["q", "none"])}
    made = {"append": {"record": {"key": "q", "value": draw.choice(["v", "w", "%REQ(x-none)%", "%RESPONSE_CODE%"])}}}
    made["append"]["action"] = draw.choice(["APPEND_IF_EXISTS_OR_ADD", "ADD_IF_ABSENT", "OVERWRITE_IF_EXISTS_OR_ADD", "OVERWRITE_IF_EXISTS"])
    return made


def mutations(draw):
    made = {}
    for side in ("request", "response"):
        made[f"{side}_mutations"] = [mutation(draw, side) for _ in range(draw.randint(0, 2))]
    if draw.maybe(0.3):
        made["query_parameter_mutations"] = [query_mutation(draw) for _ in range(draw.randint(1, 2))]
    for side in ("request", "response"):
        if draw.maybe(TRAILERS):
            made[f"{side}_trailers_mutations"] = [mutation(draw, side) for _ in range(draw.randint(1, 2))]
    return {"mutations": made}


def cors_policy(draw):
    made = {}
    if draw.maybe(0.8):
        made["allow_origin_string_match"] = [
            draw.choice([{"exact": "http://a.test"}, {"exact": "*"}, {"prefix": "http://"}, {"suffix": ".test", "ignore_case": True}, string_match(draw)])
            for _ in range(draw.randint(1, 2))
        ]
    for field, values in {
        "allow_methods": ["GET,POST", "*", "PUT"], "allow_headers": ["x-a", "*"], "expose_headers": ["x-b", "*"], "max_age": ["60"],
        "allow_credentials": [True, False], "allow_private_network_access": [True, False], "forward_not_matching_preflights": [True, False],
    }.items():  # fmt: skip
        if draw.maybe(0.4):
            made[field] = draw.choice(values)
    for field in ("filter_enabled", "shadow_enabled"):
        if draw.maybe(0.25):
            made[field] = {"default_value": {"numerator": draw.choice([0, 100])}}
    return made


def fault(draw):
    made = {}
    kind = draw.choice([None, "http_status", "http_status", "grpc_status", "header_abort", "header_abort"])
    if kind:
        value = {"http_status": draw.choice([200, 429, 503, 555]), "grpc_status": draw.choice([0, 5, 14]), "header_abort": {}}[kind]
        made["abort"] = {kind: value, "percentage": percent(draw)}
    delay = draw.choice([None, None, "fixed_delay", "header_delay"])
    if delay:
        made["delay"] = {delay: {} if delay == "header_delay" else "0.010s", "percentage": percent(draw)}
    if draw.maybe(0.4):
        made["headers"] = [header_match(draw) for _ in range(draw.randint(1, 2))]
    if draw.maybe(0.1):
        made["upstream_cluster"] = draw.choice(["up", "dead", "two"])
    if draw.maybe(0.1):
        made["downstream_nodes"] = ["node", "other"]
    if draw.maybe(0.1):
        made["max_active_faults"] = draw.choice([0, 1000])
    if draw.maybe(0.2):
        made["filter_metadata"] = {"k": draw.choice(["text", 3, {"b": True}])}
    return made


def health_check(draw):
    made = {"pass_through_mode": draw.maybe()}
    made["headers"] = [{"name": ":path", "string_match": draw.choice([{"exact": "/a"}, {"prefix": "/a"}, {"prefix": "/b"}, {"suffix": "1"}])}]
    if draw.maybe(0.3):
        made["headers"].append(header_match(draw))
    if draw.maybe(0.4):
        made["cluster_min_healthy_percentages"] = {
            name: {"value": draw.choice([0, 50, 100])} for name in draw.some(["up", "two", "dead", "empty", "none"], 2)
        }
    return made


def message(draw, kind):
    if kind == "mutation":
        made = mutations(draw)
        if draw.maybe(0.4):
            made["most_specific_header_mutations_wins"] = True
        name = "HeaderMutation"
    elif kind == "cors":
        made, name = {}, "Cors"
    elif kind == "fault":
        made, name = fault(draw), "HTTPFault"
    else:
        made, name = health_check(draw), "HealthCheck"
    return {"@type": f"{HTTP}{FOLDERS[kind]}.v3.{name}"} | made


def chain(draw):
    """The filters before the router, with the kinds by their names."""
    kinds, made = {}, []
    for kind in draw.some(["mutation", "mutation", "cors", "fault", "health"], 4):
        name = draw.choice([kind, f"{kind}.{len(made)}", f"envoy.filters.http.{FOLDERS[kind]}"])
        if name in kinds:
            continue
        entry = {"name": name, "typed_config": message(draw, kind)}
        if draw.maybe(0.2):
            entry["disabled"] = True
        if draw.maybe(0.1):
            entry["is_optional"] = True
        kinds[name] = kind
        made.append(entry)
    return made, kinds


def per_route(draw, owner, kinds, odds):
    """What a level says about the filters."""
    said = {}
    for name, kind in kinds.items():
        if not draw.maybe(odds):
            continue
        form = draw.choice(["direct"] * 4 + ["wrapped", "wrapped", "disabled", "enabled"])
        if kind == "health" and form in ("direct", "wrapped"):
            form = draw.choice(["disabled", "enabled"])
        if form in ("direct", "wrapped"):
            config = mutations(draw) if kind == "mutation" else cors_policy(draw) if kind == "cors" else fault(draw)
            said[name] = {"@type": f"{HTTP}{FOLDERS[kind]}.v3.{PER_ROUTE[kind]}"} | config
            if form == "wrapped":
                said[name] = {"@type": FILTER_CONFIG, "config": said[name]}
        elif form == "disabled":
            said[name] = {"@type": FILTER_CONFIG, "disabled": True}
        else:
            said[name] = {"@type": FILTER_CONFIG, "config": {}}
        if said[name]["@type"] == FILTER_CONFIG and draw.maybe(0.2):
            said[name]["is_optional"] = True
    if draw.maybe(0.03):
        said["ghost"] = {"@type": FILTER_CONFIG, "disabled": True}
    if draw.maybe(0.02):
        said["ghost.optional"] = {"@type": FILTER_CONFIG, "is_optional": True, "config": {"@type": HTTP + "lua.v3.LuaPerRoute", "disabled": True}}
    if said:
        owner["typed_per_filter_config"] = said
    return owner


# What the filters look for in requests.
HEADERS = [
    ["origin", "http://a.test"], ["origin", "https://a.test"], ["origin", "one"], ["origin", "null"], ["origin", "http://x"],
    ["access-control-request-private-network", "true"], ["x-envoy-fault-abort-request", "418"],
    ["x-envoy-fault-abort-request", "503"], ["x-envoy-fault-abort-request", "99"], ["x-envoy-fault-abort-grpc-request", "5"],
    ["x-envoy-fault-abort-request-percentage", "100"], ["x-envoy-fault-abort-request-percentage", "0"],
    ["x-envoy-fault-delay-request", "10"], ["x-envoy-fault-delay-request-percentage", "0"],
    ["x-envoy-downstream-service-node", "node"], ["access-control-request-method", "GET"], ["access-control-request-headers", "x-q"],
]  # fmt: skip


def headers_for(draw, manager):
    """Headers that the filters of a chain act on."""
    named = {entry["typed_config"]["@type"].split(".")[-3] for entry in manager["http_filters"]}
    headers = []
    if "cors" in named and draw.maybe(0.6):
        headers.append(["origin", draw.choice(ORIGINS)])
        if draw.maybe(0.6):
            headers.append(["access-control-request-method", draw.choice(["GET", "DELETE", ""])])
            headers += [["access-control-request-headers", draw.choice(["x-q", "x-q, x-a", ""])]] * draw.maybe()
    if "fault" in named and draw.maybe(0.5):
        headers += draw.some([header for header in HEADERS if "fault" in header[0] or "node" in header[0]], 2)
    return headers + draw.some(HEADERS, 1) * draw.maybe(0.3)
