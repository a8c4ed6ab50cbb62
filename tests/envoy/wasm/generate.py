"""Scripts from a seed: one seed and one index give one case, whatever else runs.

Left out is what is known to differ on purpose, or to end an Envoy: replies and resets in `log`, `done` and `delete`
(Envoy dies, or writes what no client can read), `continue_stream` in the callback that then continues (Envoy sends the
request twice), texts that are no HTTP, numbers of statuses that are none, lengths that lie, attributes that only one of
the two has, changes of a body that is not held any more (Envoy writes where it was), trailers that looking for them makes,
a stop of a body that was held with its trailers (which Envoy then shows twice), and what `without_quirks` says.
"""

import random

import generate_grpc as grpc
from script import CAS, HIDDEN, METRIC, QUEUE, TOKEN, Out, Out32, Out64, Reg, Root, Self, Wide, pairs, path
from tables import (
    BAD, CALL_CLOSED, CALL_HEADERS, CALL_POST, FOREIGN, FOREIGN_CEL, FOREIGN_SIGN, FOREIGN_STATE, NAMES, PROPERTIES, WASI,
)  # fmt: skip

TRAFFIC = [
    "request_headers", "request_body", "request_trailers", "response_headers", "response_body", "response_trailers",
]  # fmt: skip
# What `attribute_deviations.txt` lists, and what depends on moments.
ELSEWHERE = [
    ("xds", "node"), ("request", "headers_bytes"), ("request", "total_size"), ("response", "headers_bytes"),
    ("response", "total_size"), ("response", "size"), ("response", "backend_latency"), ("response", "headers"),
]  # fmt: skip
ENDS = ["log", "done", "delete"]
# Without what the VM remembers of all cases: which properties are declared.
FUNCTIONS = [call for call in FOREIGN + FOREIGN_SIGN + FOREIGN_CEL if call[0] == "call_foreign_function" and call[1] != "declare_property"]
# What is waited for is answered first: a stream is not to be idle for too long.
CALL_FIRST = pairs((":method", "GET"), (":path", "/callout"), (":authority", "callout"), ("x-case", "@case@"), ("x-n", "0"))
# No value is that old: the numbers count up, over all cases.
NO_CAS = 0x7FFFFFFF


def case(seed, index, without=()):
    """`without`: groups of host calls that are left out."""
    rng = random.Random(f"{seed}/{index}")
    made = {"listener": rng.choices(["plain", "stop", "small", "chain", "pair", "old"], [10, 6, 4, 6, 2, 3])[0]}
    if rng.random() < 0.7:
        made["chunks"] = [rng.choice(["a", "bcd", "0123456789", 50]) for _ in range(rng.choice([0, 1, 1, 2, 3]))]
        if made["listener"] == "small" and rng.random() < 0.5:
            made["chunks"].append(rng.choice([600, 1500]))
        if rng.random() < 0.2:
            made["chunks"] = ["one body"]
            made["length"] = True
        elif rng.random() < 0.4:
            made["trailers"] = [("x-t", "request")]
    made["headers"] = [("x-multi", "a"), ("x-multi", "b")] if rng.random() < 0.5 else []
    answer = {"status": rng.choice([200, 200, 200, 404, 204, 500])}
    answer["chunks"] = [rng.choice(["a", "bcd", "0123456789", 50]) for _ in range(rng.choice([0, 1, 1, 2, 3]))]
    if rng.random() < 0.2:
        answer["length"] = True
    elif rng.random() < 0.4:
        answer["trailers"] = [["x-t", "response"]]
    made["answer"] = answer
    # Lengths that plugins make untrue are another matter.
    can_edit_bodies = not made.get("length") and not answer.get("length")
    # A trap ends a VM: it has one of its own.
    traps = rng.random() < 0.05
    if traps:
        made["listener"] = {"policy": "FAIL_CLOSED"}
    old = made["listener"] == "old"
    numbers = grpc.Numbers()
    made["script"] = script(rng, can_edit_bodies, old, without, numbers)
    if traps:
        made["traps"] = True
        # What a dead VM holds is answered at once here, and in an Envoy when the stream has been idle for long.
        holds = any(action for action, _ in made["script"].values())
        phase = rng.choice(TRAFFIC + ENDS + ([] if holds else grpc.CALLBACKS))
        made["script"][phase + "#0"] = (0, [("trap", 0)])
    if made["listener"] in ("chain", "pair"):
        made["script2"] = script(rng, can_edit_bodies, False, without, numbers)
        let_pass(made["script"], made["script2"], "request")
        let_pass(made["script2"], made["script"], "response")
    scripts = [made[name] for name in ("script", "script2") if name in made]
    without_quirks(made, scripts)
    grpc.given_up_in_time(scripts)
    grpc.without_nesting(scripts)
    without_overflow(made, scripts)
    if any(call[0] == "send_local_response" for one in scripts for _, calls in one.values() for call in calls):
        # A reply says its length, which a plugin would make untrue.
        for one in scripts:
            for phase, (action, calls) in one.items():
                one[phase] = action, [call for call in calls if call[:2] != ("set_buffer_bytes", 1)]
    return made


