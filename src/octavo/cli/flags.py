"""The command line's flags, derived from the fields of ``config.py``: a field's name with dashes is its flag.

Nothing here names an option of the engine or the server. What a flag takes (a number, bytes, several values), its default, its help
and its extra spellings all come from the field, so a new option appears on every command that takes it once it is declared.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from octavo import env
from octavo.cli import api_keys
from octavo.config import ENGINE_GROUPS, EngineOptions, HostOptions, ServerOptions, engine_options
from octavo.errors import ConfigError

T = TypeVar("T")

_BYTES = re.compile(r"(\d+(?:\.\d+)?(?:e\d{1,2})?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_ENDPOINT = re.compile(r"(?:https?|grpcs?)://[^/\s:@]+(?::\d{1,5})?(?:/\S*)?")
_BYTE_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are one clear line: a ``ConfigError`` that names the nearest flag."""

    def __init__(self, prog: str, description: str, words: str = "") -> None:
        """
        Args:
            prog: the command as it is typed, such as ``octavo serve``.
            words: what stands between the command and its flags, such as ``[MODEL]``.
        """
        usage = " ".join(filter(None, (prog, words, "[flags]")))
        super().__init__(prog=prog, usage=usage, description=description, allow_abbrev=False, formatter_class=_Formatter)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message.removeprefix('argument ')} (see {self.prog} --help)")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse's own, but words that fit nothing are named with the flag that was probably meant."""
        parsed, extra = self.parse_known_args(args, namespace)
        if extra:
            self._refuse(extra)
        return parsed

    def _refuse(self, extra: list[str]) -> NoReturn:
        unknown = next((word for word in extra if word.startswith("-") and word != "-"), None)
        if unknown is None:
            self.error(f"one value too many: {extra[0]!r}")
        flag = unknown.partition("=")[0]
        self.error(f"unknown flag {flag}" + did_you_mean(flag, self._option_string_actions))


class _Formatter(argparse.HelpFormatter):
    """Help as wide as the terminal allows, with the flags of a line in one narrow column."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """``-tp, --tensor-parallel-size N``: the value once; ``--[no-]x`` only for a switch that is on unless told."""
        if not action.option_strings:
            return super()._format_action_invocation(action)
        spellings = list(action.option_strings)
        if isinstance(action, argparse.BooleanOptionalAction):
            on_unless_told = action.help is not None and action.help.endswith("(default: yes)")
            spellings = [spelling for spelling in spellings if not spelling.startswith("--no-")]
            spellings = [spelling.replace("--", "--[no-]", 1) for spelling in spellings] if on_unless_told else spellings
        text = ", ".join(spellings)
        return f"{text} {action.metavar}{' ...' if action.nargs == '+' else ''}" if action.nargs != 0 and action.metavar else text


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean X?`` with the nearest of ``known``, or nothing where none is near."""
    near = difflib.get_close_matches(word, list(known), 1, cutoff=0.7)
    return f"; did you mean {near[0]}?" if near else ""


def parse_bytes(text: str | int | float) -> int:
    """A size in bytes: ``4G``, ``512M``, ``1.5GiB``, ``1e9`` or a plain number. K, M, G and T are powers of 1024.

    Raises:
        ValueError: anything else, and sizes that are not a whole number of bytes.
    """
    found = _BYTES.fullmatch(str(text).strip())
    size = float(found[1]) * _BYTE_UNITS[found[2].lower()] if found else 0.5
    if size != int(size):
        raise ValueError("a size such as 4G, 512M or 1e9")
    return int(size)


def _whole(value: Any) -> int:
    if isinstance(value, bool | float):
        raise ValueError
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


@dataclasses.dataclass(frozen=True, slots=True)
class _Kind:
    """What a flag takes: how a value is made from text (or from a YAML value), what to call it, how the help shows it."""

    convert: Callable[[Any], Any]
    noun: str
    metavar: str

    def value(self, raw: Any, choices: tuple[Any, ...] | None) -> Any:
        """The value ``raw`` stands for.

        Raises:
            ValueError: in words: what is allowed, and what was given.
        """
        try:
            value = self.convert(raw)
        except ValueError:
            raise ValueError(f"takes {self.noun}; got {raw!r}") from None
        if choices and value not in choices:
            raise ValueError(f"must be one of {', '.join(map(str, choices))}; got {raw!r}")
        return value


