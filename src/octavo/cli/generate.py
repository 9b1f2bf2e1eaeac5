"""``octavo generate``: answer one prompt, or a file of them, and leave."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from octavo.cli.flags import Parser, add_engine_flags, add_flags, given_engine_options
from octavo.cli.sampling_flags import SamplingFlags, given_sampling
from octavo.config import EngineOptions, engine_options
from octavo.errors import ConfigError, OctavoError

if TYPE_CHECKING:
    from octavo.cli.local_model import LocalModel
    from octavo.frontend.outputs import RequestOutput


def run(argv: list[str]) -> int:
    """Generate and print.

    Args:
        argv: the words after ``octavo generate``.

    Raises:
        ConfigError: flags that cannot be honoured, an input file that cannot be read.
        OctavoError: the model cannot be loaded, or a prompt not be answered.
    """
    args = _parser().parse_args(argv)
    given = given_sampling(args)
    options = engine_options(**given_engine_options(args))
    if args.input is not None:
        if args.prompt is not None:
            raise ConfigError("the prompt is given twice: as PROMPT and in --input.")
        return _generate_file(options, _read_prompts(args.input), given, args.output, raw=args.raw)
    if args.output is not None:
        raise ConfigError("--output goes with --input; a single answer goes to standard output.")
    prompt = args.prompt if args.prompt is not None else sys.stdin.read().rstrip("\n")
    if not prompt.strip():
        raise ConfigError('there is no prompt; say octavo generate "PROMPT", or pipe one in.')
    return _generate_one(options, prompt, given, raw=args.raw, stream=args.stream)


def _parser() -> Parser:
    parser = Parser("octavo generate", "Answer a prompt. A chat-tuned model answers through its chat template.", "[PROMPT]")
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", help="the prompt; standard input when omitted")
    parser.add_argument("--raw", action="store_true", help="continue the prompt verbatim, without the chat template")
    parser.add_argument("--stream", action=argparse.BooleanOptionalAction, default=True, help="print the text as it comes (default: yes)")
    parser.add_argument("--input", metavar="FILE", help='prompts as JSON lines, {"prompt": TEXT} or a string each; - is standard input')
    parser.add_argument("--output", metavar="FILE", help="where the answers go, as JSON lines in the order of --input")
    add_flags(parser, "sampling", SamplingFlags)
    add_engine_flags(parser)
    return parser


def _generate_one(options: EngineOptions, prompt: str, given: dict[str, Any], *, raw: bool, stream: bool) -> int:
    from octavo.cli.local_model import LocalModel

    parts: list[str] = []

    def write(piece: str) -> None:
        parts.append(piece)
        if stream:
            sys.stdout.write(piece)
            sys.stdout.flush()

    with LocalModel(options) as model:
        text, verbatim = _prompt_text(model, prompt, raw)
        reason = model.complete(text, given, write, raw=verbatim)
    print("" if stream else "".join(parts))
    if reason == "length":
        print("octavo: the answer reached --max-tokens or the end of the context", file=sys.stderr)
    return 0


def _prompt_text(model: LocalModel, prompt: str, raw: bool) -> tuple[str, bool]:
    """The text the model sees, and whether it is verbatim."""
    if raw or not model.has_chat_template:
        return prompt, True
    return model.render([{"role": "user", "content": prompt}]), False


def _read_prompts(name: str) -> list[str]:
    try:
        lines = (sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from None
    prompts: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{name}, line {number} is not JSON: {error}") from None
        prompt = content.get("prompt") if isinstance(content, dict) else content
        if not isinstance(prompt, str) or not prompt or (isinstance(content, dict) and set(content) != {"prompt"}):
            raise ConfigError(f'{name}, line {number} must be {{"prompt": TEXT}} or a string, and nothing besides.')
        prompts.append(prompt)
    if not prompts:
        raise ConfigError(f"{name} holds no prompt.")
    return prompts


def _generate_file(options: EngineOptions, prompts: Sequence[str], given: dict[str, Any], output: str | None, *, raw: bool) -> int:
    from octavo.cli.local_model import LocalModel

    with _open_output(output) as out, LocalModel(options) as model:
        writer = _InOrder(out, prompts)
        texts = [_prompt_text(model, prompt, raw)[0] for prompt in prompts]
        model.complete_all(texts, given, writer.done, raw=raw or not model.has_chat_template)
    return 0


def _open_output(name: str | None) -> AbstractContextManager[TextIO]:
    try:
        return Path(name).open("w", encoding="utf-8") if name else nullcontext(sys.stdout)
    except OSError as error:
        raise ConfigError(f"cannot write {name}: {error.strerror}") from None


class _InOrder:
    """Writes answers as JSON lines in the order of the prompts, each as soon as those before it are done."""

    def __init__(self, out: TextIO, prompts: Sequence[str]) -> None:
        self._out = out
        self._prompts = prompts
        self._waiting: dict[int, RequestOutput] = {}
        self._next = 0

    def done(self, index: int, output: RequestOutput) -> None:
        self._waiting[index] = output
        while (ready := self._waiting.pop(self._next, None)) is not None:
            self._write(self._prompts[self._next], ready)
            self._next += 1

    def _write(self, prompt: str, output: RequestOutput) -> None:
        answer = output.outputs[0]
        usage = {"prompt_tokens": len(output.prompt_token_ids), "completion_tokens": len(answer.token_ids)}
        row = {"prompt": prompt, "text": answer.text, "finish_reason": answer.finish_reason, "usage": usage}
        try:
            self._out.write(json.dumps(row, ensure_ascii=False) + "\n")
            self._out.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OctavoError(f"cannot write the answers: {error.strerror}") from None
