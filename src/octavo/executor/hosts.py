"""The engine's side of its other hosts: who is there, what they are to do, whether they live."""

from __future__ import annotations

import hashlib
import os
import socket
import time

import msgspec
import zmq

from octavo import __version__, env
from octavo.config import EngineOptions, HostOptions
from octavo.errors import EngineDeadError, OctavoError
from octavo.executor.child_process import ALIVE_SECONDS, SILENCE_SECONDS, Watch
from octavo.executor.messages import Begin, End, Hello, Here, HostInput, HostOutput, Job, RankEnded, Refused
from octavo.log import get_logger
from octavo.models.config import ModelConfig

logger = get_logger(__name__)

_TELL_SECONDS = 10.0
_LINGER_MS = 500
_HEARTBEAT_MS, _HEARTBEAT_TIMEOUT_MS = 1000, 5000
"""Of connections between hosts: one that was cut is given up, and made anew, well before a host is."""


def fingerprint(config: ModelConfig, options: EngineOptions) -> str:
    """Names what all hosts must have alike of a checkpoint: its shape, and how it is to be read."""
    model = options.model
    return hashlib.sha256(repr((config, model.load_format, model.quantization)).encode()).hexdigest()[:16]


def layout(options: EngineOptions) -> tuple[int, int, int]:
    """Hosts, ranks that share a layer, stages."""
    return options.hosts.nnodes, options.device.tensor_parallel_size, options.device.pipeline_parallel_size


def between_hosts(socket: zmq.Socket[bytes]) -> None:
    """Set up a socket whose other end is on another host."""
    socket.set_hwm(0)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _HEARTBEAT_TIMEOUT_MS)


class Hosts:
    """The hosts that have agents, as the engine sees them.

    Args:
        options: the engine's.
        config: the model's shape.
        device: cpu or cuda, as on this host.
        address: where to listen for them; where the options say when None.
        first: 1 where host 0's ranks are the engine's own children, 0 where it has an agent too.

    Attributes:
        options: the engine's, as the hosts' ranks are to have them.
        wanted: which hosts.
        door: the socket on which they speak: ``take`` is to be called when something comes.
        address: where they come to.

    Raises:
        OctavoError: the address cannot be listened on.
    """

    def __init__(self, options: EngineOptions, config: ModelConfig, device: str, address: str | None = None, first: int = 1) -> None:
        self.options = options
        self._device = device
        self.wanted = range(first, options.hosts.nnodes)
        self._context = zmq.Context()
        self._model = fingerprint(config, options)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[HostOutput] = msgspec.msgpack.Decoder(HostOutput)
        self._here: dict[int, tuple[bytes, Hello]] = {}
        self._watch = Watch(())
        self._job = ""
        self._last_sign = 0.0
        self.door: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        between_hosts(self.door)
        self.address = _listen(self.door, options.hosts, address)

    def gather(self) -> dict[int, int]:
        """Wait until all hosts are there.

        Returns:
            what may be taken on each (``Device.free_for``).

        Raises:
            OctavoError: one cannot come.
        """
        told = 0.0
        while self.missing():
            if time.monotonic() - told >= _TELL_SECONDS:
                told = time.monotonic()
                logger.info("waiting for %s", self.awaited())
            if self.door.poll(200):
                self.take()
        return {host: self._here[host][1].free_bytes for host in self.wanted}

    def missing(self) -> list[int]:
        """Those that are not there."""
        return [host for host in self.wanted if host not in self._here]

    def awaited(self) -> str:
        """What is waited for, for people."""
        return f"host {', '.join(map(str, self.missing()))} of {self.options.hosts.nnodes} to come to {self.address}"

    def begin(self, job: Job) -> None:
        """Have all of them start their ranks."""
        self._job, self._watch = job.name, Watch(self._here)
        for identity, _ in self._here.values():
            self._say(identity, Begin(job))

    def take(self) -> RankEnded | None:
        """Take in one message.

        Returns:
            what it is where a rank of the job has ended.

        Raises:
            EngineDeadError: a host has left the job.
        """
        identity, said = self.door.recv_multipart()
        message = self._decoder.decode(said)
        if isinstance(message, Hello):
            self._greet(identity, message)
        elif message.job != self._job:
            self._say(identity, End())
        elif isinstance(message, RankEnded):
            return message
        else:
            self._watch.saw(message.host)
        return None

    def look_after(self) -> None:
        """Show the hosts a sign of life, and see theirs; to be called at least once in ``ALIVE_SECONDS``.

        Raises:
            EngineDeadError: a host shows none.
        """
        now = time.monotonic()
        if now - self._last_sign >= ALIVE_SECONDS:
            self._last_sign = now
            for identity, _ in self._here.values():
                self._say(identity, Here(self._job))
        if (host := self._watch.silent()) is not None:
            raise EngineDeadError(f"host {host} has shown no sign of life for {SILENCE_SECONDS:.0f} s.")

    def close(self) -> None:
        """Have all of them end their ranks. Idempotent."""
        if self._context.closed:
            return
        for identity, _ in self._here.values():
            self._say(identity, End())
        self._context.destroy(_LINGER_MS)

    def _greet(self, identity: bytes, hello: Hello) -> None:
        if complaint := self._complaint(hello):
            logger.error("host %d is turned away: %s", hello.host, complaint)
            self._say(identity, Refused(complaint))
            return
        known = self._here.get(hello.host)
        if self._job and (known is None or known[0] != identity):
            raise EngineDeadError(f"host {hello.host} has started anew.")
        if self._job and hello.last == self._job:
            raise EngineDeadError(f"host {hello.host} has ended its ranks.")
        self._here[hello.host] = identity, hello

    def _complaint(self, hello: Hello) -> str:
        """Why a host does not fit in."""
        mine = layout(self.options)
        if hello.version != __version__:
            return f"it runs Octavo {hello.version}, host 0 runs {__version__}."
        if hello.layout != mine:
            names = "nnodes, tensor_parallel_size and pipeline_parallel_size"
            return f"its {names} are {list(hello.layout)}, host 0's are {list(mine)}."
        if hello.device != self._device:
            return f"its device is {hello.device}, host 0's is {self._device}; give both the same --device."
        if hello.host not in self.wanted:
            return f"its node_rank {hello.host} is not one of {self.wanted[0]} to {self.wanted[-1]}."
        if hello.model != self._model:
            return "its model has another shape, or is to be read in another way, than host 0's."
        return ""

    def _say(self, identity: bytes, message: HostInput) -> None:
        self.door.send_multipart([identity, self._encoder.encode(message)])  # to one that is gone: dropped