_KINDS: dict[type, _Kind] = {
    int: _Kind(_whole, "a whole number", "N"),
    float: _Kind(_number, "a number", "X"),
    str: _Kind(_text, "a text", "TEXT"),
    bool: _Kind(_switch, "true or false", ""),
    list: _Kind(_text, "texts", "TEXT"),
}
_SIZE = _Kind(parse_bytes, "a size such as 4G, 512M or 1e9", "BYTES")


def _kind(field: dataclasses.Field[Any]) -> _Kind:
    return _SIZE if field.name.endswith("_bytes") else _KINDS[field.metadata["kind"]]


def flag_name(field_name: str) -> str:
    """``max_num_seqs`` -> ``--max-num-seqs``."""
    return "--" + field_name.replace("_", "-")


def _help(field: dataclasses.Field[Any]) -> str:
    text, default = field.metadata["help"], field.default
    if default is dataclasses.MISSING or default is None or default == "":
        return str(text).replace("%", "%%")
    shown = {True: "yes", False: "no"}[default] if isinstance(default, bool) else default
    if field.name.endswith("_bytes"):
        shown = f"{default // 2**20}M"
    return f"{text} (default: {shown})".replace("%", "%%") if shown != "no" else str(text).replace("%", "%%")


def _add_field(group: argparse._ArgumentGroup, field: dataclasses.Field[Any]) -> None:
    """One flag; what the user does not write stays out of the namespace, so that a configuration file can still say it."""
    kind, names = _kind(field), (*field.metadata["flags"], flag_name(field.name))
    if field.metadata["kind"] is bool:
        group.add_argument(*names, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=_help(field))
        return

    choices = field.metadata["choices"]

    def convert(text: str) -> Any:
        try:
            return kind.value(text, choices)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    metavar = "|".join(map(str, choices)) if choices else kind.metavar
    several = {"nargs": "+", "action": "extend"} if field.metadata["kind"] is list else {}
    group.add_argument(*names, type=convert, default=argparse.SUPPRESS, metavar=metavar, help=_help(field), **several)  # type: ignore[arg-type]


def add_engine_flags(parser: argparse.ArgumentParser, skip: Iterable[str] = ()) -> None:
    """Add the flags of the engine's groups (model, cache, scheduler, device) to a command.

    Args:
        skip: names of fields that the command does not offer, or declares itself.
    """
    for name, options in ENGINE_GROUPS.items():
        add_flags(parser, name, options, frozenset(skip))


def add_flags(parser: argparse.ArgumentParser, name: str, options: type, skip: frozenset[str] = frozenset()) -> None:
    """Add one flag for each field of a dataclass whose fields were made by ``config.option``, as a group under ``name``."""
    group = parser.add_argument_group(name, (options.__doc__ or "").partition("\n")[0])
    for field in dataclasses.fields(options):
        if field.name not in skip:
            _add_field(group, field)


def given_engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """The engine options the user wrote, by field name: what ``LLM(**options)`` and ``engine_options(**options)`` take."""
    return _given(args, *ENGINE_GROUPS.values())


def collect(args: argparse.Namespace, options: type[T]) -> T:
    """The dataclass whose flags ``add_flags`` added, from what the user wrote and the defaults."""
    return options(**_given(args, options))


def _given(args: argparse.Namespace, *groups: type) -> dict[str, Any]:
    return {field.name: getattr(args, field.name) for field in _fields(*groups) if hasattr(args, field.name)}


def _fields(*groups: type) -> Iterator[dataclasses.Field[Any]]:
    for group in groups:
        yield from dataclasses.fields(group)


def take_model(args: argparse.Namespace) -> None:
    """Let the positional MODEL (``args.positional_model``) stand for ``--model``.

    Raises:
        ConfigError: both were given and differ.
    """
    positional, flag = args.positional_model, getattr(args, "model", None)
    if positional and flag and positional != flag:
        raise ConfigError(f"the model is given twice: {positional!r} and --model {flag!r}")
    if positional:
        args.model = positional


def serve_parser() -> Parser:
    """The parser of ``octavo serve`` and of ``python -m octavo.entrypoints.api_server``."""
    parser = Parser("octavo serve", "Serve a model over HTTP.", "[MODEL]")
    parser.add_argument("positional_model", metavar="MODEL", nargs="?", help="the same as --model")
    parser.add_argument("--config", metavar="FILE.yaml", help="file with the same names as the flags; flags win")
    add_engine_flags(parser)
    add_flags(parser, "server", ServerOptions)
    return parser