def script(rng, can_edit_bodies, old, without, numbers):
    made = {}
    # One phase at most waits for a callout. Where one does, no other makes any of that kind: the first answer ends the wait,
    # and to go on with what has not begun ends an Envoy.
    waits = rng.choice(TRAFFIC) if rng.random() < 0.4 else None
    waits_for = "http" if waits else None
    if waits and "grpc" not in without and rng.random() < 0.5:
        waits_for = "grpc"
    may_grpc = grpc.MOST if "grpc" not in without and waits_for != "grpc" and rng.random() < 0.6 else 0
    most = numbers.last + may_grpc
    told = {}
    for phase in TRAFFIC + ENDS:
        if phase != waits and rng.random() < 0.45:
            continue
        turn = rng.choice(["", "", "#0", "#1"]) if phase.endswith("body") and phase != waits else ""
        operations = []
        for _ in range(rng.choice([1, 1, 2, 3, 4])):
            if may_grpc and numbers.last < most and rng.random() < 0.25:
                turn = turn or "#0" if phase.endswith("body") else ""
                operations += grpc.making(rng, numbers)
            elif "grpc" not in without and rng.random() < 0.15:
                operations += grpc.done_to(rng, numbers)
            else:
                operations += operation(rng, phase, can_edit_bodies, waits_for != "http", without)
        action = 0
        if phase == waits:
            turn = "#0" if phase.endswith("body") else ""
            action = rng.choice([1, 1, 1, 3, 4] if phase.endswith("headers") else [1, 1, 1, 2])
            kind = 0 if phase.startswith("request") else 1
            resume = ("continue_stream", kind)
            if old:
                resume = ("continue_request",) if kind == 0 else ("continue_response",)
            callbacks = ["http_call_response"]
            if waits_for == "grpc":
                calls, callbacks = grpc.waited_for(rng, numbers)
                operations += calls
            else:
                operations.append(("http_call", "callout", CALL_FIRST, "", "", 10000, Out32(TOKEN, 0)))
            for name in callbacks:
                told[name] = [("set_effective_context", Self()), resume]
        elif phase in TRAFFIC and rng.random() < 0.08:
            # Nothing ends this wait but the stream's end.
            action = rng.choice([1, 2, 3, 4] if phase.endswith("headers") else [1, 2, 3])
        elif phase in TRAFFIC and rng.random() < 0.08:
            operations.append(reply(rng))
        elif phase in TRAFFIC[:5] and rng.random() < 0.03 and not old:
            operations.append(("close_stream", rng.choice([0, 1])))
        made[phase + turn] = (action, operations)
    calls = {call[0] for _, operations in made.values() for call in operations}
    if "grpc_call" in calls or "grpc_stream" in calls:
        numbers.may_fail_soon = False
        over = False
        for phase in grpc.CALLBACKS:
            if phase in told or rng.random() < 0.6:
                made.update(callback_of(rng, phase, told.get(phase, []), over, can_edit_bodies, without, numbers, most))
            # What goes on may come to its end in that callback. For the next one, which may come at once, an Envoy still
            # knows its context.
            over |= phase in told and "grpc_stream" in calls
        numbers.may_fail_soon = True
    if "http_call_response" in told or "http_call" in calls and rng.random() < 0.5:
        resume = told.get("http_call_response", [])
        made.update(callback_of(rng, "http_call_response", resume, False, can_edit_bodies, without, numbers, most))
    if "register_shared_queue" in calls and rng.random() < 0.5:
        # As the root: whether its stream is there still is a matter of turns.
        made["queue_ready"] = (0, [("dequeue_shared_queue", Reg(3), Out()), *without_self(operation(rng, "queue_ready", False, False, without))])
    return told_apart(made)


def without_self(operations):
    # And what tells of itself again.
    return [call for call in operations if call[0] != "enqueue_shared_queue" and call != ("set_effective_context", Self())]


