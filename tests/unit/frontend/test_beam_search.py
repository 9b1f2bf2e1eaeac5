"""Beam search against all that could be found, and against a search written another way."""

from __future__ import annotations

import itertools

import pytest
from byte_model import EOS, VOCAB_SIZE, byte_tokenizer
from table_core import LETTERS, next_logprobs

from octavo.errors import InvalidRequestError
from octavo.frontend.beam_search import Beam, BeamSearch
from octavo.frontend.beam_types import BeamSearchParams, check_beam_search
from octavo.frontend.outputs import Logprob, PositionLogprobs
from octavo.sampling_params import SamplingParams
from octavo.structured_outputs import StructuredOutputs

PROMPT = list(b"xy")
PENALTIES = (1.0, 0.0, 2.0, -1.0, 0.3)


def position_after(token_ids: list[int], count: int) -> PositionLogprobs:
    found = dict.fromkeys(range(VOCAB_SIZE), -30.0) | next_logprobs(token_ids)
    ranked = sorted(found, key=lambda token: (-found[token], token))
    return {token: Logprob(found[token], rank, chr(token)) for rank, token in enumerate(ranked[:count], 1)}


def run(max_tokens: int, length_penalty: float = 1.0, *, prompt: list[int] = PROMPT, **params: object) -> tuple[BeamSearch, int]:
    """The search at its end, and how many steps it took."""
    search = BeamSearch(SamplingParams(max_tokens=max_tokens, **params), length_penalty, max_tokens, (EOS,), VOCAB_SIZE)
    steps = 0
    while not search.done:
        search.advance([position_after([*prompt, *beam.token_ids], search.num_logprobs) for beam in search.live])
        steps += 1
    return search, steps


def all_answers(max_tokens: int) -> dict[tuple[int, ...], float]:
    """Every answer the table gives, with its log probability: ended ones, and those of ``max_tokens`` letters."""
    found: dict[tuple[int, ...], float] = {}
    for length in range(max_tokens + 1):
        for letters in itertools.product(LETTERS, repeat=length):
            answers = [letters] if length == max_tokens else [(*letters, EOS)]
            for answer in answers:
                known = [next_logprobs([*PROMPT, *answer[:place]])[token] for place, token in enumerate(answer)]
                found[answer] = sum(known)
    return found


@pytest.mark.parametrize("length_penalty", PENALTIES)
def test_a_search_as_wide_as_all_there_is_finds_the_best_of_all(length_penalty: float) -> None:
    search, _ = run(4, length_penalty, n=64)
    everything = all_answers(4)
    best = sorted((logprob / len(answer) ** length_penalty for answer, logprob in everything.items()), reverse=True)
    found = search.best()
    assert len(found) == 64
    assert [beam.score(length_penalty) for beam in found] == pytest.approx(best[:64])
    for beam in found:
        assert beam.logprob == pytest.approx(everything[beam.token_ids])


def plain_search(width: int, max_tokens: int, length_penalty: float, prompt: list[int]) -> list[tuple[int, ...]]:
    """The same by the book: no early end, no bound."""
    live: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    ended: list[tuple[tuple[int, ...], float]] = []
    for _ in range(max_tokens):
        longer = []
        for tokens, total in live:
            likeliest = sorted(next_logprobs([*prompt, *tokens]).items(), key=lambda entry: -entry[1])[: 2 * width]
            longer += [((*tokens, token), total + value) for token, value in likeliest]
        ended += [entry for entry in longer if entry[0][-1] == EOS]
        live = sorted((entry for entry in longer if entry[0][-1] != EOS), key=lambda entry: -entry[1])[:width]
    ranked = sorted(ended + live, key=lambda entry: -entry[1] / len(entry[0]) ** length_penalty)
    return [tokens for tokens, _ in ranked[:width]]


@pytest.mark.parametrize("length_penalty", PENALTIES)
@pytest.mark.parametrize("width", [1, 2, 5])
def test_ending_early_changes_nothing(width: int, length_penalty: float) -> None:
    early = 0
    for start in range(20):
        prompt = [start, start + 1]
        search, steps = run(9, length_penalty, n=width, prompt=prompt)
        assert [beam.token_ids for beam in search.best()] == plain_search(width, 9, length_penalty, prompt)
        early += steps < 9
    assert early or length_penalty > 0  # there a long answer may yet win


def test_one_beam_that_never_ends_is_greedy() -> None:
    search, steps = run(6, n=1, ignore_eos=True)
    tokens = list(PROMPT)
    for _ in range(6):
        found = next_logprobs(tokens)
        tokens.append(max(found, key=lambda token: found[token]))
    assert steps == 6
    assert list(search.best()[0].token_ids) == tokens[2:]
    assert search.num_tokens == 6


