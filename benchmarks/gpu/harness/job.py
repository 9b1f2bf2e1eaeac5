"""One step's run: what it is told, and where its results go as they come, so that a step that is stopped leaves those it had."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch


class Skipped(Exception):
    """A step that cannot run here; the message says why."""


class Job:
    """A step's surroundings.

    Args:
        name: of the step.
        folder: where result files are.
        seconds: how long the step may take.
        dry: whether this is a rehearsal on the CPU at tiny sizes.

    Attributes:
        device: where tensors go.
    """

    def __init__(self, name: str, folder: Path, seconds: float, dry: bool) -> None:
        self.name = name
        self.dry = dry
        self.device = torch.device("cpu" if dry else "cuda")
        self._end = time.monotonic() + seconds
        self._folder = folder
        self._rows: list[str] = []
        self._figures: dict[str, Any] = {}

    @property
    def seconds_left(self) -> float:
        return self._end - time.monotonic()

    def row(self, text: str) -> None:
        """A line for the table."""
        print(text, flush=True)
        self._rows.append(text)
        self._save()

    def figure(self, name: str, value: Any) -> None:
        """A value for the JSON."""
        self._figures[name] = value
        self._save()

    def earlier(self, step: str) -> dict[str, Any]:
        """The figures of a step that ran before; empty where it did not."""
        figures: dict[str, Any] = read_result(self._folder, step)["figures"]
        return figures

    def _save(self) -> None:
        save_result(self._folder, self.name, {"rows": self._rows, "figures": self._figures})


def result_path(folder: Path, step: str) -> Path:
    """Where a step's rows and figures are."""
    return folder / f"{step}.json"


def read_result(folder: Path, step: str) -> dict[str, Any]:
    """A step's rows and figures; none where it left none."""
    try:
        found: dict[str, Any] = json.loads(result_path(folder, step).read_text())
    except (OSError, ValueError):
        return {"rows": [], "figures": {}}
    return found


def save_result(folder: Path, step: str, result: dict[str, Any]) -> None:
    """Write a step's result whole: a reader never sees half of one."""
    with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as file:
        json.dump(result, file, indent=1)
    Path(file.name).replace(result_path(folder, step))
