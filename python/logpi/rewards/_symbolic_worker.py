"""Says whether two expressions are equal, by math-verify; a process of its own, run by its path.

One request a line, [left, right, seconds], and one answer a line, [equal, seconds spent]. The limit
is of this process's CPU time, so that a busy machine changes no verdict. Signals work here: this is
a main thread, which a trainer's reward function may not be.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from typing import Any


class OutOfTime(BaseException):
    """No Exception: sympy and math-verify catch those."""


def main() -> None:
    requests, answers = sys.stdin, sys.stdout
    sys.stdout = sys.stderr  # whatever a library prints
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, resource.RLIM_INFINITY))
    sys.setrecursionlimit(2_000)
    from math_verify import parse, verify

    def compare(left: str, right: str) -> bool:
        a, b = (
            [x for x in parse(f"${text}$", parsing_timeout=None) if not isinstance(x, str)]
            for text in (left, right)
        )
        return bool(a and b) and (
            verify(a, b, timeout_seconds=None) or verify(b, a, timeout_seconds=None)
        )

    compare(r"\frac{1}{2}", "x+1")  # builds the grammar's tables
    print("ready", file=answers, flush=True)
    for line in requests:
        left, right, seconds = json.loads(line)
        start = time.process_time()
        equal: Any = None
        try:
            with _limit(seconds):
                equal = compare(left, right)
        except (Exception, OutOfTime):
            pass
        print(json.dumps([equal, time.process_time() - start]), file=answers, flush=True)


@contextlib.contextmanager
def _limit(seconds: float) -> Any:
    if not hasattr(signal, "setitimer"):
        yield  # Windows: the process that waits ends this one
        return

    def stop(*_: Any) -> None:
        raise OutOfTime

    signal.signal(signal.SIGPROF, stop)
    signal.signal(signal.SIGVTALRM, signal.SIG_DFL)  # ends the process, within a call into C, too
    # Again and again: a bare `except:` on the way may swallow one.
    signal.setitimer(signal.ITIMER_PROF, seconds, 0.05)
    signal.setitimer(signal.ITIMER_VIRTUAL, 2 * seconds + 0.1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


if __name__ == "__main__":
    main()
