"""Percentiles and tables."""

import json
import random

import numpy
import pytest

from octavo.bench.report import parse_percentiles, percentile, save_json, summarise, table
from octavo.errors import ConfigError


@pytest.mark.parametrize("count", [1, 2, 3, 10, 101])
def test_percentiles_are_numpys(count):
    rng = random.Random(count)
    values = [rng.random() for _ in range(count)]
    for q in (0, 1, 25, 50, 90, 99, 99.9, 100):
        assert percentile(values, q) == pytest.approx(numpy.percentile(values, q))


def test_a_summary_holds_what_it_says():
    summary = summarise([4.0, 1.0, 3.0, 2.0], [0, 100])
    assert summary is not None
    assert (summary.mean, summary.median) == (2.5, 2.5)
    assert summary.std == pytest.approx(numpy.std([1, 2, 3, 4]))
    assert summary.percentiles == {0: 1.0, 100: 4.0}


def test_nothing_has_no_summary():
    assert summarise([], [99]) is None


def test_percentile_lists():
    assert parse_percentiles("50, 99.9") == [50.0, 99.9]
    for text in ("", "p99", "101", "-1", "nan"):
        with pytest.raises(ConfigError, match="percentiles"):
            parse_percentiles(text)


def test_a_table_has_one_width():
    lines = table("Result", [("", [("Requests:", 3)]), ("Latency", [("Mean (ms):", 1.234)])]).splitlines()
    assert {len(line) for line in lines if line.startswith(("=", "-"))} == {50}
    assert lines[1].split() == ["Requests:", "3"] and lines[3].split() == ["Mean", "(ms):", "1.23"]


def test_results_are_written_or_the_reason_told(tmp_path):
    save_json(str(tmp_path / "out.json"), {"a": 1})
    assert json.loads((tmp_path / "out.json").read_text()) == {"a": 1}
    with pytest.raises(ConfigError, match="cannot write"):
        save_json(str(tmp_path / "none" / "out.json"), {})
