"""Rounds through a proxy: one request after the other to a plugin in a VM of its own. A round has ended when the answer is
here and the guest's last line of it was read from the proxy's output.

Each proxy has one worker, which takes what is ready in turn. What was ready before a round began has thus been dealt with
when it has ended, whatever the machine does besides.
"""

import threading
import time

from run import Client
from script import encode

# The case that rounds are in the guest's lines. No case of the suite has that number.
CASE = 999999999
# Between two rounds: they are not to be the load.
PAUSE = 0.01


class Rounds(threading.Thread):
    def __init__(self, pace, process, port):
        super().__init__(daemon=True)
        self.pace = pace
        self.process = process
        self.port = port
        self.said = threading.Event()
        self.request = f"GET /direct HTTP/1.1\r\nhost: test.example\r\nx-script: {encode({}, CASE).hex()}\r\n\r\n"

    def heard(self, said):
        """The guest has said a line of a round."""
        if " delete " in said:
            self.said.set()

    def run(self):
        client = None
        while self.process.poll() is None:
            try:
                client = client or Client(self.port, "127.0.0.1", 0)
            except OSError:
                time.sleep(PAUSE)
                continue
            client.deadline = time.monotonic() + 30
            self.said.clear()
            client.send(self.request)
            if client.answer("GET") is None:
                client = None
                continue
            if self.said.wait(30):
                self.pace.rounds += 1
            time.sleep(PAUSE)
        self.pace.ended = True
