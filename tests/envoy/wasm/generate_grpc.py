"""gRPC callouts of generated scripts: calls and streams to an upstream that answers in every way, and what is done to them.

Left out: what `grpc_compare.py` lists as different, and deadlines that would race with what else happens.
"""

from grpc_service import service
from script import HIDDEN, TOKEN, Out, Out32, Reg, pairs
from tables import BAD

# Where a script keeps its calls and its streams.
CALL, STREAM = 4, 5
CALLBACKS = ["grpc_initial", "grpc_receive", "grpc_trailing", "grpc_close"]
# What is not told apart from what a script does: how an upstream answers (`grpc_upstream.py`).
METHODS = """unary empty two apart held split partial none error error_after only only_good only_plain unavailable compressed
    compressed_empty flags no_trailers reset reset_after no_number number no_status binary early early_error html close echo
    s503 s404 s302 t404 t503""".split()
# Those that end a stream whose half the guest has closed.
ENDING = [method for method in METHODS if method not in ("held",)]
# Those whose answer begins with a head that is not its end.
WITH_HEAD = "unary empty two apart held split partial none error error_after early echo".split()
# One script makes so many at most: each answer waits for its turns.
MOST = 3


class Numbers:
    """How many callouts the scripts of a case make: each has a number of its own, by which they are answered."""

    def __init__(self):
        self.last = 0
        # One at most fails by itself, soon, and only its script's phases begin it: two that do, or one and what is done
        # to another, come in the order of moments.
        self.fails_soon = False
        self.may_fail_soon = True
        # The head of an answer may be its end.
        self.headless = False

    def next(self):
        self.last += 1
        return self.last

    def fail_soon(self):
        """Whether there may be one that does. Then there is."""
        may = self.may_fail_soon and not self.fails_soon
        self.fails_soon |= may
        return may


def upstream(rng, numbers, single):
    """Whom a script calls: mostly the upstream that answers."""
    some = [
        service(), service(), service(), service(skip=True), b"grpc", service(metadata=[("x-s", "s"), ("x-a", "s")]),
        service(longest=rng.choice([4, 5])), service("nosuch"), b"nosuch", b"\xff\xff\xff",
    ]  # fmt: skip
    if rng.random() < 0.1 and numbers.fail_soon():
        return service("grpcdead")
    # A stream to nobody Envoy tells of from within the host call.
    return rng.choice(some + [service("grpcempty")] * single)


def metadata(rng, numbers, whole=True):
    # What is waited for comes first: a stream is not to be idle for too long.
    entries = [("x-case", "@case@"), ("x-n", str(numbers.next() if whole else 0))]
    if whole and rng.random() < 0.3:
        numbers.headless = True
        entries.append(("x-whole", "1"))
    if rng.random() < 0.3:
        entries += rng.choice([[("x-a", "1"), ("x-a", "2")], [("X-Upper", "u")], [("a-bin", "\1\2")], [("content-type", "x")], [("user-agent", "me")]])
    return pairs(*entries)


def call(rng, numbers, to=None, methods=METHODS, whole=True):
    to = upstream(rng, numbers, True) if to is None else to
    message, timeout = rng.choice([b"ping", b"", b"longer message"]), rng.choice([0, 600000])
    return ("grpc_call", to, "svc", rng.choice(methods), metadata(rng, numbers, whole), message, timeout, Out32(TOKEN, CALL))


def stream(rng, numbers, to=None, methods=METHODS, whole=True):
    to = upstream(rng, numbers, False) if to is None else to
    method = rng.choice(methods)
    numbers.headless |= method not in WITH_HEAD or to in (service("grpcdead"), service("nosuch"))
    return ("grpc_stream", to, "svc", method, metadata(rng, numbers, whole), Out32(TOKEN, STREAM))


def send(rng):
    return ("grpc_send", Reg(STREAM), rng.choice([b"ab", b"", b"message"]), rng.choice([0, 1]))


def making(rng, numbers):
    """A callout, and what its script says to it at once."""
    if rng.random() < 0.4:
        return [call(rng, numbers)]
    if rng.random() < 0.08 and numbers.fail_soon():
        return [("grpc_call", service("grpcblackhole"), "svc", "unary", metadata(rng, numbers), b"", 1, Out32(TOKEN, CALL))]
    following = rng.choice([[], [send(rng)], [send(rng)], [send(rng), send(rng)], [send(rng), ("grpc_close", Reg(STREAM))], [("grpc_close", Reg(STREAM))]])
    return [stream(rng, numbers), *following]


def waited_for(rng, numbers):
    """A callout that ends the wait of its phase, and the callback that does."""
    if rng.random() < 0.4:
        return [call(rng, numbers, service(), ENDING, False)], ["grpc_receive", "grpc_close"]
    callback = rng.choice([*CALLBACKS, "grpc_close"])
    to = service("grpcdead") if rng.random() < 0.3 and numbers.fail_soon() else service()
    made = stream(rng, numbers, to, ENDING, False)
    return [made, ("grpc_send", Reg(STREAM), b"ab", rng.choice([0, 1, 1, 1]))], [callback]


