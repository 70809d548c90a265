"""``memlens ps``: what processes use, shared pages told apart."""

from functools import partial

import click

from memlens.commands import old
from memlens.commands.flags import parse_pids


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
@old.scan_options
def command(
    asked: old.TableRequest,
    pids: tuple[int, ...],
    user: int | None,
    cgroup: str | None,
    name: str | None,
    group_by: str | None,
) -> None:
    """
    List processes by what they use: all, or the processes PID.

    RSS is what a process maps; in PSS each page is divided by how often it is mapped; USS is
    what nobody else maps. Swap: its own, and its even part of swapped shared memory that it
    maps. Freed on exit is the RAM that its end would give back.
    """
    from memlens.views import sharing as view

    sort = old.check_sort(asked.sort, view.list_sorts(group_by is not None))
    from memlens.sharing.processes import ProcessFilter, list_processes

    top = asked.top
    old.run_scan(
        asked,
        "reading processes",
        partial(
            list_processes,
            pids or None,
            group_by=group_by,
            keep=ProcessFilter(user, cgroup, name),
        ),
        old.Rendering(
            json=lambda found: view.render_processes_json(found, group_by, sort, top),
            csv=lambda found: view.render_processes_csv(found, group_by, sort, top),
            text=lambda found, options: view.render_processes(
                found, options, group_by, sort, top
            ),
        ),
        lambda found: bool(found.missed),
    )