def test_a_stop_token_ends_a_beam_and_is_named_and_the_models_own_is_not() -> None:
    search, _ = run(6, n=8, stop_token_ids=[ord("a")])
    reasons = {beam.token_ids[-1]: search.finish_reason(beam) for beam in search.best()}
    assert reasons[ord("a")] == ("stop", ord("a"))
    assert reasons[EOS] == ("stop", None)
    assert all(ord("a") not in beam.token_ids[:-1] for beam in search.best())
    assert search.finish_reason(Beam((1,), -1.0)) == ("length", None)


@pytest.mark.parametrize(("include", "text"), [(False, "ab"), (True, "abc")])
def test_the_text_of_a_beam_has_its_stop_token_only_where_asked_for(include: bool, text: str) -> None:
    params = SamplingParams(stop_token_ids=[ord("c")], include_stop_str_in_output=include)
    search = BeamSearch(params, 1.0, 5, (EOS,), VOCAB_SIZE)
    beam = Beam(tuple(b"abc"), -1.0, (), ord("c"))
    delta = search.delta(3, beam, byte_tokenizer(), PROMPT)
    assert (delta.index, delta.text, delta.token_ids, delta.logprobs) == (3, text, list(b"abc"), None)
    assert (delta.finish_reason, delta.stop_reason) == ("stop", ord("c"))
    assert bytes(search.shown_tokens(beam)).decode() == text


@pytest.mark.parametrize(("top", "most"), [(0, 1), (2, 3)])
def test_log_probabilities_have_the_beams_token_first_and_then_the_likeliest(top: int, most: int) -> None:
    search, _ = run(4, n=3, logprobs=top)
    for beam in search.best():
        assert len(beam.positions) == len(beam.token_ids)
        assert sum(position[token].logprob for token, position in zip(beam.token_ids, beam.positions, strict=True)) == pytest.approx(
            beam.logprob
        )
        for token, position in zip(beam.token_ids, beam.positions, strict=True):
            assert next(iter(position)) == token
            assert top <= len(position) <= most
            assert all(entry.rank <= top for other, entry in position.items() if other != token)


def test_tokens_of_all_kept_beams_are_counted() -> None:
    search, steps = run(5, n=2, ignore_eos=True)
    assert (steps, search.num_tokens) == (5, 10)


@pytest.mark.parametrize("length_penalty", [100.0, -100.0])
def test_extreme_penalties_make_no_error(length_penalty: float) -> None:
    search, _ = run(9, length_penalty, n=2)
    assert len(search.best()) == 2


def test_more_beams_than_tokens_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="vocabulary's 3 tokens"):
        BeamSearch(SamplingParams(n=4), 1.0, 5, (0,), 3)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"top_p": 0.5}, "top_p"),
        ({"top_k": 3}, "top_k"),
        ({"min_p": 0.1}, "min_p"),
        ({"seed": 0}, "seed"),
        ({"stop": ["x"]}, "stop"),
        ({"best_of": 3}, "best_of"),
        ({"min_tokens": 1}, "min_tokens"),
        ({"presence_penalty": 0.1}, "presence_penalty"),
        ({"frequency_penalty": 0.1}, "frequency_penalty"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"logit_bias": {1: 1.0}}, "logit_bias"),
        ({"allowed_token_ids": [1]}, "allowed_token_ids"),
        ({"bad_words": ["x"]}, "bad_words"),
        ({"temperature": 0.5}, "temperature"),
    ],
)
def test_what_a_search_cannot_honour_is_named(fields: dict[str, object], name: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check_beam_search(SamplingParams(n=2, **fields), 1.0)
    assert caught.value.param == name


def test_a_form_of_the_output_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="form") as caught:
        check_beam_search(SamplingParams(structured_outputs=StructuredOutputs(choice=["a", "b"])), 1.0)
    assert caught.value.param == "use_beam_search"


def test_what_asks_for_nothing_is_let_through() -> None:
    check_beam_search(SamplingParams(n=2, best_of=2, top_k=-1, temperature=0, logprobs=3, prompt_logprobs=1), -0.5)
    with pytest.raises(InvalidRequestError, match="length_penalty"):
        check_beam_search(SamplingParams(), 101.0)


@pytest.mark.parametrize(
    ("fields", "name"), [({"beam_width": 0}, "beam_width"), ({"max_tokens": 0}, "max_tokens"), ({"temperature": 0.7}, "temperature")]
)
def test_beam_search_params_name_what_is_wrong(fields: dict[str, float], name: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{name} must") as caught:
        BeamSearchParams(**{"beam_width": 2, "max_tokens": 3, **fields})
    assert caught.value.param == name
