"""``memlens swap``: where the swap of the machine is."""

from itertools import chain

import click

from memlens.commands import common, tables
from memlens.commands.watch import Watch


@click.command("swap")
@click.option(
    "--by",
    type=click.Choice(["process", "object", "cgroup", "area"]),
    help="Show all rows of one table.",
)
@click.option("--map", "has_map", is_flag=True, help="With --by area: draw who has which slot.")
@tables.sort_option
@tables.top_option
@common.json_option
@common.csv_option
@tables.budget_option
@common.strict_option
@common.no_color_option
@common.proc_option
def command(
    by: str | None,
    has_map: bool,
    sort: str | None,
    top: int | None,
    as_json: bool,
    as_csv: bool,
    budget: float | None,
    strict: bool,
    no_color: bool,
    proc: str,
) -> None:
    """
    Show where all swap of the machine is, as a ledger that closes.

    What is used is: private pages, each slot once however many processes hold it after
    fork; shared-memory objects, each once, also those that no process maps; private pages
    that are in RAM again but keep their slot; and a remainder, which is never spread over
    others. By process: its own, its even part of the objects that it maps, and what its exit
    would free. By cgroup: what the kernel charges, beside what was found. By area, with
    --map: every slot by its owner, and how scattered the slots of each are.
    """
    tables.check_formats(as_json, as_csv)
    if has_map and (by != "area" or as_csv):
        raise click.UsageError("--map goes with --by area, as text or JSON")
    from memlens.views import ledger as view

    sort = tables.check_sort(sort, view.list_sorts(by))
    from memlens.account.ledger import read_swap_ledger

    with Watch("reading the swap of all processes") as watch:
        found = read_swap_ledger(
            slots=has_map,
            proc=proc,
            budget_s=budget,
            on_progress=watch.on_progress,
            should_stop=watch.should_stop,
        )
        watch.end_scan()
        if as_json:
            common.write_pieces(view.render_json(found, by, sort, top))
        elif as_csv:
            common.write_pieces(view.render_ledger_csv(found, by, sort, top))
        else:
            options = tables.table_options(no_color)
            lines = view.render_text(found, options, by, sort, top)
            if found.slots is not None:
                from memlens.views import slotmap

                size = found.page_size_bytes
                lines = chain(lines, [[]], slotmap.render_text(found.slots, size, options, top))
            tables.print_lines(lines, options.is_colored)
    is_missing = bool(found.missed or found.remainder_pages)
    tables.finish(watch, found.is_complete, strict, is_missing)
