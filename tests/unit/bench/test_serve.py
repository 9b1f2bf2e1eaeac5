"""``octavo bench serve`` against a small server that can be told what to lack and how to fail."""

import asyncio
import itertools
import json
import threading
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from aiohttp import web
from small_shape import SMALL_SHAPE

from octavo.bench import yardstick
from octavo.bench.client import read_event
from octavo.bench.limits import Limits, model_cost
from octavo.bench.options import DatasetOptions, LoadOptions, ReportOptions
from octavo.bench.serve import arrivals, run
from octavo.errors import ConfigError, OctavoError


@dataclass
class Behaviour:
    """What the fake server can do and does wrong.

    Attributes:
        fail_every: of the benchmark's requests (those that ask for more than one token) each such one fails in the way ``failure``.
        chunk: tokens sent in one chunk.
    """

    tokenize: bool = True
    token_ids: bool = True
    usage: bool = True
    knows_stream_options: bool = True
    fail_every: int = 0
    failure: str = "status"
    chunk: int = 1
    delay: float = 0.0
    requests: list = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0


def count(prompt) -> int:
    return len(prompt.split()) if isinstance(prompt, str) else len(prompt)


class FakeServer:
    """Speaks the OpenAI API; a token is a word, and the answer to everything is ``word`` repeated."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.loop = asyncio.new_event_loop()
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()
        assert self.ready.wait(10)

    def _serve(self):
        app = web.Application()
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/tokenize", self.tokenize)
        for path in ("/v1/completions", "/v1/chat/completions", "/generate"):
            app.router.add_post(path, self.generate)
        self.loop.run_until_complete(self._start(app))
        self.ready.set()
        self.loop.run_forever()
        self.loop.run_until_complete(self.runner.cleanup())
        self.loop.close()

    async def _start(self, app):
        self.runner = web.AppRunner(app, access_log=None)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}"

    def stop(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)

    async def models(self, request):
        return web.json_response({"data": [{"id": "fake-model"}]})

    async def tokenize(self, request):
        if not self.behaviour.tokenize:
            raise web.HTTPNotFound
        body = await request.json()
        return web.json_response({"tokens": [hash(word) % 1000 for word in body["prompt"].split()]})

    async def generate(self, request):
        behaviour, body = self.behaviour, await request.json()
        if "stream_options" in body and not behaviour.knows_stream_options:
            return web.json_response({"error": {"message": "unknown field stream_options"}}, status=400)
        if isinstance(body.get("prompt"), list) and not behaviour.token_ids:
            return web.json_response({"error": {"message": "prompt must be a string"}}, status=400)
        measured = body["max_tokens"] > 1
        if measured:
            behaviour.requests.append((request.path, body, dict(request.headers)))
        fails = measured and behaviour.fail_every and len(behaviour.requests) % behaviour.fail_every == 0
        if fails and behaviour.failure == "status":
            return web.json_response({"error": {"message": "out of luck"}}, status=500)
        behaviour.in_flight += 1
        behaviour.most_in_flight = max(behaviour.most_in_flight, behaviour.in_flight)
        try:
            return await self.stream(request, body, behaviour.failure if fails else None)
        finally:
            behaviour.in_flight -= 1

    async def stream(self, request, body, failure):
        behaviour, path = self.behaviour, request.path
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        async def send(event):
            await response.write(b"data: " + (event if isinstance(event, bytes) else json.dumps(event).encode()) + b"\n\n")

        if path == "/v1/chat/completions":
            await send({"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
        left = body["max_tokens"]
        while left:
            await asyncio.sleep(behaviour.delay)
            taken = min(behaviour.chunk, left)
            left -= taken
            await send(self.piece(path, "word " * taken, None))
            if failure == "cut":
                return response
            if failure == "error":
                await send({"error": {"message": "the engine died"}})
                await send(b"[DONE]")
                return response
            if failure == "garbage":
                await send(b"{never closed")
        await send(self.piece(path, "", "length"))
        if behaviour.usage:
            prompt = body["prompt"] if "prompt" in body else body["messages"][0]["content"]
            extra = 5 if path == "/v1/chat/completions" else 0  # the chat template's own tokens
            usage = {"prompt_tokens": count(prompt) + extra, "completion_tokens": body["max_tokens"]}
            await send(
                {"text": [""], "usage": usage, "finish_reason": ["length"]} if path == "/generate" else {"choices": [], "usage": usage}
            )
        await send(b"[DONE]")
        return response

    def piece(self, path, text, finish):
        if path == "/generate":
            return {"text": [text]} | ({"finish_reason": [finish]} if finish else {})
        said = {"text": text} if path == "/v1/completions" else {"delta": {"content": text} if text else {}}
        return {"choices": [said | {"finish_reason": finish}]}


@pytest.fixture
def start():
    servers = []

    def make(**settings):
        behaviour = Behaviour(**settings)
        servers.append(FakeServer(behaviour))
        return servers[-1].url, behaviour

    yield make
    for server in servers:
        server.stop()


def bench(url, tmp_path, *, data=None, goodput=(), limit=None, **load):
    """Run; returns (exit code, result file)."""
    options = LoadOptions(base_url=url, **({"num_prompts": 6} | load))
    path = tmp_path / "result.json"
    data = data or DatasetOptions(random_input_len=20, random_output_len=4)
    code = run(options, data, ReportOptions(save_result=str(path), goodput=list(goodput), **(limit or {})))
    return code, json.loads(path.read_text())


@pytest.mark.parametrize("endpoint", ["/v1/completions", "/v1/chat/completions", "/generate"])
def test_every_endpoint_is_measured_by_the_servers_own_count(start, tmp_path, capsys, endpoint):
    url, behaviour = start()
    code, result = bench(url, tmp_path, endpoint=endpoint)
    template = 5 if endpoint == "/v1/chat/completions" else 0
    assert code == 0
    assert (result["completed"], result["failed"], result["model_id"]) == (6, 0, "fake-model")
    assert result["total_input_tokens"] == 6 * (20 + template) and result["total_output_tokens"] == 6 * 4
    assert result["tokens_counted_by"] == "usage"
    assert all(0 < one["ttft"] <= one["e2el"] for one in result["requests"])
    assert {"mean_ttft_ms", "median_tpot_ms", "p99_itl_ms", "std_e2el_ms"} <= set(result)
    out = capsys.readouterr().out
    assert "Successful requests:                     6" in out and "P99 TTFT (ms):" in out
    assert [path for path, _, _ in behaviour.requests] == [endpoint] * 6


def test_token_ids_are_sent_where_the_server_takes_them(start, tmp_path):
    url, behaviour = start()
    _, result = bench(url, tmp_path)
    assert result["prompts_sent_as"] == "token ids"
    assert all(len(body["prompt"]) == 20 and isinstance(body["prompt"][0], int) for _, body, _ in behaviour.requests)


def test_text_is_sent_where_it_does_not(start, tmp_path, capsys):
    url, behaviour = start(token_ids=False)
    code, result = bench(url, tmp_path)
    assert code == 0 and result["prompts_sent_as"].startswith("text")
    assert all(len(body["prompt"].split()) == 20 for _, body, _ in behaviour.requests)
    assert "/tokenize" in capsys.readouterr().out


def test_a_plain_openai_server_is_enough(start, tmp_path):
    url, behaviour = start(tokenize=False, token_ids=False)
    code, result = bench(url, tmp_path, endpoint="/v1/chat/completions")
    assert code == 0 and "usage" in result["prompts_sent_as"]
    assert all(len(body["messages"][0]["content"].split()) == 20 for _, body, _ in behaviour.requests)


def test_without_usage_chunks_are_counted_and_that_is_said(start, tmp_path, capsys):
    url, _ = start(usage=False, tokenize=False, token_ids=False)
    code, result = bench(url, tmp_path)
    assert code == 0 and result["tokens_counted_by"] == "chunks" and result["total_output_tokens"] == 24
    out = capsys.readouterr().out
    assert "chunks" in out and "guessed" in out


def test_a_server_without_stream_options_is_served_without(start, tmp_path):
    url, behaviour = start(knows_stream_options=False)
    code, _ = bench(url, tmp_path)
    assert code == 0 and not any("stream_options" in body for _, body, _ in behaviour.requests)


def test_several_tokens_in_a_chunk_are_told(start, tmp_path, capsys):
    url, _ = start(chunk=2)
    _, result = bench(url, tmp_path)
    assert result["total_output_tokens"] == 24
    assert "2.0 tokens a chunk" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("status", "HTTP 500: out of luck"),
        ("cut", "the stream ended before the answer did"),
        ("error", "in the stream: the engine died"),
        ("garbage", "a line of the stream is no JSON object: {never closed"),
    ],
)
def test_failures_are_counted_shown_and_kept_out_of_the_figures(start, tmp_path, capsys, failure, message):
    url, _ = start(fail_every=3, failure=failure)
    code, result = bench(url, tmp_path)
    assert code == 1
    assert (result["completed"], result["failed"], result["errors"]) == (4, 2, {message: 2})
    assert result["total_output_tokens"] == 16
    assert [one["error"] for one in result["requests"] if "error" in one] == [message] * 2
    assert f"failed: 2 x {message}" in capsys.readouterr().out


def test_goodput_counts_those_that_keep_the_bounds(start, tmp_path, capsys):
    url, _ = start(delay=0.02)
    _, kept = bench(url, tmp_path, goodput=["e2el:60000"])
    assert kept["request_goodput"] == pytest.approx(kept["request_throughput"])
    _, missed = bench(url, tmp_path, goodput=["ttft:1"])
    assert missed["request_goodput"] == 0.0
    assert "Request goodput (req/s):" in capsys.readouterr().out


def test_concurrency_is_kept_to(start, tmp_path):
    url, behaviour = start(delay=0.01)
    bench(url, tmp_path, max_concurrency=2)
    assert behaviour.most_in_flight == 2


def test_fields_and_key_reach_the_server(start, tmp_path, monkeypatch):
    monkeypatch.setenv("OCTAVO_API_KEY", "from-env")
    url, behaviour = start()
    bench(url, tmp_path, model="named", temperature=0.5, ignore_eos=True)
    _, body, headers = behaviour.requests[0]
    assert (body["model"], body["temperature"], body["ignore_eos"], body["stream"]) == ("named", 0.5, True, True)
    assert headers["Authorization"] == "Bearer from-env"


def test_the_same_seed_sends_the_same_prompts(start, tmp_path):
    url, behaviour = start()
    for seed in (1, 1, 2):
        bench(url, tmp_path, seed=seed, max_concurrency=1)
    prompts = [body["prompt"] for _, body, _ in behaviour.requests]
    assert prompts[:6] == prompts[6:12] != prompts[12:]


def test_sharegpt_and_prefix_repetition_run(start, tmp_path):
    url, behaviour = start()
    path = tmp_path / "sharegpt.json"
    path.write_text(json.dumps([{"conversations": [{"value": "q " * 9}, {"value": "a " * 5}]}] * 6))
    code, result = bench(url, tmp_path, data=DatasetOptions(dataset_name="sharegpt", dataset_path=str(path)))
    assert (code, result["total_input_tokens"], result["total_output_tokens"]) == (0, 54, 30)
    data = DatasetOptions(
        dataset_name="prefix_repetition",
        prefix_repetition_prefix_len=12,
        prefix_repetition_suffix_len=3,
        prefix_repetition_num_prefixes=2,
        prefix_repetition_output_len=4,
    )
    behaviour.requests.clear()
    code, result = bench(url, tmp_path, data=data)
    assert (code, result["total_input_tokens"]) == (0, 6 * 15)
    assert len({tuple(body["prompt"][:12]) for _, body, _ in behaviour.requests}) == 2


@pytest.fixture
def made_up_limit(monkeypatch):
    """A machine and a model that take a second for the whole workload; returns what they were asked."""
    asked = []

    def least(lengths):
        asked.append(lengths)
        return 1.0

    def known(engine):
        asked.append(engine)
        cost = model_cost(SMALL_SHAPE, "float32", "float32")
        words = {"dtype": "float32", "kv_dtype": "float32", "weights": "float32"}
        return SimpleNamespace(least=least, limits=Limits(2, 30.0, 100.0, 200.0, None), cost=cost, **words)

    monkeypatch.setattr(yardstick, "yardstick", known)
    return asked


def test_the_share_of_the_limit_is_that_of_the_servers_own_counts(start, tmp_path, capsys, made_up_limit):
    url, _ = start()
    _, result = bench(url, tmp_path, limit={"limit_model": "some/model", "limit_quantization": "int8"}, max_concurrency=3)
    told = {"model": "some/model", "max_num_seqs": 3, "dtype": "auto", "quantization": "int8", "kv_cache_dtype": "auto"}
    assert made_up_limit == [told, [(20, 4)] * 6]
    assert result["limit"]["share"] == pytest.approx(1.0 / result["duration"])
    assert "Share of the limit (%):" in capsys.readouterr().out


def test_a_run_with_failures_has_no_share(start, tmp_path, capsys, made_up_limit):
    url, _ = start(fail_every=3)
    _, result = bench(url, tmp_path, limit={"limit_model": "some/model"})
    assert result["limit"] is None and made_up_limit == []
    assert "requests failed" in capsys.readouterr().out


def test_a_share_that_was_not_asked_for_is_said(start, tmp_path, capsys):
    url, _ = start()
    bench(url, tmp_path)
    assert "--limit-model" in capsys.readouterr().out


@pytest.mark.parametrize(("load", "data"), [({"request_rate": 5.0}, {}), ({}, {"dataset_name": "prefix_repetition"})])
def test_a_share_that_would_mean_nothing_is_refused(load, data):
    with pytest.raises(ConfigError, match="--limit-model"):
        run(LoadOptions(**load), DatasetOptions(**data), ReportOptions(limit_model="some/model"))


@pytest.mark.parametrize("name", ["limit_dtype", "limit_quantization", "limit_kv_cache_dtype"])
def test_a_served_type_without_the_served_model_is_refused(name):
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} goes with --limit-model"):
        run(LoadOptions(), DatasetOptions(), ReportOptions(**{name: "bfloat16"}))


def test_no_server_is_one_clear_error(tmp_path):
    with pytest.raises(OctavoError, match=r"cannot reach http://127\.0\.0\.1:9/"):
        bench("http://127.0.0.1:9", tmp_path)
    with pytest.raises(OctavoError, match="is no address"):
        bench("127.0.0.1:9", tmp_path)


@pytest.mark.parametrize(
    ("load", "data", "part"),
    [
        ({"num_prompts": 0}, {}, "--num-prompts"),
        ({"request_rate": 0.0}, {}, "--request-rate"),
        ({"request_rate": float("nan")}, {}, "--request-rate"),
        ({"max_concurrency": 0}, {}, "--max-concurrency"),
        ({}, {"random_range_ratio": 1.0}, "--random-range-ratio"),
        ({}, {"dataset_name": "sharegpt"}, "--dataset-path"),
        ({}, {"dataset_path": "x"}, "--dataset-path"),
    ],
)
def test_flags_that_cannot_be_honoured_are_refused(load, data, part):
    with pytest.raises(ConfigError, match=part):
        run(LoadOptions(**load), DatasetOptions(**data), ReportOptions())


def test_arrivals_keep_the_rate_and_the_seed():
    offsets = arrivals(101, 10.0, 0.5, seed=3)
    assert offsets == arrivals(101, 10.0, 0.5, seed=3) != arrivals(101, 10.0, 0.5, seed=4)
    assert offsets[0] == 0.0 and offsets[-1] == pytest.approx(10.0) and offsets == sorted(offsets)
    assert arrivals(3, float("inf"), 1.0, 0) == [0.0, 0.0, 0.0]


def test_burstiness_spreads_or_evens_the_gaps():
    def spread(burstiness):
        offsets = arrivals(2001, 10.0, burstiness, seed=1)
        gaps = [later - earlier for earlier, later in itertools.pairwise(offsets)]
        return sum((gap - 0.1) ** 2 for gap in gaps) / len(gaps) / 0.01  # variance over squared mean: 1 / burstiness

    assert spread(100.0) == pytest.approx(0.01, rel=0.2)
    assert spread(1.0) == pytest.approx(1.0, rel=0.2)
    assert spread(0.25) == pytest.approx(4.0, rel=0.3)


@pytest.mark.parametrize(
    ("event", "found"),
    [
        ({"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}, (False, False)),
        ({"choices": [{"delta": {"content": "a"}}]}, (True, False)),
        ({"choices": [{"delta": {"reasoning_content": "hm"}}]}, (True, False)),
        ({"choices": [{"delta": {"tool_calls": [{"index": 0}]}}]}, (True, False)),
        ({"choices": [{"text": "a", "finish_reason": "stop"}]}, (True, True)),
        ({"choices": [{"delta": {}, "finish_reason": "length"}]}, (False, True)),
        ({"choices": [], "usage": {"prompt_tokens": 1}}, (False, False)),
        ({"text": ["a"]}, (True, False)),
        ({"text": [""], "finish_reason": ["stop"], "usage": {}}, (False, True)),
    ],
)
def test_what_a_chunk_says(event, found):
    assert read_event(event) == found