def done_to(rng, numbers, phase="", ends=True):
    """What a script does to callouts that it has made, or not. `ends`: also to give them up."""
    some = [
        [send(rng)], [send(rng)],
        [("grpc_close", Reg(STREAM))], [("grpc_close", Reg(STREAM))], [("grpc_close", Reg(CALL))],
        [("grpc_cancel", Reg(STREAM))], [("grpc_cancel", Reg(CALL))],
        [("grpc_send", Reg(CALL), b"x", 0)],
        [(rng.choice(["grpc_cancel", "grpc_close"]), rng.choice([0, 99989, 99990, 99991]))],
        [("grpc_send", rng.choice([0, 99989, 99990, 99991]), b"x", 0)],
        [("grpc_send", Reg(STREAM), BAD, 5, 0)],
        [("grpc_call", BAD, 5, "svc", "m", "", b"x", 0, Out32(TOKEN, 6))],
        [("grpc_stream", "grpc", BAD, 5, "m", "", Out32(TOKEN, 6))],
    ]  # fmt: skip
    if phase == "grpc_trailing" or phase == "grpc_initial" and numbers.headless:
        # What is sent to a stream that has ended, of which the guest is being told, Envoy tells of from within the host call.
        some = [calls for calls in some if calls[0][1] != Reg(STREAM) or calls[0][0] == "grpc_cancel"]
    if not ends or phase and numbers.fails_soon:
        some = [calls for calls in some if not gives_up(calls[0])]
    return rng.choice(some)


def gives_up(call):
    return call[0] == "grpc_cancel" or call[:2] == ("grpc_close", Reg(CALL))


def given_up_in_time(scripts):
    """Without the ends of callouts that may not have begun: whether there is a connection for them depends on others."""
    turns = {"request_headers": 0, "request_body": 1, "request_trailers": 1, "grpc": 3}
    at_once = any(call[0] in ("send_local_response", "close_stream") for one in scripts for _, calls in one.values() for call in calls)
    for one in scripts:
        made_in = [
            turns.get(phase.partition("#")[0], 3 if phase.startswith("grpc") else 2)
            for phase, (_, calls) in one.items() if any(call[0] in ("grpc_call", "grpc_stream") for call in calls)
        ]  # fmt: skip
        for phase, (action, calls) in one.items():
            if phase.startswith("grpc"):
                continue
            turn = turns.get(phase.partition("#")[0], 2)
            if at_once or any(made >= turn for made in made_in if made < 3):
                one[phase] = action, [call for call in calls if not gives_up(call)]


def without_nesting(scripts):
    """Without what shows that Envoy calls a guest from within another of its calls: here that has returned first."""
    every = [call for one in scripts for _, calls in one.values() for call in calls]
    ends = any(call[0] in ("send_local_response", "close_stream") for call in every)
    for one in scripts:
        if any(call[0] == "grpc_stream" and call[3] == "echo" for call in every):
            # What is answered with an echo is answered for ever.
            for phase in [phase for phase in one if phase.startswith("grpc_receive")]:
                action, calls = one[phase]
                one[phase] = action, [call for call in calls if call[0] != "grpc_send"]
        told = [calls for phase, (_, calls) in one.items() if phase.startswith(("grpc_initial", "grpc_trailing"))]
        # The rest of a stream that goes on in a callback of a callout comes before that has heard its end.
        goes_on = any(call[0].startswith("continue_") for calls in told for call in calls)
        for phase, (action, calls) in one.items():
            if phase.startswith("grpc"):
                continue
            made, kept = False, []
            for call in calls:
                made |= call[0] == "grpc_stream"
                nested = goes_on and not made and call[0] in ("grpc_send", "grpc_close") and call[1] == Reg(STREAM)
                # Nor is what the callback shows there any more.
                nested |= goes_on and ("header_map" in call[0] and call[1] in (4, 5) or "buffer" in call[0] and call[1] == 5)
                # A stream that is reset beside a callout that fails ends while that is told.
                if not nested and not (ends and call[0] == "get_status"):
                    kept.append(call)
            one[phase] = action, kept


def shown(rng, phase):
    """What a callback of a callout shows."""
    kind = rng.choice([4, 5])
    return rng.choice([
        [("get_header_map_pairs", kind, Out())], [("get_header_map_pairs", kind, Out())],
        [("get_header_map_value", kind, rng.choice(["x-init", "x-trail", "grpc-status", ":status", "none"]), Out())],
        [("get_header_map_size", 5, Out32())],
        [("get_buffer_bytes", 5, 0, 1000, Out())], [("get_buffer_bytes", 5, 1, 2, Out())],
        [("get_buffer_status", 5, Out32(), Out32())],
        [("add_header_map_value", kind, "k", "v"), ("get_header_map_pairs", kind, Out())],
        [("replace_header_map_value", kind, "x-init", "v"), ("remove_header_map_value", kind, "x-trail")],
        [("set_buffer_bytes", 5, 0, 0, "pre"), ("get_buffer_bytes", 5, 0, 1000, Out())],
        # The status is the VM's, and other cases change it.
        [("get_status", Out32() if phase == "grpc_close" else Out32(HIDDEN), Out())],
    ])  # fmt: skip
