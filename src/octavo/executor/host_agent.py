"""A host without a server: it waits for the engine of host 0, runs ranks for it, and waits again when they have ended."""

from __future__ import annotations

import contextlib
import itertools
import math
import signal
import time
import uuid

import msgspec
import zmq

from octavo import __version__, env
from octavo.config import EngineOptions
from octavo.errors import ConfigError
from octavo.executor.child_process import ALIVE_SECONDS, SILENCE_SECONDS, Watch, describe_end
from octavo.executor.hosts import between_hosts, fingerprint, layout
from octavo.executor.local_ranks import LocalRanks
from octavo.executor.messages import Begin, Busy, End, Hello, HostInput, Job, RankEnded, Refused
from octavo.log import get_logger
from octavo.models.hub import ModelFiles, resolve
from octavo.models.loader import read_model_config
from octavo.runner.device import select_device, usable_cores

logger = get_logger(__name__)

_CONNECT_TIMEOUT_MS = 2000
_TELL_SECONDS = 30.0
_AFTER_SERVER_SECONDS = 5.0
"""For the server to end its engine when the time that requests have is up."""


class HostAgent:
    """Runs this host's ranks, one job after the other.

    Args:
        options: the flags it was started with.
        files: where it has the model.
        address: of the engine; found from the options when None.
    """

    def __init__(self, options: EngineOptions, files: ModelFiles, address: str | None = None) -> None:
        self._options = options
        self._files = files
        self._model = fingerprint(read_model_config(files), options)
        self._host = options.hosts.node_rank
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[HostInput] = msgspec.msgpack.Decoder(HostInput)
        self._address = address or _find_engine(options)
        self._context = zmq.Context()
        self._engine: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        between_hosts(self._engine)
        self._engine.setsockopt(zmq.IDENTITY, uuid.uuid4().bytes)
        self._engine.setsockopt(zmq.CONNECT_TIMEOUT, _CONNECT_TIMEOUT_MS)
        self._engine.setsockopt(zmq.IMMEDIATE, 1)  # what cannot be said now is said again later
        self._engine.connect(self._address)
        device = options.device
        self._ranks_here = device.tensor_parallel_size * device.pipeline_parallel_size // options.hosts.nnodes
        self._device = select_device(device, None, self._ranks_here)
        self._free: int | None = None  # None: to be asked
        self._job: Job | None = None
        self._ranks: LocalRanks | None = None
        self._last = ""
        self._watch = Watch((0,))  # for host 0
        self._until = math.inf

    def run(self) -> None:
        """Serve until ``stop``.

        Raises:
            ConfigError: host 0 says that this one does not fit in.
        """
        last_sign, told = 0.0, -_TELL_SECONDS
        try:
            while self._goes_on(now := time.monotonic()):
                if now - last_sign >= ALIVE_SECONDS:
                    last_sign = now
                    self._show_life()
                if self._job is None and now - told >= _TELL_SECONDS:
                    told = now
                    logger.info("host %d waits for the engine at %s", self._host, self._address)
                if self._engine.poll(int(ALIVE_SECONDS * 250)):
                    self._take(self._decoder.decode(self._engine.recv()))
                if self._job is not None:
                    self._look_after(self._job)
        finally:
            self._end("this host leaves")
            self._context.destroy(500)

    def _goes_on(self, now: float) -> bool:
        return self._until == math.inf or (self._job is not None and now < self._until)

    def stop(self, seconds: float) -> None:
        """Have ``run`` end: where there is a job, when the engine ends it, in so many seconds at the latest.

        May be called from a signal handler or another thread.
        """
        self._until = time.monotonic() + seconds

    def _show_life(self) -> None:
        if self._job is not None:
            self._say(Busy(self._host, self._job.name))
            return
        if self._free is None or self._device.kind == "cpu":
            self._free = self._device.free_for(0, self._ranks_here)
        self._say(Hello(self._host, layout(self._options), self._device.kind, __version__, self._model, self._free, self._last))

    def _take(self, message: HostInput) -> None:
        self._watch.saw(0)
        if isinstance(message, Refused):
            raise ConfigError(f"Host 0 turns this host away: {message.message}")
        if isinstance(message, Begin):
            self._end("the engine starts anew")
            logger.info("host %d starts its ranks", self._host)
            self._job, self._last = message.job, message.job.name
            self._ranks = LocalRanks(message.job, self._host, self._files, self._options.device.threads or usable_cores())
        elif isinstance(message, End):
            self._end("the engine says so")
        elif self._job is not None and message.job not in ("", self._job.name):
            self._end("the engine is another one")

    def _look_after(self, job: Job) -> None:
        """End a job whose engine is gone, or of which a rank is."""
        assert self._ranks is not None
        if self._watch.silent() is not None:
            self._end(f"the engine has shown no sign of life for {SILENCE_SECONDS:.0f} s")
        elif ended := self._ranks.ended():
            for rank, code in ended.items():
                self._say(RankEnded(rank, job.name, self._ranks.pids[rank], code))
            self._end(", ".join(f"rank {rank} ended with {describe_end(code)}" for rank, code in ended.items()))

    def _end(self, why: str) -> None:
        ranks, self._ranks, self._job = self._ranks, None, None
        if ranks is not None:
            logger.info("host %d ends its ranks: %s", self._host, why)
            ranks.stop(0.5)
            self._free = None

    def _say(self, message: Hello | Busy | RankEnded) -> None:
        with contextlib.suppress(zmq.Again):  # nobody is there
            self._engine.send(self._encoder.encode(message), zmq.NOBLOCK)


def _find_engine(options: EngineOptions) -> str:
    hosts = options.hosts
    if not env.torchrun_keeps_store():
        return f"tcp://{hosts.master_addr}:{hosts.master_port}"
    from octavo.distributed.torchrun_store import TorchrunStore

    return TorchrunStore(hosts.master_addr, hosts.master_port).wait()


def run_host(options: EngineOptions, drain_seconds: float) -> int:
    """Run this host's ranks until SIGTERM or SIGINT; a second one ends them at once.

    Args:
        options: with a ``node_rank`` above 0.
        drain_seconds: that the server has for its running requests, when it is told to stop as well.

    Returns:
        The process's exit code.

    Raises:
        OctavoError: the model cannot be found, or host 0 turns this one away.
    """
    files = resolve(options.model.model, options.model.revision, lambda what, done, total: None)
    agent = HostAgent(options, files)
    grace = itertools.chain([drain_seconds + _AFTER_SERVER_SECONDS], itertools.repeat(0.0))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.stop(next(grace)))
    agent.run()
    return 0
