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
SETTLED = 0.03
# In a guest's line: `enqueue_shared_queue` was Ok.
ENQUEUED = " 28:0"
# How long a case at rest has been silent.
REST = 0.12


class Pace:
    def __init__(self):
        self.lock = threading.Lock()
        self.lines = {}
        self.busy = {}
        self.last = {}
        self.owed = {}
        self.reached = set()

    def heard(self, case, said):
        """The guest has said a line. A message that it put into a queue is told of in another one."""
        with self.lock:
            told = said.count(ENQUEUED) - ("queue_ready" in said)
            self.owed[case] = max(0, self.owed.get(case, 0) + told)
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
        if time.monotonic() - since > NOTHING:
            return self.count(case) == before or self.silent_for(case) > SETTLED
        return self.count(case) > before and not self.owed.get(case) and self.silent_for(case) > SETTLED

    def arrived(self, case, since):
        """Whether the upstream has the head of a request that was sent at `since`, or will not get it."""
        return case in self.reached or time.monotonic() - since > NOTHING
