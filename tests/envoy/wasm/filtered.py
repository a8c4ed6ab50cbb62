"""Callouts to clusters with HTTP filters of their own: what the filters do, by a header of the call that a second guest plays.

The cluster `guarded` has a guest (`up`) and a header mutation behind it, `mutated` the mutation alone. `up` plays the call's
header `x-script-up`; with the calling plugin it shares no VM.
"""

import dataclasses

from script import TOKEN, Out, Out32, Self, pairs, path
from tables import PROPERTIES, CALL_HEADERS

CONTINUE, STOP = 0, 1
HEADER = "x-script-up"
# Clusters with a plugin of their own VM: what traps in one must not show in others.
MORTAL = ["request_headers", "request_body", "response_headers", "response_body", "log", "done"]


@dataclasses.dataclass(frozen=True)
class Scripted:
    """The headers of a call, with a script for the cluster's plugin."""

    script: dict
    more: tuple = ()
    method: str = "GET"

    def filled(self, case, encoded):
        # One piece: how many of several come at once is a matter of moments.
        answer = () if "x-answer" in dict(self.more) else (("x-answer", '{"chunks": ["hello-up"]}'),)
        return pairs(
            (":method", self.method), (":path", "/callout"), (":authority", "guarded"), ("x-case", str(case)),
            (HEADER, encoded(self.script, case).hex()), *self.more, *answer,
        )  # fmt: skip


def call(script, cluster="guarded", body="", trailers="", timeout=3000, more=(), method=None, register=0):
    headers = Scripted(script, tuple(more), method or ("POST" if body else "GET"))
    return ("http_call", cluster, headers, body, trailers, timeout, Out32(TOKEN, register))


REPLY = ("send_local_response", 418, "by_guest", "teapot", pairs(("x-local", "1")), 0xFFFFFFFF)
REQUEST_PHASES = ["request_headers", "request_body", "request_trailers"]
RESPONSE_PHASES = ["response_headers", "response_body", "response_trailers"]
TRAILERS = pairs(("x-t", "call"))
ANSWER_TRAILERS = [("x-answer", '{"chunks": ["hello-up"], "trailers": [["x-t", "1"]]}')]


