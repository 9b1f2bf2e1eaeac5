"""Forms are compiled before the engine hears of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from byte_model import EOS, VOCAB_SIZE, byte_model

from octavo.errors import InvalidRequestError
from octavo.frontend.form_check import KEPT_FORMS, FormChecker
from octavo.grammars import MAX_MESSAGE_CHARS
from octavo.structured_outputs import StructuredOutputs


@pytest.fixture(scope="module")
def checker() -> FormChecker:
    model = byte_model()
    return FormChecker(model.tokenizer, model.config)


@pytest.mark.parametrize(
    "form",
    [
        {"json": {"type": "object"}},
        {"json_object": True},
        {"regex": "a+"},
        {"choice": ["a", "b"]},
        {"grammar": 'start: "a" </s>'},
        {"grammar": f"start: <[{EOS}]>"},
        {"json": {"oneOf": [{"type": "string"}, {"type": "integer"}]}},
        {"json": {"type": "object", "x-guidance": {"whitespace_flexible": True}}},
    ],
)
def test_good_forms_pass_as_they_are(checker: FormChecker, form: dict[str, Any]) -> None:
    assert checker.check(StructuredOutputs(**form)) == StructuredOutputs(**form)


def test_gbnf_becomes_lark(checker: FormChecker) -> None:
    made = checker.check(StructuredOutputs(grammar='root ::= "a" | "b"', starts_after="</think>"))
    assert made.grammar is not None and "::=" not in made.grammar and made.starts_after == "</think>"


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"json": '{"type": '}, "JSON schema"),
        ({"json": "true"}, "object"),
        ({"json": {"type": "strin"}}, "strin"),
        ({"json": {"not": {}}}, "not"),
        ({"json": {"type": "string", "uniqueItems": True, "if": {}}}, "if"),
        ({"json": {"$ref": "#"}}, "nothing can begin"),
        ({"json": {"$ref": "http://example.com/schema.json"}}, "example.com"),
        ({"json": {"type": "string", "enum": [1]}}, "nsatisfiable"),
        ({"json": {"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}}, "oneOf"),
        ({"regex": "("}, "unclosed group"),
        ({"regex": "(?=a)b"}, "look-around"),
        ({"regex": r"(a)\1"}, "backreferences"),
        ({"grammar": "start: foo"}, 'unknown name: "foo"'),
        ({"grammar": "begin: /a/"}, "start"),
        ({"grammar": 'start: "a" <|nothing|>'}, "nothing"),
        ({"grammar": "root ::= foo"}, "foo"),
        ({"grammar": 'root ::= ("a"'}, "grammar"),
        ({"grammar": "root ::= " + "(" * 5000 + '"a"' + ")" * 5000}, "nested"),
        ({"grammar": "start: a\na: a"}, "nothing can begin"),
    ],
)
def test_bad_forms_say_why(checker: FormChecker, form: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        checker.check(StructuredOutputs(**form))
    assert caught.value.param == "structured_outputs"
    assert words in str(caught.value) and len(str(caught.value)) < MAX_MESSAGE_CHARS + 200


def _deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    "form",
    [
        {"json": _deep(200)},
        {"json": {"allOf": [{"anyOf": [{"properties": {f"k{i}{j}": {"type": "string"}}} for i in range(3)]} for j in range(12)]}},
        {"grammar": "start: A\nA: " + " & ".join(f"/.*{i}[a-z]+\\w*x/" for i in range(100))},
    ],
)
def test_explosive_forms_are_refused(checker: FormChecker, form: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="cannot be used"):
        checker.check(StructuredOutputs(**form))


def test_only_lately_good_forms_are_kept(checker: FormChecker) -> None:
    for number in range(KEPT_FORMS + 5):
        checker.check(StructuredOutputs(choice=[str(number)]))
    assert len(checker._good) == KEPT_FORMS


def test_vocabulary_has_a_row_for_every_logit(checker: FormChecker) -> None:
    vocabulary = checker.vocabulary()
    assert len(vocabulary.tokens) == VOCAB_SIZE
    assert vocabulary.tokens[:256] == [bytes([byte]) for byte in range(256)]
    assert vocabulary.tokens[EOS:] == [b"</s>", b"", b"", b""]
    assert vocabulary.special_ids == [EOS] and vocabulary.eos_token_ids == [EOS]


def test_a_tokenizer_that_joins_by_spaces_holds_to_no_form() -> None:
    model = byte_model()
    model.tokenizer.separator = b" "
    with pytest.raises(InvalidRequestError, match="spaces between tokens"):
        FormChecker(model.tokenizer, model.config).check(StructuredOutputs(regex="a"))


def test_long_reasons_are_cut() -> None:
    model = byte_model()
    names = json.dumps([f"name {number}" for number in range(500)])
    with pytest.raises(InvalidRequestError) as caught:
        FormChecker(model.tokenizer, model.config).check(StructuredOutputs(regex=f"({names}"))
    assert str(caught.value).endswith("...")
