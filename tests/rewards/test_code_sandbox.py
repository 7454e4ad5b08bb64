"""Programs that mean harm: they get their honest score, change nothing and leave nothing."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from logpi.rewards.code.jail import confine, judge, wire
from logpi.rewards.code.sandbox import GRACE_SECONDS, Job, Limits, Sandbox, SandboxError

if sys.platform != "linux":
    pytest.skip("sandbox: expected Linux", allow_module_level=True)

TESTS = ["assert f(2) == 4", "assert f(0) == 0", "assert f(1000) == 2000"]
HONEST = "def f(x):\n    return 2 * x\n"
# The clock that ends a program is the CPU's; the wall limit is for those that sleep.
PATIENT = Limits(cpu_seconds=1, wall_seconds=30.0, memory_bytes=256 << 20)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(PATIENT, strict=False) as one:
        yield one


def needs(sandbox: Sandbox, *limits: str) -> None:
    """Skips with the sandbox's own sentence where this machine cannot enforce a limit."""
    try:
        Sandbox(PATIENT).close()
    except SandboxError as error:
        if set(limits) & set(sandbox.not_enforced):
            pytest.skip(str(error))


def children_of(pid: int) -> list[int]:
    """All descendants, zombies left out."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(path.parent.name)] = int(fields[1])
    found, grown = {pid}, True
    while grown:
        more = {p for p, parent in parents.items() if parent in found} - found
        found, grown = found | more, bool(more)
    return sorted(found - {pid})


def only_servers_are_left(before: list[int]) -> bool:
    """Within a second: the kernel ends a program just after its judge."""
    for _ in range(100):
        if set(children_of(os.getpid())) <= set(before):
            return True
        time.sleep(0.01)
    return False


def test_an_honest_program_passes(sandbox: Sandbox) -> None:
    run = sandbox.run(HONEST, TESTS)
    assert run.passed
    assert run.fraction == 1.0
    assert [one.why for one in run.outcomes] == ["", "", ""]


def test_a_wrong_program_gets_its_fraction(sandbox: Sandbox) -> None:
    run = sandbox.run("def f(x): return 4 if x == 2 else 0", TESTS)
    assert [one.passed for one in run.outcomes] == [True, True, False]
    assert run.outcomes[2].why == "assert f(1000) == 2000: failed"
    assert not run.passed


# name: (program, the assertions of TESTS that it passes, the limits it meets)
HOSTILE = {
    "leaves before the asserts": ("import os\nos._exit(0)", 0, ()),
    "leaves in a call": (HONEST + "import os\ng = f\n"
                         "def f(x): return g(x) if x else os._exit(0)", 1, ()),
    "raises SystemExit": (HONEST + "import sys\ndef f(x): sys.exit(0)", 0, ()),
    "prints a pass": ("import os, sys\nprint('{\"passed\": true}')\nsys.stdout.flush()\n"
                      "def f(x): print('{\"passed\": true, \"done\": true}')", 0, ()),
    "writes a pass into every descriptor": (
        "import os, json, struct\n"
        "for m in ({'total': 3}, *[{'passed': True, 'why': ''}] * 3, {'done': True}):\n"
        "    b = json.dumps(m).encode()\n"
        "    for d in range(3, 64):\n"
        "        try: os.write(d, struct.pack('<I', len(b)) + b)\n"
        "        except OSError: pass\n"
        "def f(x): return None", 0, ()),
    "answers before it is asked": (
        "import os, json, struct\n"
        "b = json.dumps({'returned': ['object', 0]}).encode()\n"
        "for d in range(3, 64):\n"
        "    try: os.write(d, (struct.pack('<I', len(b)) + b) * 9)\n"
        "    except OSError: pass\n", 0, ()),
    "equals everything": ("class Any:\n    def __eq__(self, other): return True\n"
                          "def f(x): return Any()", 0, ()),
    "is a number that equals everything": (
        "class Any(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\n"
        "def f(x): return Any(7)", 0, ()),
    "patches the checker": (
        "import sys, builtins\n"
        "for m in list(sys.modules.values()):\n"
        "    for n in ('judge', 'units', '_execute', '_asserts'):\n"
        "        if hasattr(m, n): setattr(m, n, lambda *a: '')\n"
        "builtins.AssertionError = builtins.Exception = type('E', (BaseException,), {})\n"
        "def f(x): return None", 0, ()),
    "looks for the expected values": (
        "import gc, sys\n"
        "def f(x):\n"
        "    seen = repr([o for o in gc.get_objects() if isinstance(o, (list, dict, tuple))"
        " and len(o) < 500])[:10**7]\n"
        "    frame = sys._getframe()\n"
        "    while frame: seen += repr(frame.f_locals); frame = frame.f_back\n"
        "    return 2 * x if 'asser' + chr(116) + ' f(' in seen else None", 0, ()),
    "loops": ("def f(x):\n    while True: pass", 0, ("CPU time",)),
    "loops and catches the signals": (
        "import signal\n"
        "for s in range(1, 65):\n"
        "    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\n"
        "while True: pass", 0, ("CPU time",)),
    "allocates 10 GB": ("def f(x):\n    a = bytearray(10 << 30)\n    return 2 * x", 0,
                        ("memory",)),
    "allocates bit by bit": ("a = []\ndef f(x):\n    while True: a.append(bytearray(1 << 20))", 0,
                             ("memory",)),
    "forks a bomb": ("import os\nwhile True: os.fork()", 0, ("processes",)),
    "forks, however refused": (
        "import os\n"
        "def f(x):\n"
        "    for _ in range(100):\n"
        "        try: os.fork()\n"
        "        except OSError: pass\n"
        "    return 2 * x", 3, ("processes",)),
    "starts threads": ("import threading\nt = threading.Thread(target=print)\nt.start()\n" + HONEST,
                       0, ("processes",)),
    "leaves a daemon": (
        "import os, time\n"
        "if os.fork() == 0:\n    os.setsid()\n    time.sleep(3600)\n" + HONEST, 0, ("processes",)),
    "runs a command": ("import os\nran = os.system('true')\n"
                       "def f(x): return 2 * x if ran == 0 else None", 0, ("processes",)),
    "opens a socket": ("import socket\nsocket.socket()\n" + HONEST, 0, ("network",)),
    "kills its judge": ("import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\n" + HONEST, 0,
                        ("signals",)),
    "kills by SIGIO": (
        "import fcntl, os\nr, w = 3, 4\n"
        "for d in range(64):\n"
        "    try: fcntl.fcntl(d, fcntl.F_SETOWN, os.getppid())\n"
        "    except OSError: pass\n"
        "    else: os._exit(1)\n" + HONEST, 3, ("signals",)),
    "fills the disk": ("with open('/tmp/logpi-filled', 'wb') as f:\n"
                       "    while True: f.write(bytes(1 << 20))\n" + HONEST, 0,
                       ("writing files",)),
    "reads a file": ("open('/etc/hostname').read()\n" + HONEST, 0, ("reading files",)),
    "looks around": ("import os\nos.listdir('/')\n" + HONEST, 0, ("reading files",)),
    "traces its judge": (
        "import ctypes, os\ngot = ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0)\n"
        "def f(x): return 2 * x if got == 0 else None", 0, ("signals",)),
    "makes system calls itself": (
        "import ctypes\nlibc = ctypes.CDLL(None)\n"
        "got = [libc.syscall(n, 0, 0, 0, 0, 0) for n in (41, 56, 57, 58, 59, 101, 165, 272, 425)]\n"
        "def f(x): return 2 * x if all(g == -1 for g in got) else 0", 3, ("processes",)),
    "answers with too much": ("def f(x): return 'x' * (50 << 20)", 0, ()),
    "answers deeper than a stack": (
        "import sys\nsys.setrecursionlimit(10**6)\n"
        "def f(x):\n    a = []\n    for _ in range(50000): a = [a]\n    return a", 0, ()),
    "answers with itself": ("def f(x):\n    a = []\n    a.append(a)\n    return a", 0, ()),
    "overflows the stack": ("import sys\nsys.setrecursionlimit(10**9)\n"
                            "def f(x): return f(x + 1)", 0, ("memory", "CPU time")),
    "crashes": ("import ctypes\ndef f(x): return ctypes.string_at(0)", 0, ()),
    "prints without end": ("def f(x):\n    while True: print('x' * 100000)", 0, ("CPU time",)),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_gets_its_honest_score(name: str, sandbox: Sandbox) -> None:
    program, passing, limits = HOSTILE[name]
    needs(sandbox, *limits)
    sandbox.run(HONEST, TESTS)
    before = children_of(os.getpid())
    run = sandbox.run(program, TESTS)
    assert len(run.outcomes) == len(TESTS)
    assert sum(one.passed for one in run.outcomes) == passing, run.outcomes
    assert only_servers_are_left(before)
    assert sandbox.run(HONEST, TESTS).passed  # and the next one is served as if nothing had been
    assert not Path("/tmp/logpi-filled").exists()


def test_files_outside_stay_as_they_are(sandbox: Sandbox, tmp_path: Path) -> None:
    needs(sandbox, "writing files", "reading files")
    victim = tmp_path / "victim"
    victim.write_text("4")
    victim.chmod(0o666)
    tmp_path.chmod(0o777)
    stat = victim.stat()
    attempts = [
        f"os.remove({str(victim)!r})", f"os.rename({str(victim)!r}, {str(victim)!r} + 'x')",
        f"open({str(victim)!r}, 'w')", f"os.truncate({str(victim)!r}, 0)",
        f"os.chmod({str(victim)!r}, 0)", f"os.utime({str(victim)!r}, (0, 0))",
        f"os.mkdir({str(tmp_path / 'new')!r})", f"os.symlink('/', {str(tmp_path / 'new')!r})",
        f"os.link({str(victim)!r}, {str(tmp_path / 'new')!r})", f"shutil.rmtree({str(tmp_path)!r})",
        f"open({str(tmp_path / 'new')!r}, 'x')", f"open({str(victim)!r}).read()",
    ]  # fmt: skip
    for attempt in attempts:
        caught = f"import os, shutil\ntry: {attempt}\nexcept OSError: done = False\n"
        program = f"{caught}else: done = True\ndef f(): return done"
        run = sandbox.run(program, ["assert f() is False"])
        assert run.passed, (attempt, run)
    assert victim.read_text() == "4"
    assert victim.stat().st_mtime_ns == stat.st_mtime_ns
    assert victim.stat().st_mode == stat.st_mode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["victim"]


def test_a_program_that_sleeps_meets_the_wall_limit() -> None:
    with Sandbox(Limits(wall_seconds=0.5), strict=False) as sandbox:
        before = children_of(os.getpid())
        start = time.monotonic()
        tests = ["assert f(1) == 2", "import time\ntime.sleep(60)\nassert f(2) == 4"]
        runs = [
            sandbox.run(f"import time\ntime.sleep(60)\n{HONEST}", TESTS),
            sandbox.run(HONEST, tests),
        ]
        assert time.monotonic() - start < 2 * (0.5 + GRACE_SECONDS + 0.5)
        assert [len(run.outcomes) for run in runs] == [3, 2]
        assert [run.fraction for run in runs] == [0.0, 0.5]
        assert "not reached" in runs[1].outcomes[1].why
        assert only_servers_are_left(before)


def test_what_a_program_leaves_behind_dies_with_its_judge() -> None:
    """The second wall, without the first: a process that forks freely, in a namespace or not."""
    reads, writes = os.pipe()
    judging = os.fork()
    if judging == 0:
        confine.adopt_orphans()
        if os.fork() == 0:
            confine.die_with_parent(os.getppid())
            os.write(writes, str(os.getpid()).encode())
            time.sleep(60)
        time.sleep(60)
    program = int(os.read(reads, 20))
    os.kill(judging, signal.SIGKILL)
    os.waitpid(judging, 0)
    for _ in range(200):
        try:
            state = Path(f"/proc/{program}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            break
        if state == "Z":
            break
        time.sleep(0.01)
    else:
        os.kill(program, signal.SIGKILL)
        pytest.fail("the program has survived")
    os.close(reads)
    os.close(writes)


def test_closing_ends_every_process() -> None:
    before = children_of(os.getpid())
    sandbox = Sandbox(Limits(wall_seconds=30.0), strict=False)
    thread = threading.Thread(
        target=sandbox.run, args=("import time\ntime.sleep(30)", TESTS), daemon=True
    )
    thread.start()
    for _ in range(1000):
        if len(children_of(os.getpid())) >= len(before) + 3:  # a server, a judge and a program
            break
        time.sleep(0.01)
    sandbox.close()
    thread.join(10.0)
    assert not thread.is_alive()
    assert only_servers_are_left(before)


def test_a_server_that_died_is_replaced(sandbox: Sandbox) -> None:
    server = sandbox._running()
    os.kill(server._process.pid, signal.SIGKILL)
    server._process.wait()
    assert sandbox.run(HONEST, TESTS).passed
    assert sandbox._running() is not server


def test_a_forked_caller_has_a_server_of_its_own(sandbox: Sandbox) -> None:
    sandbox.run(HONEST, TESTS)
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if sandbox.run(HONEST, TESTS).passed else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert sandbox.run(HONEST, TESTS).passed


# ---- what this machine cannot enforce is said ---------------------------------------------------


def test_what_cannot_be_enforced_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from logpi.rewards.code import sandbox as module

    blind = "import sys; sys.path.insert(0, sys.argv.pop()); import jail.server as s\n"
    blind += "s.confine._seccomp = lambda: False\ns.confine._landlock = lambda *a, **k: False\n"
    blind += "s.confine.leave_namespaces = lambda: False\n"
    monkeypatch.setattr(module, "_START", blind + "s.main()")
    with pytest.raises(SandboxError, match=r"cannot deny or limit: .*reading files, writing files"):
        Sandbox()
    with Sandbox(strict=False) as sandbox:
        assert {"network", "reading files", "writing files"} <= set(sandbox.not_enforced)
        assert sandbox.run(HONEST, TESTS).passed


def test_a_server_that_does_not_start_says_why() -> None:
    with pytest.raises(SandboxError, match="no_such_module_of_anyone"):
        Sandbox(Limits(preload=("no_such_module_of_anyone",)))


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="cpu_seconds: expected at least 1, got 0"):
        Limits(cpu_seconds=0)
    with pytest.raises(ValueError, match=r"wall_seconds: expected a number of at least 0.05"):
        Limits(wall_seconds=0)
    with pytest.raises(TypeError, match="preload: expected a tuple of texts, got 'numpy'"):
        Limits(preload="numpy")  # type: ignore[arg-type]


def test_import_paths_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "logpi_doubles.py").write_text("def double(x): return 2 * x\n")
    program = "import logpi_doubles\nf = logpi_doubles.double"
    with Sandbox(Limits(import_paths=(str(tmp_path),)), strict=False) as sandbox:
        assert sandbox.run(program, TESTS).passed
    with Sandbox(strict=False) as sandbox:
        assert not sandbox.run(program, TESTS).passed


# ---- tests of every kind ------------------------------------------------------------------------

HUMAN_EVAL = """
METADATA = {'author': 'jt'}

