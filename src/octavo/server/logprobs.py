"""Log probabilities in the three shapes clients know: OpenAI's legacy one, OpenAI's chat one, and vLLM's by token id."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from octavo.frontend.outputs import Logprob, PositionLogprobs
from octavo.server.responses import (
    LEAST_LOGPROB,
    ChatLogprobs,
    CompletionLogprobs,
    IdLogprobs,
    LogprobEntry,
    TokenLogprob,
    TopLogprob,
)


class LegacyLogprobs:
    """Makes the legacy shape of one choice, piece by piece; offsets run on from piece to piece.

    Args:
        top: likeliest tokens at each position (the token that stands there always has its place besides); -1 is all.
        as_ids: name tokens by their ids instead of their texts; offsets are those of the texts all the same.
    """

    def __init__(self, top: int, *, as_ids: bool = False) -> None:
        self._top = top
        self._as_ids = as_ids
        self._offset = 0

    def shape(self, positions: Sequence[PositionLogprobs | None], first_token: tuple[int, str] = (0, "")) -> CompletionLogprobs:
        """The next positions.

        Args:
            positions: None only for a prompt's first token, which nothing precedes.
            first_token: the id and the text of that token.
        """
        made = CompletionLogprobs([], [], [], [])
        for position in positions:
            made.text_offset.append(self._offset)
            if position is None:
                token, text = first_token
                made.token_logprobs.append(None)
                made.top_logprobs.append(None)
            else:
                token, chosen = next(iter(position.items()))
                text = chosen.decoded_token
                made.token_logprobs.append(_finite(chosen))
                made.top_logprobs.append(self._candidates(position))
            made.tokens.append(_name(token, text, self._as_ids))
            self._offset += len(text)
        return made

    def _candidates(self, position: PositionLogprobs) -> dict[str, float]:
        """By name; where two tokens have the same text, the first stays."""
        found: dict[str, float] = {}
        for token, entry in _kept(position, self._top).items():
            found.setdefault(_name(token, entry.decoded_token, self._as_ids), _finite(entry))
        return found


def chat_logprobs(
    positions: Sequence[PositionLogprobs], top: int, token_bytes: Callable[[int], bytes], *, as_ids: bool = False
) -> ChatLogprobs:
    """The chat shape, with the ``top`` likeliest tokens (-1: all) at each position, likeliest first.

    Args:
        token_bytes: the bytes a token adds to a text; they may be part of a character.
        as_ids: name tokens by their ids instead of their texts.
    """

    def name(token: int, entry: Logprob) -> str:
        return _name(token, entry.decoded_token, as_ids)

    content = []
    for position in positions:
        likeliest = sorted((item for item in position.items() if top == -1 or item[1].rank <= top), key=lambda item: item[1].rank)
        candidates = [TopLogprob(name(token, entry), _finite(entry), list(token_bytes(token))) for token, entry in likeliest]
        token, chosen = next(iter(position.items()))
        content.append(TokenLogprob(name(token, chosen), _finite(chosen), list(token_bytes(token)), candidates))
    return ChatLogprobs(content)


def logprobs_by_id(positions: Sequence[PositionLogprobs], top: int) -> list[IdLogprobs]:
    """vLLM's shape: candidates by token id, the token that stands there first."""
    return [
        {token: LogprobEntry(_finite(entry), entry.rank, entry.decoded_token) for token, entry in _kept(position, top).items()}
        for position in positions
    ]


def prompt_logprobs_by_id(positions: Sequence[PositionLogprobs | None], top: int) -> list[IdLogprobs | None]:
    """The same for a prompt, whose first token has none."""
    return [None if position is None else logprobs_by_id([position], top)[0] for position in positions]


def _name(token: int, text: str, as_id: bool) -> str:
    return f"token_id:{token}" if as_id else text


def _kept(position: PositionLogprobs, top: int) -> PositionLogprobs:
    chosen = next(iter(position))
    return {token: entry for token, entry in position.items() if token == chosen or top == -1 or entry.rank <= top}


def _finite(entry: Logprob) -> float:
    return max(entry.logprob, LEAST_LOGPROB)
