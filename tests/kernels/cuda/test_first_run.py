"""The script for the first minutes on a GPU, rehearsed without one: it has to work the day there is one."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a rehearsal is for machines without a GPU; there the script itself runs")


def test_an_engine_starts_and_answers_in_a_rehearsal(tmp_path: Path) -> None:
    surroundings = os.environ | {"OUT": str(tmp_path)}
    command = [ROOT / "benchmarks/gpu/first_run.sh", "--dry-run", "--steps", "limits,startup", "--budget", "240"]
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    results = json.loads((tmp_path / "results.json").read_text())
    assert {name: step["status"] for name, step in results.items()} == {"limits": "ok", "startup": "ok"}
    assert "first token" in (tmp_path / "table.txt").read_text()
