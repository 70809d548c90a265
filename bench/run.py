"""
Run the scenarios, print the table, and write it to docs/benchmarks.md.

A scenario is a module in ``bench/scenarios`` with a ``TITLE`` and a ``run(ctx)`` that yields
rows; a new module there is found by itself.  A run that is ended, by a signal or because its
time is over, takes away what it made and writes what it has.
"""

import argparse
import compileall
import importlib
import pkgutil
import signal
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import memlens
from bench import scenarios
from bench.harness.build import build_page_types, build_program
from bench.harness.context import Context, SkipError
from bench.harness.ending import end_by_signals, ignore_signals
from bench.harness.lines import BenchError
from bench.harness.report import describe_machine, render_text, write_page
from bench.harness.rows import Row, Section

BENCH = Path(__file__).parent
PAGE = BENCH.parent / "docs" / "benchmarks.md"
Rows = Callable[[Context], Generator[Row]]
FAILED = "failed"
ENDED = "the rest"
# Together with building, eight minutes.
MOST_S = 460
# First what the library is for; scenarios not named here follow in the order of their names.
FIRST = ("private", "shared", "sparse", "stall", "startup")


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 1 if a limit was not kept or a scenario failed, 128 and more if ended."""
    end_by_signals()
    names = find_scenarios()
    options = parse_arguments(arguments, names)
    ctx = prepare(options.quick, options.long)
    machine = describe_machine()
    print(machine, flush=True)
    if not options.long:
        signal.alarm(MOST_S)
    loaded = [load(name) for name in names if not options.only or name in options.only]
    code = run_all(loaded, ctx)
    ignore_signals()
    sections = [section for section, _ in loaded]
    if not (options.only or options.quick):
        write_page(PAGE, machine, sections)
    missed = [row for section in sections for row in section.rows if row.is_missed]
    print(f"\n{len(missed)} limits not kept" if missed else "\nall limits kept")
    return code or (1 if missed else 0)


def find_scenarios() -> list[str]:
    """Return the names of the scenarios in the order to run them."""
    names = [module.name for module in pkgutil.iter_modules(scenarios.__path__)]
    rank = {name: position for position, name in enumerate(FIRST)}
    return sorted(names, key=lambda name: (rank.get(name, len(rank)), name))


def parse_arguments(arguments: Sequence[str] | None, names: list[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", action="append", choices=names, help="run this scenario")
    parser.add_argument("--quick", action="store_true", help="less memory, fewer turns")
    parser.add_argument(
        "--long", action="store_true", help="more turns of what is slow, more peers"
    )
    return parser.parse_args(arguments)


def prepare(is_quick: bool, is_long: bool) -> Context:
    """Build what the scenarios need."""
    build = BENCH / "build"
    # As installed: where Python may not write bytecode, each start would compile memlens anew.
    compileall.compile_dir(Path(memlens.__file__).parent, quiet=1)
    programs: dict[str, Path | str] = {
        name: build_program(BENCH / f"{name}.c", build) for name in ("floor", "targets")
    }
    programs["page-types"] = build_page_types(build)
    return Context(programs, is_quick, is_long)


def load(name: str) -> tuple[Section, Rows]:
    """Return the scenario's section, without rows, and what yields them."""
    module: Any = importlib.import_module(f"bench.scenarios.{name}")
    return Section(name, module.TITLE), module.run


def run_all(loaded: Sequence[tuple[Section, Rows]], ctx: Context) -> int:
    """Fill the sections; return 0, or the exit code of a run that was ended meanwhile."""
    try:
        for section, rows in loaded:
            try:
                fill(section, rows(ctx))
            finally:
                print(f"\n{render_text([section])}", flush=True)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def fill(section: Section, rows: Generator[Row]) -> None:
    """Add the rows; a scenario that breaks off keeps those it had, and says why."""
    try:
        with closing(rows):
            for row in rows:
                section.rows.append(row)
    except SkipError as reason:
        section.rows.append(Row("skipped", None, "", note=str(reason)))
    except BenchError as error:
        section.rows.append(Row(FAILED, None, "", limit=0, note=str(error)))
    except SystemExit:
        section.rows.append(Row(ENDED, None, "", note="the run was ended here"))
        raise


if __name__ == "__main__":
    sys.exit(main())