def callback_of(rng, phase, resume, over, can_edit_bodies, without, numbers, most):
    """What a callback of a callout does: as the root, and then as the stream that made it."""
    made, operations = {}, []
    some = [lambda: operation(rng, phase, can_edit_bodies, False, without)]
    if "grpc" not in without:
        some += [lambda: grpc.shown(rng, phase), lambda: grpc.done_to(rng, numbers, phase)]
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        operations += rng.choice(some)()
    # Who fails soon may be told of when a stream has just ended: an Envoy may still know its context.
    over |= numbers.fails_soon and not resume
    if over:
        operations = [call for call in operations if call != ("set_effective_context", Self())]
    if resume or not over and rng.random() < 0.4:
        operations += [("set_effective_context", Self())]
        for _ in range(rng.choice([0, 0, 1, 2])):
            operations += rng.choice(some)()
        if phase == "grpc_close" and not (resume or numbers.fails_soon) and rng.random() < 0.2:
            operations.append(reply(rng))
        if resume:
            # Whatever was effective last.
            operations += resume
    turn = ""
    if phase == "grpc_close" and not resume and numbers.last < most and rng.random() < 0.3:
        # Once: its answer may be told by the same callback.
        operations += grpc.making(rng, numbers)
        turn = "#0"
    made[phase + turn] = (0, operations)
    return made


def let_pass(first, next_one, side):
    """In Envoy who lets headers go also lets go the body that the one before holds: both lie in one buffer."""
    headers, holds = f"{side}_headers", (f"{side}_body", f"{side}_trailers")
    if headers in next_one and any(phase.startswith(holds) and made[0] for phase, made in first.items()):
        operations = next_one[headers][1]
        next_one[headers] = 0, [call for call in operations if not ends_wait(call)]


def ends_wait(call):
    """Whether a phase may wait for it."""
    return call[:2] == ("http_call", "callout") or call[0] in ("grpc_call", "grpc_stream")


def without_overflow(made, scripts):
    """With a buffer that is soon full: an Envoy waits for ever where what is held was too much already while the headers were,
    and has not noticed that a request was let go on in the callback that holds it, as by a callout that fails at once, before
    the next piece of it."""
    if made["listener"] != "small":
        return
    held = {phase.partition("#")[0] for one in scripts for phase, (action, _) in one.items() if action}
    called = [call[1] for one in scripts for _, calls in one.values() for call in calls if call[0] in ("grpc_call", "grpc_stream")]
    if "chunks" in made and (grpc.service("grpcdead") in called or {"request_headers", "request_body"} <= held):
        made["chunks"] = [50 if chunk == 1500 else chunk for chunk in made["chunks"]]


