"""A server on a real socket around a fake engine client, whose tokens are characters and whose replies the test decides."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn

from octavo.config import ServerOptions, engine_options
from octavo.engine.messages import EngineStats, Ready, RequestTimes
from octavo.errors import InvalidRequestError, NotReadyError, QueueFullError
from octavo.frontend.chat_template import ChatTemplate
from octavo.frontend.outputs import Logprob, PositionLogprobs, RequestDelta, SequenceDelta
from octavo.frontend.reasoning import find_reasoning_tags
from octavo.frontend.request_stream import DeltaChannel, RequestStream
from octavo.frontend.tool_calls.formats import find_tool_format
from octavo.sampling_params import SamplingParams
from octavo.server.app import build_app
from octavo.server.http_server import configure

BOS = 1
CONTEXT = 1000
TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}{{ shout|default('') }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


class CharTokenizer:
    """Each character is a token; 1 stands before every text."""

    vocab_size = 0x3000
    special_ids = frozenset({BOS})
    backend = SimpleNamespace(token_to_id=lambda text: None)
    separator = ""
    strips_space = False

    def has_token(self, text: str) -> bool:
        return False

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [BOS] * add_special_tokens + [ord(character) for character in text]

    def decode(self, token_ids: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(chr(token) for token in token_ids if not (skip_special_tokens and token == BOS))

    def token_text(self, token: int) -> str:
        return chr(token)

    def token_bytes(self, token: int) -> bytes:
        return chr(token).encode()

    def byte_table(self, skip_special_tokens: bool, shown: Sequence[str] = ()) -> Sequence[bytes]:
        return [b"" if skip_special_tokens and token == BOS else chr(token).encode() for token in range(self.vocab_size)]


class FakeClient:
    """The engine client's shape. ``reply(prompt, index)`` is what a sequence says; ``hold`` stops all after ``hold_after`` tokens."""

    def __init__(self) -> None:
        self.options = engine_options()
        self.phase = "ready"
        self.progress = -1.0
        self.failure: str | None = None
        self.ready: Ready | None = Ready(CONTEXT, 256, 64, 16, {"weights": 1000, "kv_cache": 500})
        self.stats = EngineStats()
        self.number = 0
        self.replicas = [self]
        self.on_step: Callable[[int, EngineStats], None] = lambda number, stats: None
        self.template: ChatTemplate | None = ChatTemplate(TEMPLATE, {})
        self.defaults: dict[str, Any] = {}
        self.reply: Callable[[str, int], str] = lambda prompt, index: "Paris" + "!" * index
        self.hold = asyncio.Event()
        self.hold.set()
        self.hold_after = 0
        self.error: Exception | None = None
        self.last_finish: str | None = None
        self.submitted: list[SimpleNamespace] = []
        self.aborted: list[str] = []
        self.live = 0
        self.started = False
        self.shut_down = False
        self.room = 10_000
        self.start_up_error: Exception | None = None
        self.loaded = asyncio.Event()
        self.loaded.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._aborts: dict[asyncio.Task[None], Callable[[], None]] = {}
        self._nothing_live = asyncio.Event()
        self._nothing_live.set()

    @property
    def model(self) -> Any:
        if not self.loaded.is_set():
            return None
        shape = {"model_type": "llama", "hidden_size": 8, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
        config = SimpleNamespace(vocab_size=CharTokenizer.vocab_size, eos_token_ids=(2,), **shape)
        tokenizer = CharTokenizer()
        source = self.template.source_for_tools if self.template is not None else ""
        return SimpleNamespace(
            name="fake-model",
            config=config,
            tokenizer=tokenizer,
            max_model_len=CONTEXT,
            chat_template=self.template,
            tool_format=find_tool_format(source, tokenizer.has_token),
            reasoning=find_reasoning_tags(source, tokenizer.has_token),
            sampling_defaults=self.defaults,
        )

    def load_later(self) -> None:
        """Behave as while the model first loads, until ``finish_loading``."""
        self.loaded.clear()
        self.phase, self.progress, self.ready = "loading", 0.25, None

    def finish_loading(self) -> None:
        self.phase, self.ready = "ready", Ready(CONTEXT, 256, 64, 16, {"weights": 1000})
        self.loaded.set()

    async def start(self) -> None:
        self.started = True

    async def wait_ready(self) -> None:
        await self.loaded.wait()
        if self.start_up_error is not None:
            raise self.start_up_error

    async def drain(self, timeout: float) -> None:
        self.phase = "draining"
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._nothing_live.wait(), timeout)

    async def shutdown(self) -> None:
        self.shut_down = True
        for abort in list(self._aborts.values()):
            abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def holding(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    async def submit(
        self,
        prompt: str | list[int],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
        add_special_tokens: bool = True,
        admitted: bool = False,
    ) -> RequestStream:
        await self.loaded.wait()
        if self.phase != "ready":
            raise NotReadyError(f"The server is {self.phase}.", self.phase, 3)
        if self.live >= self.room:
            raise QueueFullError("The queue is full.", 7)
        token_ids = CharTokenizer().encode(prompt, add_special_tokens) if isinstance(prompt, str) else prompt
        if len(token_ids) >= CONTEXT:
            message = (
                f"This model's maximum context length is {CONTEXT} tokens. However, your prompt contains {len(token_ids)} input tokens."
            )
            raise InvalidRequestError(message, "prompt", "context_length_exceeded")
        if len(token_ids) + (params.max_tokens or 0) > CONTEXT:
            raise InvalidRequestError("The context cannot hold that many output tokens.", "max_tokens", "context_length_exceeded")
        text = prompt if isinstance(prompt, str) else None
        request = SimpleNamespace(prompt=text, params=params, prompt_token_ids=token_ids)
        self.submitted.append(
            SimpleNamespace(id=request_id, prompt=prompt, params=params, priority=priority, salt=cache_salt, special=add_special_tokens)
        )
        channel = DeltaChannel()
        self.live += 1
        self._nothing_live.clear()
        task = asyncio.create_task(self._produce(str(request_id), request, channel))
        self._tasks.add(task)
        task.add_done_callback(self._forget)

        def abort() -> None:
            self.aborted.append(str(request_id))
            task.cancel()
            last = [SequenceDelta(index, "", [], None, "abort") for index in range(params.n)]
            channel.put(RequestDelta(str(request_id), last, finished=True))

        self._aborts[task] = lambda: None if channel.closed else abort()

        return RequestStream(str(request_id), request, channel, abort)  # type: ignore[arg-type]

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._aborts.pop(task, None)
        self.live -= 1
        if not self.live:
            self._nothing_live.set()

    async def _produce(self, request_id: str, request: SimpleNamespace, channel: DeltaChannel) -> None:
        params: SamplingParams = request.params
        begin = asyncio.get_running_loop().time()
        prompt = CharTokenizer().decode(request.prompt_token_ids)
        replies = [self.reply(prompt, index) for index in range(params.n)]
        most = min(params.max_tokens or CONTEXT, CONTEXT)
        for step in range(max(len(reply[:most]) for reply in replies)):
            if step == self.hold_after:
                await self.hold.wait()
                if self.error is not None:
                    channel.fail(self.error)
                    return
            await asyncio.sleep(0)
            delta = RequestDelta(request_id, num_cached_tokens=1)
            if step == 0 and params.prompt_logprobs is not None:
                ids = request.prompt_token_ids
                delta.prompt_logprobs = [None, *(candidates(token, params.prompt_logprobs) for token in ids[1:])]
            for index, reply in enumerate(replies):
                if step < len(reply[:most]):
                    delta.sequences.append(self._sequence(index, step, reply, most, params))
            delta.finished = all(step >= len(reply[:most]) - 1 for reply in replies)
            if delta.finished:
                delta.times = RequestTimes(begin, begin + 0.01, begin + 0.02, begin + 0.5)
            self.stats = EngineStats(1, 0, 0.5, 0.01, 100, 40, {"pages": 2}, step_tokens=3, steps=self.stats.steps + 1, rss_bytes=12345)
            self.on_step(0, self.stats)
            channel.put(delta)

    def _sequence(self, index: int, step: int, reply: str, most: int, params: SamplingParams) -> SequenceDelta:
        token, reason = ord(reply[step]), None
        if step == min(len(reply), most) - 1:
            reason = self.last_finish or ("stop" if len(reply) <= most else "length")
        positions = None if params.logprobs is None else [candidates(token, params.logprobs)]
        return SequenceDelta(index, reply[step], [token], positions, reason)


def candidates(token: int, top: int) -> PositionLogprobs:
    """The token that stands there with rank 1, and those after it in the alphabet."""
    position = {token: Logprob(-0.25, 1, chr(token))}
    position |= {token + rank - 1: Logprob(-float(rank), rank, chr(token + rank - 1)) for rank in range(2, top + 1)}
    return position


class QuietServer(uvicorn.Server):
    """uvicorn without signal handlers."""

    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        yield


@contextlib.asynccontextmanager
async def running(client: FakeClient, **options: Any) -> AsyncIterator[str]:
    """Serve on a free port; yields the base URL."""
    server_options = ServerOptions(**options)
    config = configure(build_app(client, client.options, server_options), server_options)  # type: ignore[arg-type]
    config.port = 0
    server = QuietServer(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        client.hold.set()
        server.should_exit = True
        await task


@pytest.fixture
async def engine() -> FakeClient:
    return FakeClient()


@pytest.fixture
def serve() -> Callable[..., Any]:
    """``async with serve(engine, **server_options) as url``."""
    return running


@pytest.fixture
async def url(engine: FakeClient) -> AsyncIterator[str]:
    """A server with default options."""
    async with running(engine) as base:
        yield base
