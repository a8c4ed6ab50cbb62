"""The fixed list: every family of host calls in every phase, every action, replies and resets by phase, callouts, traps.

A case: `id`, `listener` (a name of `config.py`, or a dictionary: a listener of its own with a fresh VM, with `old` that of ABI
0.1.0, with `pair` one of two plugins), `script` and
`script2` (of the second plugin of a chain), `method`, `path`, `headers`, `chunks` (texts or numbers of bytes; `None`: no
body), `length` (one body with a content-length), `trailers`, `answer` (see `servers.py`), `then` (a script for a second
request).
"""

import fnmatch
import json

import filtered
from grpc_service import service
from script import (
    CAS, LENGTH, METRIC, PLAIN, QUEUE, SUM, TOKEN, UNSEEN, Iov, Out, Out32, Out64, Reg, Self, Wide, encode, pairs, path,
)  # fmt: skip
from tables import BAD, CALL_HEADERS, CALL_POST, FAMILIES

STREAM = [
    "request_headers", "request_body", "request_trailers", "response_headers", "response_body", "response_trailers",
    "log", "done", "delete",
]  # fmt: skip
TRAFFIC = STREAM[:6]
CONTINUE, STOP = 0, 1
# Families of host calls that `--without` leaves out, and the group of each.
GROUPS = ["grpc", "foreign", "properties"]
# What ends an Envoy 1.40: a second reply while the first is under way, replies and resets at the end of a stream, and to
# go on with a response that has not begun; to ask for the peers of a callout. Envoy does not play these, Plenipo does.
FATAL = [
    "reply/twice/response_*", "reply/*/done", "reply/*/delete", "reply/done/*", "reply/delete/*",
    "continue_stream/1/request_*", "continue_stream/1/http_call_response-stream",
    "filtered/property-peers/*",
    *[f"close_stream/{kind}/{phase}" for kind in (0, 1) for phase in ("response_trailers", "log", "done", "delete")],
]  # fmt: skip
# What the guest cannot do without, and a few more of each kind.
CAPABILITIES = [
    "proxy_on_context_create", "proxy_on_vm_start", "proxy_on_configure", "proxy_on_request_headers", "proxy_on_log",
    "proxy_log", "proxy_get_buffer_bytes", "proxy_get_header_map_value", "proxy_set_effective_context",
    "proxy_get_shared_data", "proxy_add_header_map_value", "proxy_define_metric", "proxy_get_log_level", "fd_write", "clock_res_get",
]  # fmt: skip
RESUME = ("continue_stream", 0)
RESUME_RESPONSE = ("continue_stream", 1)


def call(cluster="callout", headers=CALL_HEADERS, body="", trailers="", timeout=10000, register=0):
    return ("http_call", cluster, headers, body, trailers, timeout, Out32(TOKEN, register))


def full(**changes):
    """A case with everything that there is to see: bodies and trailers both ways."""
    return {
        "chunks": ["first", "second!"],
        "trailers": [("x-t", "request")],
        "headers": [("x-multi", "a"), ("x-multi", "b"), ("x-gone", "g")],
        "answer": {
            "headers": [["x-multi", "c"], ["x-multi", "d"], ["x-gone", "g"]],
            "trailers": [["x-t", "response"]],
        },
        **changes,
    }


def group_of(id):
    if id.startswith(("route/", "upstream/", "filtered/property")):
        # They ask for properties.
        return "properties"
    family = id.rpartition("/")[2]
    starts = {"grpc": "grpc", "foreign": "foreign", "property-": "properties", "set-property": "properties"}
    return next((group for start, group in starts.items() if family.startswith(start)), None)


