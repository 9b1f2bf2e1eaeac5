"""Chat templates: from a conversation to the prompt a model was tuned on.

Templates are Jinja, in the dialect of transformers' ``apply_chat_template``. They come from the model or the operator, never from
a request; still they run in Jinja's immutable sandbox, and what they can make is bounded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from octavo.errors import ConfigError, InvalidRequestError, ModelLoadError
from octavo.frontend.chat_messages import normalise_messages
from octavo.frontend.tokenizer import Tokenizer
from octavo.models.hub import ModelFiles

MAX_OUTPUT_CHARS = 16 * 2**20
"""Most characters a rendered conversation, or a repeated string in a template, may have."""

RESERVED_VARIABLES = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize"}
    | {"raise_exception", "strftime_now"}
)
"""Variables a request may not set through ``chat_template_kwargs``."""

_OPEN_END = "OCTAVO_END_OF_FINAL_MESSAGE "


class ChatTemplate:
    """A model's chat template, compiled. Has no state of its own: threads may share it.

    Args:
        source: Jinja source; or sources by name, of which ``default`` is used, and ``tool_use`` where there are tools.
        special_tokens: special tokens by name (``bos_token``, ...), which templates see as variables.

    Attributes:
        source, source_for_tools: the Jinja sources in use, without tools and with them.

    Raises:
        ModelLoadError: a syntax error, or no ``default``.
    """

    def __init__(self, source: str | Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        sources = {"default": source} if isinstance(source, str) else dict(source)
        if "default" not in sources:
            raise ModelLoadError(
                f"The model has chat templates {sorted(sources)}, but none named 'default'; choose one with --chat-template."
            )
        self.source = sources["default"]
        self._default = _Compiled(self.source)
        self._for_tools = _Compiled(sources["tool_use"]) if "tool_use" in sources else self._default
        self.source_for_tools = sources.get("tool_use", self.source)
        self._special_tokens = dict(special_tokens)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> str:
        """The prompt for a conversation. It holds the special tokens already: encode it with ``add_special_tokens=False``.

        Args:
            messages: see ``normalise_messages``.
            add_generation_prompt: end with the opening of an assistant's message.
            continue_final_message: leave the last message open, for the model to go on with it.
            tools, documents: what the template is told of both, as JSON objects.
            kwargs: further variables of the template (a request's ``chat_template_kwargs``).

        Raises:
            InvalidRequestError: a message is malformed, a variable is reserved, or the template refuses the conversation (with the
                template's own words).
        """
        _check_objects("tools", tools)
        _check_objects("documents", documents)
        if reserved := sorted((RESERVED_VARIABLES | self._special_tokens.keys()) & kwargs.keys()):
            raise InvalidRequestError(f"chat_template_kwargs may not set {', '.join(reserved)}.", "chat_template_kwargs")
        if add_generation_prompt and continue_final_message:
            raise InvalidRequestError(
                "continue_final_message and add_generation_prompt exclude each other; set add_generation_prompt to false.",
                "continue_final_message",
            )
        template = self._for_tools if tools else self._default
        chat = normalise_messages(messages, takes_parts=template.takes_parts, maps_developer=not template.knows_developer)
        variables = {**self._special_tokens, **kwargs, "tools": tools, "documents": documents}
        if continue_final_message:
            return _render_open(template, chat, variables)
        return template.render({**variables, "messages": chat, "add_generation_prompt": add_generation_prompt})


def load_chat_template(files: ModelFiles, tokenizer: Tokenizer, override: str | None = None) -> ChatTemplate | None:
    """A model's chat template, or another one in its place.

    Args:
        files: the model, for messages.
        tokenizer: of the model, which brings its templates.
        override: file with a template (``--chat-template``); None for the model's own.

    Returns:
        None where the model has none.

    Raises:
        ConfigError: the file cannot be read.
        ModelLoadError: the template has a syntax error.
    """
    source: str | Mapping[str, str] = tokenizer.chat_templates
    if override is not None:
        try:
            source = Path(override).expanduser().read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ConfigError(f"--chat-template {override}: cannot be read: {error}") from error
    try:
        return ChatTemplate(source, tokenizer.named_tokens) if source else None
    except ModelLoadError as error:
        raise ModelLoadError(f"{override or files.name}: {error}") from error


def require_chat_template(template: ChatTemplate | None) -> ChatTemplate:
    """The template, for a request that needs one.

    Raises:
        InvalidRequestError: the model has none.
    """
    if template is None:
        raise InvalidRequestError(
            "This model has no chat template, so it cannot chat; "
            "send a prompt to /v1/completions, or start the server with --chat-template FILE.",
            "messages",
        )
    return template


def _check_objects(name: str, values: Any) -> None:
    if values is None:
        return
    if isinstance(values, str) or not isinstance(values, Sequence) or not all(isinstance(value, Mapping) for value in values):
        raise InvalidRequestError(f"{name} must be a list of objects.", name)


def _render_open(template: _Compiled, chat: list[dict[str, Any]], variables: dict[str, Any]) -> str:
    """Render with a mark at the last message's end, and cut there. A template that trims messages is seen by the mark's space."""
    content = chat[-1]["content"]
    if not content:
        raise InvalidRequestError("continue_final_message needs a last message with text to continue.", "continue_final_message")
    if isinstance(content, str):
        chat[-1]["content"] = content + _OPEN_END
        text = content
    else:
        text = content[-1]["text"]
        content[-1]["text"] = text + _OPEN_END
    rendered = template.render({**variables, "messages": chat, "add_generation_prompt": False})
    end = rendered.rfind(_OPEN_END.strip())
    if end < 0 or text.strip() not in rendered:
        raise InvalidRequestError(
            "continue_final_message cannot be honoured: the model's chat template changes or leaves out the last message.",
            "continue_final_message",
        )
    opened = rendered[:end]
    return opened if rendered.startswith(_OPEN_END, end) else opened.rstrip()


# ---- Jinja -----------------------------------------------------------------------------------------------------------


class _Compiled:
    """One source, compiled.

    Attributes:
        takes_parts: whether it walks through a message's content, so that content may be a list of parts.
        knows_developer: whether it says anything of the ``developer`` role.
    """

    def __init__(self, source: str) -> None:
        try:
            tree = _ENVIRONMENT.parse(source)
            self._template = _ENVIRONMENT.from_string(tree)
        except jinja2.TemplateSyntaxError as error:
            raise ModelLoadError(f"The chat template has a syntax error in line {error.lineno}: {error.message}") from error
        except RecursionError as error:
            raise ModelLoadError("The chat template is nested too deeply.") from error
        self.takes_parts = _walks_content(tree)
        self.knows_developer = "developer" in source

    def render(self, variables: Mapping[str, Any]) -> str:
        parts: list[str] = []
        length = 0
        try:
            for part in self._template.generate(variables):
                length += len(part)
                if length > MAX_OUTPUT_CHARS:
                    raise InvalidRequestError(f"The rendered conversation exceeds {MAX_OUTPUT_CHARS} characters.", "messages")
                parts.append(part)
        except InvalidRequestError:
            raise
        except jinja2.TemplateError as error:
            raise InvalidRequestError(str(error) or "The chat template refused these messages.", "messages") from error
        except Exception as error:  # a template may stumble over any shape of message
            raise InvalidRequestError(f"The chat template cannot render these messages: {error}", "messages") from error
        return "".join(parts)


def _walks_content(tree: nodes.Template) -> bool:
    """Whether a template loops over something named ``content``, or over a variable that was set from it."""
    names = {
        assign.target.name for assign in tree.find_all(nodes.Assign) if isinstance(assign.target, nodes.Name) and _is_content(assign.node)
    }
    loops = (loop.iter for loop in tree.find_all(nodes.For))
    return any(_is_content(over) or (isinstance(over, nodes.Name) and over.name in names) for over in loops)


def _is_content(node: nodes.Node) -> bool:
    """``message.content``, ``message['content']``, or either through filters."""
    while isinstance(node, nodes.Filter) and node.node is not None:
        node = node.node
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    return isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and node.arg.value == "content"


class _Generation(Extension):
    """``{% generation %}``: marks what an assistant said, for training; here its body is rendered, in a scope of its own."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, which also keeps ``*`` and ``**`` from making huge values."""

    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise jinja2.TemplateRuntimeError("the power operator is not available in chat templates")
        for value, times in ((left, right), (right, left)):
            if isinstance(value, str | bytes | list | tuple) and isinstance(times, int) and len(value) * times > MAX_OUTPUT_CHARS:
                raise jinja2.TemplateRuntimeError(f"a repetition exceeds {MAX_OUTPUT_CHARS} characters")
        return super().call_binop(context, operator, left, right)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False) -> str:
    """JSON as the models saw it in training: no HTML escapes, characters as they are."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


def _make_environment() -> _Environment:
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


_ENVIRONMENT = _make_environment()
