"""A sequence's way through its form: masks, ends, errors, and what comes before the form. Tokens are bytes and a few words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from octavo.batch import NewSequence
from octavo.errors import FormFailedError
from octavo.grammars import without_gbnf
from octavo.sampling.grammar import Grammars, GrammarState
from octavo.sampling.sampler import Sampler
from octavo.sampling.state import SequenceState
from octavo.sampling.token_mask import ids_of_mask
from octavo.sampling_params import SamplingParams
from octavo.structured_outputs import StructuredOutputs
from octavo.vocabulary import Vocabulary

EOS = 256
WORDS = [b"</s>", b"<|tool|>", b"yes", b"no", b"nope", b'{"', b"k>", b"k>{", b"k>x", b"</think>", b"a</think>{", b""]
TOKENS = [*(bytes([byte]) for byte in range(256)), *WORDS]
ID = {text: token for token, text in enumerate(TOKENS)}
WIDTH = len(TOKENS) + 4
"""Width of the logits: some columns more than there are tokens."""


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    made = Grammars()
    made.learn(Vocabulary(TOKENS, [EOS, 257], [EOS]))
    return made


def state(grammars: Grammars, output: list[int] | None = None, *, ignore_eos: bool = False, **form: Any) -> GrammarState:
    return grammars.state(without_gbnf(StructuredOutputs(**form)), output or [], ignore_eos=ignore_eos)


def allowed(state: GrammarState) -> set[bytes]:
    assert state.error() is None
    mask = state.mask()
    assert mask is not None
    return {TOKENS[token] for token in ids_of_mask(mask)}


def spell(state: GrammarState, text: bytes) -> None:
    for byte in text:
        assert bytes([byte]) in allowed(state), text
        state.advance(byte)


def test_mask_has_every_token_that_can_go_on_and_no_other(grammars: Grammars) -> None:
    one = state(grammars, choice=["yes", "no", "nope"])
    assert allowed(one) == {b"y", b"yes", b"n", b"no", b"nope"}
    one.advance(ID[b"no"])
    assert allowed(one) == {b"p", b"</s>"} and not one.complete


def test_form_is_complete_where_nothing_may_follow(grammars: Grammars) -> None:
    one = state(grammars, choice=["yes", "no", "nope"])
    one.advance(ID[b"nope"])
    assert one.complete
    other = state(
        grammars, json={"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}
    )
    spell(other, b'{"a": true')
    assert not other.complete
    other.advance(ord("}"))
    assert other.complete


def test_end_of_sequence_completes_a_form_that_could_go_on(grammars: Grammars) -> None:
    one = state(grammars, regex="[0-9]+")
    assert b"</s>" not in allowed(one)
    spell(one, b"12")
    assert b"</s>" in allowed(one)
    one.advance(EOS)
    assert one.complete


def test_ignore_eos_leaves_the_end_only_where_nothing_else_is_left(grammars: Grammars) -> None:
    one = state(grammars, regex="[0-9]+", ignore_eos=True)
    spell(one, b"12")
    assert allowed(one) == {bytes([byte]) for byte in b"0123456789"}


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        ({"json_object": True}, b'{"a": 1,"b":[1, "x"]}', b'{ "'),
        ({"json_object": True}, b"{}", b"{\n"),
        ({"json": '{"type": "array", "items": {"type": "integer"}, "maxItems": 2}'}, b"[1, 2]", b"[1,  "),
        ({"json": {"enum": ["ä", 2]}}, '"ä"'.encode(), b"3"),
        ({"regex": r"\d{2}/\w+"}, b"12/ab_", "१".encode()),
        ({"regex": r"^(a|b)$"}, b"b", b"c"),
        ({"choice": ['q"q', "\n\\", "é😀"]}, 'é😀'.encode(), b"x"),
        ({"choice": ['q"q', "\n\\", "é😀"]}, b"\n\\", b"x"),
        ({"grammar": 'start: "n=" NUMBER\nNUMBER: /[0-9]{1,2}/'}, b"n=42", b"m"),
        ({"grammar": 'start: "<" %json {"type": "null"} ">"'}, b"<null>", b"<x"),
        ({"grammar": 'root ::= "yes" | item+\nitem ::= [a-c]{2} ("," item)?\n'}, b"ab,cb", b"z"),
        ({"grammar": "root::=[0-9]+"}, b"7", b"x"),
    ],
)  # fmt: skip
def test_forms_of_every_kind(grammars: Grammars, form: dict[str, Any], good: bytes, bad: bytes) -> None:
    one = state(grammars, **form)
    spell(one, good)
    assert one.complete or b"</s>" in allowed(one)
    with pytest.raises(AssertionError):
        spell(state(grammars, **form), bad)


def test_special_tokens_are_allowed_only_by_name(grammars: Grammars) -> None:
    assert not {b"</s>", b"<|tool|>", b""} & allowed(state(grammars, regex="(?s:.*)x"))
    assert allowed(state(grammars, grammar="start: <|tool|> /a/")) == {b"<|tool|>"}


def test_state_made_in_the_middle_is_that_of_one_that_went_there(grammars: Grammars) -> None:
    form = {"json": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 5}}, "required": ["name"]}}
    output = list(b'{"name": "ab')
    walked = state(grammars, **form)
    for token in output:
        walked.mask()
        walked.advance(token)
    made = state(grammars, output, **form)
    assert allowed(made) == allowed(walked)


@pytest.mark.parametrize("cores_free", [True, False])
@pytest.mark.parametrize("ignore_eos", [True, False])
@pytest.mark.parametrize(
    ("form", "output"),
    [
        ({"json_object": True}, list(b'{"a": [1, "x"], "b": {}}')),
        ({"regex": "[0-9]+"}, list(b"123")),
        ({"choice": ["yes", "no", "nope"]}, [ID[b"no"], ord("p")]),
        ({"regex": "[0-9]{3}", "starts_after": "</think>"}, [*b"so </thin", ID[b"k>"], *b"12"]),
    ],
)
def test_a_token_is_allowed_where_the_mask_has_it(cores_free: bool, ignore_eos: bool, form: dict[str, Any], output: list[int]) -> None:
    made = Grammars(cores_free=cores_free)
    made.learn(Vocabulary(TOKENS, [EOS, 257], [EOS]))
    for length in range(len(output)):
        asked = made.state(StructuredOutputs(**form), output[:length], ignore_eos=ignore_eos, guessed=True)
        said = {token for token in range(WIDTH) if asked.allows(token)}
        mask = made.state(StructuredOutputs(**form), output[:length], ignore_eos=ignore_eos).mask()
        assert said == (set(range(len(TOKENS))) if mask is None else set(ids_of_mask(mask))), length


def test_a_form_that_fails_names_its_row_and_leaves_the_others(grammars: Grammars) -> None:
    states = [sequence(grammars, {"choice": ["yes"]}), sequence(grammars, {"regex": "("})]
    with pytest.raises(FormFailedError) as caught:
        Sampler()(torch.zeros(2, WIDTH), states)
    assert list(caught.value.reasons) == [1] and "regular expression" in caught.value.reasons[1]


def test_sequences_of_one_form_do_not_disturb_each_other(grammars: Grammars) -> None:
    first, second = state(grammars, choice=["yes", "no"]), state(grammars, choice=["yes", "no"])
    first.advance(ID[b"no"])
    assert first.complete and allowed(second) == {b"y", b"yes", b"n", b"no"}


def test_a_form_that_does_not_compile_is_an_error_of_its_sequence(grammars: Grammars) -> None:
    error = state(grammars, regex="(").error()
    assert error is not None and "regular expression" in error


def test_a_token_that_breaks_the_form_is_an_error(grammars: Grammars) -> None:
    one = state(grammars, choice=["yes"])
    one.advance(ID[b"no"])
    assert one.error() is not None


# ---- what comes before the form --------------------------------------------------------------------------------------


def test_output_is_free_until_the_marker(grammars: Grammars) -> None:
    one = state(grammars, regex="[0-9]", starts_after="</think>")
    assert allowed(one) == set(TOKENS) - {b"a</think>{"}, "a token that holds the marker and more"
    for token in b"so {x} </thin":
        one.advance(token)
    assert not {b"k>{", b"k>x"} & allowed(one) and {b"k>", b"k", b"z", b"</think>"} <= allowed(one)
    one.advance(ID[b"k>"])
    assert allowed(one) == {bytes([byte]) for byte in b"0123456789"}
    one.advance(ord("7"))
    assert one.complete


def test_a_marker_in_one_token_or_in_many(grammars: Grammars) -> None:
    for output in ([ID[b"</think>"]], list(b"x</think>"), [*b"</t</thin", ID[b"k>"]]):
        assert allowed(state(grammars, output, choice=["no"], starts_after="</think>")) == {b"n", b"no"}


def test_nothing_is_masked_where_no_token_can_straddle_the_marker(grammars: Grammars) -> None:
    assert state(grammars, choice=["no"], starts_after="#").mask() is None


def test_end_of_sequence_is_free_before_the_form(grammars: Grammars) -> None:
    assert b"</s>" in allowed(state(grammars, choice=["no"], starts_after="</think>"))
    assert b"</s>" not in allowed(state(grammars, choice=["no"], starts_after="</think>", ignore_eos=True))


# ---- through the sampler ---------------------------------------------------------------------------------------------


def sequence(grammars: Grammars, form: dict[str, Any], output: list[int] | None = None, **params: Any) -> SequenceState:
    made = SamplingParams(**{"temperature": 0.0, **params, "structured_outputs": StructuredOutputs(**form)})
    ids = params.pop("suppress", [])
    new = NewSequence(1, [5, *(output or [])], 1, made, seed=7, suppress_until_min=ids)
    return SequenceState(new, WIDTH, grammars)


def sample(state: SequenceState, favourites: list[int]) -> int:
    """The token drawn where the favourites have the highest logits, in falling order."""
    logits = torch.zeros(1, WIDTH)
    logits[0, -1] = 50.0
    for place, token in enumerate(favourites):
        logits[0, token] = 20.0 - place
    return Sampler()(logits, [state])[0][0]


def test_sampler_draws_within_the_form(grammars: Grammars) -> None:
    assert sample(sequence(grammars, {"choice": ["yes", "no"]}), [ord("x"), EOS, ID[b"no"]]) == ID[b"no"]


def test_allowed_ids_hold_within_the_form_and_yield_to_it(grammars: Grammars) -> None:
    form = {"choice": ["yes", "no"]}
    assert sample(sequence(grammars, form, allowed_token_ids=[ord("y"), ord("x")]), [ord("x"), ID[b"no"]]) == ord("y")
    assert sample(sequence(grammars, form, allowed_token_ids=[ord("x")]), [ord("x"), ID[b"no"]]) == ID[b"no"]


def test_bans_hold_within_the_form_and_yield_to_it(grammars: Grammars) -> None:
    new = NewSequence(
        1, [5], 1, SamplingParams(temperature=0.0, structured_outputs=StructuredOutputs(choice=["ab"])), 7, bad_word_ids=[[ord("a")]]
    )
    assert sample(SequenceState(new, WIDTH, grammars), [ord("x")]) == ord("a")
    new.params.structured_outputs = StructuredOutputs(choice=["ab", "b"])
    assert sample(SequenceState(new, WIDTH, grammars), [ord("a")]) == ord("b")


def test_bias_and_log_probabilities(grammars: Grammars) -> None:
    state = sequence(grammars, {"choice": ["yes", "no"]}, logit_bias={ID[b"yes"]: 40.0}, logprobs=1)
    logits = torch.zeros(1, WIDTH)
    logits[0, ID[b"no"]] = 20.0
    ((token, logprobs),) = Sampler()(logits.clone(), [state])
    assert token == ID[b"yes"] and logprobs is not None
    assert logprobs.token_ids[1] == ID[b"no"], "log probabilities are the model's own"


@pytest.mark.parametrize("cores_free", [True, False])
def test_greedy_tokens_are_the_likeliest_allowed_ones_whatever_was_asked_first(cores_free: bool) -> None:
    made = Grammars(cores_free=cores_free)
    made.learn(Vocabulary(TOKENS, [EOS, 257], [EOS]))
    states = [sequence(made, {"regex": f"[a-z]{{{length}}}" if length % 2 else "(?s:.{400})"}) for length in range(100, 120)]
    generator = torch.Generator().manual_seed(2)
    refused = 0
    for _ in range(20):
        logits = torch.randn(len(states), WIDTH, generator=generator)
        tokens = [token for token, _ in Sampler()(logits.clone(), states)]
        for row, (state, token) in enumerate(zip(states, tokens, strict=True)):
            assert state.grammar is not None
            mask = state.grammar.mask()
            assert mask is not None
            allowed = ids_of_mask(mask)
            assert token == allowed[int(logits[row, allowed].argmax())]
            refused += token != int(logits[row].argmax())
            state.append(token)
    assert 0 < refused < 20 * len(states), "both ways were gone"


def test_random_draws_stay_within_the_form(grammars: Grammars) -> None:
    state = sequence(grammars, {"regex": "[a-d]{30}"}, temperature=5.0)
    generator = torch.Generator().manual_seed(1)
    while not (state.grammar is not None and state.grammar.complete):
        ((token, _),) = Sampler()(torch.randn(1, WIDTH, generator=generator), [state])
        assert chr(token) in "abcd"
        state.append(token)
    assert state.num_output_tokens == 30


@pytest.mark.parametrize("cores_free", [True, False])
@pytest.mark.parametrize("likely", ["within", "without", "beside"])
def test_draws_among_what_a_form_allows_have_its_distribution(cores_free: bool, likely: str) -> None:
    """However often the first draws, which are of all tokens, are refused. Chi-square within five standard deviations of its mean."""
    made = Grammars(cores_free=cores_free)
    made.learn(Vocabulary(TOKENS, [EOS, 257], [EOS]))
    logits = torch.randn(WIDTH, generator=torch.Generator().manual_seed(5))
    within = [ord(letter) for letter in "abcdefgh"]
    logits[within] += {"within": 9.0, "without": -2.0, "beside": 4.0}[likely]
    weights = (logits[within].double() / 0.8).softmax(0).numpy()
    draws, tried = 3000, SamplingParams(temperature=0.8, structured_outputs=StructuredOutputs(regex="[a-h]{9}"))
    states = [SequenceState(NewSequence(seed, [5], 1, tried, seed=seed), WIDTH, made) for seed in range(draws)]
    tokens = [token for token, _ in Sampler()(logits.repeat(draws, 1), states)]
    counts = np.bincount(tokens, minlength=WIDTH)
    assert counts.sum() == counts[within].sum() == draws
    chi_square = float(((counts[within] - draws * weights) ** 2 / (draws * weights)).sum())
    assert chi_square < 7 + 5 * 14**0.5


def test_a_draw_within_a_form_depends_on_its_row_alone(grammars: Grammars) -> None:
    """Not on the rows beside it, on what asks for log probabilities, or on whether masks are computed ahead."""
    busy = Grammars(cores_free=False)
    busy.learn(Vocabulary(TOKENS, [EOS, 257], [EOS]))
    form = StructuredOutputs(regex="[a-z0-9 ]{20}")

    def states(grammars: Grammars, **options: Any) -> list[SequenceState]:
        made = SamplingParams(temperature=1.5, structured_outputs=form, **options)
        return [SequenceState(NewSequence(seed, [5], 1, made, seed=seed), WIDTH, grammars) for seed in range(40)]

    logits = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(6)) * 2
    together = [token for token, _ in Sampler()(logits.clone(), states(grammars))]
    assert [Sampler()(logits[row : row + 1].clone(), [state])[0][0] for row, state in enumerate(states(busy))] == together
    with_logprobs = Sampler()(logits.clone(), states(grammars, logprobs=2))
    assert [token for token, _ in with_logprobs] == together
    for row, (token, found) in enumerate(with_logprobs):
        assert found is not None and found.token_ids[0] == token
        assert found.logprobs[0] == pytest.approx(float(logits[row].log_softmax(0)[token]), abs=1e-4)
    assert len(set(together)) > 10
