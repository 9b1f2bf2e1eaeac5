"""The definitions of the latencies on timelines made by hand, and the figures over a run."""

import pytest

from octavo.bench.metrics import Record, latency_json, latency_rows, measure, parse_goodput, parse_metrics
from octavo.errors import ConfigError


def record(sent=10.0, times=(10.5, 10.6, 10.8, 11.2), ended=11.3, prompt=7, output=4, error=None) -> Record:
    return Record(sent=sent, text_times=list(times), ended=ended, prompt_tokens=prompt, output_tokens=output, error=error)


def test_latencies_of_one_request():
    one = record()
    assert one.ttft == pytest.approx(0.5)
    assert one.e2el == pytest.approx(1.3)
    assert one.itl == pytest.approx([0.1, 0.2, 0.4])
    assert one.tpot == pytest.approx(0.7 / 3)


def test_tpot_counts_tokens_and_itl_counts_chunks():
    bundled = record(times=(10.5, 11.2), output=8)
    assert bundled.itl == pytest.approx([0.7])
    assert bundled.tpot == pytest.approx(0.7 / 7)


def test_one_token_has_no_tpot_and_no_itl():
    one = record(times=(10.5,), ended=10.5, output=1)
    assert one.tpot is None and one.itl == []


def test_without_usage_chunks_are_counted():
    one = record(output=None, prompt=None)
    one.requested_prompt_tokens = 99
    assert (one.num_output, one.num_prompt) == (4, 99)


def test_a_run():
    records = [record(), record(sent=11.0, times=(11.2, 11.4), ended=12.0, prompt=3, output=2)]
    run = measure(records, [99], {})
    assert (run.completed, run.failed, run.prompt_tokens, run.output_tokens) == (2, 0, 10, 6)
    assert run.duration == pytest.approx(2.0)
    assert run.request_throughput == pytest.approx(1.0)
    assert run.output_throughput == pytest.approx(3.0)
    assert run.total_throughput == pytest.approx(8.0)
    assert run.goodput is None and run.counted_by == "usage" and run.bundled == pytest.approx(1.0)
    assert run.latencies["ttft"].mean == pytest.approx((0.5 + 0.2) / 2)
    assert run.latencies["itl"].mean == pytest.approx((0.1 + 0.2 + 0.4 + 0.2) / 4)


def test_failures_count_in_errors_and_duration_alone():
    records = [record(), record(ended=20.0, error="HTTP 500"), record(ended=12.0, error="HTTP 500"), record(error="gone")]
    run = measure(records, [99], {"e2el": 100.0})
    assert (run.completed, run.failed, run.output_tokens) == (1, 3, 4)
    assert run.errors == {"HTTP 500": 2, "gone": 1}
    assert run.duration == pytest.approx(10.0)
    assert run.goodput == pytest.approx(0.1)
    assert run.latencies["e2el"].mean == pytest.approx(1.3)


def test_goodput_wants_every_bound_kept():
    records = [record(), record(sent=10.4)]  # TTFT 0.5 and 0.1, TPOT 0.7 / 3 both
    assert measure(records, [99], {"ttft": 0.3}).goodput == pytest.approx(1 / 1.3)
    assert measure(records, [99], {"ttft": 0.3, "tpot": 0.1}).goodput == 0.0
    assert measure(records, [99], {"ttft": 0.6, "tpot": 0.3}).goodput == pytest.approx(2 / 1.3)


def test_a_run_where_all_failed_has_no_latencies():
    run = measure([record(error="no")], [99], {})
    assert set(run.latencies.values()) == {None} and run.output_throughput == 0.0 and run.counted_by == "nothing"


def test_mixed_counting_is_said():
    assert measure([record(), record(output=None)], [99], {}).counted_by == "usage and chunks"


def test_goodput_flags():
    assert parse_goodput(["ttft:500", "tpot:50.5"]) == pytest.approx({"ttft": 0.5, "tpot": 0.0505})
    for word in ("ttft", "ttft:", "ttft:x", "ttft:-1", "itl:5", "speed:5"):
        with pytest.raises(ConfigError, match="--goodput"):
            parse_goodput([word])


def test_metric_flags():
    assert parse_metrics("ttft, itl") == ["ttft", "itl"]
    with pytest.raises(ConfigError, match="'speed'"):
        parse_metrics("ttft,speed")


def test_reports_are_in_milliseconds():
    summary = measure([record()], [50, 99.9], {}).latencies["ttft"]
    assert summary is not None
    assert latency_rows("ttft", summary)[0] == ("Mean TTFT (ms):", pytest.approx(500.0))
    assert [name for name, _ in latency_rows("ttft", summary)][2:] == ["P50 TTFT (ms):", "P99.9 TTFT (ms):"]
    assert latency_json("ttft", summary)["p99.9_ttft_ms"] == pytest.approx(500.0)
