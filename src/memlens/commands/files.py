"""``memlens files``: what of files is in the page cache."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from memlens.commands import common
from memlens.commands.run import Watch
from memlens.errors import MemlensError

if TYPE_CHECKING:
    from memlens.physical.heldfiles import HeldFiles, PageCache
    from memlens.physical.records import FileCache

_TOP = 20


@dataclass(frozen=True, slots=True)
class _Request:
    """What was asked on the command line."""

    paths: tuple[str, ...]
    pid: int | None
    cached: bool
    top: int | None
    one_file_system: bool
    as_json: bool
    strict: bool
    proc: str


def _parse_pid(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    if not value.isascii() or not value.isdigit() or len(value) > 18 or not int(value):
        raise click.BadParameter(f"not a PID: {value!r}", ctx, param)
    return int(value)


@click.command("files")
@click.argument("paths", metavar="[PATH]...", nargs=-1)
@click.option("--pid", metavar="PID", callback=_parse_pid, help="Files of a process.")
@click.option("--cached", is_flag=True, help="Files of all processes, beside the whole cache.")
@click.option("--top", type=click.IntRange(0), metavar="N", help="Show so many files.")
@click.option("-x", "--one-file-system", is_flag=True, help="Enter no other file system.")
@common.json_option
@common.strict_option
@common.proc_option
def command(**options: object) -> None:
    """
    Show what of files is in the page cache, mapped, dirty and evicted, and where in them.

    Directories are walked; links in them are not followed, and file systems that may not
    answer are not entered. With --cached: which files hold the page cache of the machine,
    those that processes map or have open and those below PATH, and what belongs to none.
    """
    request = _Request(**options)  # type: ignore[arg-type]
    if not (request.paths or request.pid is not None or request.cached):
        raise click.UsageError("name files or directories, --pid, or --cached")
    if request.pid is not None and request.cached:
        raise click.UsageError("--pid and --cached exclude each other")
    with Watch("reading files") as watch:
        work = _Work(request, watch)
        try:
            if request.as_json:
                common.write_pieces(work.json())
            else:
                work.print_text()
        finally:
            work.scan.close()
    work.raise_if_nothing()
    if watch.is_interrupted:
        raise click.exceptions.Exit(common.EXIT_INTERRUPTED)
    totals = work.scan.totals
    common.strict_exit(request.strict, bool(totals.unknown or work.scan.walk.skipped))


class _Work:
    def __init__(self, request: _Request, watch: Watch) -> None:
        from memlens.physical.files import FileScan

        self.request = request
        self.watch = watch
        is_each_once = request.cached or request.pid is not None
        self.scan = FileScan(
            request.paths,
            proc=request.proc,
            one_file_system=request.one_file_system,
            is_each_once=is_each_once,
        )
        self.held = self._hold() if is_each_once else None
        self.failed: list[FileCache] = []

    def _hold(self) -> "HeldFiles":
        from memlens.physical import heldfiles as cachedfiles

        return cachedfiles.HeldFiles(self.scan)

    def rows(self) -> "Iterator[FileCache]":
        named = set(self.scan.paths)
        for row in self._all_rows():
            if self.watch.should_stop():
                return
            if not row.kind and row.path in named:
                self.failed.append(row)
            yield row

    def json(self) -> Iterator[str]:
        from memlens.views.files import render_json

        return render_json(self.rows(), self.scan.page_size_bytes, self._finish)

    def print_text(self) -> None:
        from memlens.commands.common import is_unicode, terminal_width
        from memlens.views.files import Skipped, TopFiles, render_notes, render_text

        top = TopFiles(self._most())
        for row in self.rows():
            top.add(row)
        self.watch.end_scan()
        if self.request.cached:
            self._print_cache()
        common.write_pieces(
            render_text(
                top,
                self.scan.totals,
                self.scan.cells,
                self.scan.page_size_bytes,
                width=terminal_width(),
                is_unicode=is_unicode(),
            )
        )
        common.write_pieces(render_notes(Skipped(self.scan.walk.skipped, self._notes())))

    def raise_if_nothing(self) -> None:
        """Name what the user named and could not be looked at."""
        for row in self.failed[:-1]:
            common.complain(f"{row.reason} ({row.path})")
        if self.failed:
            raise MemlensError(self.failed[-1].reason, path=self.failed[-1].path)

    def _all_rows(self) -> "Iterator[FileCache]":
        if self.held is not None:
            if self.request.pid is not None:
                yield from self.held.iter_process(self.request.pid)
            else:
                yield from self.held.iter_all()
        if self.scan.paths:
            yield from self.scan.rows()

    def _most(self) -> int | None:
        if self.request.top is not None:
            return self.request.top
        # Files that are named one by one are all shown.
        return max(_TOP, len(self.scan.paths)) if self.scan.paths or self.held else None

    def _cache(self) -> "PageCache":
        from memlens.physical.heldfiles import read_page_cache

        return read_page_cache(self.scan)

    def _print_cache(self) -> None:
        from memlens.views.files import render_cache

        is_partial = bool(self.scan.totals.unknown or (self.held and self.held.denied))
        common.write_pieces(
            render_cache(_cache_json(self._cache()), self.scan.page_size_bytes, is_partial)
        )

    def _finish(self) -> dict[str, Any]:
        from memlens.views.files import totals_json

        members: dict[str, Any] = {"totals": totals_json(self.scan.totals)}
        members["cache"] = _cache_json(self._cache()) if self.request.cached else None
        members["skipped"] = self.scan.walk.skipped
        members["is_complete"] = not self.watch.is_interrupted
        members["notes"] = self._notes()
        return members

    def _notes(self) -> list[str]:
        notes = self.scan.notes()
        if self.held is not None:
            notes += self.held.notes()
        if self.watch.is_interrupted:
            notes.append("stopped early: these are the files that were looked at")
        return notes


def _cache_json(cache: "PageCache") -> dict[str, int]:
    return {
        "cached_pages": cache.cached_pages,
        "shmem_pages": cache.shmem_pages,
        "buffer_pages": cache.buffer_pages,
        "found_pages": cache.found_pages,
        "remainder_pages": cache.remainder_pages,
    }
