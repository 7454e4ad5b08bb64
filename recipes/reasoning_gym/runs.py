"""What the scripts share: a folder that belongs to its settings, files that are whole, a bar."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any


def settings(args: argparse.Namespace, without: Collection[str]) -> dict[str, Any]:
    """What the numbers of a run depend on."""
    return {key: value for key, value in vars(args).items() if key not in without}


def chosen(kind: Any, known: dict[str, Any]) -> Any:
    """A dataclass `kind` of what is known by the names of its fields."""
    return kind(**{field.name: known[field.name] for field in dataclasses.fields(kind)})


def go_on_or_refuse(out: Path, asked: dict[str, Any], *, fresh: bool) -> None:
    """Makes the folder, or makes sure that what lies in it belongs to the same settings."""
    if fresh:
        shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "settings.json"
    if path.exists():
        found = json.loads(path.read_text())
        differing = [key for key in asked if asked[key] != found.get(key)]
        if differing:
            listed = ", ".join(f"{key} {found.get(key)} not {asked[key]}" for key in differing)
            sys.exit(f"{out} holds a run with other settings ({listed}): --out or --fresh?")
    path.write_text(json.dumps(asked, indent=1) + "\n")


def write_json(content: dict[str, Any], path: Path) -> None:
    """Written beside its place and renamed: where the file is, it is whole."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.rename(path)


def save(saved: dict[str, Any], path: Path) -> None:
    """The same of tensors."""
    import torch

    partial = path.with_suffix(".partial")
    torch.save(saved, partial)
    partial.rename(path)


def quiet() -> None:
    """No downloads and no chatter from transformers; call it before anything imports it."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read at the import
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


class Bar:
    """A progress bar whose `advance(text, completed=None)` moves it and shows the text."""

    def __init__(self, console: Any, name: str, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        self.progress = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            Remaining(),
            TextColumn("{task.fields[text]}"),
            console=console,
        )
        self.task = self.progress.add_task(name, total=total, text="")

    def __enter__(self) -> Any:
        self.progress.start()
        return self.advance

    def advance(self, text: str, completed: int | None = None) -> None:
        if completed is None:
            self.progress.update(self.task, advance=1, text=text)
        else:
            self.progress.update(self.task, completed=completed, text=text)

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
