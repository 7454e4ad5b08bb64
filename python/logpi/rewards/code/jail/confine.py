"""What a process gives up before it runs a stranger's program, and for ever after.

No step needs a privilege, so that it works in a container as for root. Each is a system call of
Linux; `confine` takes those that the machine has, and `probe` finds out by trying what holds.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import resource
import signal
import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress

_libc = ctypes.CDLL(None, use_errno=True)

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_PR_SET_CHILD_SUBREAPER = 36
_MAX_FILES = 64  # open at once


def confine(
    readable: Sequence[int], *, cpu_seconds: int, memory_bytes: int, has_children: bool = False
) -> None:
    """Limits this process; `readable` are descriptors of the folders that it may read.

    Memory is what the process may map at most, all of it counted. With children, its death still
    kills them: the kernel sends that signal in its name, and Landlock would hold it back.
    """
    for what, most in (
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, _MAX_FILES),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
    ):
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))
    _drop_capabilities()
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _landlock(readable, signals=has_children)
    if not _seccomp():  # then at least the count; it does not hold for root
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def die_with_parent(parent: int) -> None:
    """The kernel kills this process when its parent ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() not in (parent, 0):  # 0: the parent is outside of the namespace
        os._exit(1)


def adopt_orphans() -> None:
    """What a child leaves behind becomes a child of this process."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def leave_namespaces() -> bool:
    """Into namespaces of their own: no network, no other process in sight. False: not allowed.

    The next child is the first process of the new one: when it ends, the kernel ends all others.
    """
    new_pid, new_net, new_ipc, new_user = 0x20000000, 0x40000000, 0x08000000, 0x10000000
    common = new_pid | new_net | new_ipc
    return any(_libc.unshare(flags) == 0 for flags in (common | new_user, common))


# ---- capabilities -------------------------------------------------------------------------------


def _drop_capabilities() -> None:
    """What is left of root's powers then is the ownership of its files."""
    version_3 = 0x20080522
    header = struct.pack("<Ii", version_3, 0)
    _libc.capset(header, bytes(24))


# ---- Landlock: which files ----------------------------------------------------------------------

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every machine
_READ = 1 << 2 | 1 << 3  # READ_FILE, READ_DIR


def _landlock(readable: Sequence[int], signals: bool) -> bool:
    """No file but those beneath the folders, which may be read. True: the kernel has agreed."""
    version = _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    files = (1 << {1: 13, 2: 14}.get(version, 15 if version < 5 else 16)) - 1
    network = 3 if version >= 4 else 0  # bind, connect
    scoped = (1 if signals else 3) if version >= 6 else 0  # abstract sockets, signals
    size = 8 if version < 4 else 16 if version < 6 else 24
    attributes = struct.pack("<QQQ", files, network, scoped)[:size]
    ruleset = _libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)
    if ruleset < 0:
        return False
    for folder in readable:
        rule = struct.pack("<Qi", _READ, folder)
        if _libc.syscall(_ADD_RULE, ruleset, 1, rule, 0) < 0:
            os.close(ruleset)
            return False
    agreed = bool(_libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0)
    os.close(ruleset)
    return agreed


# ---- seccomp: which system calls ----------------------------------------------------------------

# name: number on (x86_64, aarch64). What is not here is refused with EPERM: no socket, no process
# or thread, no signal, no ptrace, no mount, and no way to change or to remove a file.
_ALLOWED = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "lseek": (8, 62),
    "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67), "dup": (32, 23),
    "fstat": (5, 80), "newfstatat": (262, 79), "stat": (4, None), "lstat": (6, None),
    "statx": (332, 291), "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439),
    "getdents64": (217, 61), "getcwd": (79, 17), "readlink": (89, None), "readlinkat": (267, 78),
    "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "mremap": (25, 216),
    "brk": (12, 214), "madvise": (28, 233), "futex": (202, 98), "set_robust_list": (273, 99),
    "rseq": (334, 293), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "sigaltstack": (131, 132), "restart_syscall": (219, 128),
    "getpid": (39, 172), "gettid": (186, 178), "getppid": (110, 173), "getuid": (102, 174),
    "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177), "uname": (63, 160),
    "sysinfo": (99, 179), "getrusage": (98, 165), "times": (100, 153), "time": (201, None),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "gettimeofday": (96, 169),
    "clock_nanosleep": (230, 115), "nanosleep": (35, 101), "getrandom": (318, 278),
    "poll": (7, None), "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72),
    "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "wait4": (61, 260),
    "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip
_OPENAT, _FCNTL, _PRLIMIT = (257, 56), (72, 25), (302, 261)  # allowed with some arguments
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_FCNTL_COMMANDS = (1, 2, 3, 1030)  # flags and duplicates; not F_SETOWN, which sends signals
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06  # BPF
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000


def _seccomp() -> bool:
    """No system call but those of the table. True: the kernel has agreed."""
    if platform.machine() not in _MACHINES or struct.calcsize("P") != 8:
        return False
    code = b"".join(struct.pack("<HBBI", *line) for line in _filter(*_MACHINES[platform.machine()]))
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HP", len(code) // 8, ctypes.addressof(buffer))
    return bool(_libc.prctl(_PR_SET_SECCOMP, 2, program, 0, 0) == 0)


def _filter(machine: int, audit_arch: int) -> list[tuple[int, int, int, int]]:
    number, arch, first, second, third = 0, 4, 16, 24, 32  # offsets in struct seccomp_data
    lines = [(_LOAD, 0, 0, arch), (_EQUAL, 1, 0, audit_arch), (_RETURN, 0, 0, _KILL)]
    lines.append((_LOAD, 0, 0, number))
    for numbers in _ALLOWED.values():
        if (allowed := numbers[machine]) is not None:
            lines += [(_EQUAL, 0, 1, allowed), (_RETURN, 0, 0, _ALLOW)]
    lines += [
        (_EQUAL, 0, 4, _OPENAT[machine]),
        (_LOAD, 0, 0, third),
        (_ANY_BIT, 0, 1, _WRITING),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
        (_EQUAL, 0, 4, _PRLIMIT[machine]),
        (_LOAD, 0, 0, first),
        (_EQUAL, 0, 1, 0),  # its own limits, which it can only lower
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
        (_EQUAL, 0, 2 + 2 * len(_FCNTL_COMMANDS), _FCNTL[machine]),
        (_LOAD, 0, 0, second),
    ]
    for command in _FCNTL_COMMANDS:
        lines += [(_EQUAL, 0, 1, command), (_RETURN, 0, 0, _ALLOW)]
    return [*lines, (_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _REFUSE)]


# ---- what holds ---------------------------------------------------------------------------------


def probe(*, cpu_seconds: int, memory_bytes: int) -> dict[str, bool]:
    """By trying, in a process that is confined: True where the machine said no."""
    return {
        "CPU time": resource.getrlimit(resource.RLIMIT_CPU)[1] == cpu_seconds,
        "memory": _refused(lambda: mmap.mmap(-1, memory_bytes).close()),
        "processes": _refused(_fork),
        "network": _refused(lambda: socket.socket().close()),
        "signals": _refused(lambda: os.kill(os.getpid(), 0)),
        "reading files": _refused(lambda: os.close(os.open("/", os.O_RDONLY))),
        "writing files": _refused(lambda: os.close(os.open(os.devnull, os.O_WRONLY))),
    }


def _refused(attempt: Callable[[], None]) -> bool:
    with suppress(OSError, MemoryError):
        attempt()
        return False
    return True


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)
