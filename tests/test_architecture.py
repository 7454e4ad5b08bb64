"""The house rules, read from the source; and for each rule a planted breach that it must report."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FRAMEWORKS = (
    r"trl|verl|vllm|sglang|transformers|accelerate|deepspeed|megatron|nemo|openrlhf|"
    r"unsloth|liger|slime|skyrl|prime.rl|ray"
)
# Ops of several functions, and one of them.
FAMILIES = {
    "action_sampling": "sample_action_tokens",
    "covariance_clip": "clip_cov_mask",
    "flow_balance": "flow_balance_loss",
    "token_sampling": "sample_tokens",
}
HEAVY = "triton transformers trl verl vllm accelerate datasets matplotlib rich pandas scipy pytest"


def _sources(root: Path, *folders: str, suffixes: tuple[str, ...]) -> Iterator[Path]:
    for folder in folders:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in suffixes and "__pycache__" not in path.parts:
                yield path


# ---- rules: each takes a tree and returns its breaches as sentences -----------------------------


def _floor(module: str) -> int | None:
    """recipes 5 -> integrations 4 -> the package's face 3 -> ops 2 -> core 1 -> _C 0."""
    parts = module.split(".")
    if parts[0] == "recipes":
        return 5
    if parts[0] != "logpi":
        return None
    floors = {"integrations": 4, "ops": 2, "core": 1, "_C": 0, "rewards": 0}
    return floors.get(parts[1], 3) if len(parts) > 1 else 3


def _imports(path: Path, module: str, known: set[str]) -> Iterator[str]:
    """Dotted names a file imports anywhere in it, relative ones resolved."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = (
                ".".join(above + [node.module] * bool(node.module)) if node.level else node.module
            )
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner in known or inner == "logpi._C" else base


def imports_point_down(root: Path) -> list[str]:
    files = {}
    for path in _sources(root, "python/logpi", "recipes", suffixes=(".py",)):
        base = root / "python" if "python" in path.relative_to(root).parts[:1] else root
        name = ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")
        files[name] = path
    breaches = []
    for module, path in files.items():
        for target in _imports(path, module, set(files)):
            here, there = _floor(module), _floor(target)
            if there is None:
                continue
            alone = module.startswith("logpi.rewards") and not target.startswith("logpi.rewards")
            if there > here or alone:
                breaches.append(f"{module} imports {target}")
    return breaches


def rewards_need_no_torch(root: Path) -> list[str]:
    return [
        f"{path.name} imports {name}"
        for path in _sources(root, "python/logpi/rewards", suffixes=(".py",))
        for name in _imports(path, "logpi.rewards", set())
        if name.split(".")[0] == "torch"
        # its tests are scipy's; `import logpi.rewards` does not load it
        or (name.split(".")[0] == "numpy" and path.parent.name != "hypothesis")
    ]


def frameworks_live_in_integrations(root: Path) -> list[str]:
    breaches = []
    for path in _sources(
        root, "python/logpi", "csrc", suffixes=(".py", ".pyi", ".h", ".cpp", ".cu")
    ):
        relative = path.relative_to(root)
        if "integrations" in relative.parts:
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if re.search(rf"\b({FRAMEWORKS})\b", line, re.IGNORECASE):
                breaches.append(f"{relative}:{number}: {line.strip()}")
    return breaches


def no_torch_header(root: Path) -> list[str]:
    header = re.compile(r"#\s*include\s*[<\"](torch|ATen|c10|caffe2)\b")
    return [
        f"{path.relative_to(root)}: {line}"
        for path in _sources(root, "csrc", suffixes=(".h", ".cpp", ".cu", ".cuh"))
        for line in path.read_text().splitlines()
        if header.search(line)
    ]


def files_can_be_read(root: Path) -> list[str]:
    folders = ("python", "csrc", "tests", "benchmarks", "recipes")
    suffixes = (".py", ".pyi", ".h", ".cpp", ".cu", ".cuh")
    return [
        f"{path.relative_to(root)} has {lines} lines"
        for path in _sources(root, *folders, suffixes=suffixes)
        if (lines := len(path.read_text().splitlines())) > 500
    ]


def one_word_per_op(root: Path) -> list[str]:
    """An op's name is its folder in Python, its folder in C++ if it has one, and its test."""
    breaches = []
    ops = [p.parent.name for p in (root / "python/logpi/ops").glob("*/op.py")]
    for op in ops:
        for part in (f"python/logpi/ops/{op}/reference.py", f"tests/ops/test_{op}.py"):
            if not (root / part).exists():
                breaches.append(f"{op} has no {part}")
        source = (root / f"python/logpi/ops/{op}/op.py").read_text()
        defined = FAMILIES.get(op, op)
        if not re.search(rf"^def {defined}\(", source, re.MULTILINE):
            breaches.append(f"{op}/op.py does not define {defined}")
    for folder in (root / "csrc").glob("*/"):
        if folder.name not in ("core", *ops):
            breaches.append(f"csrc/{folder.name} belongs to no op")
    return breaches


