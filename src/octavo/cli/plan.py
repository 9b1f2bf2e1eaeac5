"""``octavo plan``: the memory bill of a model under given flags, without loading it."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

from octavo.cli.flags import Parser, add_engine_flags, given_engine_options, take_model
from octavo.config import engine_options

if TYPE_CHECKING:
    from octavo.runner.memory_plan import MemoryPlan


def run(argv: list[str]) -> int:
    """Print the bill.

    Args:
        argv: the words after ``octavo plan``.

    Raises:
        ConfigError: flags that cannot be honoured.
        ModelLoadError: the model's small files cannot be found or read.
        MemoryPlanError: the bill does not fit; the message holds the figures.
    """
    parser = Parser("octavo plan", "Show what a model will need of memory, without loading it.", "[MODEL]")
    parser.add_argument("positional_model", metavar="MODEL", nargs="?", help="the same as --model")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_engine_flags(parser)
    args = parser.parse_args(argv)
    take_model(args)
    options = engine_options(**given_engine_options(args))

    from octavo.models.hub import resolve
    from octavo.models.loader import read_model_config
    from octavo.runner.device import select_device
    from octavo.runner.memory_plan import plan_memory

    files = resolve(options.model.model, options.model.revision)
    plan = plan_memory(read_model_config(files), options, select_device(options.device))
    if args.json:
        print(json.dumps({"model": files.name, **dataclasses.asdict(plan), "total": plan.total, "pool_tokens": plan.pool_tokens}))
    else:
        _print_table(files.name, plan)
    return 0


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
