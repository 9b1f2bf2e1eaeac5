"""A model run by this command: the engine in a process of its own, spoken to in plain blocking calls.

The terminal commands are not asynchronous; an event loop runs while one of the calls below does, and stands still between them.
Ctrl-C during a call ends that call (the engine drops the request) and reaches the caller as ``KeyboardInterrupt``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any

from octavo import log
from octavo.config import EngineOptions
from octavo.errors import EngineDeadError
from octavo.frontend.client import EngineClient
from octavo.frontend.outputs import RequestOutput
from octavo.frontend.served_model import ServedModel
from octavo.sampling_params import SamplingParams

Message = dict[str, str]
"""``role`` and ``content``."""

_POLL_SECONDS = 0.1


class LocalModel:
    """A loaded model. Use it as a context manager: leaving it ends the engine.

    Args:
        options: of the engine.

    Raises:
        OctavoError: the model cannot be found, loaded or fitted.
    """

    def __init__(self, options: EngineOptions) -> None:
        # A terminal is for the answers. The engine's process logs only warnings, unless the user asked for more; what this
        # process would log of the engine's failures reaches the user as the error it raises.
        os.environ.setdefault("OCTAVO_LOG_LEVEL", "WARNING")
        log.get_logger("octavo").setLevel(logging.CRITICAL)
        self._runner = asyncio.Runner()
        self._client = EngineClient(options)
        try:
            self._runner.run(self._load())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> LocalModel:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the engine. Idempotent."""
        self._runner.run(self._client.shutdown())
        self._runner.close()

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt that the model's chat template makes of a conversation; the contents alone where the model has no template."""
        template = self._model.chat_template
        if template is None:
            return "\n".join(message["content"] for message in messages)
        return template.render(messages, add_generation_prompt=True)

    def answer(self, messages: Sequence[Message], given: dict[str, Any], write: Callable[[str], None]) -> str:
        """Answer a conversation, passing the text on as it comes.

        Args:
            given: sampling fields; the model's own defaults hold for the others.

        Returns:
            Why the answer ended: ``stop`` or ``length``.

        Raises:
            InvalidRequestError: the conversation does not fit the model.
            EngineDeadError: the engine died on the way.
        """
        return self.complete(self.render(messages), given, write, raw=self._model.chat_template is None)

    def complete(self, prompt: str, given: dict[str, Any], write: Callable[[str], None], *, raw: bool) -> str:
        """Continue a prompt, passing the text on as it comes; returns why it ended.

        Args:
            raw: add the tokens a verbatim prompt starts with (a chat template has them already).
        """
        return self._runner.run(self._complete(prompt, self._params(given), write, raw))

    def complete_all(
        self, prompts: Iterable[str], given: dict[str, Any], done: Callable[[int, RequestOutput], None], *, raw: bool, at_once: int = 256
    ) -> None:
        """Continue many prompts at once; ``done(index, output)`` is called for each when it ends, in no particular order."""
        self._runner.run(self._complete_all(list(prompts), self._params(given), done, raw, at_once))

    @property
    def has_chat_template(self) -> bool:
        return self._model.chat_template is not None

    @property
    def _model(self) -> ServedModel:
        model = self._client.model
        assert model is not None, "the model is read once the client is ready"
        return model

    def _params(self, given: dict[str, Any]) -> SamplingParams:
        """The given fields over the model's defaults over "what the context leaves", which no flag has to know."""
        return SamplingParams(**({"max_tokens": None} | self._model.sampling_defaults | given))

    async def _load(self) -> None:
        await self._client.start()
        showing = asyncio.create_task(self._show_progress()) if sys.stderr.isatty() else None
        try:
            await self._client.wait_ready()
        finally:
            if showing is not None:
                showing.cancel()
                await asyncio.wait({showing})

    async def _show_progress(self) -> None:
        """A bar on standard error for as long as the task runs."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("starting", total=None)
            while True:
                progress = self._client.progress
                bar.update(task, description=self._client.phase, total=1.0 if progress >= 0.0 else None, completed=max(0.0, progress))
                await asyncio.sleep(_POLL_SECONDS)

    async def _complete(self, prompt: str, params: SamplingParams, write: Callable[[str], None], raw: bool) -> str:
        stream = await self._client.submit(prompt, params, add_special_tokens=raw)
        reason = "error"
        try:
            async for delta in stream:
                for sequence in delta.sequences:
                    write(sequence.text)
                    reason = sequence.finish_reason or reason
        finally:
            await stream.aclose()
        return _checked(reason)

    async def _complete_all(
        self, prompts: list[str], params: SamplingParams, done: Callable[[int, RequestOutput], None], raw: bool, at_once: int
    ) -> None:
        places = asyncio.Semaphore(at_once)

        async def one(index: int, prompt: str) -> None:
            async with places:
                stream = await self._client.submit(prompt, params, add_special_tokens=raw)
                collector = stream.collector()
                try:
                    async for delta in stream:
                        collector.add(delta)
                finally:
                    await stream.aclose()
            output = collector.output()
            _checked(output.outputs[0].finish_reason or "error")
            done(index, output)

        try:
            async with asyncio.TaskGroup() as group:
                for index, prompt in enumerate(prompts):
                    group.create_task(one(index, prompt))
        except BaseExceptionGroup as failures:  # one clear error rather than a tree of them
            raise failures.exceptions[0] from None


def _checked(reason: str) -> str:
    if reason not in ("stop", "length"):
        raise EngineDeadError("The engine failed before the answer was whole.")
    return reason
