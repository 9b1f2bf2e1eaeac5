"""The residual stream's way from one stage of a pipeline to the next."""

from __future__ import annotations

import torch
import torch.distributed as dist


class StageLink:
    """A rank's connection to the same place in the stages before and after its own.

    Args:
        before, after: their ranks in the world; None where there is no such stage.
        width: H.
        device: where rows are.
    """

    def __init__(self, before: int | None, after: int | None, width: int, device: torch.device) -> None:
        self._before = before
        self._after = after
        self._width = width
        self._device = device
        self._sent: tuple[dist.Work, torch.Tensor] | None = None

    def receive(self, rows: int) -> torch.Tensor:
        """The stage before's float32 [rows, H] of the step."""
        taken = torch.empty((rows, self._width), dtype=torch.float32, device=self._device)
        dist.recv(taken, src=self._before)
        return taken

    def send(self, rows: torch.Tensor) -> None:
        """Hand float32 [T, H] on. Does not wait for the next stage to take it, but for it to have taken those of the step before."""
        if self._sent is not None:
            self._sent[0].wait()
        # What is on its way must stay as it is; a graph's rows are overwritten by the next step.
        kept = rows.clone() if self._device.type == "cuda" else rows
        work = dist.isend(kept, dst=self._after)
        assert work is not None
        self._sent = work, kept
