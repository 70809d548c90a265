"""``memlens ps``: what processes use, shared pages told apart."""

import click

from memlens.commands import common, tables
from memlens.commands.flags import parse_pids
from memlens.commands.watch import Watch


def _parse_user(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    import pwd

    if value.isascii() and value.isdigit() and len(value) <= 10:
        return int(value)
    try:
        return pwd.getpwnam(value).pw_uid
    except KeyError:
        raise click.BadParameter(f"no such user: {value!r}", ctx, param) from None


@click.command("ps")
@click.argument("pids", metavar="[PID]...", nargs=-1, callback=parse_pids)
@click.option("--user", metavar="USER", callback=_parse_user, help="Processes of this user.")
@click.option("--cgroup", metavar="PATH", help="Processes of this cgroup and those below.")
@click.option("--name", metavar="NAME", help="Processes of this name.")
@click.option(
    "--group-by",
    type=click.Choice(["name", "user", "cgroup"]),
    help="Show groups, in which a page that many map counts once.",
)
@tables.sort_option
@tables.top_option
@common.json_option
@common.csv_option
@tables.budget_option
@common.strict_option
@common.no_color_option
@common.proc_option
def command(
    pids: tuple[int, ...],
    user: int | None,
    cgroup: str | None,
    name: str | None,
    group_by: str | None,
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
    List processes by what they use: all, or the processes PID.

    RSS is what a process maps; in PSS each page is divided by how often it is mapped; USS is
    what nobody else maps. Swap: its own, and its even part of swapped shared memory that it
    maps. Freed on exit is the RAM that its end would give back.
    """
    tables.check_formats(as_json, as_csv)
    from memlens.views import processes as view

    sort = tables.check_sort(sort, view.list_sorts(group_by is not None))
    from memlens.account.sharing import ProcessFilter, list_processes

    with Watch("reading processes") as watch:
        found = list_processes(
            pids or None,
            group_by=group_by,
            keep=ProcessFilter(user, cgroup, name),
            proc=proc,
            budget_s=budget,
            on_progress=watch.on_progress,
            should_stop=watch.should_stop,
        )
        watch.end_scan()
        if as_json:
            common.write_pieces(view.render_json(found, group_by, sort, top))
        elif as_csv:
            common.write_pieces(view.render_processes_csv(found, group_by, sort, top))
        else:
            options = tables.table_options(no_color)
            lines = view.render_text(found, options, group_by, sort, top)
            tables.print_lines(lines, options.is_colored)
    tables.finish(watch, found.is_complete, strict, bool(found.missed))