def check(candidate):
    assert candidate(2) == 4
    for x in range(5):
        assert candidate(x) == 2 * x
    assert candidate([1]) == [1, 1]
    assert candidate(3) == 7, "wrong on purpose"

check(f)
"""


def test_tests_in_the_form_of_human_eval(sandbox: Sandbox) -> None:
    run = sandbox.run(HONEST, [HUMAN_EVAL], "f")
    assert [one.passed for one in run.outcomes] == [True, True, True, False]
    assert "wrong on purpose" in run.outcomes[3].why


@pytest.mark.parametrize(
    ("program", "test", "passes"),
    [
        ("def f(x): return x / 3", "assert abs(f(1) - 0.333333) < 1e-5", True),
        ("def abs(x): return 0\ndef f(x): return 9", "assert abs(f(1) - 0.3) < 1e-5", False),
        ("def f(x): return 0.1 * x", "assert math.isclose(f(3), 0.3)", True),
        ("def f(x): raise KeyError(x)",
         "try:\n    f(1)\n    assert False\nexcept KeyError: pass", True),
        ("def f(x): raise KeyError(x)",
         "try:\n    f(1)\n    assert False\nexcept ValueError: pass", False),
        ("def f(x): return (x, [x], {x: {x}})", "assert f(1) == (1, [1], {1: {1}})", True),
        ("def f(x): return [x]", "assert f(1) == (1,)", False),
        ("def f(x): return {1: frozenset([2])}", "assert f(0) == {1: frozenset({2})}", True),
        ("def f(x): return x ** 999", "assert f(7) == 7 ** 999", True),
        ("def f(x): return float('nan')", "assert f(0) != f(0)", True),
        ("def f(x): return float('-inf')", "assert f(0) == -math.inf", True),
        ("def f(x): return 1 + 2j", "assert f(0) == 1 + 2j", True),
        ("def f(x): return b'a' + x", "assert f(b'\\xff') == b'a\\xff'", True),
        ("def f(x): return x + '\\ud800'", "assert f('é') == 'é\\ud800'", True),
        ("def f(n):\n    for i in range(n): yield i", "assert list(f(4)) == [0, 1, 2, 3]", True),
        ("class Stack:\n    def __init__(self): self.a = []\n"
         "    def push(self, x): self.a.append(x)\n    def top(self): return self.a[-1]\n",
         "s = Stack()\ns.push(3)\ns.push(5)\nassert s.top() == 5", True),
        ("def f(s): return s.x\nclass S:\n    x = 3", "assert f(S()) == 3", True),
        ("def f(xs): return sum(xs)", "assert f(list(range(100_000))) == 4999950000", True),
        ("def f(n): return list(range(n))", "assert f(100_000)[-1] == 99_999", True),
        ("def f(x): return x(1)", "assert f(lambda y: y) == 1", False),  # is no data
        ("def f(x): return g(x)\ndef g(x): return 2", "assert f(1) == g(1) == 2", True),
        ("def f(x): return 2\nassert f(1) == 3", "assert f(1) == 2", True),  # its own: an example
        ("def f(x): return 2\nif __name__ == '__main__': raise OSError", "assert f(1) == 2", True),
        ("def f(x: List[int]) -> Dict[str, int]: return Counter(x)", "assert f('aab')['a'] == 2",
         True),
        ("def f(x): return object()", "assert f(1) != 3", False),
        ("def f(x): return object()", "assert f(1)", False),
        ("def f(x): return random.random()", "assert f(1) == 0.8444218515250481", True),
        ("f = 3", "assert f(1) == 3", False),
        ("def g(x): return 3", "assert f(1) == 3", False),
        ("def f(x): return 3", "assert f(1) == 3 and (", False),
        ("def f(x): return x", "def test_one():\n    assert f(1) == 1\ntest_one()", True),
    ],
)  # fmt: skip
def test_assertions_of_many_kinds(program: str, test: str, passes: bool, sandbox: Sandbox) -> None:
    run = sandbox.run(program, [test])
    assert len(run.outcomes) == 1
    assert run.passed == passes, run


def test_no_assertion_is_no_pass(sandbox: Sandbox) -> None:
    for tests in ([], [""], ["x = f(1)"]):
        run = sandbox.run(HONEST, tests)
        assert (run.outcomes, run.fraction, run.passed) == ((), 0.0, False)


def test_many_at_once_keep_their_order(sandbox: Sandbox) -> None:
    jobs = [Job(f"def f(x): return {i}", [f"assert f(0) == {i - i % 2}"]) for i in range(24)]
    assert [run.passed for run in sandbox.run_all(jobs)] == [True, False] * 12


def test_the_program_never_gets_an_expected_value() -> None:
    """What the judge writes on the line, read from the line."""
    asked, ask = os.pipe()
    answers, replies = os.pipe()
    ours, theirs = socket.socketpair()
    for answer in ({"returned": None}, {"returned": 5077}):
        wire.send(replies, answer)
    judge.judge(theirs.fileno(), ["assert f(2, k=[3]) == 5077"], None, os.getpid(), ask, answers)
    assert [wire.receive(ours.fileno()) for _ in range(3)] == [
        {"total": 1}, {"passed": True, "why": ""}, {"done": True},
    ]  # fmt: skip
    assert wire.receive(asked) == {
        "at": ["f"], "do": "call", "args": ["tuple", 2], "kwargs": ["dict", ["k", ["list", 3]]],
    }  # fmt: skip
    os.set_blocking(asked, False)
    with pytest.raises(BlockingIOError):
        os.read(asked, 1)
    for descriptor in (asked, ask, answers, replies):
        os.close(descriptor)
    ours.close()
    theirs.close()
