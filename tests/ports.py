"""Ports for what a test starts.

They are below those that the system gives to connections: a client of another test cannot take one between its choice and
the start of who listens on it. Nor can another test: a port is locked for all of them until its process ends. Proxies
listen with SO_REUSEPORT, so two that are given one port both start, and each gets a part of the other's connections.
"""

import collections
import fcntl
import os
import pathlib
import random
import socket
import tempfile
import threading

# No round numbers, which are deadlines and sizes: comparisons write a port's name wherever its number stands.
LISTENING = [port for port in range(10_000, 32_000) if port % 100]
# Of what one process was given the last ones stay its own: so many no test uses at a time.
KEPT = 4000
# A byte of this file is a port; who has locked it may use that.
LOCKS = pathlib.Path(tempfile.gettempdir()) / "plenipo-test-ports"

_lock = threading.Lock()
_own = collections.deque()
_file = None


def claim(port):
    """Takes a port from all other tests. `False` where one of them has it, or this process has it already."""
    global _file
    with _lock:
        if _file is None:
            _file = os.open(LOCKS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        if port in _own:
            return False
        try:
            fcntl.lockf(_file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
        except OSError:
            return False
        _own.append(port)
        if len(_own) > KEPT:
            fcntl.lockf(_file, fcntl.LOCK_UN, 1, _own.popleft())
        return True


def reserve():
    """A socket that holds a free port until it is closed."""
    while True:
        port = random.choice(LISTENING)
        if not claim(port):
            continue
        held = socket.socket()
        try:
            held.bind(("127.0.0.1", port))
            return held
        except OSError:
            held.close()


def free_port():
    """A port that nobody has."""
    with reserve() as held:
        return held.getsockname()[1]
