"""Access logs at random: operators in texts and in JSON, and filters. Durations are called `ms_…`, counts of bytes that
differ from run to run `n_…`: of them `run.py` compares what kind of value they are."""

from .values import TYPE, header_match

CASE = "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%"

FIELDS = """
    PROTOCOL UPSTREAM_PROTOCOL RESPONSE_CODE CONNECTION_TERMINATION_DETAILS RESPONSE_FLAGS RESPONSE_FLAGS_LONG BYTES_RECEIVED
    BYTES_SENT BYTES_RETRANSMITTED PACKETS_RETRANSMITTED UPSTREAM_HOST UPSTREAM_HOST_NAME UPSTREAM_HOST_NAME_WITHOUT_PORT
    UPSTREAM_CLUSTER UPSTREAM_CLUSTER_RAW UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT UPSTREAM_REMOTE_ADDRESS
    UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT UPSTREAM_REMOTE_PORT UPSTREAM_REQUEST_ATTEMPT_COUNT UPSTREAM_HOSTS_ATTEMPTED
    UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT UPSTREAM_HOST_NAMES_ATTEMPTED UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT
    UPSTREAM_TRANSPORT_FAILURE_REASON UPSTREAM_LOCAL_CLOSE_REASON DOWNSTREAM_LOCAL_CLOSE_REASON
    DOWNSTREAM_TRANSPORT_FAILURE_REASON DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT
    DOWNSTREAM_LOCAL_ADDRESS DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT DOWNSTREAM_LOCAL_PORT DOWNSTREAM_DIRECT_LOCAL_ADDRESS
    DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT DOWNSTREAM_DIRECT_LOCAL_PORT STREAM_ID TRACE_ID SPAN_ID ROUTE_NAME
    VIRTUAL_CLUSTER_NAME FILTER_CHAIN_NAME LISTENER_NAME ROUTE_RESOLUTION_COUNT CUSTOM_FLAGS ACCESS_LOG_TYPE LOCAL_REPLY_BODY
    GRPC_STATUS GRPC_STATUS_NUMBER RESPONSE_CODE_DETAILS REQUESTED_SERVER_NAME
    DOWNSTREAM_TLS_VERSION UPSTREAM_TLS_CIPHER DOWNSTREAM_PEER_SUBJECT HOSTNAME RESPONSE_TRAILERS_BYTES
""".split()

WITH_ARGUMENTS = """
    REQ(x-a) REQ(X-B?:PATH) REQ(:authority) REQ(:method) REQ(:scheme) REQ(host) REQ(x-none?x-none) REQ(x-a):2
    REQ(:path):4 REQ(x-forwarded-for) REQ(x-request-id) REQ(user-agent) REQ(x-envoy-original-path) REQUEST_HEADER(x-a)
    RESP(x-a) RESP(:status) RESP(content-type) RESP(x-new?server) RESP(server):3 RESP(location) RESP(grpc-status)
    RESPONSE_HEADER(content-type) TRAILER(x-t) TRAILER(grpc-status) RESPONSE_TRAILER(x-t?x-u) RESP(set-cookie) RESP(x-multi)
    PATH PATH(NQ) PATH(WQ:ORIG) PATH(NQ:PATH) PATH(WQ:ORIG_OR_PATH) QUERY_PARAM(q) QUERY_PARAM(r):2 QUERY_PARAMS(ORIG) QUERY_PARAMS
    QUERY_PARAMS(DECODED) METADATA(ROUTE:r:k) METADATA(ROUTE:r) METADATA(ROUTE:r:k:b) METADATA(VIRTUAL_HOST:v:k) METADATA(CLUSTER:c:k)
    METADATA(UPSTREAM_HOST:h:k) METADATA(LISTENER:l:k) METADATA(LISTENER_FILTER_CHAIN:f:k) CLUSTER_METADATA(c:k) CLUSTER_METADATA(c)
    UPSTREAM_METADATA(h:k) DYNAMIC_METADATA(fault:k) DYNAMIC_METADATA(envoy.filters.http.fault) DYNAMIC_METADATA(none:k) FILTER_STATE(none:PLAIN) FILTER_STATE(none)
    REQUESTED_SERVER_NAME(SNI_FIRST) REQUESTED_SERVER_NAME(HOST_FIRST) REQUESTED_SERVER_NAME(SNI_ONLY)
    XFCC_VALUE(By) XFCC_VALUE(uri) GRPC_STATUS(SNAKE_STRING) GRPC_STATUS(NUMBER) GRPC_STATUS(CAMEL_STRING)
    DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(16) DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT(8) ENVIRONMENT(NO_SUCH_VARIABLE)
    UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(24) RESPONSE_CODE_DETAILS(ALLOW_WHITESPACES)
""".split() + [
    'COALESCE({"operators": [{"command": "TRAILER", "param": "x-t"}, {"command": "REQ", "param": "x-a"}, "PROTOCOL"]})',
    'COALESCE({"operators": [{"command": "REQ", "param": "x-none"}, {"command": "REQ", "param": ":path", "max_length": 5}]})',
]

