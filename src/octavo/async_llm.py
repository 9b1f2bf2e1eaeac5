"""The asynchronous face for programs: the engine in a process of its own, many requests at once, no HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from octavo.config import engine_options
from octavo.errors import EngineDeadError
from octavo.frontend.client import EngineClient, RequestStream
from octavo.frontend.input_processor import unwrap_prompt
from octavo.frontend.outputs import RequestOutput
from octavo.sampling_params import SamplingParams


class AsyncLLM:
    """A model behind an event loop. Starts to load at the first use, or in ``async with``.

    Args:
        model: a directory, a GGUF file or a Hugging Face repository id; the embedded default when omitted.
        options: the server's engine flags, with underscores.

    Raises:
        TypeError: an option that does not exist.
        ConfigError: one that cannot be honoured.
    """

    def __init__(self, model: str | None = None, **options: Any) -> None:
        self._client = EngineClient(engine_options(model=model, **options))
        self._streams: dict[str, RequestStream] = {}

    async def generate(
        self,
        prompt: str | Sequence[int] | Mapping[str, Any],
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
        cache_salt: str = "",
    ) -> AsyncIterator[RequestOutput]:
        """Complete a prompt; waits while the model loads. Leaving the iteration early aborts the request.

        Args:
            prompt: a string, token ids, ``{"prompt": ...}`` or ``{"prompt_token_ids": ...}``.
            sampling_params: the model's own defaults when omitted.
            request_id: unique among live requests; drawn when omitted.
            priority: smaller runs earlier, under ``scheduling_policy="priority"``.
            cache_salt: shares cached pages only with requests that have the same.

        Yields:
            All there is of the answer so far, whenever there is more; the last has ``finished`` set.

        Raises:
            InvalidRequestError, QueueFullError, NotReadyError: the request was not taken.
            EngineDeadError: the engine died while it ran.
            OctavoError: the model could not be loaded.
        """
        await self._client.start()
        await self._client.wait_ready()
        params = sampling_params if sampling_params is not None else self.get_default_sampling_params()
        stream = await self._client.submit(unwrap_prompt(prompt), params, request_id=request_id, priority=priority, cache_salt=cache_salt)
        self._streams[stream.request_id] = stream
        collector = stream.collector()
        try:
            async for delta in stream:
                collector.add(delta)
                yield collector.output()
        finally:
            stream.abort()
            self._streams.pop(stream.request_id, None)

    async def abort(self, request_id: str) -> None:
        """End a request now; its iteration yields what there is, with the finish reason ``abort``. Unknown ids are no error."""
        stream = self._streams.get(request_id)
        if stream is not None:
            stream.abort()

    async def check_health(self) -> None:
        """Return when the engine can serve, or will once it has loaded.

        Raises:
            EngineDeadError: it has failed, or is down and being restarted.
        """
        if self._client.phase in ("restarting", "failed"):
            raise EngineDeadError(f"The engine is {self._client.phase}" + (f": {self._client.failure}" if self._client.failure else "."))

    def get_default_sampling_params(self) -> SamplingParams:
        """What ``generate`` uses where no parameters are given; the model's own once it is loaded."""
        return SamplingParams(**(self._client.model.sampling_defaults if self._client.model is not None else {}))

    async def reset_prefix_cache(self) -> bool:
        """Forget all shared pages; False when some are in use, and nothing was forgotten."""
        return await self._client.reset_prefix_cache()

    async def shutdown(self) -> None:
        """End running requests as aborted and stop the engine. Idempotent."""
        await self._client.shutdown()

    async def __aenter__(self) -> AsyncLLM:
        await self._client.start()
        await self._client.wait_ready()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.shutdown()
