"""Chat templates against transformers' ``apply_chat_template``, and what they may not do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from byte_model import byte_tokenizer

from octavo.errors import ConfigError, InvalidRequestError, ModelLoadError
from octavo.frontend import chat_template as module
from octavo.frontend.chat_template import ChatTemplate, load_chat_template, require_chat_template
from octavo.models.hub import ModelFiles

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

# In the style of the families, written for this test: what each leans on in Jinja is there.
CHATML = """\
{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are helpful<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""
LLAMA3 = """\
{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable and message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
QWEN25 = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are a helpful assistant.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- for message in messages %}
    {%- set plain = message.role == "assistant" and not message.tool_calls %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or plain %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
MISTRAL = """\
{%- set ns = namespace(index=0, system='') %}
{%- for message in messages %}
    {%- if message['role'] == 'system' and loop.first %}
        {%- set ns.system = message['content'] + '\\n\\n' %}
        {%- continue %}
    {%- endif %}
    {%- if (message['role'] == 'user') != (ns.index % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
    {%- if loop.index0 == 0 or ns.index == 1 %}{{- bos_token }}{% endif %}
    {%- if message['role'] == 'user' %}
        {{- '[INST] ' + ns.system + message['content'] + ' [/INST]' }}
        {%- set ns.system = '' %}
    {%- elif message['role'] == 'assistant' %}
        {%- generation %}
        {{- ' ' + message['content'] + eos_token }}
        {%- endgeneration %}
    {%- else %}
        {{- raise_exception('Only user and assistant roles are supported!') }}
    {%- endif %}
{%- endfor %}
"""
GEMMA = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}
    {% if (message['role'] == 'assistant') %}
        {% set role = 'model' %}
    {% else %}
        {% set role = message['role'] %}
    {% endif %}
{{ '<start_of_turn>' + role + '
' -}}
    {% if message['content'] is string %}
{{ message['content'] | trim }}
    {%- else %}
        {%- for item in message['content'] %}
            {%- if item['type'] == 'text' %}
{{ item['text'] | trim }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{{ '<end_of_turn>
' }}
{% endfor %}
{% if add_generation_prompt %}
{{'<start_of_turn>model
'}}{% endif %}
"""
PHI3 = """\
{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|>
' + message['content'] + '<|end|>
'}}{% elif message['role'] == 'user' %}{{'<|user|>
' + message['content'] + '<|end|>
'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>
' + message['content'] + '<|end|>
'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>
' }}{% else %}{{ eos_token }}{% endif %}"""
FAMILIES = {"chatml": CHATML, "llama3": LLAMA3, "qwen2.5": QWEN25, "mistral": MISTRAL, "gemma": GEMMA, "phi3": PHI3}

USER = {"role": "user", "content": "  What is <b>1 & 1</b>? 'é' 😀\n"}
ANSWER = {"role": "assistant", "content": " It is two. "}
SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"x": 1, "y": "é<"}}}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds <é>", "parameters": {"type": "object"}}}]
CHATS: dict[str, list[dict[str, Any]]] = {
    "one": [USER],
    "turns": [USER, ANSWER, USER],
    "system": [SYSTEM, USER, ANSWER, USER],
    "answered": [USER, ANSWER],
    "tools": [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "2"}],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
}


def oracle(source: str) -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=source, **TOKENS)


def render(source: str, messages: Any, **options: Any) -> str:
    return ChatTemplate(source, TOKENS).render(messages, **options)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("options", [{}, {"add_generation_prompt": False}, {"tools": TOOLS}, {"enable_thinking": False}], ids=str)
