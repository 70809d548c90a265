"""``memlens flags``: pages by combination of kpageflags."""

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import click

from memlens.commands import common
from memlens.commands.run import Watch, make_machine
from memlens.errors import MemlensError

if TYPE_CHECKING:
    from memlens.physical.records import FlagCounts, PageRange
    from memlens.views.flags import FlagOptions


@dataclass(frozen=True, slots=True)
class _Request:
    """What was asked on the command line."""

    pids: tuple[int, ...]
    files: tuple[str, ...]
    cgroup: str | None
    machine: bool
    where: str | None
    bits: tuple[str, ...]
    raw: bool
    list_pages: bool
    addresses: tuple[int, int] | None
    as_json: bool
    strict: bool
    proc: str


def parse_pids(
    _ctx: click.Context, _param: click.Parameter, value: tuple[str, ...]
) -> tuple[int, ...]:
    """Return PIDs, each once."""
    for text in value:
        if not text.isascii() or not text.isdigit() or len(text) > 18 or not int(text):
            raise click.BadParameter(f"not a PID: {text!r}")
    return tuple(dict.fromkeys(map(int, value)))


@click.command("flags")
@click.argument("pids", metavar="[PID]...", nargs=-1, callback=parse_pids)
@click.option("--file", "files", multiple=True, metavar="PATH", help="Cached pages of a file.")
@click.option("--cgroup", metavar="PATH", help="Frames charged to a cgroup, or to @INODE.")
@click.option("--machine", is_flag=True, help="All frames of the machine.")
@click.option("--where", metavar="EXPR", help="Only these: 'anon and not (lru or dirty)'.")
@click.option("-b", "--bits", multiple=True, metavar="SPEC", help="As page-types -b has it.")
@click.option("--raw", is_flag=True, help="Show undocumented bits too, as page-types -r.")
@click.option("--list", "list_pages", is_flag=True, help="List ranges of pages.")
@common.range_option
@common.json_option
@common.strict_option
@common.proc_option
def command(**options: object) -> None:
    """
    Count pages by combination of the flags that the kernel keeps for each.

    The pages are those that processes map, that hold a file, that a cgroup is charged, or
    all. --range takes addresses; with --file offsets; with --machine and --cgroup physical
    addresses. --where looks at every bit, -b at the bits that are shown.
    """
    request = _Request(**options)  # type: ignore[arg-type]
    chosen = [request.pids, request.files, request.cgroup is not None, request.machine]
    if sum(map(bool, chosen)) != 1:
        raise click.UsageError("name PIDs, or --file, or --cgroup, or --machine")
    shown = _options(request)
    if request.list_pages:
        _list(request, shown)
        return
    with Watch("reading page flags") as watch:
        counts = _count(request, watch)
        watch.end_scan()
    if counts.hidden_pages:
        _refuse_hidden(shown, counts.notes)
    _print(request, shown, counts)
    if watch.is_interrupted:
        raise click.exceptions.Exit(common.EXIT_INTERRUPTED)
    is_open = counts.moved_pages or counts.hidden_pages or not counts.is_complete
    common.strict_exit(request.strict, bool(is_open))


def _options(request: _Request) -> "FlagOptions":
    from memlens.pages.flagfilter import FilterError, all_of, parse_bits, parse_where
    from memlens.views.flags import FlagOptions

    try:
        where = all_of([parse_where(request.where)] if request.where is not None else [])
    except FilterError as error:
        raise click.BadParameter(str(error), param_hint="--where") from error
    try:
        bits = all_of([parse_bits(text) for text in request.bits])
    except FilterError as error:
        raise click.BadParameter(str(error), param_hint="-b") from error
    return FlagOptions(where, bits, request.raw)


def _refuse_hidden(shown: "FlagOptions", notes: Iterable[str]) -> None:
    """Refuse to say which pages have flags that this reader does not see."""
    if shown.asks_hidden:
        why = "; ".join(notes)
        raise MemlensError(f"--where or -b depends on flags that are not known here: {why}")


