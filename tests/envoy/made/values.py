"""Random values, and the small messages that are in all of the others: matchers, fractions, header rules."""

import random

TYPE = "type.googleapis.com/envoy.extensions."

SEGMENTS = ["a", "b", "A", "ab", "a.b", "a-b", "1", "22", "a%20b", "a%2Fb", "a%2fb", "%61", "a;b", ".", "..", "", "a", ""]
HOSTS = ["a.test", "b.a.test", "c-a.test", "pre.x", "pre.fix.y", "A.Test", "other"]
NAMES = ["x-a", "x-b", "x-c", "accept", "cookie", "user-agent", "x-forwarded-host", "x-request-id"]
VALUES = ["", "1", "2", "10", "-3", "one", "ONE", "one,two", "o", "a b", "1.5", "99999999999999999999"]
REGEXES = ["o.*", "[0-9]+", ".*", "one|two", "(?i)one", "a+", "\\d*"]


class Draw(random.Random):
    """Random values, each with its odds."""

    # The further clusters that a listener's routes may choose.
    second = ()

    def maybe(self, odds=0.5):
        return self.random() < odds

    def path(self):
        parts = [self.choice(SEGMENTS) for _ in range(self.choice([0, 1, 1, 2, 2, 3]))]
        return "/" + "/".join(parts)

    def clean_path(self):
        parts = [self.choice(["a", "b", "A", "ab", "a.b", "1", "a%20b"]) for _ in range(self.choice([1, 1, 2, 3]))]
        return "/" + "/".join(parts)

    def some(self, choices, most):
        return self.sample(choices, self.randint(0, min(most, len(choices))))


def string_match(draw):
    kind = draw.choice(["exact", "exact", "prefix", "suffix", "contains", "safe_regex"])
    if kind == "safe_regex":
        return {"safe_regex": {"regex": draw.choice(REGEXES)}}
    value = draw.choice(VALUES)
    if kind != "exact" and not value:
        value = "o"
    match = {kind: value}
    if draw.maybe(0.3):
        match["ignore_case"] = True
    return match


def header_match(draw):
    match = {"name": draw.choice([*NAMES, ":method", ":path", ":authority", "host", ":scheme", "content-type"])}
    kind = draw.choice(["string_match", "string_match", "string_match", "range_match", "present_match", None])
    if match["name"] == "x-request-id" and kind != "present_match":
        # Its value is made up by each proxy.
        match["name"] = "x-a"
    if kind == "string_match":
        match[kind] = string_match(draw)
    elif kind == "range_match":
        match[kind] = {"start": draw.choice([-5, 0, 1]), "end": draw.choice([2, 10, 11])}
    elif kind == "present_match":
        match[kind] = draw.maybe()
    if draw.maybe(0.3):
        match["invert_match"] = True
    if draw.maybe(0.2):
        match["treat_missing_header_as_empty"] = True
    return match


def query_match(draw):
    match = {"name": draw.choice(["q", "r", "a b", "q%20"])}
    kind = draw.choice(["string_match", "present_match", None])
    if kind == "string_match":
        match[kind] = string_match(draw)
    elif kind == "present_match":
        match[kind] = draw.maybe()
    return match


ACTIONS = ["APPEND_IF_EXISTS_OR_ADD", "ADD_IF_ABSENT", "OVERWRITE_IF_EXISTS_OR_ADD", "OVERWRITE_IF_EXISTS"]
FORMATS = [
    "v", "w", "", "%REQ(:path)%", "%REQ(x-a)%", "%REQ(x-none?x-b)%", "%PROTOCOL%", "%RESPONSE_CODE%", "%REQ(:authority)%",
    "a%%b", "%REQ(x-a):2%", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "%UPSTREAM_CLUSTER%", "%ROUTE_NAME%", "%RESP(x-a)%",
    "%REQ(:METHOD)%-%REQ(x-b)%", "%VIRTUAL_CLUSTER_NAME%", "%RESPONSE_FLAGS%", "%METADATA(ROUTE:r:k)%", "%UPSTREAM_HOST%",
    "%RESP(:status)%", "%RESPONSE_CODE_DETAILS%", "%RESPONSE_FLAGS_LONG%", "%TRAILER(x-t)%", "%BYTES_RECEIVED%",
    "%QUERY_PARAM(q)%", "%PATH(NQ:ORIG)%", "%REQ(x-a)%,%REQ(x-b)%", "%LISTENER_NAME%", "%UPSTREAM_PROTOCOL%",
    "%HOSTNAME%", "%DYNAMIC_METADATA(fault:k)%", "%RESP(content-type?x-b)%", "%GRPC_STATUS%",
    "%LOCAL_REPLY_BODY%", "%UPSTREAM_REQUEST_ATTEMPT_COUNT%", "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%", "%ACCESS_LOG_TYPE%",
]  # fmt: skip
HEADERS = ["x-a", "x-b", "x-new", "accept", "cookie", "x-forwarded-for", "cache-control", "set-cookie", "user-agent", "server"]


def header_option(draw, names=HEADERS):
    option = {"header": {"key": draw.choice(names), "value": draw.choice(FORMATS)}}
    if draw.maybe(0.8):
        option["append_action"] = draw.choice(ACTIONS)
    if draw.maybe(0.2):
        option["keep_empty_value"] = True
    return option


def header_rules(draw, owner, most=2):
    for side in ("request", "response"):
        added = [header_option(draw) for _ in range(draw.randint(0, most))]
        if added:
            owner[f"{side}_headers_to_add"] = added
        if draw.maybe(0.2):
            owner[f"{side}_headers_to_remove"] = [draw.choice(["x-a", "X-B", "accept", "server", "date", "x-new", "cookie"])]
