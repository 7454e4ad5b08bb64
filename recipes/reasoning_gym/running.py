"""What every run does besides learning: goes on where it stopped, and shows how far it is."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.progress import TimeRemainingColumn as Remaining


def go_on_or_refuse(folder: Path, asked: dict[str, Any], *, fresh: bool = False) -> None:
    """Makes the folder, or makes sure that what lies in it belongs to the same settings.

    Args:
        asked: the settings that a number depends on; they are kept in settings.json.
        fresh: delete what the folder holds first.
    """
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "settings.json"
    if path.exists():
        found = json.loads(path.read_text())
        differing = [key for key in asked if asked[key] != found.get(key)]
        if differing:
            listed = ", ".join(f"{key} {found.get(key)} not {asked[key]}" for key in differing)
            sys.exit(f"{folder} holds a run with other settings ({listed}): --out or --fresh?")
    path.write_text(json.dumps(asked, indent=1) + "\n")


class Bar:
    """A progress bar whose `advance(text, completed=None)` moves it and shows the text."""

    def __init__(self, console: Any, name: str, total: int) -> None:
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