def without_quirks(made, scripts):
    """Without what Envoy does otherwise for the way in which it is made. After all choices, too."""
    for side, length in (("request", made.get("length")), ("response", made["answer"].get("length"))):
        if not length:
            continue
        for one in scripts:
            # What is dropped makes the length a lie.
            first, last = f"{side}_body#0", f"{side}_body#1"
            if first in one:
                one[first] = 0 if one[first][0] == 3 else one[first][0], without_replies_of_none(one[first][1])
            if last in one and side == "response":
                # All of the body has gone: the client has its answer, and what is done to the end comes to nothing.
                # Envoy's log then says that the client left, or the connection stays for a second.
                ending = ("send_local_response", "close_stream")
                one[last] = 0, [call for call in one[last][1] if call[0] not in ending]
    for side, trailers in (("request", made.get("trailers")), ("response", made["answer"].get("trailers"))):
        held = [one for one in scripts if one.get(f"{side}_headers", (0,))[0] in (1, 3, 4)]
        for one in scripts:
            # A chain has one buffer: what one plugin holds passes again through another that goes on after a piece is dropped.
            beside = any(action for other in scripts if other is not one
                         for phase, (action, _) in other.items() if phase.startswith(side + "_body"))
            for phase in [phase for phase in one if phase.startswith(side + "_body")]:
                action, operations = one[phase]
                if trailers and one in held:
                    # It shows the trailers twice, and loses the body.
                    action = 0
                if held or beside:
                    # What a reply of no stream drops of a body that was held before is in the buffer still, and goes on.
                    operations = without_replies_of_none(operations)
                one[phase] = action, operations
    # A callout whose answer the guest does not act upon ends no wait.
    endless = any(
        action
        and (
            made["listener"] == "small"
            or not any(call[0].startswith("continue") for call in one.get("http_call_response", (0, []))[1])
            or not any(call[:2] == ("http_call", "callout") for call in calls)
        )
        for one in scripts for phase, (action, calls) in one.items() if phase.startswith("request_")
    )  # fmt: skip
    if endless:
        # An answer of the proxy (413, 504) says its length, too.
        for one in scripts:
            for phase, (action, calls) in one.items():
                one[phase] = action, [call for call in calls if call[:2] != ("set_buffer_bytes", 1)]
    if len(scripts) == 2:
        first, second = scripts
        for one in scripts:
            # What one plugin empties the next one is shown as nothing; here it is not asked.
            for phase, (action, calls) in one.items():
                empties = [call for call in calls if call[0] == "set_buffer_bytes" and call[3] and not call[4]]
                one[phase] = action, [call for call in calls if call not in empties]
        for side, before, after in (("request", first, second), ("response", second, first)):
            # What one holds the next one sees in the buffer where it stays, whatever that drops of it.
            stops = {f"{side}_headers": (1, 3, 4), f"{side}_body": (1, 2)}
            if any(action in stops.get(phase.partition("#")[0], ()) for phase, (action, _) in before.items()):
                for phase in [phase for phase in after if phase.startswith(f"{side}_body")]:
                    after[phase] = 0 if after[phase][0] == 3 else after[phase][0], after[phase][1]
            # Both hold the body in one buffer, and to go on with what went on before, or with the other's, shows it again.
            ends = (f"{side}_body", f"{side}_trailers")
            for one, other in ((first, second), (second, first)):
                if any(other[phase][0] for phase in other if phase.startswith(ends)):
                    for phase in [phase for phase in one if phase.startswith(ends)]:
                        if any(ends_wait(call) for call in one[phase][1]):
                            one[phase] = 0, [call for call in one[phase][1] if not ends_wait(call)]
                # A body that one has held is shown to the next one again, empty, when the trailers go on.
                trailers = f"{side}_trailers"
                if trailers in one and any(one[phase][0] for phase in one if phase.startswith(f"{side}_body")):
                    one[trailers] = 0, [call for call in one[trailers][1] if not ends_wait(call)]
        queued = ("register_shared_queue", "enqueue_shared_queue", "dequeue_shared_queue")
        if all(any(call[0] == queued[0] for _, calls in one.values() for call in calls) for one in scripts):
            # Which of two VMs is told first of a message depends on what else they do.
            for phase, (action, calls) in second.items():
                second[phase] = action, [call for call in calls if call[0] not in queued]


def without_replies_of_none(operations):
    """Without replies that are made with the root context effective."""
    kept, root = [], False
    for call in operations:
        if call[0] == "set_effective_context" and call[1] != 999999:
            root = call[1] == Root()
        if not (root and call[0] == "send_local_response"):
            kept.append(call)
    return kept