def _count(request: _Request, watch: Watch) -> "FlagCounts":
    where, proc = request.addresses, request.proc
    follow: dict[str, Any] = {
        "on_progress": watch.on_progress,
        "should_stop": watch.should_stop,
    }
    # What is not asked for is not imported: it is a tenth of the time of a small process.
    if request.files:
        from memlens.physical.frameflags import count_file_flags

        return count_file_flags(request.files, offsets=where, proc=proc, **follow)
    if request.pids:
        from memlens.physical.flags import count_process_flags

        return count_process_flags(request.pids, addresses=where, proc=proc, **follow)
    from memlens.physical.frameflags import count_cgroup_flags, count_machine_flags

    if request.machine:
        return count_machine_flags(addresses=where, proc=proc, **follow)
    inode = _cgroup_inode(request)
    return count_cgroup_flags(inode, addresses=where, proc=proc, **follow)


def _cgroup_inode(request: _Request) -> int:
    from memlens.physical.frameflags import resolve_cgroup

    text = request.cgroup or ""
    if text.startswith("@"):
        if not text[1:].isdecimal():
            raise click.BadParameter(f"not an inode number: {text!r}", param_hint="--cgroup")
        return int(text[1:])
    return resolve_cgroup(text, make_machine(request.proc))


def _subject(request: _Request) -> tuple[str, dict[str, Any]]:
    if request.machine:
        return "All page frames of the machine", {"machine": True}
    if request.files:
        return f"Page cache of {', '.join(request.files)}", {"files": list(request.files)}
    if request.cgroup is not None:
        return f"Page frames charged to {request.cgroup}", {"cgroup": request.cgroup}
    pids = ", ".join(map(str, request.pids))
    return f"Pages mapped by {pids}", {"pids": list(request.pids)}


def _print(request: _Request, shown: "FlagOptions", counts: "FlagCounts") -> None:
    from memlens.views.flags import render_json, render_text

    title, subject = _subject(request)
    if request.as_json:
        common.write_pieces([render_json(counts, shown, subject)])
    else:
        common.write_pieces(render_text(counts, shown, title))


def _list(request: _Request, shown: "FlagOptions") -> None:
    from memlens.physical.flaglist import PageLister
    from memlens.views.flags import list_end, list_json, list_text

    inode = _cgroup_inode(request) if request.cgroup is not None else 0
    unit = os.sysconf("SC_PAGE_SIZE")
    with Watch("listing pages") as watch:
        machine = make_machine(request.proc, watch)
        if sys.stdout.isatty():
            # The list itself shows that it goes on; a bar would be drawn into it.
            machine.on_progress, machine.should_stop = None, lambda: watch.is_interrupted
        with PageLister(shown.keeps, machine, inode) as lister:
            notes = [] if lister.refusal is None else [str(lister.refusal)]
            if lister.refusal is not None:
                if not request.pids:
                    raise lister.refusal
                _refuse_hidden(shown, notes)
                shown = shown.raw()
            ranges, names = _ranges(request, lister), lister.cgroup_names()
            if request.as_json:
                pieces = list_json(ranges, shown, names, unit, _subject(request)[1])
            else:
                pieces = list_text(ranges, shown, names, unit)
            common.write_pieces(pieces)
            watch.end_scan()
            common.write_pieces([list_end(lister.is_stopped, notes, request.as_json)])
    if watch.is_interrupted:
        raise click.exceptions.Exit(common.EXIT_INTERRUPTED)


def _ranges(request: _Request, lister: Any) -> "Iterator[PageRange]":
    where = request.addresses
    if request.files:
        return chain.from_iterable(lister.list_file(path, where) for path in request.files)
    if request.machine or request.cgroup is not None:
        ranges: Iterator[PageRange] = lister.list_machine(where)
        return ranges
    return chain.from_iterable(lister.list_process(pid, where) for pid in request.pids)
