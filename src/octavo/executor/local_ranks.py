"""The ranks of a job that run on this host: a process each, and the memory that they share."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time

import msgspec

from octavo.executor.child_process import starts_from_main_thread
from octavo.executor.messages import Job, WorkerStart
from octavo.models.hub import ModelFiles
from octavo.ops.cpu.shared_group import SharedGroup
from octavo.ops.workspace import shared_slot_floats

_STOP_SECONDS = 2.0


class LocalRanks:
    """Starts them.

    Args:
        job: what they do.
        host: this one.
        files: where it has the model.
        threads: of all of them together.
    """

    def __init__(self, job: Job, host: int, files: ModelFiles, threads: int) -> None:
        self._workers: dict[int, subprocess.Popen[bytes]] = {}
        ranks = [rank for rank, home in enumerate(job.homes) if home == host]
        engine, engines = job.engine
        shared = [stage for stage in sorted({rank // job.tensor for rank in ranks}) if job.shares_memory(stage)]
        meeting = os.memfd_create("octavo", os.MFD_CLOEXEC)
        memories = {stage: os.memfd_create("octavo", os.MFD_CLOEXEC) for stage in shared}
        try:
            for memory in memories.values():
                os.ftruncate(memory, SharedGroup.bytes(job.tensor, shared_slot_floats(job.hidden_size, job.vocab_size)))
            for number, rank in enumerate(ranks, engine * len(ranks)):
                start = WorkerStart(
                    rank=rank,
                    job=job,
                    memory=memories.get(rank // job.tensor, -1),
                    meeting=meeting,
                    threads=max(1, threads // len(ranks)),
                    number=number,
                    count=engines * len(ranks),
                    from_main_thread=starts_from_main_thread(),
                    model_name=files.name,
                    model_kind=files.kind,
                    model_path=str(files.path),
                )
                self._workers[rank] = _spawn(start)
        except BaseException:
            self.stop(0.0)
            raise
        finally:
            for descriptor in (meeting, *memories.values()):
                os.close(descriptor)

    @property
    def pids(self) -> dict[int, int]:
        """By rank."""
        return {rank: worker.pid for rank, worker in self._workers.items()}

    def ended(self) -> dict[int, int]:
        """Those that run no more: ``Popen.returncode`` by rank."""
        return {rank: code for rank, worker in self._workers.items() if (code := worker.poll()) is not None}

    def stop(self, seconds: float = _STOP_SECONDS) -> None:
        """End those that do not end by themselves in so many seconds. Idempotent."""
        until = time.monotonic() + seconds
        for worker in self._workers.values():
            try:
                worker.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
            if worker.stdin is not None:
                with contextlib.suppress(OSError):
                    worker.stdin.close()


def _spawn(start: WorkerStart) -> subprocess.Popen[bytes]:
    inherited = tuple(descriptor for descriptor in (start.memory, start.meeting) if descriptor >= 0)
    command = [sys.executable, "-m", "octavo.executor.worker"]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=inherited, start_new_session=True)
    assert worker.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it is dead already; who waits for it will notice
        worker.stdin.write(msgspec.json.encode(start) + b"\n")
        worker.stdin.flush()
    return worker