def told_apart(made):
    """Without what is known to differ. After all choices: what a seed gives besides stays as it is."""
    stale, held = set(), set()
    for kind, side in enumerate(("request", "response")):
        for phase, (action, operations) in made.items():
            calls = {call[0] for call in operations}
            if phase.startswith(side + "_body") and (action in (2, 3) or calls & {"send_local_response", "close_stream"}):
                stale.add(kind)
            if phase.startswith(side + "_body") and action:
                held.add(kind)
            if phase.startswith(side + "_headers") and action in (1, 3, 4):
                for body in [other for other in made if other.startswith(side + "_body")]:
                    made[body] = (made[body][0] if made[body][0] == 1 else 0, made[body][1])
    kept = {}
    for phase, (action, operations) in made.items():
        own = {"request_body": (0, 1), "response_body": (1, 3)}.get(phase.partition("#")[0], (None, None))
        kept[phase] = action, [
            call
            for call in operations
            if not ("_buffer_" in call[0] and call[1] in stale and call[1] != own[0])
            and not ("_buffer_" in call[0] and call[1] in held and phase in ENDS)
            # An empty body that was held is still there when it has gone on.
            and not (call[0] == "set_buffer_bytes" and call[1] in held and own[0] != call[1])
            and not ("header_map" in call[0] and call[1] in (1, 3) and call[1] // 2 in stale | held and own[1] != call[1] and phase != TRAFFIC[call[1] // 2 * 3 + 2])
            and not ("header_map" in call[0] and call[0] != "get_header_map_value" and call[1] == own[1])
        ]
    return kept


def reply(rng):
    return (
        "send_local_response", rng.choice([200, 400, 403, 429, 500, 503]), rng.choice(["", "why", "two words"]),
        rng.choice(["", "body", "longer body"]), rng.choice([b"", pairs(("x-reply", "1")), pairs(("x-a", "1"), ("x-a", "2"))]),
        rng.choice([0xFFFFFFFF, 0xFFFFFFFF, 0, 7]),
    )  # fmt: skip


def operation(rng, phase, can_edit_bodies, may_call, without):
    """One host call, or a few that belong together."""
    name = rng.choice(["x-a", "x-b", "x-multi", "X-Upper", "user-agent", "x-up"])
    value = rng.choice(["", "v", "two words", "a,b"])
    kind = rng.choice([0, 0, 1, 2, 2, 3, 4, 6, 7, 8])
    metric = rng.choice([0, 1])
    key = f"@case@.{rng.choice('ab')}"
    buffer = rng.choice([0, 1, 0, 1, 4, 6, 9])
    parts, mode = rng.choice([p for many in PROPERTIES.values() for p in many])
    if parts in ELSEWHERE or parts in [name for name, _ in PROPERTIES["legacy"]]:
        parts, mode = ("request", "path"), 0
    choices = [
        [("get_header_map_value", kind, rng.choice(NAMES), Out())],
        # How many digits a duration has is a matter of moments.
        [("get_header_map_pairs", kind, Out(0 if kind in (4, 6) else 1))],
        [("get_header_map_size", kind if kind not in (4, 6) else 5, Out32())],
        [("add_header_map_value", kind, name, value)],
        [("replace_header_map_value", kind, name, value)],
        [("remove_header_map_value", kind, name)],
        [("get_buffer_bytes", buffer, rng.choice([0, 0, 1, 5]), rng.choice([0, 1, 3, 100]), Out())],
        [("get_buffer_status", buffer, Out32(), Out32())],
        [("get_property", path(*parts), Out(mode))],
        [("set_property", "mine", value), ("get_property", "mine", Out())],
        [("get_shared_data", key, Out(), Out32(CAS, 1))],
        [("set_shared_data", key, value, rng.choice([0, Reg(1), NO_CAS]))],
        [("define_metric", metric, f"c@case@.m{metric}{rng.choice('ab')}", Out32(METRIC, 2)), ("increment_metric", Reg(2), Wide(rng.choice([1, 3]))), ("get_metric", Reg(2), Out64())],
        [("register_shared_queue", key, Out32(QUEUE, 3)), ("enqueue_shared_queue", Reg(3), value), ("dequeue_shared_queue", Reg(3), Out())],
        [("dequeue_shared_queue", 99999999, Out())],
        [("call_foreign_function", rng.choice(["compress", "clear_route_cache", "nosuch"]), value, Out())],
        [rng.choice(FUNCTIONS)],
        FOREIGN_STATE,
        [rng.choice(WASI)],
        [("get_current_time_nanoseconds", Out64(HIDDEN))],
        [("define_metric", 2, "c@case@.m2", Out32(METRIC, 2)), ("record_metric", Reg(2), Wide(7)), ("get_metric", Reg(2), Out64())],
        [("define_metric", metric, f"c@case@.r{metric}", Out32(METRIC, 2)), ("record_metric", Reg(2), Wide(rng.choice([0, 7]))), ("increment_metric", Reg(2), Wide(rng.choice([0, -2]))), ("get_metric", Reg(2), Out64())],
        [("resolve_shared_queue", rng.choice(["", "nosuch"]), key, Out32(QUEUE, 6))],
        [("set_header_map_pairs", rng.choice([1, 3, 4, 5, 6, 7, 8]), pairs(("x-set", "1"), ("x-a", "2")))],
        [("set_property", path("a", name), value), ("get_property", path("filter_state", "wasm.a." + name), Out()), ("get_property", path("a", name), Out())],
        [("set_effective_context", rng.choice([Self(), Root(), 999999, 0]))],
        [("get_status", Out32(HIDDEN), Out())],
        [("log", rng.choice([2, 3, 4, 6]), "~@case@~said")],
        [("http_call", "nosuch" if not may_call else rng.choice(["callout", "nosuch"]), rng.choice([CALL_HEADERS, CALL_POST, CALL_CLOSED]), "", "", 10000, Out32(TOKEN, 0))],
        [("get_header_map_value", kind, BAD, 4, Out())],
        [("get_header_map_value", kind, name, BAD, BAD)],
        [("done",)],
    ]  # fmt: skip
    if can_edit_bodies:
        edit = ("set_buffer_bytes", rng.choice([0, 1]), *rng.choice([(0, 0), (0, 2), (0, 1000), (1000, 0)]), value)
        choices.append([edit])
    return rng.choice([some for some in choices if not any(group_of(call[0]) in without for call in some)])


def group_of(call):
    starts = {"call_foreign": "foreign", "get_property": "properties", "set_property": "properties"}
    return next((group for start, group in starts.items() if call.startswith(start)), None)
