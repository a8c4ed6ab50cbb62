"""What happens of each case, and when: by it clients and upstreams send the next thing in the same order on both sides.

Guests say every callback in a line. A client or an upstream that sends a body waits after each chunk for the guest's line
of it. A callout is answered when its case is at rest: nobody has anything left to send, and the guest is silent.
"""

import contextlib
import threading
import time

# A line that did not come within this will not come: the guest is not asked, as its stream stands still.
NOTHING = 0.4
# How long a proxy may work on what one thing set off.
SETTLED = 0.012
# How long a case at rest has been silent.
REST = 0.08


class Pace:
    def __init__(self):
        self.lock = threading.Lock()
        self.lines = {}
        self.busy = {}
        self.last = {}

    def heard(self, case):
        """The guest has said a line."""
        with self.lock:
            self.lines[case] = self.lines.get(case, 0) + 1
            self.last[case] = time.monotonic()

    def moved(self, case):
        """Something was sent of which the guest may have to speak."""
        with self.lock:
            self.last[case] = time.monotonic()

    @contextlib.contextmanager
    def sending(self, case):
        """Somebody has something to send."""
        with self.lock:
            self.busy[case] = self.busy.get(case, 0) + 1
        try:
            yield
        finally:
            with self.lock:
                self.busy[case] -= 1
                self.last[case] = time.monotonic()

    def count(self, case):
        return self.lines.get(case, 0)

    def silent_for(self, case):
        return time.monotonic() - self.last.get(case, 0)

    def at_rest(self, case):
        with self.lock:
            return not self.busy.get(case) and self.silent_for(case) > REST

    def followed(self, case, before, since):
        """Whether the guest has said what it has to say of something that was sent at `since`, after `before` lines."""
        if self.count(case) > before:
            return self.silent_for(case) > SETTLED
        return time.monotonic() - since > NOTHING
