"""``memlens swap``: where the swap of the machine is."""

from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import click

from memlens.commands import old

if TYPE_CHECKING:
    from memlens.swap.records import SwapLedger
    from memlens.views.lines import Line
    from memlens.views.table import TableOptions


@click.command("swap")
@click.option(
    "--by",
    type=click.Choice(["process", "object", "cgroup", "area"]),
    help="Show all rows of one table.",
)
@click.option("--map", "has_map", is_flag=True, help="With --by area: draw who has which slot.")
@old.scan_options
def command(asked: old.TableRequest, by: str | None, has_map: bool) -> None:
    """
    Show where all swap of the machine is, as a ledger that closes.

    What is used is: private pages, each slot once however many processes hold it after
    fork; shared-memory objects, each once, also those that no process maps; private pages
    that are in RAM again but keep their slot; and a remainder, which is never spread over
    others. By process: its own, its even part of the objects that it maps, and what its exit
    would free. By cgroup: what the kernel charges, beside what was found. By area, with
    --map: every slot by its owner, and how scattered the slots of each are.
    """
    if has_map and (by != "area" or asked.as_csv):
        raise click.UsageError("--map goes with --by area, as text or JSON")
    from memlens.views import swap as view

    sort = old.check_sort(asked.sort, view.list_sorts(by))
    from memlens.swap.ledger import read_swap_ledger

    top = asked.top
    old.run_scan(
        asked,
        "reading the swap of all processes",
        partial(read_swap_ledger, slots=has_map),
        old.Rendering(
            json=lambda found: view.render_json(found, by, sort, top),
            csv=lambda found: view.render_ledger_csv(found, by, sort, top),
            text=lambda found, options: chain(
                view.render_text(found, options, by, sort, top),
                _map_lines(found, options, top),
            ),
        ),
        lambda found: bool(found.missed or found.remainder_pages),
    )


def _map_lines(
    found: "SwapLedger", options: "TableOptions", top: int | None
) -> Iterator["Line"]:
    if found.slots is not None:
        from memlens.views.slotmap import render_text

        yield []
        yield from render_text(found.slots, found.page_size_bytes, options, top)
