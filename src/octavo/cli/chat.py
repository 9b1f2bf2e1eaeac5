"""``octavo chat``: a conversation in the terminal, with a model run here or one behind a server.

Answers stream; Ctrl-C stops an answer, Ctrl-D ends the conversation. With standard input from a pipe each line is a message, and
nothing but the answers is printed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from octavo import env
from octavo.cli.flags import Parser, add_engine_flags, add_flags, given_engine_options, take_model
from octavo.cli.sampling_flags import SamplingFlags, given_sampling
from octavo.config import engine_options
from octavo.errors import ConfigError, OctavoError

COMMANDS = {
    "/reset": "forget the conversation",
    "/help": "show these lines",
    "/exit": "leave (or Ctrl-D)",
}

Message = dict[str, str]


class Speaker(Protocol):
    """Who answers: ``LocalModel`` or ``RemoteModel``."""

    def answer(self, messages: Sequence[Message], given: dict[str, Any], write: Callable[[str], None]) -> str:
        """Answer the conversation through ``write``; returns why the answer ended."""

    def close(self) -> None:
        """Be done."""


def run(argv: list[str]) -> int:
    """Talk until the user leaves.

    Args:
        argv: the words after ``octavo chat``.

    Raises:
        ConfigError: flags that cannot be honoured.
        OctavoError: the model cannot be loaded, or the server not be reached.
    """
    parser = Parser("octavo chat", "Talk to a model in the terminal.", "[MODEL]")
    parser.add_argument("positional_model", metavar="MODEL", nargs="?", help="the same as --model; with --url, the served name")
    parser.add_argument("--system", metavar="TEXT", help="what the model is told before the conversation")
    parser.add_argument("--url", metavar="URL", help="talk to the server at this address instead of loading a model")
    parser.add_argument("--api-key", metavar="KEY", help="key of that server ($OCTAVO_API_KEY where not given)")
    add_flags(parser, "sampling", SamplingFlags)
    add_engine_flags(parser)
    args = parser.parse_args(argv)
    take_model(args)
    given = given_sampling(args)
    engine = given_engine_options(args)
    interactive = sys.stdin.isatty()
    speaker = _remote(args.url, args.api_key, engine, given) if args.url else _local(args.api_key, engine)
    try:
        return Conversation(speaker, args.system, given, interactive).run()
    finally:
        speaker.close()


def _local(api_key: str | None, engine: dict[str, Any]) -> Speaker:
    if api_key is not None:
        raise ConfigError("--api-key goes with --url.")
    from octavo.cli.local_model import LocalModel

    return LocalModel(engine_options(**engine))


def _remote(url: str, api_key: str | None, engine: dict[str, Any], given: dict[str, Any]) -> Speaker:
    from octavo.cli.remote_model import RemoteModel

    if "seed" in engine:
        given["seed"] = engine["seed"]
    if unused := [name for name in engine if name not in ("model", "seed")]:
        raise ConfigError(f"--{unused[0].replace('_', '-')} is the server's to set; it does not go with --url.")
    return RemoteModel(url, engine.get("model"), api_key or env.api_key())


class Conversation:
    """The loop: read a line, answer it, remember both.

    Args:
        system: first message, where there is one.
        given: sampling fields.
        interactive: prompt for lines and explain; else lines in, answers out.
    """

    def __init__(self, speaker: Speaker, system: str | None, given: dict[str, Any], interactive: bool) -> None:
        self._speaker = speaker
        self._start: list[Message] = [{"role": "system", "content": system}] if system else []
        self._given = given
        self._interactive = interactive
        self.messages = list(self._start)

    def run(self) -> int:
        """Until the end of the input or ``/exit``; returns the exit code."""
        if self._interactive:
            import readline  # noqa: F401  (gives input() line editing and history)

            print("Octavo chat. /help shows the commands; Ctrl-C stops an answer, Ctrl-D ends.")
        while (line := self._read()) is not None:
            text = line.strip()
            if text == "/exit":
                break
            if text == "/reset":
                self.messages = list(self._start)
                self._tell("The conversation is forgotten.")
            elif text == "/help":
                self._tell("\n".join(f"  {name:<8} {what}" for name, what in COMMANDS.items()))
            elif text.startswith("/") and text[1:].isalpha():
                self._tell(f"There is no command {text}; /help shows those there are.")
            elif text:
                self._answer(text)
        return 0

    def _read(self) -> str | None:
        """The next line; None at the end of the input."""
        while True:
            try:
                return input(">>> ") if self._interactive else (sys.stdin.readline() or None)
            except EOFError:
                print()
                return None
            except KeyboardInterrupt:
                if not self._interactive:
                    raise
                print("\n(Ctrl-D or /exit leaves)")

    def _tell(self, text: str) -> None:
        print(text, file=sys.stdout if self._interactive else sys.stderr)

    def _answer(self, text: str) -> None:
        """One turn. An answer that was stopped is remembered as far as it went; a turn without any is forgotten."""
        parts: list[str] = []

        def write(piece: str) -> None:
            parts.append(piece)
            sys.stdout.write(piece)
            sys.stdout.flush()

        self.messages.append({"role": "user", "content": text})
        try:
            reason = self._speaker.answer(self.messages, self._given, write)
            print()
            if reason == "length":
                self._tell("(the answer reached --max-tokens or the end of the context)")
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            print("\n(stopped)")
        except OctavoError as error:
            if not self._interactive:
                raise
            print(f"\noctavo: error: {error}", file=sys.stderr)
        if answer := "".join(parts):
            self.messages.append({"role": "assistant", "content": answer})
        else:
            self.messages.pop()
