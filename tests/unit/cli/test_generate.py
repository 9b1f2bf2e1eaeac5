"""``octavo generate``: where prompts come from, what is printed, and files of them."""

import io
import json

import pytest

from octavo.cli import generate, local_model
from octavo.errors import ConfigError
from octavo.frontend.outputs import CompletionOutput, RequestOutput


class FakeModel:
    """Answers a prompt with itself in capitals; finishes files in reverse order."""

    has_chat_template = True
    reason = "stop"
    last = None

    def __init__(self, options):
        FakeModel.last = self
        self.options = options
        self.calls = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def render(self, messages):
        return "".join(f"<{message['role']}>{message['content']}" for message in messages)

    def complete(self, prompt, given, write, *, raw):
        self.calls.append((prompt, given, raw))
        for character in prompt.upper():
            write(character)
        return self.reason

    def complete_all(self, prompts, given, done, *, raw):
        self.calls.append((list(prompts), given, raw))
        for index in reversed(range(len(prompts))):
            answer = CompletionOutput(0, prompts[index].upper(), [1, 2], finish_reason="stop")
            done(index, RequestOutput("id", prompts[index], [1, 2, 3], [answer], finished=True))


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setattr(local_model, "LocalModel", FakeModel)
    monkeypatch.setattr(FakeModel, "has_chat_template", True)
    monkeypatch.setattr(FakeModel, "reason", "stop")


def test_a_prompt_goes_through_the_chat_template(capsys):
    assert generate.run(["hi", "--temperature", "0", "--max-model-len", "64"]) == 0
    assert capsys.readouterr().out == "<USER>HI\n"
    assert FakeModel.last.calls == [("<user>hi", {"temperature": 0.0}, False)]
    assert FakeModel.last.options.model.max_model_len == 64


def test_raw_goes_as_it_is(capsys):
    generate.run(["hi", "--raw", "--no-stream"])
    assert capsys.readouterr().out == "HI\n"
    assert FakeModel.last.calls[0][2] is True


def test_a_model_without_a_template_gets_the_prompt_as_it_is(monkeypatch):
    monkeypatch.setattr(FakeModel, "has_chat_template", False)
    generate.run(["hi"])
    assert FakeModel.last.calls[0][0::2] == ("hi", True)


def test_the_prompt_may_be_piped(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("two\nlines\n"))
    generate.run(["--raw"])
    assert FakeModel.last.calls[0][0] == "two\nlines"


def test_a_cut_answer_is_told_on_standard_error(monkeypatch, capsys):
    monkeypatch.setattr(FakeModel, "reason", "length")
    generate.run(["hi", "--max-tokens", "4"])
    assert "--max-tokens" in capsys.readouterr().err


def test_a_file_of_prompts_gives_json_lines_in_its_order(tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "a"}\n\n"b"\n')
    assert generate.run(["--input", str(source), "--output", str(target), "--raw"]) == 0
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [(row["prompt"], row["text"]) for row in rows] == [("a", "A"), ("b", "B")]
    assert rows[0]["finish_reason"] == "stop"
    assert rows[0]["usage"] == {"prompt_tokens": 3, "completion_tokens": 2}


def test_answers_to_a_file_go_to_standard_output_by_default(tmp_path, capsys):
    source = tmp_path / "in.jsonl"
    source.write_text('"a"\n')
    generate.run(["--input", str(source)])
    assert json.loads(capsys.readouterr().out)["text"] == "<USER>A"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{", "line 1 is not JSON"),
        ('"a"\n{"prompt": 1}', "line 2 must be"),
        ('{"prompt": "a", "seed": 1}', "nothing besides"),
        ("\n", "no prompt"),
    ],
)
def test_a_bad_input_file_is_refused_by_line(tmp_path, text, part):
    source = tmp_path / "in.jsonl"
    source.write_text(text)
    with pytest.raises(ConfigError, match=part):
        generate.run(["--input", str(source)])


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["hi", "--input", "x"], "given twice"),
        (["hi", "--output", "x"], "--output goes with --input"),
        (["--input", "/no/such/file"], "cannot read"),
        (["  "], "there is no prompt"),
        (["hi", "--repetition-penalty", "0"], "--repetition-penalty"),
    ],
)
def test_flags_that_cannot_be_honoured_are_refused(argv, part):
    with pytest.raises(ConfigError, match=part):
        generate.run(argv)
