"""``octavo bench``: which benchmark, and its flags. The benchmarks themselves are in ``octavo.bench``."""

from __future__ import annotations

from collections.abc import Callable

from octavo.bench.options import DatasetOptions, LatencyOptions, LoadOptions, ReportOptions, ThroughputOptions
from octavo.cli.flags import Parser, add_engine_flags, add_flags, collect, did_you_mean, given_engine_options
from octavo.errors import ConfigError


def run(argv: list[str]) -> int:
    """Run one benchmark.

    Args:
        argv: the words after ``octavo bench``.

    Raises:
        ConfigError: no such benchmark, or flags that cannot be honoured.
    """
    if not argv or argv[0] in ("-h", "--help"):
        lines = [f"  {name:<12}{text}" for name, (_, text) in _BENCHMARKS.items()]
        print("\n".join(["usage: octavo bench NAME [flags]", "", *lines, "", "octavo bench NAME --help tells a benchmark's flags."]))
        return 0 if argv else 2
    if argv[0] not in _BENCHMARKS:
        hint = did_you_mean(argv[0], _BENCHMARKS) or f"; there are {', '.join(_BENCHMARKS)}"
        raise ConfigError(f"unknown benchmark {argv[0]}{hint}")
    return _BENCHMARKS[argv[0]][0](argv[1:])


def _serve(argv: list[str]) -> int:
    parser = Parser("octavo bench serve", "Load on an OpenAI-compatible server over HTTP. Exits with 1 when any request failed.")
    add_flags(parser, "load", LoadOptions)
    add_flags(parser, "data set", DatasetOptions)
    add_flags(parser, "report", ReportOptions)
    args = parser.parse_args(argv)
    from octavo.bench.serve import run

    return run(collect(args, LoadOptions), collect(args, DatasetOptions), collect(args, ReportOptions))


def _throughput(argv: list[str]) -> int:
    parser = Parser("octavo bench throughput", "Tokens a second of the engine with many requests, no server between.")
    add_flags(parser, "benchmark", ThroughputOptions)
    add_engine_flags(parser)
    args = parser.parse_args(argv)
    from octavo.bench.offline import throughput

    return throughput(given_engine_options(args), collect(args, ThroughputOptions))


def _latency(argv: list[str]) -> int:
    parser = Parser("octavo bench latency", "Seconds the engine takes for one batch of requests, no server between.")
    add_flags(parser, "benchmark", LatencyOptions)
    add_engine_flags(parser)
    args = parser.parse_args(argv)
    from octavo.bench.offline import latency

    return latency(given_engine_options(args), collect(args, LatencyOptions))


def _limits(argv: list[str]) -> int:
    import json
    from dataclasses import asdict

    parser = Parser("octavo bench limits", "Measure this machine's read bandwidth and arithmetic peaks.")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads; the usable cores when omitted")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    if args.threads is not None and args.threads < 1:
        raise ConfigError(f"--threads must be at least 1; got {args.threads}.")
    from octavo.bench.limits import measure, render

    limits = measure(args.threads)
    print(json.dumps(asdict(limits)) if args.json else render(limits))
    return 0


_BENCHMARKS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "serve": (_serve, "latency and throughput of a server over HTTP"),
    "throughput": (_throughput, "tokens a second of the engine, no server between"),
    "latency": (_latency, "seconds for one batch, no server between"),
    "limits": (_limits, "what this machine can do at best"),
}