def cases(add, after):
    """`after` is what the calling plugin looks at when it is answered."""
    # A failure's status stays with the root, which these cases share.
    after = [operation for operation in after if operation[0] != "get_status"]

    def through(id, script, operation=None, told=1, **case):
        turns = {f"http_call_response#{turn}": (0, after) for turn in range(told)}
        operation = operation or call(script)
        add(f"filtered/{id}", apart=True, script={"request_headers": (STOP, [operation]), **turns}, **case)

    def whole(script, **changes):
        """A call with all that there is to see, both ways."""
        return call(script, body="question", more=ANSWER_TRAILERS, **changes)

    through("nothing", {})
    through("mutated", {}, call({}, "mutated"))
    through("mutated-post", {}, whole({}, cluster="mutated"))
    through("codec", {}, call({}, "codec"))
    through("whole", {}, whole({}))
    through("body", {}, call({}, body="question"))
    through("trailers", {}, call({}, body="question", trailers=TRAILERS))
    through("head", {}, call({}, method="HEAD"))
    through("connect", {}, call({}, method="CONNECT"))
    through("try-hang", {}, call({}, "guarded-hang", timeout=150, more=[("x-envoy-upstream-rq-per-try-timeout-ms", "100")]))
    through("try", {}, call({}, more=[("x-envoy-upstream-rq-per-try-timeout-ms", "250"), ("x-answer", '{"delay": 1000}')]))
    through("dead", {}, call({}, "guarded-dead"))
    through("hang", {}, call({}, "guarded-hang", timeout=200))
    through("mutated-dead", {}, call({}, "mutated-dead"))
    through("204", {}, call({}, more=[("x-answer", '{"status": 204}')]))
    through("500", {}, call({}, more=[("x-answer", '{"status": 500, "chunks": ["hello-up"]}')]))
    through("close", {}, call({}, more=[("x-answer", '{"end": "close"}')]))
    through("cut", {}, call({}, more=[("x-answer", '{"end": "cut"}')]), listener={})
    through("slow", {}, call({}, more=[("x-answer", '{"delay": 2500}')], timeout=700))
    through("big", {}, call({}, "mutated", more=[("x-answer", '{"chunks": [20000, 20000]}')]))
    through("no-timeout", {}, call({}, timeout=0))
    # What is seen.
    see = [("get_header_map_pairs", 0, Out()), ("get_header_map_pairs", 1, Out()), ("get_header_map_pairs", 2, Out()), ("get_header_map_pairs", 3, Out())]
    for phase in REQUEST_PHASES + RESPONSE_PHASES:
        through(f"see/{phase}", {}, whole({phase + "#0": (CONTINUE, see)}))
        for group, properties in PROPERTIES.items():
            asked = [("get_property", path(*parts), Out(mode)) for parts, mode in properties]
            through(f"property-{group}/{phase}", {}, whole({phase + "#0": (CONTINUE, asked)}))
    for phase in ("log", "done", "delete"):
        asked = [("get_property", path(*parts), Out()) for parts in (("request", "path"), ("response", "code"), ("xds", "cluster_name"))]
        through(f"property-end/{phase}", {}, whole({phase: (1, [*see, *asked])}))
    # What is changed.
    through("change/request-headers", {"request_headers": (CONTINUE, [
        ("add_header_map_value", 0, "x-req", "guest"), ("replace_header_map_value", 0, ":path", "/callout/changed"),
        ("replace_header_map_value", 0, ":authority", "changed"), ("remove_header_map_value", 0, "x-envoy-internal"),
    ])})  # fmt: skip
    through("change/response-headers", {"response_headers": (CONTINUE, [
        ("add_header_map_value", 2, "x-guest", "1"), ("replace_header_map_value", 2, ":status", "299"), ("remove_header_map_value", 2, "x-up"),
    ])})  # fmt: skip
    through("change/bodies", {}, whole({
        "request_body#0": (CONTINUE, [("set_buffer_bytes", 0, 0, 0xFFFFFFFF, "changed!")]),
        "response_body#0": (CONTINUE, [("set_buffer_bytes", 1, 0, 0xFFFFFFFF, "changed too")]),
    }))  # fmt: skip
    through("change/trailers", {}, whole({
        "request_trailers": (CONTINUE, [("add_header_map_value", 1, "x-u", "guest")]),
        "response_trailers": (CONTINUE, [("add_header_map_value", 3, "x-u", "guest")]),
    }))  # fmt: skip
    through("change/route", {"request_headers": (CONTINUE, [("call_foreign_function", "clear_route_cache", "", Out()), ("set_property", "mine", "value")]), "response_headers": (CONTINUE, [("get_property", "mine", Out())])})
    # What holds back.
    for phase in REQUEST_PHASES + RESPONSE_PHASES:
        number = int(phase.startswith("response"))
        through(f"hold/{phase}", {}, whole({phase: (STOP, [])}, timeout=600))
        through(f"hold-callout/{phase}", {}, whole({
            phase + "#0": (STOP, [("http_call", "callout", CALL_HEADERS, "", "", 2000, Out32(TOKEN, 0))]),
            "http_call_response": (0, [("set_effective_context", Self()), ("continue_stream", number)]),
        }))  # fmt: skip
        through(f"reply-later/{phase}", {}, whole({
            phase + "#0": (STOP, [("http_call", "callout", CALL_HEADERS, "", "", 2000, Out32(TOKEN, 0))]),
            "http_call_response": (0, [("set_effective_context", Self()), REPLY]),
        }))  # fmt: skip
        through(f"reply/{phase}", {}, whole({phase + "#0": (STOP, [REPLY])}))
        through(f"reply-and-on/{phase}", {}, whole({phase + "#0": (CONTINUE, [REPLY])}))
        if phase != "response_trailers":
            for kind in (0, 1):
                through(f"close_stream-{kind}/{phase}", {}, whole({phase + "#0": (STOP, [("close_stream", kind)])}))
    through("reply/get", {"request_headers": (STOP, [REPLY])})
    through("reply/empty", {"request_headers": (STOP, [("send_local_response", 403, "", "", "", 0xFFFFFFFF)])})
    through("reply/head", {}, call({"request_headers": (STOP, [REPLY])}, method="HEAD"))
    through("reply/grpc", {}, call({"request_headers": (STOP, [("send_local_response", 403, "", "no", "", 7)])}, body="question", more=[("content-type", "application/grpc")]))
    through("buffer/request", {}, whole({"request_body#0": (STOP, [("get_buffer_bytes", 0, 0, 100, Out())])}))
    through("buffer/response", {}, whole({"response_body#0": (STOP, [("get_buffer_bytes", 1, 0, 100, Out())])}))
    through("buffer/overflow", {}, call({"response_body": (STOP, [])}, more=[("x-answer", '{"chunks": [700000, 700000, 10]}')]))
    # Calls within calls.
    inner = call({}, timeout=2000, more=[("x-inner", "1")])
    through("within", {"request_headers": (STOP, [inner]), "http_call_response": (0, [("get_header_map_pairs", 6, Out()), ("set_effective_context", Self()), ("continue_stream", 0)])})
    deeper = call({"request_headers": (CONTINUE, [inner])}, timeout=2000)
    through("within-within", {"request_headers": (STOP, [deeper]), "http_call_response": (0, [("get_header_map_value", 6, ":status", Out()), ("set_effective_context", Self()), ("continue_stream", 0)])})
    # The calling stream ends first.
    for phase in ("log", "done"):
        add(f"filtered/from-{phase}", apart=True, script={phase: (1, [whole({})]), "http_call_response": (0, after[:-1])})
    # What traps: its cluster's calls are answered by the failure policy from there on.
    for phase in MORTAL:
        operation = whole({phase: (1 if phase == "done" else 0, [("trap", 0)])}, cluster=f"guarded-{phase}")
        add(f"filtered/trap/{phase}", apart=True, listener={}, script={
            "request_headers": (STOP, [operation]),
            "http_call_response#0": (0, [*after[:-1], whole({}, cluster=f"guarded-{phase}")]),
            "http_call_response#1": (0, after),
        })  # fmt: skip
