"""A worker process: one rank's part of the model, run step by step as the engine says.

Its standard input is held open by the engine: when it closes, the engine is gone and the worker leaves, whatever it is at.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec
import zmq

from octavo import env, log
from octavo.errors import InvalidRequestError, OctavoError
from octavo.executor.child_process import leave_with_parent, show_life
from octavo.executor.messages import Alive, Compile, Compiled, Done, Launch, Progress, Stop, WorkerFailed, WorkerInput, WorkerStart
from octavo.models.hub import ModelFiles
from octavo.ops.workspace import shared_slot_floats
from octavo.vocabulary import Vocabulary

if TYPE_CHECKING:
    import torch

    from octavo.batch import PendingStep
    from octavo.models.sharding import Shard
    from octavo.ops.base import Group
    from octavo.runner.place import Place

COMPILE_POLL_MS = 5
"""How often a worker that waits for forms to be compiled looks at them."""

DEVICE_POLL_MS = 1
"""How often a worker whose device is at a step looks whether it is done; the next step mostly comes first."""

_LAST_WORDS_SECONDS = 0.2
"""For last words to get on their way: the process ends without closing anything."""

READY = 2.0
"""``Progress.fraction`` of a rank that takes steps."""

logger = log.get_logger(__name__)


def main() -> None:
    """The process's entry."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    start = msgspec.json.decode(sys.stdin.buffer.readline(), type=WorkerStart)
    log.configure(f"rank {start.rank}")
    leave_with_parent(start.from_main_thread)
    context = zmq.Context()
    signs = context.socket(zmq.PUSH)  # the thread's own
    signs.setsockopt(zmq.LINGER, 0)
    signs.connect(start.job.outbox)
    alive = msgspec.msgpack.encode(Alive(start.rank))
    show_life(lambda: signs.send(alive))
    outbox = context.socket(zmq.PUSH)
    outbox.set_hwm(0)
    outbox.connect(start.job.outbox)

    def leave(error: Exception | None) -> NoReturn:
        """End the process, with last words where there is an error."""
        if error is not None:
            words = str(error) if isinstance(error, OctavoError) else f"{type(error).__name__}: {error}"
            outbox.send(msgspec.msgpack.encode(WorkerFailed(start.rank, words)))
            time.sleep(_LAST_WORDS_SECONDS)
        sys.stderr.flush()
        os._exit(0 if error is None else 1)

    try:
        _serve(context, start, outbox, leave)
    except OctavoError as error:
        leave(error)
    except Exception as error:
        logger.exception("the worker failed")
        leave(error)
    leave(None)


def _serve(
    context: zmq.Context[zmq.Socket[bytes]], start: WorkerStart, outbox: zmq.Socket[bytes], leave: Callable[[Exception], NoReturn]
) -> None:
    env.limit_openmp_spinning()
    from octavo.models.loader import read_model_config, stored_formats
    from octavo.models.sharding import share_out
    from octavo.runner.device import select_device
    from octavo.runner.runner import Runner

    inbox = context.socket(zmq.PULL)
    inbox.set_hwm(0)
    inbox.connect(start.job.inboxes[start.rank])
    encoder = msgspec.msgpack.Encoder()
    job = start.job
    options = dataclasses.replace(job.options, device=dataclasses.replace(job.options.device, threads=start.threads))
    files = ModelFiles(start.model_name, start.model_kind, Path(start.model_path))
    config = read_model_config(files)
    formats = stored_formats(files, config, options.model.load_format) if options.model.quantization == "auto" else {}
    shard = share_out(config, job.tensor, options.device.pipeline_parallel_size, formats)[start.rank]
    device = select_device(options.device, start.number, start.count)
    place = _take_place(start, shard, device.torch_device, leave)

    def tell(phase: str, fraction: float) -> None:
        outbox.send(encoder.encode(Progress(start.rank, fraction)))

    runner = Runner(files, config, options, job.plans[start.rank], device, tell, place)
    tell("ready", READY)
    decoder: msgspec.msgpack.Decoder[WorkerInput] = msgspec.msgpack.Decoder(WorkerInput)
    forms: dict[int, Future[Any]] = {}
    under_way: deque[PendingStep] = deque()  # oldest first

    def finish() -> None:
        result = under_way.popleft().result()
        if runner.samples:
            outbox.send(encoder.encode(Done(result)))

    while True:
        while (under_way or forms) and not inbox.poll(DEVICE_POLL_MS if under_way else COMPILE_POLL_MS):
            if under_way and under_way[0].ready():
                finish()
            _report_forms(forms, outbox, encoder)
        message = decoder.decode(inbox.recv())
        if isinstance(message, Launch):
            runner.inputs.hear(message.heard)
            under_way.append(runner.launch(message.batch))
            while len(under_way) > job.ahead:
                finish()
        elif isinstance(message, Stop):
            return
        elif runner.samples and isinstance(message, Vocabulary):
            runner.inputs.grammars.learn(message)
        elif runner.samples and isinstance(message, Compile):
            forms[message.form_id] = runner.inputs.grammars.compile(message.form)
        _report_forms(forms, outbox, encoder)


def _take_place(start: WorkerStart, shard: Shard, device: torch.device, broken: Callable[[Exception], NoReturn]) -> Place:
    """Come together with the other ranks."""
    from octavo.ops.cpu.shared_group import SharedGroup
    from octavo.runner.place import Place

    job = start.job
    group: Group | None = None
    if start.memory >= 0 and shard.size > 1:
        slot_floats = shared_slot_floats(job.hidden_size, job.vocab_size)
        group = SharedGroup(start.memory, shard.rank, shard.size, slot_floats)
    if not job.meeting and shard.num_stages == 1 and job.shares_memory(0):
        return Place(shard, group)
    import torch.distributed as dist

    from octavo.distributed.device_group import DeviceGroup
    from octavo.distributed.process_group import join_at, join_here
    from octavo.distributed.stage_link import StageLink
    from octavo.distributed.torch_group import TorchGroup

    if job.meeting:
        join_at(job.meeting, start.rank, len(job.homes), device)
    else:
        join_here(start.meeting, start.rank, len(job.homes), device)
    apart = [stage for stage in range(shard.num_stages) if shard.size > 1 and not job.shares_memory(stage)]
    groups = {stage: dist.new_group(list(job.group(stage))) for stage in apart}  # all ranks make all groups
    if shard.stage in groups:
        ranks, made = job.group(shard.stage), groups[shard.stage]
        group = TorchGroup(ranks, made, broken) if job.options.device.device == "cpu" else DeviceGroup(ranks, made)
    before, after = start.rank - shard.size, start.rank + shard.size
    link = StageLink(None if shard.is_first else before, None if shard.is_last else after, job.hidden_size, device)
    return Place(shard, group, link if shard.num_stages > 1 else None)


def _report_forms(forms: dict[int, Future[Any]], outbox: zmq.Socket[bytes], encoder: msgspec.msgpack.Encoder) -> None:
    """Say which forms are compiled by now."""
    for form_id in [form_id for form_id, future in forms.items() if future.done()]:
        error = forms.pop(form_id).exception()
        said = Compiled(form_id) if error is None else Compiled(form_id, str(error), isinstance(error, InvalidRequestError))
        outbox.send(encoder.encode(said))


if __name__ == "__main__":
    main()
