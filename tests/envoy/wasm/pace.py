"""What happens of each case, and when: by it clients and upstreams send the next thing in the same order on both sides.

Guests say every callback in a line. A client or an upstream that sends a body waits after each chunk for the guest's line
of it. A callout is answered when its case is at rest: nobody has anything left to send, and the guest is silent.

Silence is counted in rounds (`rounds.py`), not in time alone: a message of a queue is told of by a turn of the worker of
its own, in both proxies, and what is sent before that turn comes is dealt with before or after it, as it happens. On a
machine that stalls no time is long enough for such a turn; a request that went all the way since is.
"""

import contextlib
import dataclasses
import threading
import time

# A line that did not come within this, and within a few rounds, will not come: the guest is not asked, as its stream
# stands still.
NOTHING = 0.4
# How long a proxy may work on what one thing set off, and for how many rounds.
SETTLED = 0.03
ROUNDS = 2
# In a guest's line: `enqueue_shared_queue` was Ok.
ENQUEUED = " 28:0"
# How long a case at rest has been silent.
REST = 0.12
# Who has waited so long goes on: a proxy that makes no more rounds hangs, and that is what the case then shows.
PATIENCE = 8


@dataclasses.dataclass(frozen=True)
class Moment:
    """When something was sent, or said: the time, the rounds made before, the case's lines before."""

    time: float
    rounds: int
    lines: int


class Pace:
    def __init__(self):
        self.lock = threading.Lock()
        self.lines = {}
        self.busy = {}
        self.last = {}
        self.owed = {}
        self.reached = set()
        # Of those whose request has reached the upstream: not whole yet.
        self.unanswered = set()
        self.rounds = 0
        # No rounds are made any more: the process has ended.
        self.ended = False

    def now(self, case):
        return Moment(time.monotonic(), self.rounds, self.lines.get(case, 0))

    def heard(self, case, said):
        """The guest has said a line. A message that it put into a queue is told of in another one."""
        with self.lock:
            told = said.count(ENQUEUED) - ("queue_ready" in said)
            self.owed[case] = max(0, self.owed.get(case, 0) + told)
            self.lines[case] = self.lines.get(case, 0) + 1
            self.last[case] = self.now(case)

    def moved(self, case):
        """Something was sent of which the guest may have to speak."""
        with self.lock:
            self.last[case] = self.now(case)

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
                self.last[case] = self.now(case)

    def passed(self, since, seconds, rounds=ROUNDS):
        """Whether that long has passed since a moment, in time and in rounds. The round that was under way does not count."""
        passed = time.monotonic() - since.time
        return passed > PATIENCE or passed > seconds and (self.ended or self.rounds - since.rounds > rounds)

    def silent_for(self, case, seconds, rounds=ROUNDS):
        last = self.last.get(case)
        return last is None or self.passed(last, seconds, rounds)

    def at_rest(self, case):
        with self.lock:
            if self.busy.get(case):
                return False
            if case in self.unanswered:
                # The rest of its request may still come, and then the upstream has something to send.
                return self.silent_for(case, NOTHING, 3 * ROUNDS)
            return self.silent_for(case, REST)

    def settled(self, case):
        """Whether the guest has said all that was set off so far."""
        return not self.owed.get(case) and self.silent_for(case, SETTLED)

    def followed(self, case, since):
        """Whether the guest has said what it has to say of something that was sent at a moment."""
        if self.lines.get(case, 0) > since.lines and self.settled(case):
            return True
        return self.passed(since, NOTHING) and self.silent_for(case, SETTLED)

    def arrived(self, case, since):
        """Whether the upstream has the head of a request that was sent at a moment, or will not get it."""
        return case in self.reached or self.passed(since, NOTHING)
