"""The engine as a process of its own: spawn, readiness, the loop around ``EngineCore``, crash and shutdown.

The parent writes one JSON line to the child's standard input and keeps it open: when it closes, the parent is gone and the child
leaves. Messages go over two unix sockets; nothing is pickled.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

import msgspec
import zmq
import zmq.asyncio

from octavo import env, log
from octavo.config import EngineOptions
from octavo.engine.messages import ALONE, Alive, EngineInput, EngineOutput, Failed, Loading, Seat, Shutdown
from octavo.errors import EngineDeadError, OctavoError
from octavo.executor.child_process import SILENCE_SECONDS, describe_end, leave_with_parent, show_life, starts_from_main_thread
from octavo.models.hub import ModelFiles

logger = log.get_logger(__name__)

IDLE_POLL_MS = 10
"""How long the loop waits for a message when sequences exist and none can run."""

WATCH_POLL_MS = 500
"""How often the loop looks after its workers while nothing runs."""

_LAST_WORDS_SECONDS = 0.5


class EngineStart(msgspec.Struct):
    """The line on the child's standard input: what to load and where to listen.

    Attributes:
        from_main_thread: see ``child_process.leave_with_parent``.
    """

    inbox: str
    outbox: str
    from_main_thread: bool
    seat: Seat
    options: EngineOptions
    model_name: str
    model_kind: Literal["hf", "gguf"]
    model_path: str


class EngineProcess:
    """The parent's handle on a running engine process; made by ``spawn``."""

    def __init__(self, process: asyncio.subprocess.Process, folder: str, inbox: zmq.asyncio.Socket, outbox: zmq.asyncio.Socket) -> None:
        self._process = process
        self._folder = folder
        self._inbox = inbox
        self._outbox = outbox
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[EngineOutput] = msgspec.msgpack.Decoder(EngineOutput)
        self._exited = asyncio.ensure_future(process.wait())
        self._next: asyncio.Future[bytes] | None = None

    @classmethod
    async def spawn(cls, options: EngineOptions, files: ModelFiles, seat: Seat = ALONE) -> EngineProcess:
        """Start the process; it reports ``Loading`` and then ``Ready`` or ``Failed`` through ``receive``."""
        folder = tempfile.mkdtemp(prefix="octavo-")
        context = zmq.asyncio.Context.instance()
        inbox, outbox = context.socket(zmq.PUSH), context.socket(zmq.PULL)
        for socket in (inbox, outbox):
            socket.set_hwm(0)
            socket.setsockopt(zmq.LINGER, 0)
        model = files.name, files.kind, str(files.path)
        start = EngineStart(f"ipc://{folder}/in", f"ipc://{folder}/out", starts_from_main_thread(), seat, options, *model)
        inbox.bind(start.inbox)
        outbox.bind(start.outbox)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "octavo.engine.process", stdin=asyncio.subprocess.PIPE, start_new_session=True
        )
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(start) + b"\n")
        await process.stdin.drain()
        return cls(process, folder, inbox, outbox)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: EngineInput) -> None:
        """Queue a message; never blocks."""
        self._inbox.send(self._encoder.encode(message))

    async def receive(self) -> EngineOutput:
        """The next message.

        Raises:
            EngineDeadError: the process has ended and everything it said has been read, or it shows no sign of life.
        """
        while isinstance(message := await self._receive(), Alive):
            pass
        return message

    async def _receive(self) -> EngineOutput:
        if self._next is None:
            self._next = asyncio.ensure_future(self._outbox.recv())
        either: set[asyncio.Future[Any]] = {self._next, self._exited}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED, timeout=SILENCE_SECONDS)
        if not self._next.done():  # its last words may be on the wire, or this process itself was stopped, and all that was said is
            await asyncio.wait({self._next}, timeout=_LAST_WORDS_SECONDS)
        if not self._next.done():
            if self._exited.done():
                raise EngineDeadError(f"The engine process {self.pid} ended with {describe_end(self._exited.result())}.")
            raise EngineDeadError(f"The engine process {self.pid} has shown no sign of life for {SILENCE_SECONDS:.0f} s.")
        received, self._next = self._next, None
        return self._decoder.decode(received.result())

    async def stop(self, timeout: float = 5.0) -> None:
        """End the process (asked first, then killed) and clean up its sockets. Idempotent."""
        if not self._exited.done():
            self.send(Shutdown())
            await asyncio.wait({self._exited}, timeout=timeout)
        if not self._exited.done():
            self._process.kill()
            await self._exited
        if self._next is not None:
            self._next.cancel()
        self._inbox.close()
        self._outbox.close()
        shutil.rmtree(self._folder, ignore_errors=True)