def fixed():
    cases = []

    def add(id, **case):
        case = {"id": id, "listener": "plain", "script": {}, **case}
        of_root = ("set_tick_period_milliseconds", "declare_property")
        if case["listener"] == "plain" and any(call in repr(case["script"]) for call in of_root):
            # The period is the root's, and so is what it declares: cases at the same time would share it.
            case["listener"] = {}
        case["group"] = group_of(id)
        case["fatal"] = any(fnmatch.fnmatchcase(id, glob) for glob in FATAL)
        cases.append(case)

    # Every family in every phase.
    for family, operations in FAMILIES.items():
        for phase in STREAM:
            add(f"abi/{phase}/{family}", **full(script={phase + "#0": (CONTINUE, operations)}))
        # The root's own callbacks, with the root and then with the stream as effective context.
        for name, before in (("root", []), ("stream", [("set_effective_context", Self())])):
            go_on = [("set_effective_context", Self()), RESUME]
            add(
                f"abi/http_call_response-{name}/{family}",
                **full(
                    script={
                        "request_headers": (STOP, [call()]),
                        "http_call_response#0": (0, [*before, *operations, *go_on]),
                    }
                ),
            )
            add(
                f"abi/tick-{name}/{family}",
                **full(
                    script={
                        "request_headers": (STOP, [("set_tick_period_milliseconds", 1000)]),
                        "tick#0": (0, [*before, *operations, *go_on]),
                    }
                ),
            )
        # Where headers are held for real, with everything still there.
        add(
            f"abi/stopped-body/{family}",
            **full(
                listener="stop",
                script={"request_headers": (STOP, []), "request_body#0": (CONTINUE, operations)},
            ),
        )
        add(
            f"abi/stopped-response-body/{family}",
            **full(
                listener="stop",
                script={"response_headers": (STOP, []), "response_body#0": (CONTINUE, operations)},
            ),
        )
        for phase in ("context_create", "vm_start", "configure"):
            add(f"abi/root-{phase}/{family}", listener={"root": {phase: (1, operations)}})
        # An access logger, which is shown a stream and is not one.
        add(f"abi/logger/{family}", **full(listener={"logger": {"log#0": (0, operations)}}))
        add(f"abi/capabilities/{family}", **full(
            listener={"capabilities": CAPABILITIES}, script={"request_headers": (0, operations), "response_headers": (0, [])}
        ))  # fmt: skip
        add(f"abi/stream-context_create/{family}", listener={"on_create": {"context_create": (0, operations)}})
        add(f"abi/old/{family}", listener="old", **{k: v for k, v in full().items()}, script={
            "request_headers": (CONTINUE, [op for op in operations if op[0] not in ("get_log_level",)]),
        })  # fmt: skip
    # What a guest of 0.1.0 reads of both configurations; its own is a script.
    ask = ("get_configuration", Out(SUM))
    for phase in ("context_create", "vm_start", "configure", "tick#0"):
        begin = {"configure": (1, [("set_tick_period_milliseconds", 20)])} if phase == "tick#0" else {}
        add(f"old/configuration/{phase}", listener={"old": True, "root": {**begin, phase: (1, [ask, ("get_configuration", BAD, BAD)])}})
    for phase in STREAM:
        add(f"old/configuration/{phase}", **full(listener="old", script={phase + "#0": (CONTINUE, [("get_configuration", Out())])}))

    # Every action of every callback, with and without what would resume it.
    for listener in ("plain", "stop", "small"):
        for phase in TRAFFIC:
            for action in (0, 1, 2, 3, 4, 5, 99, 0xFFFFFFFF):
                add(f"action/{listener}/{phase}/{action}", **full(listener=listener, script={phase: (action, [])}))
                add(
                    f"action/{listener}/{phase}#0/{action}",
                    **full(listener=listener, script={phase + "#0": (action, [])}),
                )
                resume = RESUME if phase.startswith("request") else RESUME_RESPONSE
                add(
                    f"resume/{listener}/{phase}#0/{action}",
                    **full(
                        listener=listener,
                        script={
                            phase + "#0": (action, [call()] if action else []),
                            "http_call_response#0": (0, [("set_effective_context", Self()), resume]),
                        },
                    ),
                )
    for phase in ("request_headers", "response_headers"):
        for action in (1, 2, 3, 4):
            # Heads without a body.
            answer = {"status": 204} if phase.startswith("response") else {}
            add(f"action/no-body/{phase}/{action}", script={phase: (action, [])}, answer=answer)
            add(
                f"resume/no-body/{phase}/{action}",
                answer=answer,
                script={
                    phase: (action, [call()]),
                    "http_call_response#0": (
                        0,
                        [("set_effective_context", Self()), RESUME if phase.startswith("request") else RESUME_RESPONSE],
                    ),
                },
            )

    # The head and the body are held, and one call lets both go on.
    for side, resume in (("request", RESUME), ("response", RESUME_RESPONSE)):
        held = {f"{side}_headers": (STOP, []), f"{side}_body": (STOP, []), f"{side}_trailers": (STOP, [])}
        answered = {"http_call_response#0": (0, [("set_effective_context", Self()), resume])}
        for name, changes in {"trailers": full(), "body": {"chunks": ["first", "second!"]}, "one": {"chunks": ["x"], "answer": {"chunks": ["y"]}}}.items():
            add(f"resume/both/{side}/{name}", **{**changes, "listener": "stop", "script": {**held, f"{side}_body#0": (STOP, [call()]), **answered}})
    reply = ("send_local_response", 418, "because of it", "a body", "", 0xFFFFFFFF)
    for action in (0, STOP):
        add(f"resume/both/reply/{action}", listener="stop", script={
            "request_headers": (0, [reply]), "response_headers": (STOP, []), "response_body": (action, [call()]),
            "http_call_response#0": (0, [("set_effective_context", Self()), RESUME_RESPONSE]),
        })  # fmt: skip

    # A request that nothing lets go on is answered for, and that answer is held: while it waits the rest of the request is
    # read, but for what did not fit into the buffer.
    for size in (50, 1500):
        for action in (3, 4):
            add(f"answer/held/{action}/{size}", listener="small", chunks=["0123456789", size], script={
                "request_headers": (action, []), "response_headers": (STOP, [call()]),
                "http_call_response#0": (0, [("set_effective_context", Self()), RESUME_RESPONSE]),
            })  # fmt: skip
            add(f"answer/held/body-{action - 2}/{size}", listener="small", chunks=["0123456789", size], script={
                "request_body": (action - 2, []), "response_headers": (STOP, [call()]),
                "http_call_response#0": (0, [("set_effective_context", Self()), RESUME_RESPONSE]),
            })  # fmt: skip

    # Content-length, no trailers, one chunk, many.
    for shape, changes in {
        "length": {"length": True, "chunks": ["0123456789"], "answer": {"length": True}},
        "no-trailers": {"chunks": ["abc", "def"], "answer": {"chunks": ["ghi", "jkl"]}},
        "one": {"chunks": ["x"], "answer": {"chunks": ["y"]}},
        "many": {"chunks": ["a", "b", "c", "d", "e"], "answer": {"chunks": ["a", "b", "c", "d", "e"]}},
        "empty": {"chunks": [], "answer": {"chunks": []}},
        "head": {"method": "HEAD"},
        "get": {},
        "big": {"chunks": [3000, 3000], "answer": {"chunks": [3000, 3000]}},
    }.items():
        for listener in ("plain", "stop", "small"):
            for phase in ("request_body", "response_body"):
                for action in (0, 1, 2, 3):
                    add(f"shape/{listener}/{shape}/{phase}/{action}", listener=listener, script={phase: (action, [])}, **changes)
                    if action:
                        add(
                            f"shape/{listener}/{shape}/{phase}#0/{action}",
                            listener=listener,
                            script={phase + "#0": (action, [])},
                            **changes,
                        )

    # Replies by phase.
    replies = {
        "plain": ("send_local_response", 418, "because of it", "a body", pairs(("x-reply", "1")), 0xFFFFFFFF),
        "empty": ("send_local_response", 403, "", "", "", 0xFFFFFFFF),
        "grpc": ("send_local_response", 503, "d", "message", "", 14),
        "grpc-17": ("send_local_response", 503, "d", "message", "", 17),
        "type": ("send_local_response", 200, "d", "{}", pairs(("content-type", "application/json")), 0xFFFFFFFF),
    }
    for phase in [*TRAFFIC, "done", "delete"]:
        for name, reply in replies.items():
            for action in (CONTINUE, STOP):
                if name != "plain" and action == STOP:
                    continue
                add(f"reply/{phase}/{name}/{action}", **full(script={phase + "#0": (action, [reply])}))
        add(f"reply/stop/{phase}", **full(listener="stop", script={phase + "#0": (CONTINUE, [replies["plain"]])}))
        add(
            f"reply/held/{phase}",
            **full(
                listener="stop",
                script={"request_headers": (STOP, []), "response_headers": (STOP, []), phase + "#0": (CONTINUE, [replies["plain"]])},
            ),
        )
        add(f"reply/twice/{phase}", **full(script={phase + "#0": (CONTINUE, [replies["plain"], replies["empty"]])}))
        add(
            f"reply/chain-first/{phase}",
            **full(listener="chain", script={phase + "#0": (CONTINUE, [replies["plain"]])}, script2={"log": (0, [])}),
        )
        add(
            f"reply/chain-second/{phase}",
            **full(listener="chain", script2={phase + "#0": (CONTINUE, [replies["plain"]])}, script={"log": (0, [])}),
        )
    for status in (200, 201, 204, 302, 304, 400, 404, 429, 500, 503, 599):
        reply = ("send_local_response", status, "d", "body", "", 0xFFFFFFFF)
        add(f"reply/status/{status}", script={"request_headers": (STOP, [reply])})
    for name, headers in {
        "lying": b"\xff\xff\xff\xff",
        "length": pairs(("content-length", "1")),
        "multi": pairs(("x-a", "1"), ("x-a", "2"), ("set-cookie", "a=1"), ("set-cookie", "b=2")),
        "status": pairs((":status", "222")),
        "upper": pairs(("X-Upper", "1")),
        "server": pairs(("server", "me"), ("date", "then"), ("location", "/x")),
    }.items():
        reply = ("send_local_response", 400, "d", "body", headers, 0xFFFFFFFF)
        add(f"reply/headers/{name}", script={"request_headers": (STOP, [reply])})
    for name, arguments in {
        "details": (400, BAD, 5, "b", "", 0),
        "body": (400, "d", BAD, 5, "", 0),
        "headers": (400, "d", "b", BAD, 5, 0),
    }.items():
        add(f"reply/oob/{name}", script={"request_headers": (CONTINUE, [("send_local_response", *arguments)])})
    add("reply/details", script={
        "request_headers": (STOP, [("send_local_response", 400, "a b\tc\nd\re\x0bf\x0cg", "b", "", 0xFFFFFFFF)]),
        "log": (0, [("get_property", path("response", "code_details"), Out())]),
    })  # fmt: skip
    add("reply/grpc-request", headers=[("content-type", "application/grpc")], script={"request_headers": (STOP, [replies["grpc"]])})
    add("reply/edited", script={
        "request_headers": (STOP, [replies["plain"]]),
        "response_headers": (CONTINUE, [("replace_header_map_value", 2, "x-reply", "edited"), ("add_header_map_value", 2, "x-more", "1")]),
        "response_body": (CONTINUE, [("get_buffer_bytes", 1, 0, 100, Out())]),
    })  # fmt: skip
    add("reply/effective", **full(script={
        "request_headers": (STOP, [call()]),
        "http_call_response": (0, [replies["plain"], ("set_effective_context", Self()), replies["plain"]]),
    }))  # fmt: skip
    add("reply/effective-response", **full(script={
        "response_headers": (STOP, [call()]),
        "http_call_response": (0, [("set_effective_context", Self()), replies["plain"]]),
    }))  # fmt: skip
    add("reply/effective-body", **full(script={
        "response_body#0": (STOP, [call()]),
        "http_call_response": (0, [("set_effective_context", Self()), replies["plain"]]),
    }))  # fmt: skip
    add("reply/and-continue", script={"request_headers": (STOP, [replies["plain"], RESUME])})
    add("reply/continue-first", script={"request_headers": (STOP, [RESUME, replies["plain"]])})

    # Going on and breaking off by phase.
    for name in ("continue_stream", "close_stream"):
        for kind in range(5):
            for phase in STREAM:
                action = STOP if name == "continue_stream" and phase in TRAFFIC else CONTINUE
                add(f"{name}/{kind}/{phase}", **full(script={phase + "#0": (action, [(name, kind)])}))
            for root in ("root", "stream"):
                before = [] if root == "root" else [("set_effective_context", Self())]
                add(
                    f"{name}/{kind}/http_call_response-{root}",
                    **full(
                        script={
                            "request_headers": (STOP, [call()]),
                            "http_call_response#0": (0, [*before, (name, kind)]),
                        }
                    ),
                )
                add(
                    f"{name}/{kind}/response-call-{root}",
                    **full(
                        script={
                            "response_headers": (STOP, [call()]),
                            "http_call_response#0": (0, [*before, (name, kind)]),
                        }
                    ),
                )
    add("continue/twice", script={
        "request_headers": (STOP, [call()]),
        "http_call_response": (0, [("set_effective_context", Self()), RESUME, RESUME]),
    })  # fmt: skip
    add("continue/late", **full(script={
        "request_headers": (CONTINUE, [call()]),
        "http_call_response": (0, [("set_effective_context", Self()), RESUME]),
    }))  # fmt: skip

    # Callouts and what becomes of them.
    after = [
        ("get_status", Out32(), Out()),
        ("get_header_map_pairs", 6, Out()),
        ("get_header_map_value", 6, ":status", Out()),
        ("get_header_map_size", 6, Out32()),
        ("get_header_map_pairs", 7, Out()),
        ("get_buffer_status", 4, Out32(), Out32()),
        ("get_buffer_bytes", 4, 0, 200, Out()),
        ("set_effective_context", Self()),
        ("get_header_map_value", 0, ":path", Out()),
        ("get_buffer_bytes", 4, 0, 5, Out()),
        RESUME,
    ]
    outcomes = {
        "get": call(),
        "post": call(headers=CALL_POST, body="question"),
        "trailers": call(headers=CALL_POST, body="question", trailers=pairs(("x-t", "call"))),
        "dead": call(cluster="dead"),
        "hang": call(cluster="hang", timeout=150),
        "empty": call(cluster="empty"),
        "no-timeout": call(timeout=0),
        "more-headers": call(headers=pairs((":method", "GET"), (":path", "/callout?q"), (":authority", "a"), (":scheme", "https"), ("x-case", "@case@"), ("x-a", "1"), ("x-a", "2"), ("host", "other"))),
    }  # fmt: skip
    for key, answer in {
        "500": {"status": 500},
        "length": {"length": True},
        "204": {"status": 204},
        "trailers": {"trailers": [["x-t", "1"], ["x-u", "2"]]},
        "close": {"end": "close"},
        "reset": {"end": "reset"},
        "cut": {"end": "cut"},
        "slow": {"delay": 2500},
        "big": {"chunks": [20000, 20000]},
        "headers": {"headers": [["x-multi", "1"], ["x-multi", "2"]]},
    }.items():
        headers = pairs((":method", "GET"), (":path", "/callout"), (":authority", "c"), ("x-case", "@case@"), ("x-answer", json.dumps(answer)))
        outcomes["answer-" + key] = call(headers=headers, timeout=1500)
    for key, cluster, timeout, answer, asked in [
        ("timeout", "hang", 10000, {}, [("upstream-rq-timeout-ms", "150")]),
        ("timeout-long", "callout", 100, {"delay": 400}, [("upstream-rq-timeout-ms", "5000")]),
        ("timeout-none", "callout", 100, {"delay": 400}, [("upstream-rq-timeout-ms", "0")]),
        ("timeout-unread", "hang", 150, {}, [("upstream-rq-timeout-ms", "soon")]),
        ("try", "callout", 10000, {"delay": 1000}, [("upstream-rq-per-try-timeout-ms", "250")]),
        ("try-hang", "hang", 150, {}, [("upstream-rq-per-try-timeout-ms", "100")]),
        ("try-hedged", "callout", 10000, {"delay": 600}, [("upstream-rq-per-try-timeout-ms", "250"), ("hedge-on-per-try-timeout", "true")]),
        ("twice", "callout", 10000, {"delay": 400}, [("upstream-rq-timeout-ms", "50"), ("upstream-rq-timeout-ms", "60")]),
        ("spaced", "hang", 10000, {}, [("upstream-rq-timeout-ms", " 150 ")]),
        ("try-longer", "callout", 10000, {}, [("upstream-rq-per-try-timeout-ms", "20000")]),
        ("try-alone", "callout", 0, {}, [("upstream-rq-per-try-timeout-ms", "20000")]),
        ("alternative", "hang", 150, {}, [("upstream-rq-timeout-alt-response", "1")]),
        ("retries", "callout", 10000, {}, [("retry-on", "5xx"), ("retry-grpc-on", "internal"), ("max-retries", "3"), ("retriable-status-codes", "503"), ("retriable-header-names", "x-a")]),
        ("others", "callout", 10000, {}, [("hedge-on-per-try-timeout", "true"), ("upstream-alt-stat-name", "a"), ("expected-rq-timeout-ms", "5"), ("internal", "false"), ("attempt-count", "7")]),
    ]:  # fmt: skip
        asked = [("x-envoy-" + name, value) for name, value in asked]
        headers = pairs((":method", "GET"), (":path", "/callout"), (":authority", "c"), ("x-case", "@case@"), ("x-answer", json.dumps(answer)), *asked)
        outcomes["asks-" + key] = call(cluster, headers, timeout=timeout)
    for key, cluster, method, more in [
        ("dead-head", "dead", "HEAD", []), ("head", "callout", "HEAD", []),
        ("dead-grpc", "dead", "POST", [("content-type", "application/grpc")]),
        ("hang-grpc", "hang", "POST", [("content-type", "application/grpc+proto")]),
        ("dead-grpc-web", "dead", "POST", [("content-type", "application/grpc-web")]),
        ("joined", "callout", "GET", [("accept", "a"), ("accept", "b"), ("content-type", "c"), ("content-type", "d"), ("cookie", "e"), ("cookie", "f"), ("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "2.2.2.2")]),
    ]:  # fmt: skip
        headers = pairs((":method", method), (":path", "/callout"), (":authority", "c"), ("x-case", "@case@"), *more)
        outcomes[key] = call(cluster, headers, timeout=150 if cluster == "hang" else 10000)
    outcomes["connect"] = call(headers=pairs((":method", "CONNECT"), (":path", "/callout"), (":authority", "c"), ("x-case", "@case@")))
    for name, operation in outcomes.items():
        # The status of a failed call stays with the root.
        own = {"listener": {}} if name == "answer-cut" else {}
        add(f"call/{name}", script={"request_headers": (STOP, [operation]), "http_call_response": (0, after)}, **own)
    cut = outcomes["answer-cut"]
    add("call/failed-then-answered", listener={}, script={
        "request_headers": (STOP, [cut]),
        "http_call_response#0": (0, [("get_status", Out32(), Out()), call()]),
        "http_call_response#1": (0, after),
    })  # fmt: skip
    add("call/two", script={
        "request_headers": (STOP, [call(register=0), call(headers=CALL_POST, register=1)]),
        "http_call_response#0": (0, [("get_header_map_value", 6, ":status", Out())]),
        "http_call_response#1": (0, after),
    })  # fmt: skip
    add("call/chained", script={
        "request_headers": (STOP, [call()]),
        "http_call_response#0": (0, [call(headers=CALL_POST)]),
        "http_call_response#1": (0, after),
    })  # fmt: skip
    for phase in STREAM:
        add(f"call/from-{phase}", **full(script={phase + "#0": (CONTINUE, [call()]), "http_call_response": (0, after[:-1])}))
    add("call/on-create", listener={"on_create": {"context_create": (0, [call()])}})

    filtered.cases(add, after)

    # Header maps: forms that the others do not have.
    whole = [(":method", "PUT"), (":path", "/set?x=1"), (":authority", "set.test"), (":scheme", "http"), ("x-case", "@case@")]
    for name, entries in {
        "whole": [*whole, ("x-a", "1"), ("x-a", "2")],
        "no-method": whole[1:],
        "no-path": [whole[0], *whole[2:]],
        "no-authority": [*whole[:2], *whole[3:]],
        "no-scheme": [*whole[:3], *whole[4:]],
        "none": [],
        "host": [*whole[:2], ("host", "by-host.test"), *whole[3:]],
        "upper": [*whole, ("X-Upper", "V")],
    }.items():
        add(f"headers/set-request/{name}", script={"request_headers": (0, [
            ("set_header_map_pairs", 0, pairs(*entries)),
            ("get_header_map_pairs", 0, Out()),
            ("get_header_map_size", 0, Out32()),
        ])})  # fmt: skip
    for name, value in {"lying": b"\xff\xff\xff\xff", "short": b"\x01\x00\x00\x00", "trailing": pairs(*whole) + b"x", "count-0": pairs()}.items():
        add(f"headers/set-bytes/{name}", script={"request_headers": (0, [("set_header_map_pairs", 0, value)])})
        add(f"headers/set-response-bytes/{name}", script={"response_headers": (0, [("set_header_map_pairs", 2, value)])})
        add(f"headers/set-trailer-bytes/{name}", **full(script={"request_trailers": (0, [("set_header_map_pairs", 1, value)])}))
    for name, entries in {"whole": [(":status", "202"), ("x-a", "1")], "no-status": [("x-a", "1")]}.items():
        add(f"headers/set-response/{name}", **full(script={"response_headers": (0, [("set_header_map_pairs", 2, pairs(*entries)), ("get_header_map_pairs", 2, Out())])}))
    for number, phase, name in ((0, "request_headers", "request"), (2, "response_headers", "response")):
        for header, value in [
            (":path", "/other"), (":method", "POST"), (":authority", "other.test"), ("host", "other.test"), (":scheme", "https"),
            (":status", "201"), (":status", "404"), (":nosuch", "x"), ("x-route", "b"), ("user-agent", "me"), ("cookie", "a=1"),
            ("set-cookie", "a=1"), ("te", "trailers"), ("content-type", "a/b"), ("accept", "x"), ("via", "x"),
            ("x-forwarded-for", "1.2.3.4"), ("x-request-id", "rid"), ("server", "srv"), ("date", "dat"), ("etag", "e"),
            ("x-envoy-upstream-rq-timeout-ms", "2000"), ("grpc-status", "3"), ("location", "/l"), ("vary", "v"),
            ("x-forwarded-proto", "https"), ("authorization", "z"), ("x-\x80", "v"), ("x-value", "\x80\xff"), ("x-tab", "a\tb"),
        ]:  # fmt: skip
            for call_name in ("add", "replace"):
                add(f"headers/{call_name}-{name}/{header.encode('unicode_escape').decode()}={value.encode('unicode_escape').decode()}", **full(script={phase: (0, [
                    (f"{call_name}_header_map_value", number, header, value),
                    (f"{call_name}_header_map_value", number, header, value),
                    ("get_header_map_value", number, header, Out()),
                    ("get_header_map_size", number, Out32()),
                ])}))  # fmt: skip
        for header in (":path", ":method", ":authority", "host", ":scheme", ":status", "x-multi", "X-Multi", "content-length", "transfer-encoding", "user-agent"):
            add(f"headers/remove-{name}/{header}", **full(script={phase: (0, [
                ("remove_header_map_value", number, header),
                ("get_header_map_value", number, header, Out()),
                ("get_header_map_size", number, Out32()),
            ])}))  # fmt: skip
        for header, value in [("x-crlf", "a\r\nb: c"), ("x-nul", "a\0b"), ("bad name", "v"), ("", "v"), ("x\n", "v")]:
            shown = header.encode("unicode_escape").decode()
            add(f"headers/invalid-{name}/{shown}", **full(script={phase: (0, [
                ("add_header_map_value", number, header, value),
                ("get_header_map_value", number, header, Out()),
            ])}))  # fmt: skip
    for method in ("GE T", ""):
        add(f"headers/method/{method}", script={"request_headers": (0, [("replace_header_map_value", 0, ":method", method)])})
    for value in ("", "no-slash", "/sp ace", "/a?b=c&d", "http://abs.test/x"):
        add(f"headers/path/{value}", script={"request_headers": (0, [("replace_header_map_value", 0, ":path", value)])})
    for value in ("100", "101", "199", "204", "304", "600", "999", "1000", "abc", "", "20"):
        add(f"headers/status/{value}", script={"response_headers": (0, [("replace_header_map_value", 2, ":status", value)])})
    add("headers/trailers-made", chunks=["abc"], answer={"chunks": ["x"]}, script={
        "request_body#0": (0, [("add_header_map_value", 1, "x-early", "1")]),
        "request_body#1": (0, [("add_header_map_value", 1, "x-made", "1"), ("get_header_map_pairs", 1, Out())]),
        "response_body#0": (0, [("add_header_map_value", 3, "x-early", "1")]),
        "response_body#1": (0, [("add_header_map_value", 3, "x-made", "1"), ("get_header_map_pairs", 3, Out())]),
    })  # fmt: skip
    add("headers/trailers-read", chunks=["abc"], answer={"chunks": ["x"]}, script={
        "request_body#1": (0, [("get_header_map_pairs", 1, Out())]),
        "response_body#1": (0, [("get_header_map_pairs", 3, Out())]),
    })  # fmt: skip
    for kind, phase in ((1, "request_trailers"), (3, "response_trailers")):
        add(f"headers/{phase}", **full(script={phase: (0, [
            ("add_header_map_value", kind, "x-more", "1"),
            ("replace_header_map_value", kind, "x-t", "new"),
            ("get_header_map_pairs", kind, Out()),
        ])}))  # fmt: skip
        add(f"headers/{phase}-removed", **full(script={phase: (0, [("remove_header_map_value", kind, "x-t")])}))
    for kind, phase in ((0, "request_headers"), (2, "response_headers")):
        # The order of what is left: a field that is replaced goes to the end, with others in theirs.
        for name, change in {
            "replaced": ("replace_header_map_value", kind, "x-multi", "new"),
            "first-replaced": ("replace_header_map_value", kind, "x-first", "new"),
            "last-replaced": ("replace_header_map_value", kind, "x-last", "new"),
            "removed": ("remove_header_map_value", kind, "x-multi"),
        }.items():
            names = [("add_header_map_value", kind, "x-last", "l")]
            add(f"headers/order/{phase}/{name}", headers=[("x-first", "f"), ("x-multi", "a"), ("x-multi", "b"), ("x-second", "s")], answer={
                "headers": [["x-first", "f"], ["x-multi", "c"], ["x-multi", "d"], ["x-second", "s"]],
            }, script={phase: (0, [*names, change, ("get_header_map_pairs", kind, Out())])})  # fmt: skip
        apart = [("x-multi", "a"), ("x-second", "s"), ("x-multi", "b")]
        add(f"headers/order/{phase}/values-apart", headers=apart, answer={"headers": apart}, script={phase: (0, [("get_header_map_pairs", kind, Out())])})
    add("headers/order/pseudo", script={"request_headers": (0, [
        ("replace_header_map_value", 0, ":path", "/other"), ("get_header_map_pairs", 0, Out()),
        ("remove_header_map_value", 0, ":authority"), ("add_header_map_value", 0, ":authority", "other"), ("get_header_map_pairs", 0, Out()),
    ])})  # fmt: skip

    # Bodies.
    for kind, phase, number in ((0, "request", 0), (1, "response", 2)):
        drop_length = ("remove_header_map_value", number, "content-length")
        for start, length, value in [(0, 0, "<<"), (0, 3, "ABC"), (0, 1000, "all"), (1000, 0, ">>"), (0, 1000, ""), (2, 1, "no")]:
            for action in (0, 1):
                add(f"body/{phase}/{start}-{length}-{value}/{action}", **full(script={
                    f"{phase}_headers": (0, [drop_length]),
                    f"{phase}_body": (action, [
                        ("set_buffer_bytes", kind, start, length, value),
                        ("get_buffer_bytes", kind, 0, 1000, Out()),
                        ("get_buffer_status", kind, Out32(), Out32()),
                    ]),
                    f"{phase}_trailers": (0, [("get_buffer_bytes", kind, 0, 1000, Out()), ("set_buffer_bytes", kind, 0, 0, "T")]),
                }))  # fmt: skip
        for length in (True, False):
            add(f"body/{phase}/gather/{length}", chunks=["one", "two", "three"], length=length, answer={"chunks": ["one", "two", "three"], "length": length}, script={
                f"{phase}_headers": (0, [drop_length]),
                f"{phase}_body": (1, [("get_buffer_bytes", kind, 0, 1000, Out())]),
                f"{phase}_body#3": (0, [("set_buffer_bytes", kind, 0, 1000, "replaced")]),
            })  # fmt: skip
        # A call while the body is held; then it is changed from outside of its callback.
        add(f"body/{phase}/held", **full(script={
            f"{phase}_body#0": (1, [call()]),
            f"{phase}_body": (1, []),
            f"{phase}_trailers": (1, []),
            "http_call_response": (0, [
                ("set_effective_context", Self()),
                ("get_buffer_bytes", kind, 0, 1000, Out(1)),
                ("set_buffer_bytes", kind, 0, 0, "held:"),
                ("continue_stream", kind),
            ]),
        }))  # fmt: skip
    # What came goes on, and cannot be seen any more; what was kept before can.
    gone = [("get_buffer_bytes", 0, 0, 100, Out()), ("get_buffer_status", 0, Out32(), Out32()), ("set_buffer_bytes", 0, 0, 0, "<")]
    for action in (1, 2):
        add(f"body/gone-on/{action}", **full(script={"request_body#0": (action, [RESUME, *gone])}))
    add("body/gone-on/kept", **full(script={"request_body#0": (1, []), "request_body#1": (1, [RESUME, *gone])}))
    add("body/gone-on/response", **full(script={"response_body#0": (1, [RESUME_RESPONSE, ("get_buffer_bytes", 1, 0, 100, Out())])}))
    add("body/emptied-at-once", chunks=["abc", "def"], script={"request_body": (0, [("set_buffer_bytes", 0, 0, 1000, "")])})

    # Routes.
    for name, operations in {
        "header": [("add_header_map_value", 0, "x-route", "b")],
        "path": [("replace_header_map_value", 0, ":path", "/direct")],
        "none": [("replace_header_map_value", 0, ":path", "/none")],
        "cleared": [("call_foreign_function", "clear_route_cache", "", Out())],
        "dead": [("replace_header_map_value", 0, ":path", "/dead")],
        "redirect": [("replace_header_map_value", 0, ":path", "/redirect")],
    }.items():
        add(f"route/{name}", script={
            "request_headers": (0, [("get_property", path("xds", "route_name"), Out()), *operations, ("get_property", path("xds", "route_name"), Out()), ("get_property", path("xds", "cluster_name"), Out())]),
            "log": (0, [("get_property", path("xds", "route_name"), Out()), ("get_property", path("response", "code_details"), Out()), ("get_property", path("response", "flags"), Out())]),
        })  # fmt: skip
    for target in ("/direct", "/none", "/dead", "/redirect", "/hang", "/empty"):
        add(f"route/to{target}", path=target, script={"log": (0, [
            ("get_header_map_pairs", 2, Out()), ("get_property", path("response", "code_details"), Out()), ("get_property", path("response", "flags"), Out()),
            ("get_property", path("upstream", "transport_failure_reason"), Out(1)), ("get_header_map_value", 0, ":path", Out()),
        ])})  # fmt: skip
    for name, answer in {"close": {"end": "close"}, "reset": {"end": "reset"}, "cut": {"end": "cut"}, "304": {"status": 304}, "500": {"status": 500}}.items():
        add(f"upstream/{name}", answer=answer, script={"log": (0, FAMILIES["property-response"]), "response_body": (1, [])} if name == "cut" else {"log": (0, FAMILIES["property-response"])})

    # Two plugins.
    for listener in ("chain", "pair"):
        add(f"two/{listener}/order", **full(listener=listener, script={"log": (0, [])}, script2={"log": (0, [])}))
        for first in ("script", "script2"):
            other = "script2" if first == "script" else "script"
            add(f"two/{listener}/{first}/edits", **full(listener=listener, **{
                first: {"request_headers": (0, [("add_header_map_value", 0, "x-from", first)]), "response_headers": (0, [("add_header_map_value", 2, "x-from", first)]), "request_body": (0, [("set_buffer_bytes", 0, 0, 0, "1")]), "response_body": (0, [("set_buffer_bytes", 1, 0, 0, "1")])},
                other: {"request_headers": (0, [("get_header_map_value", 0, "x-from", Out())]), "response_headers": (0, [("get_header_map_value", 2, "x-from", Out())]), "request_body": (0, [("get_buffer_bytes", 0, 0, 100, Out())]), "response_body": (0, [("get_buffer_bytes", 1, 0, 100, Out())])},
            }))  # fmt: skip
            for phase in TRAFFIC:
                for action in (1, 2, 3, 4):
                    resume = RESUME if phase.startswith("request") else RESUME_RESPONSE
                    add(f"two/{listener}/{first}/{phase}/{action}", **full(listener=listener, **{
                        first: {phase + "#0": (action, [call()]), "http_call_response": (0, [("set_effective_context", Self()), resume])},
                        other: {"log": (0, [])},
                    }))  # fmt: skip
            add(f"two/{listener}/{first}/close", **full(listener=listener, **{first: {"request_headers": (0, [("close_stream", 0)])}, other: {"log": (0, [])}}))
            add(f"two/{listener}/{first}/state", **full(listener=listener, **{
                first: {"request_headers": (0, [("set_property", "shared", "s"), ("set_shared_data", "@case@.two", "d", 0), ("register_shared_queue", "@case@.two", Out32(QUEUE, 0)), ("enqueue_shared_queue", 99999, "x")])},
                other: {"request_body": (0, [("get_property", "shared", Out()), ("get_shared_data", "@case@.two", Out(), Out32(2, 1)), ("resolve_shared_queue", "", "@case@.two", Out32(QUEUE, 0))])},
            }))  # fmt: skip

    # A stream that an access logger answers, closes or has go on.
    for name, operations in {
        "reply": [("send_local_response", 418, "because of it", "a body", "", 0xFFFFFFFF)],
        "close": [("close_stream", 0), ("close_stream", 1)],
        "resume": [RESUME, RESUME_RESPONSE],
        "route": [("call_foreign_function", "clear_route_cache", "", Out()), ("get_property", path("xds", "route_name"), Out())],
        "state": [("set_property", "mine", "logger's"), ("get_property", "mine", Out()), ("get_property", "connection_id", Out()), ("call_foreign_function", "set_envoy_filter_state", b"\x0a\x0cenvoy.string\x12\x01v", Out()), ("get_property", path("connection", "id"), Out(UNSEEN))],
    }.items():
        add(f"logger/{name}", **full(listener={"logger": {"log#0": (0, operations)}}))

    # One name of several kinds, and long names.
    add("metrics/kinds", script={"request_headers": (0, [
        *[("define_metric", kind, "c@case@.kinds", Out32(METRIC, kind)) for kind in (0, 1, 2)],
        ("increment_metric", _reg(0), Wide(2)), ("record_metric", _reg(1), Wide(7)),
        ("get_metric", _reg(0), Out64()), ("get_metric", _reg(1), Out64()),
    ])})  # fmt: skip
    add("metrics/gauge-first", script={"request_headers": (0, [
        *[("define_metric", kind, "c@case@.kinds", Out32(METRIC, kind)) for kind in (1, 0)],
        ("increment_metric", _reg(0), Wide(2)), ("record_metric", _reg(1), Wide(7)),
    ])})  # fmt: skip
    for length in (1100, 5000):
        name = "c@case@." + "n" * length
        add(f"metrics/long/{length}", script={"request_headers": (0, [
            ("define_metric", 0, name, Out32(METRIC, 0)), ("increment_metric", _reg(0), Wide(2)), ("get_metric", _reg(0), Out64()),
        ])})  # fmt: skip

    # One VM, and what belongs to one of its root contexts alone.
    add("two/roots/grpc-token", listener={"pair": True}, script={
        "request_headers": (STOP, [("grpc_stream", "grpc", "svc", "held", pairs(("x-case", "@case@"), ("x-n", "1")), Out32(PLAIN, 0)), call()]),
        "http_call_response": (0, [("grpc_send", Reg(0), "mine", 0), ("set_effective_context", Self()), RESUME]),
        "response_headers": (0, [("grpc_close", Reg(0)), ("grpc_cancel", Reg(0))]),
    }, script2={
        "request_headers": (0, [
            *[(f"grpc_{name}", 6, *more) for name, more in (("send", ("not mine", 1)), ("close", ()), ("cancel", ()))],
            *[(f"grpc_{name}", 5, *more) for name, more in (("send", ("not mine", 1)), ("close", ()), ("cancel", ()))],
        ]),
    })  # fmt: skip
    add("two/roots/status", listener={"pair": True}, script={
        "request_headers": (STOP, [cut]),
        "http_call_response": (0, [("get_status", Out32(), Out()), ("set_effective_context", Self()), RESUME]),
        "response_headers": (0, [("get_status", Out32(), Out())]),
    }, script2={"request_headers": (0, [("get_status", Out32(), Out())]), "log": (0, [("get_status", Out32(), Out())])})  # fmt: skip

    # Queues tell their owner: after what is under way when a message is put there, of another plugin too.
    dead = ("grpc_stream", service("grpcdead"), "svc", "unary", pairs(("x-case", "@case@"), ("x-n", "0")), Out32(TOKEN, 1))
    add("queue/beside-grpc", listener="chain", script={
        "response_headers": (0, [("register_shared_queue", "@case@.beside", Out32(QUEUE, 0)), ("enqueue_shared_queue", _reg(0), "item")]),
        "queue_ready": (0, [("dequeue_shared_queue", _reg(0), Out())]),
    }, script2={
        "response_headers": (3, [dead, ("grpc_send", _reg(1), "x", 1)]),
        "grpc_initial": (0, [("set_effective_context", Self()), ("continue_stream", 1)]),
        "grpc_trailing": (0, []),
        "grpc_close": (0, []),
    })  # fmt: skip
    add("queue/ready", script={
        "request_headers": (STOP, [("register_shared_queue", "@case@.ready", Out32(QUEUE, 0)), ("enqueue_shared_queue", _reg(0), "item")]),
        "queue_ready#0": (0, [("dequeue_shared_queue", _reg(0), Out()), ("set_effective_context", Self()), RESUME]),
    })  # fmt: skip
    add("queue/ready-twice", script={
        "request_headers": (STOP, [("register_shared_queue", "@case@.ready", Out32(QUEUE, 0)), ("enqueue_shared_queue", _reg(0), "one"), ("enqueue_shared_queue", _reg(0), "two")]),
        "queue_ready#0": (0, [("dequeue_shared_queue", _reg(0), Out())]),
        "queue_ready#1": (0, [("dequeue_shared_queue", _reg(0), Out()), ("dequeue_shared_queue", _reg(0), Out()), ("set_effective_context", Self()), RESUME]),
    })  # fmt: skip
    add("tick/three", script={
        "request_headers": (STOP, [("set_tick_period_milliseconds", 15)]),
        "tick#0": (0, []), "tick#1": (0, []),
        "tick#2": (0, [("set_effective_context", Self()), ("get_header_map_value", 0, ":path", Out()), RESUME]),
    })  # fmt: skip

    # Traps, each in a VM of its own; then another request.
    trap = ("trap", 0)
    after_trap = {"log": (0, [])}
    for phase in STREAM:
        add(f"trap/closed/{phase}", **full(listener={"policy": "FAIL_CLOSED"}, script={phase + "#0": (0, [trap])}, then=after_trap))
        for policy in ("FAIL_OPEN", "fail_open", "FAIL_RELOAD"):
            if phase in ("request_trailers", "response_trailers", "done", "delete"):
                continue
            add(f"trap/{policy}/{phase}", **full(listener={"policy": policy}, script={phase + "#0": (0, [trap])}, then=after_trap))
    # What nobody asks for is not given: the allocator is not called, and nothing is written to where null points to.
    add("foreign/null", listener={"policy": "FAIL_CLOSED"}, script={"request_headers": (0, [
        ("malloc", 4), ("call_foreign_function", "compress", "nobody asks", 0, 0), ("malloc", 0),
        ("set_shared_data", "@case@.null", 0, 8, 0), ("get_shared_data", "@case@.null", Out(), Out32(CAS, 0)),
    ])}, then=after_trap)  # fmt: skip
    for phase in ("http_call_response", "tick"):
        wait = call() if phase == "http_call_response" else ("set_tick_period_milliseconds", 1000)
        start = {"request_headers": (STOP, [wait])}
        add(f"trap/closed/{phase}", **full(listener={"policy": "FAIL_CLOSED"}, script={**start, phase + "#0": (0, [trap])}, then=after_trap))
    for kind in (1, 2, 3):
        add(f"trap/kind-{kind}", listener={"policy": "FAIL_CLOSED"}, script={"request_headers": (0, [("trap", kind)])}, then=after_trap)
    for mode in (1, 2, 3, 4, 5):
        add(f"trap/malloc-{mode}", **full(listener={"policy": "FAIL_CLOSED"}, script={
            "request_headers": (0, [("malloc", mode), ("get_header_map_value", 0, ":path", Out()), ("get_header_map_pairs", 0, Out(1)), ("get_property", path("request", "path"), Out()), ("malloc", 0), ("get_header_map_value", 0, ":path", Out())]),
        }, then=after_trap))  # fmt: skip
    # Names are spelled as one likes.
    show = [("get_header_map_pairs", 0, Out(LENGTH)), ("get_property", path("request", "scheme"), Out())]
    spelled = {
        "host": [("replace_header_map_value", 0, "Host", "b.test"), ("get_header_map_value", 0, "HOST", Out()), *show],
        "authority": [("add_header_map_value", 0, ":Authority", "c.test"), ("get_header_map_value", 0, ":authority", Out()), *show],
        "path": [("replace_header_map_value", 0, ":Path", "/spelled"), ("get_header_map_value", 0, ":path", Out()), *show],
        "method": [("replace_header_map_value", 0, ":METHOD", "PUT"), ("get_header_map_value", 0, ":Method", Out()), *show],
        "gone": [("remove_header_map_value", 0, "X-Gone"), ("replace_header_map_value", 0, "X-Multi", "z"), *show],
        "pairs": [("set_header_map_pairs", 0, pairs((":Method", "GET"), (":PATH", "/p"), ("Host", "d.test"), (":scheme", "http"), ("X-Forwarded-Proto", "http"), ("X-Case", "@case@"), ("X-A", "1"))), *show],
    }  # fmt: skip
    for name, operations in spelled.items():
        add(f"spelled/request/{name}", script={"request_headers": (0, operations)}, headers=[("x-gone", "g"), ("x-multi", "a")])
    for phase, kind in (("response_headers", 2), ("response_trailers", 3)):
        add(f"spelled/{phase}", **full(script={f"{phase}#0": (0, [
            *[("replace_header_map_value", kind, ":Status", "201")][: kind == 2], ("replace_header_map_value", kind, "X-Multi", "z"),
            ("add_header_map_value", kind, "X-New", "n"), ("remove_header_map_value", kind, "X-T"), ("get_header_map_value", kind, "X-NEW", Out()),
            ("get_header_map_pairs", kind, Out(0)),
        ])}))  # fmt: skip
    for name, more in {
        "host": [(":method", "GET"), (":path", "/callout"), ("Host", "callout")],
        "upper": [(":Method", "GET"), (":PATH", "/callout"), (":Authority", "callout"), ("X-Up", "1")],
        "two-paths": [(":method", "GET"), (":path", "/callout"), (":path", "/b"), (":authority", "callout")],
        "empty-path": [(":method", "GET"), (":path", "/callout"), (":path", ""), (":authority", "callout")],
        "path-after-empty": [(":method", "GET"), (":path", ""), (":path", "/callout"), (":authority", "callout")],
        "host-after-empty": [(":method", "GET"), (":path", "/callout"), (":authority", ""), ("Host", "callout")],
        "ftp": [(":method", "GET"), (":scheme", "ftp"), (":path", "/callout"), (":authority", "callout")],
    }.items():
        add(f"spelled/callout/{name}", script={
            "request_headers": (STOP, [call(headers=pairs(*more, ("x-case", "@case@")))]),
            "http_call_response": (0, [("get_header_map_value", 6, ":Status", Out()), ("set_effective_context", Self()), RESUME]),
        })  # fmt: skip
    # A callout's answer is shown to the root that it is for, and to its streams.
    look = [("get_header_map_value", 6, ":status", Out()), ("get_header_map_size", 6, Out32()), ("get_buffer_bytes", 4, 0, 3, Out())]
    around = [op for root in (1, 2, 3) for op in (("set_effective_context", root), *look)]
    add("call/other-root", listener="pair", script={
        "request_headers": (STOP, [call()]), "http_call_response": (0, [*around, ("set_effective_context", Self()), *look, RESUME]),
    })  # fmt: skip
    for name, target in {"nosuch": "nosuch", "good": service("grpc")}.items():
        add(f"grpc/token-nowhere/{name}", script={"request_headers": (0, [("grpc_call", target, "svc", "echo", "", "ping", 1000, BAD)])})
    for name, value in {"ftp": "ftp", "empty": "", "upper": "HTTP", "https": "https", "odd": "a b"}.items():
        add(f"scheme/{name}", script={"request_headers": (0, [("replace_header_map_value", 0, ":scheme", value), ("get_header_map_value", 0, ":scheme", Out()), *show]), "log": (0, show)})
        add(f"scheme/added-{name}", script={"request_headers": (0, [("add_header_map_value", 0, ":scheme", value), ("get_header_map_value", 0, ":scheme", Out()), *show])})
        add(f"scheme/chain-{name}", listener="chain", script={"request_headers": (0, [("replace_header_map_value", 0, ":scheme", value)])}, script2={"request_headers": (0, [("get_header_map_value", 0, ":scheme", Out()), *show])})
    add("scheme/removed", listener="chain", script={"request_headers": (0, [("remove_header_map_value", 0, ":scheme"), *show]), "log": (0, show)}, script2={"request_headers": (0, show)})
    add("scheme/set-without", listener="chain", script={"request_headers": (0, [
        ("set_header_map_pairs", 0, pairs((":method", "GET"), (":path", "/p"), (":authority", "d.test"), ("x-forwarded-proto", "http"), ("x-case", "@case@"))),
    ])}, script2={"request_headers": (0, show)})  # fmt: skip
    for name, fields in {
        "content-type": [("content-type", "a/b"), ("content-type", "c/d")],
        "location": [("location", "/a"), ("Location", "/b")],
        "cache": [("cache-control", "no-store"), ("cache-control", "private"), ("vary", "a"), ("vary", "b"), ("via", "1"), ("via", "2")],
        "server": [("server", "a"), ("server", "b"), ("date", "x"), ("etag", "1"), ("etag", "2")],
        "x": [("x-envoy-upstream-service-time", "1"), ("x-envoy-upstream-service-time", "2"), ("grpc-status", "1"), ("grpc-status", "2")],
    }.items():
        reply = ("send_local_response", 418, "", "body", pairs(*fields), 0xFFFFFFFF)
        add(f"reply/joined/{name}", script={"request_headers": (STOP, [reply])})
    for result in (0,):
        add("root/tick", listener={"root": {"configure": (1, [("set_tick_period_milliseconds", 20)]), "tick#0": (0, [("log", 2, "~@case@~tick")]), "tick#1": (0, [call()]), "http_call_response": (0, [("get_header_map_value", 6, ":status", Out())])}})
    return cases


def _reg(number):
    from script import Reg

    return Reg(number)


def encoded(script, case):
    """A script with the case's number in its texts."""

    def fill(argument):
        if isinstance(argument, filtered.Scripted):
            return argument.filled(case, encoded)
        if isinstance(argument, str):
            return argument.replace("@case@", str(case))
        if isinstance(argument, bytes):
            return _fill_bytes(argument, case)
        if isinstance(argument, Iov):
            return Iov(argument.data.replace(b"@case@", str(case).encode()))
        return argument

    filled = {
        phase: (result, [(name, *map(fill, arguments)) for name, *arguments in operations])
        for phase, (result, operations) in script.items()
    }
    return encode(filled, case)


def _fill_bytes(data, case):
    """Maps hold lengths: they are written anew."""
    if b"@case@" not in data:
        return data
    import struct

    count = struct.unpack_from("<I", data)[0]
    lengths = struct.unpack_from(f"<{2 * count}I", data, 4)
    at, parts = 4 + 8 * count, []
    for length in lengths:
        parts.append(data[at : at + length].replace(b"@case@", str(case).encode()).decode("latin1"))
        at += length + 1
    return pairs(*zip(parts[::2], parts[1::2]))
