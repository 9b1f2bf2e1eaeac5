"""A worker process: one rank's part of the model, run step by step as the engine says.

Its standard input is held open by the engine: when it closes, the engine is gone and the worker leaves, whatever it is at.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import zmq

from octavo import env, log
from octavo.errors import InvalidRequestError, OctavoError
from octavo.executor.child_process import leave_with_parent
from octavo.executor.messages import Alive, Compile, Compiled, Done, Launch, Progress, Stop, WorkerFailed, WorkerInput, WorkerStart
from octavo.models.hub import ModelFiles
from octavo.vocabulary import Vocabulary

if TYPE_CHECKING:
    from octavo.models.sharding import Shard
    from octavo.runner.place import Place

ALIVE_SECONDS = 1.0
"""Between two signs of life."""

COMPILE_POLL_MS = 5
"""How often a worker that waits for forms to be compiled looks at them."""

READY = 2.0
"""``Progress.fraction`` of a rank that takes steps."""

logger = log.get_logger(__name__)


def main() -> None:
    """The process's entry."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    start = msgspec.json.decode(sys.stdin.buffer.readline(), type=WorkerStart)
    log.configure(f"rank {start.rank}")
    threading.Thread(target=leave_with_parent, daemon=True).start()
    context = zmq.Context()
    threading.Thread(target=_say_alive, args=(context, start), daemon=True).start()
    outbox = context.socket(zmq.PUSH)
    outbox.set_hwm(0)
    outbox.setsockopt(zmq.LINGER, 2000)
    outbox.connect(start.outbox)
    code = 0
    try:
        _serve(context, start, outbox)
    except OctavoError as error:
        outbox.send(msgspec.msgpack.encode(WorkerFailed(start.rank, str(error))))
        code = 1
    except Exception as error:
        logger.exception("the worker failed")
        outbox.send(msgspec.msgpack.encode(WorkerFailed(start.rank, f"{type(error).__name__}: {error}")))
        code = 1
    outbox.close()
    sys.stderr.flush()
    os._exit(code)


def _serve(context: zmq.Context[zmq.Socket[bytes]], start: WorkerStart, outbox: zmq.Socket[bytes]) -> None:
    env.limit_openmp_spinning()
    from octavo.models.loader import read_model_config, stored_formats
    from octavo.models.sharding import share_out
    from octavo.runner.device import select_device
    from octavo.runner.runner import Runner

    inbox = context.socket(zmq.PULL)
    inbox.set_hwm(0)
    inbox.connect(start.inbox)
    encoder = msgspec.msgpack.Encoder()
    options = start.options
    files = ModelFiles(start.model_name, start.model_kind, Path(start.model_path))
    config = read_model_config(files)
    tensor, pipeline = options.device.tensor_parallel_size, options.device.pipeline_parallel_size
    formats = stored_formats(files, config, options.model.load_format) if options.model.quantization == "auto" else {}
    place = _take_place(start, share_out(config, tensor, pipeline, formats)[start.rank], config.hidden_size)

    def tell(phase: str, fraction: float) -> None:
        outbox.send(encoder.encode(Progress(start.rank, fraction)))

    runner = Runner(files, config, options, start.plan, select_device(options.device), tell, place)
    tell("ready", READY)
    decoder: msgspec.msgpack.Decoder[WorkerInput] = msgspec.msgpack.Decoder(WorkerInput)
    forms: dict[int, Future[Any]] = {}
    while True:
        while forms and not inbox.poll(COMPILE_POLL_MS):
            _report_forms(forms, outbox, encoder)
        message = decoder.decode(inbox.recv())
        if isinstance(message, Launch):
            runner.inputs.hear(message.heard)
            result = runner.execute(message.batch)
            if runner.samples:
                outbox.send(encoder.encode(Done(result)))
        elif isinstance(message, Stop):
            return
        elif runner.samples and isinstance(message, Vocabulary):
            runner.inputs.grammars.learn(message)
        elif runner.samples and isinstance(message, Compile):
            forms[message.form_id] = runner.inputs.grammars.compile(message.form)
        _report_forms(forms, outbox, encoder)


def _take_place(start: WorkerStart, shard: Shard, width: int) -> Place:
    """Come together with the other ranks."""
    from octavo.ops.cpu.shared_group import SharedGroup
    from octavo.runner.place import Place

    group = SharedGroup(start.memory, shard.rank, shard.size, start.slot_floats) if shard.size > 1 else None
    if shard.num_stages == 1:
        return Place(shard, group)
    from octavo.distributed.process_group import join
    from octavo.distributed.stage_link import StageLink

    join(start.meeting, start.rank, shard.size * shard.num_stages)
    before, after = start.rank - shard.size, start.rank + shard.size
    return Place(shard, group, StageLink(None if shard.is_first else before, None if shard.is_last else after, width))


def _report_forms(forms: dict[int, Future[Any]], outbox: zmq.Socket[bytes], encoder: msgspec.msgpack.Encoder) -> None:
    """Say which forms are compiled by now."""
    for form_id in [form_id for form_id, future in forms.items() if future.done()]:
        error = forms.pop(form_id).exception()
        said = Compiled(form_id) if error is None else Compiled(form_id, str(error), isinstance(error, InvalidRequestError))
        outbox.send(encoder.encode(said))


def _say_alive(context: zmq.Context[zmq.Socket[bytes]], start: WorkerStart) -> None:
    """A sign of life now and then, on a socket of this thread's own: kernels release the interpreter, a stopped process does not."""
    socket = context.socket(zmq.PUSH)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(start.outbox)
    said, forever = msgspec.msgpack.encode(Alive(start.rank)), threading.Event()
    while True:
        socket.send(said)
        forever.wait(ALIVE_SECONDS)


if __name__ == "__main__":
    main()