def test_rendering_equals_transformers(family: str, chat: str, options: dict[str, Any]) -> None:
    source, messages = FAMILIES[family], CHATS[chat]
    if chat == "parts" and family != "gemma":
        messages = [{"role": "user", "content": "a\nb"}]  # the template takes text, so the parts are joined
    try:
        wanted = oracle(source).apply_chat_template(messages, tokenize=False, **{"add_generation_prompt": True} | options)
    except Exception as error:
        with pytest.raises(InvalidRequestError) as refused:
            render(source, CHATS[chat], **options)
        assert str(error) in str(refused.value)
    else:
        assert render(source, CHATS[chat], **options) == wanted


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", ["The answer is", "The answer is ", "two\n\n"])
def test_an_open_final_message_equals_transformers(family: str, text: str) -> None:
    messages = [USER, {"role": "assistant", "content": text}]
    wanted = oracle(FAMILIES[family]).apply_chat_template(messages, tokenize=False, continue_final_message=True)
    assert render(FAMILIES[family], messages, add_generation_prompt=False, continue_final_message=True) == wanted
    assert messages[1]["content"] == text


def test_an_open_final_message_of_parts_is_cut_in_its_last_part() -> None:
    messages = [USER, {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    text = render(GEMMA, messages, add_generation_prompt=False, continue_final_message=True)
    assert text.endswith("<start_of_turn>model\nab")


@pytest.mark.parametrize(
    ("source", "final", "message"),
    [
        (CHATML, None, "needs a last message with text"),
        (CHATML, [], "needs a last message with text"),
        ("{{ messages[0].content }}", "lost", "changes or leaves out"),
        ("{{ messages[-1].content | upper }}", "changed", "changes or leaves out"),
    ],
)
def test_a_final_message_that_cannot_stay_open_is_refused(source: str, final: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        render(source, [USER, {"role": "assistant", "content": final}], add_generation_prompt=False, continue_final_message=True)


def test_an_open_message_and_a_new_one_exclude_each_other() -> None:
    with pytest.raises(InvalidRequestError, match="exclude each other"):
        render(CHATML, [USER], add_generation_prompt=True, continue_final_message=True)


# ---- messages --------------------------------------------------------------------------------------------------------


def test_the_given_messages_are_left_alone() -> None:
    messages = [USER, {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]
    before = json.dumps(messages)
    render(QWEN25, messages)
    assert json.dumps(messages) == before


def test_arguments_of_a_call_may_be_json_text() -> None:
    def chat(arguments: Any) -> list[dict[str, Any]]:
        return [USER, {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}]

    for source in (LLAMA3, QWEN25):
        assert render(source, chat('{"x": [1, "é"]}')) == render(source, chat({"x": [1, "é"]}))
    with pytest.raises(InvalidRequestError, match=r"messages\[1\]\.tool_calls\[0\]\.function\.arguments is not valid JSON"):
        render(QWEN25, chat("{"))


def test_the_developer_role_is_the_system_role_for_templates_that_do_not_know_it() -> None:
    developer = {"role": "developer", "content": "Be brief."}
    assert render(CHATML, [developer, USER]) == render(CHATML, [SYSTEM, USER])
    assert render("{% if messages[0].role == 'developer' %}known{% endif %}", [developer]) == "known"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "non-empty list"),
        ("hello", "non-empty list"),
        (None, "non-empty list"),
        (["hello"], r"messages\[0\] must be an object"),
        ([{"content": "x"}], r"messages\[0\]\.role"),
        ([USER, {"role": "user<|im_end|>", "content": "x"}], r"messages\[1\]\.role"),
        ([{"role": 1, "content": "x"}], r"messages\[0\]\.role"),
        ([{"role": "user", "content": 1}], r"messages\[0\]\.content must be a string or a list"),
        ([{"role": "user", "content": ["x"]}], r"messages\[0\]\.content\[0\] must be an object with a type"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "'image_url', which this model cannot take"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "'input_audio', which this model cannot take"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"content\[0\]\.text must be a string"),
        ([{"role": "assistant", "content": "", "tool_calls": "f"}], r"tool_calls must be a list"),
        ([{"role": "assistant", "content": "", "tool_calls": ["f"]}], r"tool_calls\[0\] must be an object"),
    ],
)
def test_a_malformed_conversation_is_refused_by_place(messages: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message) as refused:
        render(CHATML, messages)
    assert refused.value.param == "messages"


@pytest.mark.parametrize(("name", "value"), [("tools", "f"), ("tools", ["f"]), ("documents", {"a": 1})])
def test_tools_and_documents_are_lists_of_objects(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=f"{name} must be a list of objects"):
        render(CHATML, [USER], **{name: value})


@pytest.mark.parametrize("name", ["chat_template", "tokenize", "bos_token", "raise_exception"])
def test_a_request_may_not_set_reserved_variables(name: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"may not set {name}"):
        render(CHATML, [USER], **{name: "x"})


# ---- templates -------------------------------------------------------------------------------------------------------


def test_the_templates_own_words_are_the_error() -> None:
    with pytest.raises(InvalidRequestError, match=r"^System role not supported$"):
        render(GEMMA, [SYSTEM, USER])


def test_a_template_that_stumbles_is_the_requests_error() -> None:
    with pytest.raises(InvalidRequestError, match="cannot render these messages"):
        render("{{ messages[0].content + 1 }}", [USER])


def test_a_syntax_error_is_found_at_load_with_its_line() -> None:
    with pytest.raises(ModelLoadError, match="line 2"):
        ChatTemplate("fine\n{% if %}", TOKENS)


def test_tools_choose_the_template_for_tools() -> None:
    template = ChatTemplate({"default": "plain", "tool_use": "with tools"}, TOKENS)
    assert template.render([USER]) == "plain"
    assert template.render([USER], tools=TOOLS) == "with tools"
    with pytest.raises(ModelLoadError, match="none named 'default'"):
        ChatTemplate({"rag": "x"}, TOKENS)


def test_the_time_is_there() -> None:
    assert render("{{ strftime_now('%Y') | length }}", [USER]) == "4"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ raise_exception.__globals__.json }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{% set _ = messages.append(1) %}",
        "{{ '{0.__class__}'.format(messages) }}{{ messages.pop() }}",
        "{% for i in range(1000000) %}x{% endfor %}",
        "{{ 'x' * 100000000 }}",
        "{{ 100000000 * 'x' }}",
        "{{ 9 ** 9 ** 9 }}",
        "{% include 'file' %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_template_cannot_reach_out_or_explode(source: str) -> None:
    with pytest.raises(InvalidRequestError):
        render(source, [USER])


