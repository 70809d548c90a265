"""``memlens swap``: where the swap of the machine is."""

from functools import partial
from typing import Any

import click

import memlens
from memlens.commands import run

_TABLES = {"process": "processes", "object": "objects", "cgroup": "cgroups", "area": "areas"}


@click.command("swap")
@click.option(
    "--by", type=click.Choice(list(_TABLES)), help="Show all rows of one table; --table is it."
)
@click.option("--map", "has_map", is_flag=True, help="With --by area: draw who has which slot.")
@run.report_options
def command(request: run.Request, by: str | None, has_map: bool) -> None:
    """
    Show where all swap of the machine is, as a ledger that closes.

    What is used is: private pages, each slot once however many processes hold it after
    fork; shared-memory objects, each once, also those that no process maps; private pages
    that are in RAM again but keep their slot; and a remainder, which is never spread over
    others. By process: the slots that only it has, its part of all slots, and what its exit
    would free. By cgroup: what the kernel charges, beside what was found. By area, with
    --map: every slot by its owner, and how scattered the slots of each are.
    """
    is_slots = (request.table or "").startswith("slot")
    if has_map and (by != "area" or (request.as_csv and not is_slots)):
        raise click.UsageError("--map goes with --by area, as text or JSON")
    from memlens.views.swap import render

    def read(**scan: Any) -> memlens.SwapLedger:
        return memlens.read_swap_ledger(slots=has_map or is_slots, **scan)

    table = None if by is None else _TABLES[by]
    draw = partial(render, table=table, has_map=has_map)
    label = "reading the swap of all processes"
    run.give(request, (memlens.SwapLedger,), label, read, draw, table)
