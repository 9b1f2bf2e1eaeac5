"""``octavo``: one program, a few commands. Each command's module is imported only when it is called."""

from __future__ import annotations

import importlib
import os
import sys

COMMANDS = {
    "serve": ("octavo.cli.serve", "serve a model over HTTP"),
    "generate": ("octavo.cli.generate", "complete a prompt, or a file of them"),
    "chat": ("octavo.cli.chat", "talk to a model in the terminal"),
    "pull": ("octavo.cli.pull", "download a model"),
    "plan": ("octavo.cli.plan", "show what a model will need of memory, without loading it"),
    "bench": ("octavo.cli.bench", "measure a server, the engine, or this machine"),
}
OK, FAILED, USAGE, BROKEN_PIPE, INTERRUPTED = 0, 1, 2, 141, 130
"""Exit codes: the last two are those of a shell's child that SIGPIPE or SIGINT ended."""


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after ``octavo``; the process's own when None.

    Returns:
        The exit code: 0, 1 for a failure, 2 for a mistake in the flags, 130 for Ctrl-C, 141 when the reader of the output went away.
    """
    try:
        code = _dispatch(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _silence_stdout()
        return BROKEN_PIPE


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(help_text(), file=sys.stdout if argv else sys.stderr)
        return OK if argv else USAGE
    if argv[0] in ("-V", "--version", "version"):
        from octavo import __version__

        print(f"octavo {__version__}")
        return OK
    if argv[0] not in COMMANDS:
        return _unknown(argv[0])
    return _run(COMMANDS[argv[0]][0], argv[1:])


def _run(module: str, argv: list[str]) -> int:
    from octavo.errors import ConfigError, OctavoError

    try:
        if module == "octavo.cli.serve":
            from octavo.cli.flags import parse_serve

            options = parse_serve(argv)  # before the import: a mistake in the flags is told at once
            code: int = importlib.import_module(module).serve(*options)
        else:
            code = importlib.import_module(module).run(argv)
        return code
    except ConfigError as error:
        return _complain(str(error), USAGE)
    except OctavoError as error:
        return _complain(str(error), FAILED)
    except SystemExit as stop:  # argparse leaves this way after --help
        return stop.code if isinstance(stop.code, int) else OK


def _complain(message: str, code: int) -> int:
    print(f"octavo: error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _unknown(command: str) -> int:
    import difflib

    near = difflib.get_close_matches(command, COMMANDS, 1)
    hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(COMMANDS)}"
    return _complain(f"unknown {'flag' if command.startswith('-') else 'command'} {command}{hint}", USAGE)


def help_text() -> str:
    """What ``octavo --help`` prints."""
    lines = [f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: octavo COMMAND [MODEL] [flags]",
            "",
            "Serve and run large language models. Without a model, a small one that needs no account is fetched and used.",
            "",
            "commands:",
            *lines,
            "",
            "  octavo COMMAND --help    the flags of a command",
            "  octavo --version         the version",
            "",
            "examples:",
            "  octavo serve --port 8000",
            '  octavo generate "What is the capital of France?"',
            "  octavo chat Qwen/Qwen3-0.6B",
        ]
    )


def _silence_stdout() -> None:
    """The reader went away: send what is still buffered to nowhere, so that Python's exit does not complain."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


if __name__ == "__main__":
    sys.exit(main())
