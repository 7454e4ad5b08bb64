"""Runs strangers' programs against tests, in processes that can do nothing but compute."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from logpi.rewards.code.jail import wire
from logpi.rewards.contract import check_count, check_number

GRACE_SECONDS = 0.5  # past the wall limit the caller waits so long for the server to end a program
_START_SECONDS = 30.0
_START = (  # without a package above it, which would import torch
    "import sys; sys.path.insert(0, sys.argv.pop()); import jail.server; del sys.path[0]; "
    "jail.server.main()"
)
_HASH_SEED = "0"  # sets keep their order from run to run: a score is a function of its program


class SandboxError(RuntimeError):
    """This machine cannot hold a program as asked."""


@dataclass(frozen=True)
class Limits:
    """What one program may use.

    Attributes:
        cpu_seconds: of the program, and of its tests; whole seconds, as the kernel counts them.
        wall_seconds: of both together. Longer than `cpu_seconds`, so that a busy machine does
            not change a score.
        memory_bytes: beyond what the interpreter itself has.
        import_paths: folders from which a program may import and read, beside Python's own
            library; a program writes nowhere.
        preload: modules to import once, before any program.
    """

    cpu_seconds: int = 3
    wall_seconds: float = 6.0
    memory_bytes: int = 512 << 20
    import_paths: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_count("cpu_seconds", self.cpu_seconds)
        check_number("wall_seconds", self.wall_seconds, 0.05)
        check_count("memory_bytes", self.memory_bytes, 1 << 20)
        for name in ("import_paths", "preload"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or not all(isinstance(one, str) for one in value):
                raise TypeError(f"{name}: expected a tuple of texts, got {value!r}")


class Outcome(NamedTuple):
    """Of one assertion."""

    passed: bool
    why: str  # it did not


class Run(NamedTuple):
    """Of one program: an outcome for each assertion, whatever became of the program."""

    outcomes: tuple[Outcome, ...]

    @property
    def fraction(self) -> float:
        """Of the assertions that passed; 0.0 of none."""
        return sum(one.passed for one in self.outcomes) / max(len(self.outcomes), 1)

    @property
    def passed(self) -> bool:
        """All of them, and there are some."""
        return bool(self.outcomes) and all(one.passed for one in self.outcomes)


class Job(NamedTuple):
    """A program, and the statements that judge it."""

    program: str
    tests: Sequence[str]
    entry_point: str | None = None


class Sandbox:
    """Processes that are ready to run programs.

    Example:
        >>> with Sandbox() as sandbox:
        ...     sandbox.run("def f(x): return 2 * x", ["assert f(2) == 4", "assert f(0) == 1"])

    Args:
        limits: of each program.
        workers: programs that run at once; None: one for each CPU.
        strict: raise if this machine cannot enforce all of it. Otherwise `not_enforced` says what
            a program could do here.

    Raises:
        SandboxError: not on this machine, with the reason.
    """

    def __init__(
        self, limits: Limits | None = None, *, workers: int | None = None, strict: bool = True
    ) -> None:
        self.limits = limits or Limits()
        self.workers = workers or len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
        check_count("workers", self.workers)
        if sys.platform != "linux":
            raise SandboxError(f"sandbox: expected Linux, got {sys.platform}")
        self._lock = threading.Lock()
        self._server: _Server | None = None
        self.enforced = self._running().enforced
        if strict and self.not_enforced:
            listed = ", ".join(self.not_enforced)
            raise SandboxError(
                f"sandbox: this machine cannot deny or limit: {listed}; it needs seccomp "
                "(x86_64 or aarch64) and Landlock (Linux 5.13). strict=False runs programs anyway"
            )

    @property
    def not_enforced(self) -> tuple[str, ...]:
        """What this machine lets a program do, found by trying; namespaces only add to the rest."""
        return tuple(n for n, held in self.enforced.items() if not held and n != "namespaces")

    def run(self, program: str, tests: Sequence[str], entry_point: str | None = None) -> Run:
        """One program: see `run_all`."""
        return self.run_all([Job(program, tests, entry_point)])[0]

    def run_all(self, jobs: Iterable[Job]) -> list[Run]:
        """Each program in a process of its own; never raises on a program.

        A job's tests are texts of Python: an assertion each, or as many as you like. Each assertion
        has an outcome; one that was not reached has failed.
        """
        jobs = list(jobs)
        if len(jobs) == 1:
            return [self._run(jobs[0])]
        with ThreadPoolExecutor(min(self.workers, len(jobs)) or 1) as pool:
            return list(pool.map(self._run, jobs))

    def close(self) -> None:
        """Ends all processes."""
        with self._lock:
            if self._server is not None:
                self._server.close()
                self._server = None

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _running(self) -> _Server:
        """The server; a new one in a forked child, or after the old one has died."""
        with self._lock:
            if self._server is None or not self._server.alive():
                self._server = _Server(self.limits)
            return self._server

    def _run(self, job: Job) -> Run:
        try:
            connection = self._running().connect()
        except OSError:  # it has died since
            connection = self._running().connect()
        with connection:
            verdicts = _Verdicts(connection, self.limits.wall_seconds + GRACE_SECONDS)
            with suppress(OSError, ValueError):  # what it says then is all there is
                verdicts.ask(job)
            return verdicts.read()


class _Server:
    """The process of jail/server.py, and the socket over which it takes jobs."""

    def __init__(self, limits: Limits) -> None:
        self._owner = os.getpid()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-s", "-S", "-P", "-X", "utf8", "-W", "ignore", "-c", _START]
        with theirs:
            self._process = subprocess.Popen(
                [
                    *command,
                    str(theirs.fileno()),
                    json.dumps(asdict(limits)),
                    str(Path(__file__).parent),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                env={
                    "PYTHONHASHSEED": _HASH_SEED,
                    "OPENBLAS_NUM_THREADS": "1",
                    "OMP_NUM_THREADS": "1",
                },
                cwd="/",
            )
        self.close = weakref.finalize(self, _end, self._owner, self._control, self._process)
        self._control.settimeout(_START_SECONDS)
        try:
            answer = self._control.recv(1 << 16)
        except TimeoutError:
            answer = b""
        if not answer:
            self._process.kill()
            assert self._process.stderr is not None
            trouble = self._process.stderr.read().decode(errors="replace").strip()
            self.close()
            raise SandboxError(f"sandbox: the server did not start: {trouble[-500:]}")
        self.enforced: dict[str, bool] = json.loads(answer)

    def alive(self) -> bool:
        return self._owner == os.getpid() and self._process.poll() is None

    def connect(self) -> socket.socket:
        """A socket whose other end is with a new judge."""
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._control, [b"j"], [theirs.fileno()])
        return ours


def _end(owner: int, control: socket.socket, process: subprocess.Popen[bytes]) -> None:
    control.close()
    if os.getpid() != owner:
        return
    with suppress(subprocess.TimeoutExpired):
        process.wait(1.0)  # it leaves when it sees that the socket is closed
    process.kill()
    process.wait()
    if process.stderr is not None:
        process.stderr.close()


class _Verdicts:
    """What a judge writes, read until it is done, gone or late."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self._connection = connection
        self._deadline = time.monotonic() + seconds

    def ask(self, job: Job) -> None:
        for message in (job.program, [list(job.tests), job.entry_point]):
            body = json.dumps(message).encode()
            if len(body) > wire.MAX_FRAME:
                raise ValueError
            self._wait()
            self._connection.sendall(len(body).to_bytes(4, "little") + body)

    def read(self) -> Run:
        total, outcomes, why = 0, [], ""
        buffer = b""
        while True:
            try:
                self._wait()
                part = self._connection.recv(1 << 16)
            except TimeoutError:
                why = "not reached within the wall limit"
                break
            except OSError:
                part = b""
            if not part:
                why = "not reached: the judge ended early, by a limit"
                break
            buffer += part
            messages, buffer = _frames(buffer)
            for message in messages:
                total = message.get("total", total)
                if "passed" in message:
                    outcomes.append(Outcome(message["passed"], message["why"]))
            if any("done" in message for message in messages):
                break
        missing = [Outcome(False, why)] * (total - len(outcomes))
        return Run((*outcomes, *missing))

    def _wait(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)


def _frames(buffer: bytes) -> tuple[list[dict[str, Any]], bytes]:
    """The whole frames in front, and the rest."""
    messages = []
    while len(buffer) >= 4:
        end = 4 + int.from_bytes(buffer[:4], "little")
        if len(buffer) < end:
            break
        messages.append(json.loads(buffer[4:end]))
        buffer = buffer[end:]
    return messages, buffer
