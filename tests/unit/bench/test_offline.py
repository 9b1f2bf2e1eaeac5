"""``octavo bench throughput`` and ``latency`` over an ``LLM`` that needs no engine, on a machine with made-up limits."""

import json
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from small_shape import SMALL_SHAPE

from octavo.bench import offline
from octavo.bench.limits import Limits, model_cost
from octavo.bench.offline import latency, throughput
from octavo.bench.options import LatencyOptions, ThroughputOptions
from octavo.bench.yardstick import Yardstick
from octavo.config import engine_options
from octavo.errors import ConfigError, OctavoError
from octavo.runner.memory_plan import matrix_formats

LIMITS = Limits(2, 30.0, 100.0, 200.0, None)


class FakeLLM:
    """Answers with as many tokens as are asked for, less ``short``."""

    short = 0
    last = None

    def __init__(self, **options):
        FakeLLM.last = self
        self.options, self.calls, self.closed = options, [], False

    def generate(self, prompts, params, use_tqdm):
        self.calls.append(([tuple(prompt["prompt_token_ids"]) for prompt in prompts], params))
        time.sleep(0.01)
        answer = SimpleNamespace(token_ids=[1] * (params.max_tokens - self.short), finish_reason="stop")
        return [SimpleNamespace(outputs=[answer]) for _ in prompts]

    def shutdown(self):
        self.closed = True


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    def known(engine, limits=LIMITS, matrices=None):
        return Yardstick(engine_options(**engine), SMALL_SHAPE, "float32", "float32", limits, tuple(range(10, 90)), matrices)

    monkeypatch.setattr(offline, "yardstick", known)
    monkeypatch.setattr(offline, "_load", lambda engine: FakeLLM(**engine))
    monkeypatch.setattr(FakeLLM, "short", 0)
    return known


def test_throughput_counts_tokens_and_the_share_of_the_limit(tmp_path, capsys):
    path = tmp_path / "out.json"
    options = ThroughputOptions(input_len=6, output_len=5, num_prompts=3, output_json=str(path))
    assert throughput({"max_num_seqs": 8}, options) == 0
    result = json.loads(path.read_text())
    assert result["total_num_tokens"] == 33 and result["num_requests"] == 3
    assert result["tokens_per_second"] == pytest.approx(33 / result["elapsed_time"])
    assert result["output_tokens_per_second"] == pytest.approx(15 / result["elapsed_time"])
    assert result["limit"]["share"] == pytest.approx(result["limit"]["least_seconds"] / result["elapsed_time"])
    out = capsys.readouterr().out
    assert "Share of the limit (%):" in out and "Output token throughput (tok/s):" in out
    llm = FakeLLM.last
    assert llm.options == {"max_num_seqs": 8} and llm.closed
    prompts, params = llm.calls[-1]
    assert [len(prompt) for prompt in prompts] == [6, 6, 6]
    assert (params.max_tokens, params.ignore_eos, params.temperature) == (5, True, 0.0)


def test_quantised_weights_are_measured_by_the_int8_peak(monkeypatch, tmp_path, capsys, fake):
    matrices = matrix_formats(SMALL_SHAPE, "int4")
    monkeypatch.setattr(offline, "yardstick", lambda engine: fake(engine, replace(LIMITS, int8_gop_s=400.0), matrices))
    path = tmp_path / "out.json"
    throughput({}, ThroughputOptions(input_len=6, output_len=5, num_prompts=3, output_json=str(path)))
    limit = json.loads(path.read_text())["limit"]
    assert limit["int8_gop_s"] == 400.0 and limit["weights"] == "int4, vocabulary int8; computed in float32"
    assert limit["step_bytes"] == model_cost(SMALL_SHAPE, "float32", "float32", matrices).step_bytes
    out = capsys.readouterr().out
    assert "int8 product (GOP/s):" in out and "float32 product" not in out


def test_the_warm_up_shares_no_prompt_with_the_measured_call():
    throughput({}, ThroughputOptions(input_len=6, output_len=5, num_prompts=3))
    (warm, _), (measured, _) = FakeLLM.last.calls
    assert not set(warm) & set(measured)


def test_prompts_are_the_seeds():
    runs = []
    for seed in (1, 1, 2):
        throughput({"seed": seed}, ThroughputOptions(input_len=6, output_len=5, num_prompts=3))
        runs.append(FakeLLM.last.calls[-1][0])
    assert runs[0] == runs[1] != runs[2]


def test_latency_measures_fresh_batches_after_the_warm_up(tmp_path, capsys):
    path = tmp_path / "out.json"
    options = LatencyOptions(input_len=4, output_len=3, batch_size=2, num_iters=4, num_iters_warmup=2, output_json=str(path))
    assert latency({}, options) == 0
    result = json.loads(path.read_text())
    assert len(result["latencies"]) == 4
    assert result["avg_latency"] == pytest.approx(sum(result["latencies"]) / 4)
    assert set(result["percentiles"]) == {"10", "25", "50", "75", "90", "99"}
    assert result["limit"]["share"] == pytest.approx(result["limit"]["least_seconds"] / result["percentiles"]["50"])
    prompts = [prompt for batch, _ in FakeLLM.last.calls for prompt in batch]
    assert len(prompts) == len(set(prompts)) == 12
    assert "P50 latency (s):" in capsys.readouterr().out and FakeLLM.last.closed


def test_short_answers_are_an_error_not_a_wrong_figure(monkeypatch):
    monkeypatch.setattr(FakeLLM, "short", 1)
    with pytest.raises(OctavoError, match="ended after 3 of 4 tokens"):
        throughput({}, ThroughputOptions(input_len=4, output_len=4, num_prompts=2))
    assert FakeLLM.last.closed


def test_unknown_limits_are_said(monkeypatch, capsys, tmp_path, fake):
    monkeypatch.setattr(offline, "yardstick", lambda engine: fake(engine, limits=None))
    path = tmp_path / "out.json"
    throughput({}, ThroughputOptions(input_len=4, output_len=4, num_prompts=2, output_json=str(path)))
    assert "only a CPU's limits are measured" in capsys.readouterr().out
    assert json.loads(path.read_text())["limit"] is None


@pytest.mark.parametrize(
    ("run", "options", "flag"),
    [
        (throughput, ThroughputOptions(num_prompts=0), "--num-prompts"),
        (throughput, ThroughputOptions(input_len=0), "--input-len"),
        (latency, LatencyOptions(num_iters=0), "--num-iters"),
        (latency, LatencyOptions(num_iters_warmup=-1), "--num-iters-warmup"),
    ],
)
def test_flags_that_cannot_be_honoured_are_refused(run, options, flag):
    with pytest.raises(ConfigError, match=flag):
        run({}, options)
