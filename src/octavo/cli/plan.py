"""``octavo plan``: the memory bill of a model under given flags, without loading it; with ``--quality`` what they cost in quality."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

from octavo import env
from octavo.cli.flags import Parser, add_engine_flags, given_engine_options, take_model
from octavo.config import engine_options

if TYPE_CHECKING:
    from octavo.bench.quality import Quality
    from octavo.config import EngineOptions
    from octavo.models.hub import ModelFiles
    from octavo.runner.memory_plan import MemoryPlan


def run(argv: list[str]) -> int:
    """Print the bill and, where asked for, how near the model is to its checkpoint in bf16.

    Args:
        argv: the words after ``octavo plan``.

    Raises:
        ConfigError: flags that cannot be honoured.
        ModelLoadError: the model's small files cannot be found or read; with ``--quality`` its weights or tokenizer.
        MemoryPlanError: the bill does not fit; the message holds the figures.
        OctavoError: the model's scores are not numbers.
    """
    parser = Parser("octavo plan", "Show what a model will need of memory, without loading it.", "[MODEL]")
    parser.add_argument("positional_model", metavar="MODEL", nargs="?", help="the same as --model")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--quality", action="store_true", help="load the model and compare what it predicts on a text with the same checkpoint in bf16"
    )
    add_engine_flags(parser)
    args = parser.parse_args(argv)
    take_model(args)
    options = engine_options(**given_engine_options(args))

    from octavo.models.hub import resolve
    from octavo.models.loader import read_model_config, stored_formats
    from octavo.runner.device import select_device
    from octavo.runner.memory_plan import bill_of, plan_ranks

    files = resolve(options.model.model, options.model.revision)
    config = read_model_config(files)
    formats = stored_formats(files, config, options.model.load_format)
    device, engines, nnodes = select_device(options.device), options.device.data_parallel_size, options.hosts.nnodes
    ranks = options.device.tensor_parallel_size * options.device.pipeline_parallel_size // nnodes
    available = device.free_bytes() // engines if device.kind == "cpu" else device.free_for(0, ranks)
    plan = bill_of(plan_ranks(config, options, device, available, formats, [available] * (nnodes - 1)))  # hosts like this one
    quality = _quality(files, options) if args.quality else None
    if args.json:
        bill = {"model": files.name, **dataclasses.asdict(plan), "total": plan.total, "pool_tokens": plan.pool_tokens}
        print(json.dumps(bill if quality is None else bill | {"quality": dataclasses.asdict(quality)}))
        return 0
    _print_table(files.name, plan)
    if quality is not None:
        _print_quality(files.name, quality)
    return 0


def _quality(files: ModelFiles, options: EngineOptions) -> Quality:
    env.limit_openmp_spinning()
    from octavo.bench.quality import measure_quality

    return measure_quality(files, options)


def _print_table(name: str, plan: MemoryPlan) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from octavo.runner.memory_plan import gib

    table = Table(title=f"Memory plan of {name}", box=SIMPLE_HEAD, title_justify="left")
    table.add_column("part")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("note")
    for part, size, note in plan.rows():
        table.add_row(part, gib(size), note, style="bold" if part == "total" else None, end_section=part in ("runtime", "total"))
    console = Console()
    console.print(table)
    for note in plan.notes:
        console.print(f"note: {note}", highlight=False)


def _print_quality(name: str, quality: Quality) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Quality of {name}", box=SIMPLE_HEAD, title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("note")
    table.add_row("KL divergence, mean", f"{quality.kl_mean:.5f}", "nats, KL(bf16 || this) of the next token")
    table.add_row("99th percentile", f"{quality.kl_p99:.5f}", "")
    table.add_row("maximum", f"{quality.kl_max:.5f}", "")
    table.add_row("same first choice", f"{quality.top1_agreement:.2f} %", f"of {quality.positions} positions")
    table.add_row("perplexity, this", f"{quality.perplexity:.4f}", f"{quality.tokens} tokens of text, {quality.window} at a time")
    table.add_row("perplexity, bf16", f"{quality.reference_perplexity:.4f}", "")
    console = Console()
    console.print(table)
    for label, words in (("this", quality.compared), ("bf16", quality.reference), ("both", quality.backend)):
        console.print(f"{label}: {words}", highlight=False)
    for note in quality.notes:
        console.print(f"note: {note}", highlight=False)
