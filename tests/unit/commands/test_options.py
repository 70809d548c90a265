"""What every command understands alike: the options that come with its report."""

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import memlens
from memlens.commands.main import COMMANDS, cli
from memlens.record import Table, columns_of
from memlens.report import REPORTS, Cost, Missed, Origin, Report

for subject in ("physical", "residency", "selftest", "sharing", "shm", "swap"):
    importlib.import_module(f"memlens.{subject}.records")
OURS = {schema: kind for schema, kind in REPORTS.items() if kind.__module__[:7] == "memlens"}
ORIGIN = Origin("2026-01-31T08:15:00Z", "host", "boot", "6.18.0", 4096, memlens.__version__)
# What each must be told to scan something.
WHAT = {"map": ["1"], "page": ["1", "1000"], "files": ["."], "sharing": ["1"]}
WHAT |= {"flags": ["1"], "huge": ["1"]}


def kind_of(name: str) -> type[Report]:
    """Return what a command answers with if nothing else is asked for."""
    return OURS[f"memlens.{'cgroups' if name == 'cgroup' else name}/2"]


def empty(kind: type[Report], **other: Any) -> Report:
    """Return a report that found nothing."""
    tables = {name: Table.of(field.record) for name, field in kind.table_fields().items()}
    cost = Cost(0.5, 4096, 0.1)
    report = kind.at(ORIGIN, cost=cost, tables=tables, notes=["a note"])
    return dataclasses.replace(report, **other)


def saved(report: Report, tmp_path: Path) -> str:
    path = tmp_path / "report.json"
    path.write_text("".join(report.to_json()))
    return str(path)


