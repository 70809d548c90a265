"""
Run the scenarios, print the table, and write it to docs/benchmarks.md.

A scenario is a module in ``bench/scenarios`` with a ``TITLE`` and a ``run(ctx)`` that yields
rows; a new module there is found by itself.  Only a whole run in which nothing failed writes
the page.
"""

import argparse
import compileall
import importlib
import pkgutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import memlens
from bench import scenarios
from bench.harness.build import build_page_types, build_program
from bench.harness.context import Context, SkipError
from bench.harness.lines import BenchError
from bench.harness.report import describe_machine, render_text, write_page
from bench.harness.rows import Row, Section

BENCH = Path(__file__).parent
PAGE = BENCH.parent / "docs" / "benchmarks.md"
FAILED = "failed"
# First what the library is for; scenarios not named here follow in the order of their names.
FIRST = ("private", "shared", "sparse", "stall", "startup")


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 1 if a limit was not kept or a scenario failed."""
    signal.signal(signal.SIGTERM, take_away_and_end)
    names = find_scenarios()
    options = parse_arguments(arguments, names)
    chosen = [name for name in names if not options.only or name in options.only]
    ctx = prepare(is_quick=options.quick)
    machine = describe_machine()
    print(machine, flush=True)
    sections = []
    for name in chosen:
        section = run_scenario(name, ctx)
        print(f"\n{render_text([section])}", flush=True)
        sections.append(section)
    is_whole = not (options.only or options.quick or any(map(has_failed, sections)))
    if is_whole:
        write_page(PAGE, machine, sections)
    missed = [row for section in sections for row in section.rows if row.is_missed]
    print(f"\n{len(missed)} limits not kept" if missed else "\nall limits kept")
    return 1 if missed else 0


def take_away_and_end(number: int, _frame: object) -> NoReturn:
    """End by a signal, but first take away what was made: processes, and swap on zram."""
    # A second one would end that halfway.
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


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
    return parser.parse_args(arguments)


def prepare(is_quick: bool) -> Context:
    """Build what the scenarios need."""
    build = BENCH / "build"
    # As installed: where Python may not write bytecode, each start would compile memlens anew.
    compileall.compile_dir(Path(memlens.__file__).parent, quiet=1)
    programs: dict[str, Path | str] = {
        name: build_program(BENCH / f"{name}.c", build) for name in ("floor", "targets")
    }
    programs["page-types"] = build_page_types(build)
    return Context(programs, is_quick)


def run_scenario(name: str, ctx: Context) -> Section:
    """Return the rows; a scenario that fails keeps those it had, and says why it failed."""
    module: Any = importlib.import_module(f"bench.scenarios.{name}")
    section = Section(name, module.TITLE)
    try:
        for row in module.run(ctx):
            section.rows.append(row)
    except SkipError as reason:
        section.rows.append(Row("skipped", None, "", note=str(reason)))
    except BenchError as error:
        section.rows.append(Row(FAILED, None, "", limit=0, note=str(error)))
    return section


def has_failed(section: Section) -> bool:
    """Return whether the scenario broke off: what it would show is not for the page."""
    return any(row.figure == FAILED for row in section.rows)


if __name__ == "__main__":
    sys.exit(main())