def parse_serve(argv: list[str]) -> tuple[EngineOptions, ServerOptions]:
    """Read the flags of ``octavo serve``, the files they name, and ``$OCTAVO_API_KEY``.

    Args:
        argv: the words after ``octavo serve``.

    Raises:
        ConfigError: an unknown or contradictory option, or a value that cannot be honoured.
        SystemExit: ``--help``.
    """
    args = serve_parser().parse_args(argv)
    take_model(args)
    names = {field.name for field in _fields(*ENGINE_GROUPS.values(), ServerOptions)}
    given = {name: value for name, value in vars(args).items() if name in names}
    options = _torchrun_hosts() | (read_config_file(Path(args.config)) if args.config else {}) | given
    server_names = {field.name for field in dataclasses.fields(ServerOptions)}
    server_given = {name: value for name, value in options.items() if name in server_names}
    server_given["api_key"] = api_keys.resolve(server_given.get("api_key", []), server_given.get("api_key_file"))
    server = ServerOptions(**server_given)
    check_server(server)
    return engine_options(**{name: value for name, value in options.items() if name not in server_names}), server


def _torchrun_hosts() -> dict[str, Any]:
    """The options that torchrun's variables stand for."""
    if (processes := env.torchrun_processes()) not in ("", "1"):
        raise ConfigError(f"torchrun started {processes} processes on this host; use --nproc-per-node 1: Octavo starts the ranks itself.")
    kinds = {field.name: _kind(field) for field in _fields(HostOptions)}
    return {name: kinds[name].value(text, None) for name, text in env.torchrun_hosts().items()}


def read_config_file(path: Path) -> dict[str, Any]:
    """The options of a YAML file, by field name. Keys are flags without their leading dashes; ``null`` is "not given".

    Raises:
        ConfigError: no such file, no YAML, a key that is no option, or a value of the wrong kind; each names the file.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold `option: value` lines")
    fields = {field.name: field for field in _fields(*ENGINE_GROUPS.values(), ServerOptions)}
    options: dict[str, Any] = {}
    for key, raw in content.items():
        name = str(key).replace("-", "_")
        if name not in fields:
            spellings = [known.replace("_", "-") for known in fields]
            raise ConfigError(f"{path}: unknown key {str(key)!r}{did_you_mean(name.replace('_', '-'), spellings)}")
        if name in options:
            raise ConfigError(f"{path}: {key} is given twice")
        if raw is not None:
            options[name] = _from_yaml(fields[name], raw, f"{path}: {key}")
    return options


def _from_yaml(field: dataclasses.Field[Any], raw: Any, name: str) -> Any:
    kind, choices = _kind(field), field.metadata["choices"]
    try:
        if field.metadata["kind"] is list:
            return [kind.value(item, choices) for item in (raw if isinstance(raw, list) else [raw])]
        return kind.value(raw, choices)
    except ValueError as error:
        problem = f"takes {kind.noun}, in quotes where YAML would read a number" if field.metadata["secret"] else error
        raise ConfigError(f"{name} {problem}") from None


def check_server(server: ServerOptions) -> None:
    """Refuse server options that cannot be honoured, before anything is loaded.

    Raises:
        ConfigError: naming the option, its value and what is allowed.
    """
    if not 0 <= server.port <= 65535:
        raise ConfigError(f"port must be in [0, 65535]; got {server.port}.")
    if (server.ssl_keyfile is None) != (server.ssl_certfile is None):
        raise ConfigError("HTTPS needs both ssl_keyfile and ssl_certfile.")
    for name in ("ssl_keyfile", "ssl_certfile"):
        file = getattr(server, name)
        if file is not None and not Path(file).is_file():
            raise ConfigError(f"{name}: there is no file {file!r}.")
    if server.max_logprobs < -1:
        raise ConfigError(f"max_logprobs must be at least 0, or -1 for no limit; got {server.max_logprobs}.")
    if server.max_body_bytes < 1:
        raise ConfigError(f"max_body_bytes must be at least 1; got {server.max_body_bytes}.")
    if (endpoint := server.otlp_traces_endpoint) is not None and not _ENDPOINT.fullmatch(endpoint):
        raise ConfigError(f"otlp_traces_endpoint must be a URL such as http://localhost:4317; got {endpoint!r}.")
    if server.shutdown_timeout < 0:
        raise ConfigError(f"shutdown_timeout must not be negative; got {server.shutdown_timeout:g}.")
