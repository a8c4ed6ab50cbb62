"""Ports for what a test starts.

They are below those that the system gives to connections: a client of another test cannot take one between its choice and
the start of who listens on it.
"""

import random
import socket

# No round numbers, which are deadlines and sizes: comparisons write a port's name wherever its number stands.
LISTENING = [port for port in range(10_000, 32_000) if port % 100]


def reserve():
    """A socket that holds a free port until it is closed."""
    while True:
        held = socket.socket()
        try:
            held.bind(("127.0.0.1", random.choice(LISTENING)))
            return held
        except OSError:
            held.close()


def free_port():
    """A port that nobody has."""
    with reserve() as held:
        return held.getsockname()[1]