# Each rule, and files that break it.
RULES = [
    (imports_point_down, {"python/logpi/core/x.py": "from logpi.ops.y import op"}),
    (imports_point_down, {"python/logpi/core/x.py": "def f():\n    import logpi.integrations.z"}),
    (imports_point_down, {"python/logpi/ops/y/op.py": "from ...integrations import z"}),
    (imports_point_down, {"python/logpi/ops/y/op.py": "from logpi import KeepSet"}),
    (imports_point_down, {"python/logpi/integrations/z.py": "import recipes.grpo.train"}),
    (imports_point_down, {"python/logpi/rewards/m.py": "from logpi.core import checks"}),
    (rewards_need_no_torch, {"python/logpi/rewards/m.py": "import torch"}),
    (frameworks_live_in_integrations, {"python/logpi/ops/y/op.py": "# as TRL does"}),
    (frameworks_live_in_integrations, {"csrc/y/y.cpp": "// for vLLM\n"}),
    (no_torch_header, {"csrc/y/y.cpp": "#include <torch/extension.h>\n"}),
    (no_torch_header, {"csrc/core/x.h": '#  include "ATen/ATen.h"\n'}),
    (files_can_be_read, {"csrc/y/y.cu": "//\n" * 501}),
    (one_word_per_op, {"python/logpi/ops/y/op.py": "def y(): ..."}),
    (one_word_per_op, {"csrc/z/z.cpp": ""}),
]


@pytest.mark.parametrize("rule", dict.fromkeys(rule for rule, _ in RULES), ids=lambda r: r.__name__)
def test_the_house_keeps_its_rule(rule) -> None:
    assert rule(ROOT) == []


@pytest.mark.parametrize(("rule", "files"), RULES)
def test_the_rule_reports_a_planted_breach(rule, files: dict[str, str], tmp_path: Path) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert len(rule(tmp_path)) >= 1


def test_the_rules_see_the_house() -> None:
    """An empty tree keeps every rule: be sure that this one is not."""
    names = {path.name for path in _sources(ROOT, "python/logpi", "csrc", suffixes=(".py", ".h"))}
    assert {"op.py", "backends.py", "isa.h"} <= names


# ---- importing ----------------------------------------------------------------------------------


def _loaded_by(statement: str) -> set[str]:
    code = f"import sys, torch; before = set(sys.modules)\n{statement}\n"
    code += "print(*(set(sys.modules) - before))"
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_importing_loads_torch_and_nothing_heavier() -> None:
    loaded = _loaded_by("import logpi")
    assert "logpi" in loaded
    assert not loaded & {*HEAVY.split(), "numpy"}


def test_an_import_of_something_heavy_would_show() -> None:
    assert _loaded_by("import pytest") & {*HEAVY.split(), "numpy"}


def test_testing_needs_torch_alone() -> None:
    assert not _loaded_by("import logpi.testing") & {"hypothesis", "numpy", *HEAVY.split()}


def test_rewards_load_nothing_heavier() -> None:
    """math-verify runs in a process of its own; the index and the intervals load theirs on use."""
    loaded = _loaded_by("import logpi.rewards")
    heavy = {"math_verify", "latex2sympy2_extended", "antlr4", "sympy", "bm25s", "numpy"}
    assert not loaded & {*heavy, *HEAVY.split()}


def test_importing_warns_of_nothing() -> None:
    command = [sys.executable, "-W", "error", "-c", "import logpi"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
