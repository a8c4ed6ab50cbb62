"""Scripts for the guest (`guest/guest.rs`), as tables of Python, as text to read, and as the guest's bytes.

A script is `{phase: (result, [operation, …])}`; a phase is its callback's name, with `#n` for its n-th call in a context
(from 0). An operation is the name of a host call without `proxy_` and its arguments: a number, text or bytes (a pointer
and a length), or one of the classes below.
"""

import dataclasses
import struct

PHASES = [
    "context_create",
    "vm_start",
    "configure",
    "request_headers",
    "request_body",
    "request_trailers",
    "response_headers",
    "response_body",
    "response_trailers",
    "log",
    "done",
    "delete",
    "tick",
    "queue_ready",
    "http_call_response",
    "grpc_initial",
    "grpc_receive",
    "grpc_trailing",
    "grpc_close",
    "foreign",
    "request_metadata",
    "response_metadata",
]

CALLS = {
    "log": 0,
    "get_log_level": 1,
    "get_status": 2,
    "get_property": 3,
    "set_property": 4,
    "continue_stream": 5,
    "close_stream": 6,
    "send_local_response": 7,
    "get_buffer_bytes": 8,
    "get_buffer_status": 9,
    "set_buffer_bytes": 10,
    "get_header_map_value": 11,
    "add_header_map_value": 12,
    "replace_header_map_value": 13,
    "remove_header_map_value": 14,
    "get_header_map_pairs": 15,
    "set_header_map_pairs": 16,
    "get_header_map_size": 17,
    "http_call": 18,
    "grpc_call": 19,
    "grpc_stream": 20,
    "grpc_send": 21,
    "grpc_cancel": 22,
    "grpc_close": 23,
    "get_shared_data": 24,
    "set_shared_data": 25,
    "register_shared_queue": 26,
    "resolve_shared_queue": 27,
    "enqueue_shared_queue": 28,
    "dequeue_shared_queue": 29,
    "define_metric": 30,
    "increment_metric": 31,
    "record_metric": 32,
    "get_metric": 33,
    "set_tick_period_milliseconds": 34,
    "get_current_time_nanoseconds": 35,
    "set_effective_context": 36,
    "done": 37,
    "call_foreign_function": 38,
    # 0.1.0
    "clear_route_cache": 39,
    "get_configuration": 40,
    "continue_request": 41,
    "continue_response": 42,
    # WASI
    "args_sizes_get": 60,
    "args_get": 61,
    "environ_sizes_get": 62,
    "environ_get": 63,
    "clock_res_get": 64,
    "clock_time_get": 65,
    "random_get": 66,
    "fd_write": 67,
    "fd_read": 68,
    "fd_seek": 69,
    "fd_close": 70,
    "fd_fdstat_get": 71,
    "fd_fdstat_set_flags": 72,
    "fd_prestat_get": 73,
    "fd_prestat_dir_name": 74,
    "fd_filestat_get": 75,
    "fd_tell": 76,
    "fd_sync": 77,
    "poll_oneoff": 78,
    "sched_yield": 79,
    "proc_exit": 80,
    "path_open": 81,
    "fd_advise": 82,
    "fd_readdir": 83,
    "path_filestat_get": 84,
    "fd_renumber": 85,
    "sock_recv": 86,
    "fd_pread": 87,
    "fd_allocate": 88,
    "path_unlink_file": 89,
    "fd_pwrite": 90,
    # The guest's own: `trap` 0 unreachable, 1 a load out of bounds, 2 the stack, 3 a bad indirect call; how `malloc`
    # behaves; a new line of the trace.
    "trap": 200,
    "malloc": 201,
    "flush": 202,
}
NAMES = {number: name for name, number in CALLS.items()}


@dataclasses.dataclass(frozen=True)
class Reg:
    """What an earlier `Out32` gave."""

    number: int

    def encode(self):
        return bytes([1, self.number])


@dataclasses.dataclass(frozen=True)
class Self:
    """The id of the stream's context."""

    def encode(self):
        return bytes([3])


@dataclasses.dataclass(frozen=True)
class Root:
    """The id of the root context."""

    def encode(self):
        return bytes([9])


# How what is given shows: as it is; tokens and CAS values by order of appearance; times and ports not at all.
PLAIN, TOKEN, CAS, METRIC, QUEUE, HIDDEN = 0, 1, 2, 3, 4, 9
# And bytes: as they are, their length, not at all, length and sum.
TEXT, LENGTH, UNSEEN, SUM = 0, 1, 2, 3


@dataclasses.dataclass(frozen=True)
class Out32:
    mode: int = PLAIN
    register: int = 7

    def encode(self):
        return bytes([4, self.mode, self.register])


@dataclasses.dataclass(frozen=True)
class Out64:
    mode: int = PLAIN

    def encode(self):
        return bytes([5, self.mode, 0])


@dataclasses.dataclass(frozen=True)
class Out:
    """A pointer to a pointer and one to a length."""

    mode: int = TEXT

    def encode(self):
        return bytes([6, self.mode, 0])


@dataclasses.dataclass(frozen=True)
class Wide:
    """A 64-bit argument."""

    number: int

    def encode(self):
        return bytes([7]) + struct.pack("<Q", self.number & (1 << 64) - 1)


@dataclasses.dataclass(frozen=True)
class RegBytes:
    """A register as four bytes."""

    number: int

    def encode(self):
        return bytes([8, self.number])


@dataclasses.dataclass(frozen=True)
class Iov:
    """A vector of one buffer."""

    data: bytes

    def encode(self):
        return bytes([10]) + struct.pack("<H", len(self.data)) + self.data


def encode_argument(argument):
    if isinstance(argument, int):
        return bytes([0]) + struct.pack("<I", argument & 0xFFFFFFFF)
    if isinstance(argument, str):
        argument = argument.encode("latin1")
    if isinstance(argument, bytes):
        return bytes([2]) + struct.pack("<H", len(argument)) + argument
    return argument.encode()


def encode_operation(operation):
    name, *arguments = operation
    return bytes([CALLS[name], len(arguments)]) + b"".join(map(encode_argument, arguments))


def encode(script, case):
    """The bytes of a script: the case's number, then its sections."""
    out = struct.pack("<I", case)
    for phase, (result, operations) in script.items():
        name, _, turn = phase.partition("#")
        body = b"".join(map(encode_operation, operations))
        out += struct.pack("<BBIH", PHASES.index(name), int(turn) if turn else 255, result & 0xFFFFFFFF, len(body))
        out += body
    return out


def configuration(tag, header, on_create=b"", root=b""):
    """A plugin's configuration: its letter, the header of its streams' scripts, its own scripts."""
    header = header.encode()
    return (tag.encode() + bytes([len(header)]) + header + struct.pack("<H", len(on_create)) + on_create + root).hex()


def pairs(*entries):
    """The ABI's form of a map."""
    entries = [(name.encode("latin1"), value.encode("latin1")) for name, value in entries]
    out = struct.pack("<I", len(entries))
    for name, value in entries:
        out += struct.pack("<II", len(name), len(value))
    for name, value in entries:
        out += name + b"\0" + value + b"\0"
    return out


def path(*parts):
    """A property's path."""
    return "\0".join(parts)


def show(script):
    """A script as text, a line a phase."""
    lines = []
    for phase, (result, operations) in script.items():
        shown = "; ".join(f"{name}({', '.join(map(repr, arguments))})" for name, *arguments in operations)
        lines.append(f"  {phase} -> {result}: {shown}")
    return "\n".join(lines)