DURATIONS = """
    DURATION REQUEST_DURATION REQUEST_TX_DURATION RESPONSE_DURATION ROUNDTRIP_DURATION
    DOWNSTREAM_HANDSHAKE_DURATION UPSTREAM_CONNECTION_POOL_READY_DURATION COMMON_DURATION(DS_RX_BEG:DS_TX_BEG:ms)
    COMMON_DURATION(US_TX_BEG:US_RX_BEG:us) COMMON_DURATION(DS_RX_BEG:DS_RX_END:ns) COMMON_DURATION(US_CX_BEG:US_HS_END:ms)
    COMMON_DURATION(US_RX_BEG:US_RX_BODY_BEG) COMMON_DURATION(US_RX_BEG:US_RX_END) COMMON_DURATION(US_TX_BEG:US_TX_END)
    COMMON_DURATION(DS_RX_BEG:DS_TX_BEG) COMMON_DURATION(none:DS_TX_END)
""".split()

BYTES = ["REQUEST_HEADERS_BYTES", "RESPONSE_HEADERS_BYTES", "CONNECTION_ID", "UPSTREAM_CONNECTION_ID"]

FLAGS = ["LH", "UH", "UT", "UF", "UC", "NR", "DI", "FI", "DC", "IH", "DPE", "UPE", "NC", "UMSDR"]
CODES = [200, 201, 301, 302, 404, 500, 503]


def operator(draw):
    return f"%{draw.choice([draw.choice(FIELDS), draw.choice(WITH_ARGUMENTS)])}%"


def text(draw):
    parts = [draw.choice(["a", "|", ' "q" ', "ü", "\\", "%%", " ", "\t", "{", ":"]) + operator(draw) for _ in range(draw.randint(1, 3))]
    return "".join(parts) + draw.choice(["", "z"])


def value(draw, depth=0):
    kind = draw.choice(["operator"] * 5 + ["text"] * 2 + ["literal"] + ["object", "list"] * (depth < 2))
    if kind == "operator":
        return operator(draw)
    if kind == "text":
        return text(draw)
    if kind == "literal":
        return draw.choice([3, -1, 0, True, False, "", "plain", "100%%", 'quote "', "tab\t", 1234567])
    if kind == "object":
        return {draw.choice(["k", "b", "a", "K", 'odd "', "é"]): value(draw, depth + 1) for _ in range(draw.randint(0, 3))}
    return [value(draw, depth + 1) for _ in range(draw.randint(0, 3))]


def json_format(draw):
    made = {f"v{index}": value(draw) for index in range(draw.randint(3, 12))}
    for index in range(draw.randint(0, 3)):
        made[f"ms_{index}"] = f"%{draw.choice(DURATIONS)}%"
    for index in range(draw.randint(0, 3)):
        made[f"n_{index}"] = f"%{draw.choice(BYTES)}%"
    return {"json_format": made | {"case": CASE}}