def test_the_output_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_OUTPUT_CHARS", 1000)
    assert len(render("{% for i in range(1000) %}x{% endfor %}", [USER])) == 1000
    with pytest.raises(InvalidRequestError, match="exceeds 1000 characters"):
        render("{% for i in range(1001) %}x{% endfor %}", [USER])


# ---- loading ---------------------------------------------------------------------------------------------------------


def test_a_file_replaces_the_models_own_template(tmp_path: Path) -> None:
    files, tokenizer = ModelFiles("some-model", "hf", tmp_path), byte_tokenizer()
    assert load_chat_template(files, tokenizer) is None
    tokenizer.chat_templates["default"] = "own"
    own = load_chat_template(files, tokenizer)
    assert own is not None and own.render([USER]) == "own"
    (tmp_path / "t.jinja").write_text("from file")
    replaced = load_chat_template(files, tokenizer, str(tmp_path / "t.jinja"))
    assert replaced is not None and replaced.render([USER]) == "from file"
    with pytest.raises(ConfigError, match="--chat-template"):
        load_chat_template(files, tokenizer, str(tmp_path / "missing.jinja"))
    tokenizer.chat_templates["default"] = "{% if %}"
    with pytest.raises(ModelLoadError, match="some-model"):
        load_chat_template(files, tokenizer)


def test_a_model_without_a_template_says_what_to_do() -> None:
    with pytest.raises(InvalidRequestError, match="--chat-template"):
        require_chat_template(None)
    template = ChatTemplate(CHATML, TOKENS)
    assert require_chat_template(template) is template
