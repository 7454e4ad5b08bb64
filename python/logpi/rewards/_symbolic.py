"""Whether two expressions are equal, asked of a process that can be stopped.

math-verify's own timeouts are signals: they fail off the main thread, and take the trainer's alarm
on it. Here a helper process computes, under limits of CPU time and memory. It starts with the first
question, serves all threads, and ends with this process.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import queue
import subprocess
import sys
import threading
from collections import OrderedDict
from pathlib import Path

PAIR_SECONDS = 0.2  # of CPU time a question
MAX_CHARACTERS = 120  # of an expression, above which none is asked
_PATIENCE = 10.0  # wall-clock seconds: a process that answers nothing, and does not even end
_START_SECONDS = 60.0
_REMEMBERED = 16_384


class _Worker:
    def __init__(self) -> None:
        path = str(Path(__file__).with_name("_symbolic_worker.py"))
        self.owner = os.getpid()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="ascii",
        )
        self.lines: queue.Queue[str] = queue.Queue()
        self.ready = False
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")

    def wait_until_ready(self) -> None:
        if not self.ready:
            try:
                self.ready = self.lines.get(timeout=_START_SECONDS) == "ready\n"
            except queue.Empty:
                self.ready = False
            if not self.ready:
                self.close()
                raise RuntimeError(
                    "symbolic_seconds: the process that runs math-verify did not start; "
                    "is logpi[rewards] installed? symbolic_seconds=0 does without it"
                )

    def ask(self, left: str, right: str, seconds: float) -> tuple[bool | None, float]:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps([left, right, seconds]) + "\n")
            self.process.stdin.flush()
            line = self.lines.get(timeout=_PATIENCE)
            equal, spent = json.loads(line)
        except (OSError, ValueError, queue.Empty):  # it ended, or is stopped
            self.close()
            return None, math.inf  # and nothing more in this group
        return equal, spent

    def alive(self) -> bool:
        return self.owner == os.getpid() and self.process.poll() is None

    def close(self) -> None:
        if self.owner == os.getpid():  # in a fork it is the parent's
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                with contextlib.suppress(OSError):
                    if pipe is not None:
                        pipe.close()


_lock = threading.Lock()
_worker: _Worker | None = None
_known: OrderedDict[tuple[str, str], bool] = OrderedDict()


def equal(left: str, right: str, seconds: float) -> tuple[bool, float]:
    """(equal, CPU seconds spent). Not decided in `seconds`, or in PAIR_SECONDS: not equal."""
    if max(len(left), len(right)) > MAX_CHARACTERS:
        return False, 0.0
    pair = (min(left, right), max(left, right))
    with _lock:
        if (known := _known.get(pair)) is not None:
            return known, 0.0
        limit = min(seconds, PAIR_SECONDS)
        worker = _running()
        worker.wait_until_ready()
        found, spent = worker.ask(*pair, limit)
        if found is not None or limit == PAIR_SECONDS:
            _known[pair] = bool(found)
            if len(_known) > _REMEMBERED:
                _known.popitem(last=False)
        _running()  # if it was ended: now, so that it is there for the next question
    return bool(found), spent


def start() -> None:
    """Starts the process if it does not run; does not wait for it."""
    with _lock:
        _running()


def _running() -> _Worker:
    global _worker
    if _worker is None or not _worker.alive():
        _worker = _Worker()
    return _worker


@atexit.register
def _close() -> None:
    if _worker is not None and _worker.alive():
        _worker.close()


def _after_fork() -> None:
    global _lock, _worker
    _lock, _worker = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
