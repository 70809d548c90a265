"""
Write the generated parts of the documentation, or check that they are up to date.

    python docs/generate.py [--check]

A part stands between `<!-- generated: NAME -->` and `<!-- end -->`; NAME is a key of PARTS.
"""

import difflib
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import click

import memlens
import recorded
from memlens import errors
from memlens.commands.main import cli
from memlens.kernel.procfs import SWITCHES
from memlens.pages.bits import KPAGE_BITS, PAGEMAP_BITS
from memlens.pages.classes import CLASSES, REASONS

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
PART = re.compile(r"(<!-- generated: (?P<name>[\w ,]+) -->\n).*?(<!-- end -->\n)", re.DOTALL)
HELP_WIDTH = 80


def main() -> None:
    is_check = sys.argv[1:] == ["--check"]
    stale = [path for path in PAGES if not update(path, is_check)]
    if not recorded.is_picture_current():
        if is_check:
            stale.append(recorded.PICTURE)
        else:
            recorded.PICTURE.write_text(recorded.draw_picture())
    if stale:
        sys.exit(
            "the generated parts of these are out of date, run `make docs`: "
            + ", ".join(path.relative_to(ROOT).as_posix() for path in stale)
        )


def update(path: Path, is_check: bool) -> bool:
    """Bring one page up to date; return False if it was not and may not be written."""
    old = path.read_text()
    new = PART.sub(lambda match: match[1] + render(match["name"]) + match[3], old)
    if new == old:
        return True
    if not is_check:
        path.write_text(new)
        return True
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), "is", "should be", "", "")
    print("\n".join(lines))
    return False


def render(name: str) -> str:
    kind, _, argument = name.partition(" ")
    return PARTS[kind](argument) if argument else PARTS[kind]()


def render_classes() -> str:
    rows = ((f"`{row.page_class.label}`", f"`{row.sign}`", row.meaning) for row in CLASSES)
    return table(("class", "sign", "meaning"), rows)


def render_bits() -> str:
    rows = (
        (row.bit, row.symbol, f"`{row.name}`", row.since, row.meaning) for row in PAGEMAP_BITS
    )
    return table(("bit", "symbol", "name", "since", "meaning"), rows)


def render_flags() -> str:
    rows = (
        (row.bit, row.symbol, f"`{row.name}`", row.since, row.meaning) for row in KPAGE_BITS
    )
    return table(("bit", "symbol", "name", "since", "meaning"), rows)


def render_reasons() -> str:
    return "".join(f"- {reason}\n" for reason in REASONS)


def render_switches() -> str:
    names = ", ".join(f"`{name}`" for name in SWITCHES)
    return f"`MEMLENS_DISABLE`, a list with commas, switches interfaces off: {names}.\n"


def render_names() -> str:
    rows = (
        (f"`{name}`", first_sentence(getattr(memlens, name)))
        for name in memlens.__all__
        if not is_error(name)
    )
    return table(("name", "what it is"), rows)


def render_errors() -> str:
    names = [name for name in memlens.__all__ if is_error(name)]
    rows = ((f"`{name}`", first_sentence(getattr(errors, name))) for name in names)
    return table(("error", "meaning"), rows)


def render_help(name: str = "") -> str:
    context = click.Context(cli, info_name="memlens", terminal_width=HELP_WIDTH)
    command: click.Command | None = cli
    if name:
        command = cli.get_command(context, name)
        context = click.Context(cli, context, name, terminal_width=HELP_WIDTH)
    if command is None:
        raise KeyError(name)
    return f"```text\n{command.get_help(context)}\n```\n"


def is_error(name: str) -> bool:
    found = getattr(memlens, name)
    return isinstance(found, type) and issubclass(found, Exception)


def first_sentence(item: object) -> str:
    """Return the first line of a docstring, up to a semicolon or full stop."""
    text = " ".join((item.__doc__ or "").strip().split("\n\n")[0].split())
    return re.sub(r"``(.+?)``", r"`\1`", text)


def table(titles: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    titles = tuple(titles)
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines)


PARTS: dict[str, Callable[..., str]] = {
    "bits": render_bits,
    "classes": render_classes,
    "errors": render_errors,
    "flags": render_flags,
    "help": render_help,
    "map": recorded.render_map_text,
    "page": recorded.render_page_text,
    "doctor": recorded.render_doctor_text,
    "demo": recorded.render_demo_text,
    "swap": recorded.render_swap_text,
    "shm": recorded.render_shm_text,
    "ps": recorded.render_ps_text,
    "sharing": recorded.render_sharing_text,
    "counts": recorded.render_flags_text,
    "names": render_names,
    "reasons": render_reasons,
    "switches": render_switches,
}

if __name__ == "__main__":
    main()
