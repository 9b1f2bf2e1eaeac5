"""What the engine answers to a host that comes: it is taken in, turned away with the reason, or the end of a job."""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec
import pytest
import zmq
from small_shape import SMALL_SHAPE

from octavo import __version__
from octavo.config import EngineOptions, engine_options
from octavo.errors import EngineDeadError, OctavoError
from octavo.executor.hosts import Hosts, fingerprint, layout
from octavo.executor.messages import Begin, Busy, End, Hello, Here, HostInput, HostOutput, Job, RankEnded, Refused

OPTIONS = engine_options(nnodes=2, tensor_parallel_size=2)
HELLO = Hello(1, layout(OPTIONS), "cpu", __version__, fingerprint(SMALL_SHAPE, OPTIONS), 2**30, "")


class Visitor:
    """A host's side of the door."""

    def __init__(self, hosts: Hosts) -> None:
        self._context = zmq.Context()
        self._hosts = hosts
        self.socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        self.socket.connect(hosts.address)

    def say(self, message: HostOutput) -> RankEnded | None:
        self.socket.send(msgspec.msgpack.encode(message))
        assert self._hosts.door.poll(5000)
        return self._hosts.take()

    def hear(self) -> HostInput:
        assert self.socket.poll(5000)
        return msgspec.msgpack.decode(self.socket.recv(), type=HostInput)

    def close(self) -> None:
        self._context.destroy(0)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    made = Hosts(OPTIONS, SMALL_SHAPE, "cpu", "tcp://127.0.0.1:*")
    yield made
    made.close()


@pytest.fixture
def visitor(hosts: Hosts) -> Iterator[Visitor]:
    made = Visitor(hosts)
    yield made
    made.close()


def job(options: EngineOptions = OPTIONS) -> Job:
    return Job("this", options, (0, 1), 0, [], [0, 1], [], "", "", SMALL_SHAPE.hidden_size, SMALL_SHAPE.vocab_size)


def test_a_host_that_fits_is_counted_with_its_memory(hosts: Hosts, visitor: Visitor) -> None:
    assert hosts.missing() == [1] and hosts.address in hosts.awaited()
    visitor.say(HELLO)
    assert hosts.gather() == {1: 2**30}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": "0.0.0"}, f"it runs Octavo 0.0.0, host 0 runs {__version__}"),
        ({"layout": (2, 1, 2)}, r"are \[2, 1, 2\], host 0's are \[2, 2, 1\]"),
        ({"device": "cuda"}, "its device is cuda, host 0's is cpu; give both the same --device"),
        ({"host": 2}, "its node_rank 2 is not one of 1 to 1"),
        ({"model": "another"}, "its model has another shape"),
    ],
)
def test_a_host_that_does_not_fit_is_told_why(hosts: Hosts, visitor: Visitor, change: dict[str, object], said: str) -> None:
    visitor.say(msgspec.structs.replace(HELLO, **change))
    refused = visitor.hear()
    assert isinstance(refused, Refused)
    assert re.search(said, refused.message)
    assert hosts.missing() == [1]


def test_a_host_hears_of_its_job_and_then_signs_of_life(hosts: Hosts, visitor: Visitor) -> None:
    visitor.say(HELLO)
    hosts.begin(job())
    assert visitor.hear() == Begin(job())
    hosts.look_after()
    assert visitor.hear() == Here("this")
    assert visitor.say(Busy(1, "this")) is None
    assert visitor.say(RankEnded(1, "this", 77, -9)) == RankEnded(1, "this", 77, -9)
    hosts.close()
    assert visitor.hear() == End()


def test_news_of_an_old_job_are_answered_with_its_end(hosts: Hosts, visitor: Visitor) -> None:
    visitor.say(HELLO)
    hosts.begin(job())
    visitor.hear()
    for late in (Busy(1, "that"), RankEnded(1, "that", 77, -9)):
        assert visitor.say(late) is None
        assert visitor.hear() == End()


def test_a_host_that_has_ended_its_ranks_ends_the_job(hosts: Hosts, visitor: Visitor) -> None:
    visitor.say(HELLO)
    hosts.begin(job())
    visitor.say(HELLO)  # on its way before it heard of the job
    with pytest.raises(EngineDeadError, match="host 1 has ended its ranks"):
        visitor.say(msgspec.structs.replace(HELLO, last="this"))


def test_a_host_that_comes_anew_ends_the_job(hosts: Hosts, visitor: Visitor) -> None:
    visitor.say(HELLO)
    hosts.begin(job())
    other = Visitor(hosts)
    try:
        with pytest.raises(EngineDeadError, match="host 1 has started anew"):
            other.say(HELLO)
    finally:
        other.close()


def test_an_address_that_cannot_be_listened_on_is_named() -> None:
    for options, said in (({"master_addr": "203.0.113.1"}, "203.0.113.1:29500"), ({"master_addr": "no-such-host.invalid"}, "no-such-host")):
        with pytest.raises(OctavoError, match=f"Cannot listen for other hosts on {said}"):
            Hosts(engine_options(nnodes=2, tensor_parallel_size=2, **options), SMALL_SHAPE, "cpu")