# ---- in the child ----------------------------------------------------------------------------------------------------


def main() -> None:
    """The child's entry: read the start line, load, serve until told to stop or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    start = msgspec.json.decode(sys.stdin.buffer.readline(), type=EngineStart)
    log.configure(start.seat.name.removeprefix("the "))
    leave_with_parent(start.from_main_thread)
    context = zmq.Context()
    signs = zmq.Context().socket(zmq.PUSH)  # the thread's own, which nobody waits for
    signs.setsockopt(zmq.LINGER, 0)
    signs.connect(start.outbox)
    alive = msgspec.msgpack.encode(Alive())
    show_life(lambda: signs.send(alive))
    inbox, outbox = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    for socket in (inbox, outbox):
        socket.set_hwm(0)
    inbox.connect(start.inbox)
    outbox.connect(start.outbox)
    outbox.setsockopt(zmq.LINGER, 2000)
    with contextlib.ExitStack() as at_end:
        try:
            _serve(start, inbox, outbox, at_end)
            code = 0
        except OctavoError as error:
            outbox.send(msgspec.msgpack.encode(Failed(str(error))))
            code = 1
        except Exception as error:
            logger.exception("the engine failed")
            outbox.send(msgspec.msgpack.encode(Failed(f"internal error in the engine: {type(error).__name__}: {error}")))
            code = 1
    inbox.close(0)
    outbox.close()
    context.term()
    # Skip interpreter teardown: unmapping gigabytes and joining thread pools only delays the restart or the shell.
    sys.stderr.flush()
    os._exit(code)


def _serve(start: EngineStart, inbox: zmq.Socket[bytes], outbox: zmq.Socket[bytes], at_end: contextlib.ExitStack) -> None:
    encoder = msgspec.msgpack.Encoder()
    decoder = msgspec.msgpack.Decoder(EngineInput)
    outbox.send(encoder.encode(Loading("loading")))
    # torch comes in here, after the parent has heard that the child lives.
    env.limit_openmp_spinning()
    from octavo.engine.core import EngineCore

    files = ModelFiles(start.model_name, start.model_kind, Path(start.model_path))
    core = EngineCore(start.options, files, lambda phase, fraction: outbox.send(encoder.encode(Loading(phase, fraction))), seat=start.seat)
    if core.watched:  # other processes, which end in order; what this one holds is not worth the time
        at_end.callback(core.shutdown)
    outbox.send(encoder.encode(core.ready))
    stuck = False
    while True:
        # Everything said since the last step counts in the next one; with nothing to do, wait for a word.
        timeout = None if not core.has_work() else IDLE_POLL_MS if stuck else 0
        while timeout is None and core.watched and not inbox.poll(WATCH_POLL_MS):
            core.check()
        while inbox.poll(timeout):
            message = decoder.decode(inbox.recv())
            if isinstance(message, Shutdown):
                return
            answer = core.handle(message)
            if answer is not None:
                outbox.send(encoder.encode(answer))
            timeout = 0
        output = core.step()
        stuck = output is None
        if output is not None:
            outbox.send(encoder.encode(output))


if __name__ == "__main__":
    main()
