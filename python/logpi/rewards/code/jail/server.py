"""A process that waits, everything imported, and forks two processes for each program: forking
takes a millisecond where a fresh interpreter takes thirty.

It never sees a test. A job arrives as a socket; the judge, a child, reads the program from it,
forks the process that runs the program, and only then reads the tests.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any, NoReturn

from . import confine, judge, program, wire


def main() -> None:
    """Arguments: the control socket's descriptor and the settings as JSON."""
    descriptor, settings = int(sys.argv[1]), json.loads(sys.argv[2])
    control = socket.socket(fileno=descriptor)
    apart = confine.leave_namespaces()
    if apart:
        first = os.fork()
        if first:  # waits for the first process of the namespace, and ends with it
            control.close()
            os.waitpid(first, 0)
            os._exit(0)
        confine.die_with_parent(os.getppid())
    confine.adopt_orphans()
    os.setsid()
    os.chdir("/")
    program.preload()
    for name in settings["preload"]:
        __import__(name)
    folders = [os.open(path, os.O_PATH | os.O_CLOEXEC) for path in _library(settings)]
    memory = settings["memory_bytes"] + _mapped_bytes()
    limits: dict[str, Any] = {"cpu_seconds": settings["cpu_seconds"], "memory_bytes": memory}
    null = os.open(os.devnull, os.O_RDWR)
    enforced = _probe(folders, limits)
    enforced["namespaces"] = apart
    enforced["network"] |= apart
    control.send(json.dumps(enforced).encode())
    os.dup2(null, 2)
    gc.collect()
    gc.freeze()
    _serve(control, folders, limits, settings["wall_seconds"])


def _library(settings: dict[str, Any]) -> list[str]:
    """Folders that a program may read: Python's own, the system's libraries, those asked for."""
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    shared = {str(Path(path).parent) for path in mapped if path.startswith("/") and ".so" in path}
    python = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    sys.path += settings["import_paths"]
    return sorted(shared | python | set(settings["import_paths"]))


def _mapped_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _probe(folders: list[int], limits: dict[str, Any]) -> dict[str, bool]:
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        confine.confine(folders, **limits)
        wire.send(writes, confine.probe(**limits))
        os._exit(0)
    os.close(writes)
    enforced: dict[str, bool] = wire.receive(reads)
    os.close(reads)
    os.waitpid(child, 0)
    return enforced


def _serve(
    control: socket.socket, folders: list[int], limits: dict[str, Any], wall_seconds: float
) -> None:
    """Until the caller is gone. A child that is late is killed, and its program dies with it."""
    deadlines: dict[int, float] = {}
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while True:
        ready = poll.poll(20 if deadlines else 1000)  # milliseconds
        now = time.monotonic()
        for child, deadline in deadlines.items():
            if now >= deadline:
                os.kill(child, signal.SIGKILL)
        _reap(deadlines)
        if not ready:
            continue
        _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not descriptors:  # the caller is gone
            for child in deadlines:
                os.kill(child, signal.SIGKILL)
            os._exit(0)
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            confine.die_with_parent(parent)
            control.close()
            _job(descriptors[0], folders, limits)
        os.close(descriptors[0])
        deadlines[child] = time.monotonic() + wall_seconds


def _reap(deadlines: dict[int, float]) -> None:
    while True:
        try:
            child, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if child == 0:
            return
        deadlines.pop(child, None)


def _job(job: int, folders: list[int], limits: dict[str, Any]) -> NoReturn:
    """One program: this process becomes its judge."""
    text = wire.receive(job)
    requests, ask = os.pipe()
    answers, replies = os.pipe()
    judge_process = os.getpid()
    child = os.fork()
    if child == 0:
        confine.die_with_parent(judge_process)
        _close_all_but(requests, replies, *folders)
        confine.confine(folders, **limits)
        _close_all_but(requests, replies)
        program.serve(text, requests, replies)
    _close_all_but(job, ask, answers, *folders)
    confine.confine(folders, **limits, has_children=True)
    try:
        tests, entry_point = wire.receive(job)
        judge.judge(job, tests, entry_point, child, ask, answers)
    except wire.Closed:
        pass
    os._exit(0)


def _close_all_but(*kept: int) -> None:
    first = 3
    for descriptor in sorted(kept):
        os.closerange(first, descriptor)
        first = descriptor + 1
    os.closerange(first, 4096)