def find_hosts(options: EngineOptions, config: ModelConfig, device: str) -> Hosts | None:
    """The hosts with agents that the options ask for; None where all ranks are the engine's own children.

    Args:
        options: the engine's.
        config: the model's shape.
        device: cpu or cuda.

    Raises:
        OctavoError: they cannot be listened for, or Ray cannot be reached.
    """
    if options.hosts.distributed_executor_backend == "ray":
        from octavo.executor.ray_hosts import RayHosts

        return RayHosts(options, config, device)
    return Hosts(options, config, device) if options.hosts.nnodes > 1 else None


def _listen(door: zmq.Socket[bytes], options: HostOptions, told: str | None) -> str:
    """Bind where the other hosts will come to, and return the address: the one that was told, or the one that the options say.

    Where torchrun's agent keeps a store on the port, the engine listens on one of its own, and leaves word in the store.
    """
    try:
        if told is not None:
            door.bind(told)
            return door.getsockopt_string(zmq.LAST_ENDPOINT)
        address = f"tcp://{socket.gethostbyname(options.master_addr)}"
        if not env.torchrun_keeps_store():
            door.bind(f"{address}:{options.master_port}")
            return f"{address}:{options.master_port}"
        from octavo.distributed.torchrun_store import TorchrunStore

        store = TorchrunStore(options.master_addr, options.master_port)
        door.bind(store.look() or f"{address}:*")
        found = door.getsockopt_string(zmq.LAST_ENDPOINT)
        store.leave(found)
        return found
    except (OSError, zmq.ZMQError) as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OctavoError(f"Cannot listen for other hosts on {options.master_addr}:{options.master_port}: {reason}.") from None