def text_format(draw):
    return {"text_format_source": {"inline_string": f"@{CASE} " + " ".join(operator(draw) for _ in range(draw.randint(1, 8))) + text(draw) + "\n"}}


def log_filter(draw, depth=0):
    kind = draw.choice(["status"] * 3 + ["duration", "health", "header", "header", "flags", "flags", "grpc", "type", "runtime", "traceable"] + ["and", "or"] * (depth < 2))
    if kind in ("status", "duration"):
        if kind == "status":
            bound = {"op": draw.choice(["EQ", "GE", "LE", "NE"]), "value": {"default_value": draw.choice(CODES), "runtime_key": "none"}}
        else:
            bound = draw.choice([{"op": "GE", "value": {"default_value": 0, "runtime_key": "n"}}, {"op": "GE", "value": {"default_value": 60000, "runtime_key": "n"}}, {"op": "LE", "value": {"default_value": 60000, "runtime_key": "n"}}])
        return {f"{'status_code' if kind == 'status' else kind}_filter": {"comparison": bound}}
    if kind == "health":
        return {"not_health_check_filter": {}}
    if kind == "header":
        return {"header_filter": {"header": header_match(draw)}}
    if kind == "flags":
        return {"response_flag_filter": {"flags": draw.some(FLAGS, 4)}}
    if kind == "grpc":
        return {"grpc_status_filter": {"statuses": draw.some(["OK", "UNKNOWN", "UNAVAILABLE", "NOT_FOUND", "INTERNAL"], 3), "exclude": draw.maybe()}}
    if kind == "type":
        return {"log_type_filter": {"types": draw.choice([["DownstreamEnd"], ["DownstreamStart", "UpstreamEnd"]]), "exclude": draw.maybe()}}
    if kind == "runtime":
        return {"runtime_filter": {"runtime_key": "none", "percent_sampled": {"numerator": draw.choice([0, 100])}, "use_independent_randomness": draw.maybe()}}
    if kind == "traceable":
        return {"traceable_filter": {}}
    return {f"{kind}_filter": {"filters": [log_filter(draw, depth + 1) for _ in range(draw.randint(2, 3))]}}


def access_logs(draw):
    """The loggers of a listener beside the one that all have."""
    made = []
    for _ in range(draw.randint(1, 2)):
        form = json_format(draw) if draw.maybe(0.65) else text_format(draw)
        if draw.maybe(0.3):
            form["omit_empty_values"] = True
        config = {"@type": TYPE + "access_loggers.file.v3.FileAccessLog", "path": "@log@", "log_format": form}
        log = {"name": "more", "typed_config": config}
        if draw.maybe(0.6):
            log["filter"] = log_filter(draw)
        made.append(log)
    return made


def local_replies(draw, header_option):
    """How the proxy's own replies are mapped."""
    made = {}
    if draw.maybe(0.6):
        made["mappers"] = []
        for _ in range(draw.randint(1, 3)):
            mapper = {"filter": log_filter(draw)}
            if draw.maybe(0.5):
                mapper["status_code"] = draw.choice([200, 404, 418, 599])
            if draw.maybe(0.5):
                mapper["body"] = {"inline_string": draw.choice(["mapped", ""])}
            if draw.maybe(0.4):
                mapper["headers_to_add"] = [header_option(draw) for _ in range(draw.randint(1, 2))]
            if draw.maybe(0.4):
                mapper["body_format_override"] = body_format(draw)
            made["mappers"].append(mapper)
    if draw.maybe(0.5):
        made["body_format"] = body_format(draw)
    return made


def body_format(draw):
    if draw.maybe():
        made = {"json_format": {f"v{index}": value(draw) for index in range(draw.randint(1, 4))} | {"b": "%LOCAL_REPLY_BODY%"}}
    else:
        made = {"text_format_source": {"inline_string": text(draw) + "%LOCAL_REPLY_BODY%"}}
    if draw.maybe(0.3):
        made["content_type"] = draw.choice(["text/html; charset=UTF-8", "application/x"])
    if draw.maybe(0.3):
        made["omit_empty_values"] = True
    return made
