"""
Write the generated parts of the documentation, or check that they are up to date.

    python docs/generate.py [--check]

A part stands between `<!-- generated: NAME -->` and `<!-- end -->`; NAME is a key of PARTS.
What reports hold is taken from the `records` of every subject; each gets a JSON Schema.
"""

import difflib
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import MappingProxyType

import click

import memlens
import recorded
from memlens import errors
from memlens.commands.main import COMMANDS, cli
from memlens.kernel.procfs import SWITCHES
from memlens.pages.bits import KPAGE_BITS, PAGEMAP_BITS
from memlens.pages.classes import CLASSES, REASONS
from memlens.record import columns_of, help_of, is_compact
from memlens.report import REPORTS, Cost, Missed, Origin, Report
from memlens.schema import json_schema
from memlens.selftest.records import Features

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
PART = re.compile(r"(<!-- generated: (?P<name>[\w ,]+) -->\n).*?(<!-- end -->\n)", re.DOTALL)
HELP_WIDTH = 80
SCHEMAS = ROOT / "docs" / "reference" / "schemas"


def main() -> None:
    is_check = sys.argv[1:] == ["--check"]
    stale = [path for path in PAGES if not update(path, is_check)]
    if not recorded.is_picture_current():
        if is_check:
            stale.append(recorded.PICTURE)
        else:
            recorded.PICTURE.write_text(recorded.draw_picture())
    stale += update_schemas(is_check)
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


def kinds() -> list[type[Report]]:
    """Return every kind of report of the package, by its schema."""
    for path in sorted(Path(memlens.__file__).parent.glob("*/records.py")):
        import_module(f"memlens.{path.parent.name}.records")
    return [kind for _, kind in sorted(REPORTS.items())]


def short_name(kind: type[Report]) -> str:
    """Return ``swap`` for ``memlens.swap/2``."""
    return kind.SCHEMA.removeprefix("memlens.").partition("/")[0]


def update_schemas(is_check: bool) -> list[Path]:
    """Write a JSON Schema for every kind of report, or return those that are out of date."""
    wanted = {
        SCHEMAS / f"{short_name(kind)}.json": json.dumps(json_schema(kind), indent=1) + "\n"
        for kind in kinds()
    }
    there = {path: path.read_text() for path in SCHEMAS.glob("*.json")}
    if is_check:
        return [p for p in wanted | there if wanted.get(p) != there.get(p)]
    for path in there.keys() - wanted.keys():
        path.unlink()
    for path, text in wanted.items():
        path.write_text(text)
    return []


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


def render_reports() -> str:
    rows = (
        (
            f"[`{kind.SCHEMA}`](schemas/{short_name(kind)}.json)",
            first_sentence(kind),
            ", ".join(f"`{name}`" for name in kind.table_fields()),
            ", ".join(f"`{name}`" for name in kind.section_fields()),
        )
        for kind in kinds()
    )
    return table(("schema", "what it is", "tables", "sections"), rows)


def render_columns() -> str:
    """Return every column of every report."""
    return "\n".join("\n".join(_parts_of(kind)) for kind in kinds())


def _parts_of(kind: type[Report]) -> Iterable[str]:
    name = short_name(kind)
    fields = (*kind.table_fields().values(), *kind.section_fields().values())
    records = [getattr(field, "record", getattr(field, "kind", None)) for field in fields]
    # A name means the same in all tables of a report: what it is may be said once.
    meanings = {
        column.name: column.help
        for record in reversed(records)
        if record not in (dict, list)
        for column in columns_of(record)
        if column.help
    }
    schema = f"schemas/{name}.json"
    yield f"## {name}\n\n{first_sentence(kind)} Schema: [`{kind.SCHEMA}`]({schema}).\n"
    for title, field in kind.table_fields().items():
        rows = ", rows without names in JSON" if is_compact(field.record) else ""
        yield f"### {name}: {title}\n\nTable{rows}. {help_of(field.record)}\n"
        yield columns_table(field.record, meanings)
    for title, section in kind.section_fields().items():
        yield f"### {name}: {title}\n"
        if section.kind in (dict, list):
            yield f"Section: a JSON {'object' if section.kind is dict else 'list'}.\n"
        else:
            yield f"Section. {help_of(section.kind)}\n\n{columns_table(section.kind, meanings)}"


def columns_table(record: type, meanings: Mapping[str, str] = MappingProxyType({})) -> str:
    """
    Return the columns of one record.

    :param meanings: of those that do not say themselves what they are.
    """
    rows = (
        (
            f"`{column.name}`",
            column.unit if column.unit != "name" else "text",
            column.type.__name__ + (" or null" if column.nullable else ""),
            "key" if column.key else "",
            (column.help or meanings.get(column.name, "")).replace("|", "\\|"),
        )
        for column in columns_of(record)
    )
    return table(("column", "unit", "type", "", "meaning"), rows)


def render_json() -> str:
    """Return a report as JSON: what was recorded for doctor, with one row of each table."""
    whole = recorded.read_report("doctor", Features)
    cut = replace(whole, tables={name: rows.top(1) for name, rows in whole.tables.items()})
    return f"```json\n{''.join(cut.to_json())}```\n"


def render_commands() -> str:
    rows = ((f"[`memlens {name}`]({name}.md)", text) for name, text in COMMANDS.items())
    return table(("command", "what it does"), rows)


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
    return "".join("| " + " | ".join(map(str, line)).rstrip() + " |\n" for line in lines)


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
    "columns": render_columns,
    "commands": render_commands,
    "cost": lambda: columns_table(Cost),
    "envelope": lambda: columns_table(Origin),
    "json": render_json,
    "missed": lambda: columns_table(Missed),
    "names": render_names,
    "reports": render_reports,
    "reasons": render_reasons,
    "switches": render_switches,
}

if __name__ == "__main__":
    main()
