"""Where a request's time went: in its answer where that is asked for, and in the log."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import httpx
import pytest

from octavo.engine.messages import RequestTimes
from octavo.frontend.outputs import RequestDelta, SequenceDelta
from octavo.sampling_params import SamplingParams
from octavo.server.request_log import line, summary
from octavo.server.request_metrics import RequestFollower
from octavo.server.service import Service

BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "abc"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "abc"}]},
    "/generate": {"prompt": "abc"},
}
FIGURES = {"queue_ms", "prefill_ms", "decode_ms", "ttft_ms", "cached_tokens", "preemptions"}


async def post(url: str, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
    async with httpx.AsyncClient() as http:
        return await http.post(url + path, json=body, headers=headers)


@pytest.mark.parametrize("path", BODIES)
async def test_the_answer_explains_itself_only_where_asked_to(url: str, path: str) -> None:
    for asked in (True, False, None):
        answer = (await post(url, path, BODIES[path] | {"explain": asked})).json()
        assert ("explain" in answer) == bool(asked)
        if asked:
            found = answer["explain"]
            assert set(found) == FIGURES
            assert (found["queue_ms"], found["prefill_ms"], found["decode_ms"]) == pytest.approx((10, 10, 480), abs=0.01)
            assert (found["cached_tokens"], found["preemptions"]) == (1, 0)
            assert found["ttft_ms"] == pytest.approx(20, abs=15)


@pytest.mark.parametrize("usage", [True, False])
@pytest.mark.parametrize("path", BODIES)
async def test_a_stream_explains_itself_in_its_last_chunk_alone(url: str, path: str, usage: bool) -> None:
    body = BODIES[path] | {"explain": True, "stream": True, "stream_options": {"include_usage": usage}}
    text = (await post(url, path, body)).text
    chunks = [json.loads(row.removeprefix("data: ")) for row in text.splitlines() if row and not row.endswith("[DONE]")]
    assert [index for index, chunk in enumerate(chunks) if "explain" in chunk] == [len(chunks) - 1]
    assert set(chunks[-1]["explain"]) == FIGURES
    assert ("usage" in chunks[-1]) == usage
    assert chunks[-1].get("choices", []) == []


async def test_several_prompts_give_the_longest_spans_and_the_sums(url: str) -> None:
    answer = (await post(url, "/v1/completions", {"prompt": ["a", "b", "c"], "explain": True})).json()
    assert answer["explain"]["cached_tokens"] == 3
    assert answer["explain"]["queue_ms"] == pytest.approx(10, abs=0.01)


# ---- the log ---------------------------------------------------------------------------------------------------------


def lines(caplog: Any) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "octavo.server.request_log"]


def pairs(text: str) -> dict[str, str]:
    """The pairs of a line without quoted values."""
    return dict(part.split("=", 1) for part in text.split(" "))


@pytest.mark.parametrize("path", BODIES)
async def test_each_request_is_logged_when_it_ends_if_asked_for(engine: Any, serve: Any, caplog: Any, path: str) -> None:
    async with serve(engine, enable_log_requests=True) as url:
        with caplog.at_level(logging.INFO, "octavo"):
            body = BODIES[path] | {"max_tokens": 2, "temperature": 0.5, "stop": ["secret"], "request_id": "r1"}
            await post(url, path, json.loads(json.dumps(body).replace("abc", "secret words")))
    (text,) = lines(caplog)
    found = pairs(text)
    assert "secret" not in text
    assert "-r1-" in found["request"] and (found["route"], found["model"], found["finish"]) == (path, "fake-model", "length")
    assert (found["cached_tokens"], found["generated_tokens"], found["preemptions"]) == ("1", "2", "0")
    assert (found["queue_ms"], found["prefill_ms"]) == ("10.0", "10.0")
    assert (found["max_tokens"], found["temperature"], found["stop"]) == ("2", "0.5", "[1]")
    assert "top_p" not in found


async def test_nothing_is_logged_unasked(url: str, caplog: Any) -> None:
    with caplog.at_level(logging.INFO, "octavo"):
        await post(url, "/v1/completions", {"prompt": "abc"})
    assert lines(caplog) == []


async def test_prompts_of_one_request_leave_a_line_each(engine: Any, serve: Any, caplog: Any) -> None:
    async with serve(engine, enable_log_requests=True) as url:
        with caplog.at_level(logging.INFO, "octavo"):
            await post(url, "/v1/completions", {"prompt": ["a", "bc"]})
    assert sorted(pairs(text)["prompt_tokens"] for text in lines(caplog)) == ["2", "3"]


async def test_a_client_that_leaves_is_logged_as_an_abort(engine: Any, serve: Any, caplog: Any) -> None:
    engine.hold.clear()
    async with serve(engine, enable_log_requests=True) as url:
        with caplog.at_level(logging.INFO, "octavo"):
            task = asyncio.create_task(post(url, "/v1/completions", {"prompt": "a"}))
            while not engine.submitted:
                await asyncio.sleep(0.005)
            task.cancel()
            async with asyncio.timeout(10):
                while not lines(caplog):
                    await asyncio.sleep(0.005)
    (text,) = lines(caplog)
    assert pairs(text)["finish"] == "abort" and "queue_ms" not in pairs(text)


async def test_an_id_cannot_forge_a_line(engine: Any, serve: Any, caplog: Any) -> None:
    async with serve(engine, enable_log_requests=True) as url:
        with caplog.at_level(logging.INFO, "octavo"):
            await post(url, "/v1/completions", {"prompt": "a", "request_id": 'x\nrequest=y finish=stop "z" é'})
    (text,) = lines(caplog)
    assert "\n" not in text and text.isascii()
    assert text.startswith('request="cmpl-x\\nrequest=y finish=stop \\"z\\" \\u00e9-')


def test_parameters_are_summed_up_without_any_text() -> None:
    params = SamplingParams(n=2, logit_bias={1: 2.0, 3: 4.0}, bad_words=["secret"], stop=["a", "b"], max_tokens=None, ignore_eos=True)
    assert summary(params) == {"n": 2, "logit_bias": "[2]", "bad_words": "[1]", "stop": "[2]", "max_tokens": None, "ignore_eos": True}


def test_a_beam_search_is_told_as_one(engine: Any) -> None:
    service = Service(engine, engine.options, None)  # type: ignore[arg-type]
    follower = RequestFollower(service.metrics.engines[0], "r", 3, 0.0)
    follower.take(RequestDelta("r", [SequenceDelta(0, "", [1], None, "stop")], None, 0, True, RequestTimes(1.0, 1.5, 2.0, 4.0, 3)))
    found = pairs(line("/generate", "m", SamplingParams(n=4), 0.5, follower))
    assert (found["n"], found["beam_search"], found["preemptions"]) == ("4", "length_penalty:0.5", "3")
    assert (found["queue_ms"], found["prefill_ms"], found["decode_ms"]) == ("500.0", "500.0", "2000.0")