def run(*arguments: str, **variables: str) -> tuple[int, str, str]:
    unset = dict.fromkeys(("NO_COLOR", "CLICOLOR_FORCE"))
    result = CliRunner(env={**unset, **variables}).invoke(cli, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def assert_refused(code: int, told: tuple[int, str, str], *parts: str) -> None:
    """One line on standard error that has these parts, and nothing else."""
    assert told[:2] == (code, ""), told
    assert len(told[2].splitlines()) == 1
    for part in parts:
        assert part in told[2]


@pytest.mark.parametrize("name", COMMANDS)
class TestEveryCommand:
    def test_a_wrong_table_is_answered_with_those_there_are(self, name: str) -> None:
        told = run(name, *WHAT.get(name, ()), "--table", "beauty")
        assert_refused(2, told, "no such table: 'beauty'", *kind_of(name).table_fields())

    def test_a_wrong_column_is_answered_with_those_there_are(self, name: str) -> None:
        for table, field in kind_of(name).table_fields().items():
            for given in ("beauty", "-beauty"):
                told = run(name, *WHAT.get(name, ()), "--table", table, "--sort", given)
                columns = [column.name for column in columns_of(field.record)]
                assert_refused(2, told, f"no such column: {given!r}", *columns)

    @pytest.mark.parametrize("seconds", ["nan", "inf", "0", "-1", "soon"])
    def test_a_budget_is_a_time(self, name: str, seconds: str) -> None:
        told = run(name, *WHAT.get(name, ()), "--budget", seconds)
        assert_refused(2, told, "--budget")

    @pytest.mark.parametrize("rows", ["0", "-1", "many"])
    def test_top_is_a_number_of_rows(self, name: str, rows: str) -> None:
        assert_refused(2, run(name, *WHAT.get(name, ()), "--top", rows), "--top")

    def test_json_and_csv_exclude_each_other(self, name: str) -> None:
        told = run(name, *WHAT.get(name, ()), "--json", "--csv")
        assert_refused(2, told, "exclude each other")

    def test_a_colour_is_always_never_or_auto(self, name: str) -> None:
        told = run(name, *WHAT.get(name, ()), "--color", "pink")
        assert_refused(2, told, "'auto', 'always', 'never'")

    @pytest.mark.parametrize("keep", [0, 20, -3])
    def test_a_damaged_file_is_an_error_with_its_path(
        self, name: str, keep: int, tmp_path: Path
    ) -> None:
        path = saved(empty(kind_of(name)), tmp_path)
        text = Path(path).read_text()
        Path(path).write_text(text[:keep])
        assert_refused(1, run(name, "--from", path), path)

    def test_a_file_that_is_not_there_is_an_error_with_its_path(
        self, name: str, tmp_path: Path
    ) -> None:
        assert_refused(1, run(name, "--from", str(tmp_path / "x")), str(tmp_path / "x"))

    def test_a_report_of_another_command_is_refused(self, name: str, tmp_path: Path) -> None:
        other = kind_of("ps" if name != "ps" else "swap")
        told = run(name, "--from", saved(empty(other), tmp_path))
        assert_refused(1, told, str(tmp_path), "a report of another command", other.SCHEMA)

    def test_names_are_checked_in_a_file_too(self, name: str, tmp_path: Path) -> None:
        path = saved(empty(kind_of(name)), tmp_path)
        assert_refused(2, run(name, "--from", path, "--table", "beauty"), "beauty")
        assert_refused(2, run(name, "--from", path, "--sort", "beauty"), "beauty")

    def test_json_of_a_file_is_the_file(self, name: str, tmp_path: Path) -> None:
        path = saved(empty(kind_of(name)), tmp_path)
        code, out, err = run(name, "--from", path, "--json", *(["--pages"] * (name == "map")))
        assert (code, out, err) == (0, Path(path).read_text(), "")

    def test_csv_is_the_table_that_is_named(self, name: str, tmp_path: Path) -> None:
        path = saved(empty(kind_of(name)), tmp_path)
        for table, field in kind_of(name).table_fields().items():
            code, out, _ = run(name, "--from", path, "--csv", "--table", table)
            columns = [column.name for column in columns_of(field.record)]
            assert (code, out) == (0, ",".join(columns) + "\n")

    @pytest.mark.parametrize(
        ("arguments", "variables", "is_colored"),
        [
            ([], {}, False),
            ([], {"CLICOLOR_FORCE": "1"}, True),
            ([], {"CLICOLOR_FORCE": "1", "NO_COLOR": "1"}, False),
            (["--color", "always"], {}, True),
            (["--color", "always"], {"NO_COLOR": "1"}, True),
            (["--color", "never"], {"CLICOLOR_FORCE": "1"}, False),
            (["--no-color"], {"CLICOLOR_FORCE": "1"}, False),
        ],
    )
    def test_colours_in_a_pipe_are_as_asked_for(
        self,
        name: str,
        arguments: list[str],
        variables: dict[str, str],
        is_colored: bool,
        tmp_path: Path,
    ) -> None:
        path = saved(empty(kind_of(name)), tmp_path)
        code, out, err = run(name, "--from", path, *arguments, **variables)
        assert (code, err) == (0, "")
        assert "a note" in out
        assert ("\x1b[" in out) is is_colored

    def test_strict_wants_all(self, name: str, tmp_path: Path) -> None:
        path = saved(empty(kind_of(name), is_complete=False), tmp_path)
        for strict in ([], ["--strict"]):
            code, out, err = run(name, "--from", path, *strict)
            assert code == (3 if strict else 0)
            assert out.startswith("INCOMPLETE")
            assert err == "memlens: stopped early: the answer is incomplete\n"
        missed = (Missed("PID 7", "it ended"),)
        path = saved(empty(kind_of(name), missed=missed), tmp_path)
        assert run(name, "--from", path)[0] == 0
        assert run(name, "--from", path, "--strict")[0] == 3


@pytest.mark.parametrize("kind", OURS.values(), ids=OURS)
def test_a_report_is_short_to_look_at_and_html_in_notebooks(kind: type[Report]) -> None:
    report = empty(kind)
    assert repr(report).startswith(f"<{kind.SCHEMA} of host at 2026-01-31T08:15:00Z")
    assert len(repr(report)) < 400
    shown = report._repr_html_()
    for name, field in kind.table_fields().items():
        assert f"<h4>{name}</h4><table>" in shown
        assert repr(report.table(name)) == f"<0 rows of {field.record.__name__}>"
    assert json.loads("".join(report.to_json()))["schema"] == kind.SCHEMA


def test_every_command_has_a_report() -> None:
    assert {kind_of(name) for name in COMMANDS} | {OURS["memlens.cgroup/2"]} == {*OURS.values()}
