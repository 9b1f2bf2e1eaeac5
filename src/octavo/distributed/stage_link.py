"""From one stage of a pipeline to the next: the residual stream of a step, sent while the next step is computed."""

from __future__ import annotations

import torch
import torch.distributed as dist


class StageLink:
    """A rank's ends of the pipeline.

    Steps go through in the order of their plans, and both ends know from the plan how many rows come: nothing but rows is sent. A send
    lasts until the stage behind takes the rows, which it does when it has done the step before: at most one step waits between two stages.

    Args:
        before: the rank that this one's rows come from, in the process group; None in the first stage.
        after: the rank that they go to; None in the last stage.
        width: H.
        device: where the rows are.
    """

    def __init__(self, before: int | None, after: int | None, width: int, device: torch.device) -> None:
        self._before = before
        self._after = after
        self._width = width
        self._device = device
        self._sending: tuple[dist.Work, torch.Tensor] | None = None

    def receive(self, rows: int) -> torch.Tensor:
        """The stage before's rows of this step: float32 [rows, H]."""
        start = torch.empty((rows, self._width), dtype=torch.float32, device=self._device)
        dist.recv(start, self._before)
        return start

    def send(self, rows: torch.Tensor) -> None:
        """Pass float32 [T, H] on; on a CPU they may not change any more. On a GPU they may: a graph fills the same rows again."""
        if self._device.type != "cpu":
            rows = rows.clone()
        if self._sending is not None:
            self._sending[0].wait()
        work = dist.isend(rows, self._after)
        assert work is not None, "the rank is in its process group"
        self._sending = work, rows
