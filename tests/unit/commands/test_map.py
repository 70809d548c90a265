"""What ``memlens map`` refuses before it looks at anything, and its own process."""

import json
import os

import pytest
from click.testing import CliRunner

from memlens.commands.main import cli
from memlens.pages.classes import PageClass


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--json", "--csv"], "exclude each other"),
        (["--table", "pages"], "no such table: 'pages'"),
        (["--sort", "swapped"], "swapped_pages"),
        (["--budget", "nan"], "not a number of seconds"),
        (["--from", "x"], "leave out PID"),
        (["--only", "ram"], "no such class: 'ram'"),
        (["--only", ""], "no such class: ''"),
        (["--only", "present,,none"], "no such class: ''"),
        (["--range", "1-1"], "empty range"),
    ],
)
def test_what_makes_no_sense_is_wrong_usage(arguments: list[str], part: str) -> None:
    result = CliRunner().invoke(cli, ["map", str(os.getpid()), *arguments])
    assert (result.exit_code, result.stdout) == (2, "")
    assert part in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_wrong_class_is_answered_with_the_right_ones() -> None:
    result = CliRunner().invoke(cli, ["map", "1", "--only", "ram"])
    assert all(kind.label in result.stderr for kind in PageClass)


def test_classes_may_be_written_with_dashes_and_blanks() -> None:
    arguments = ["map", str(os.getpid()), "--json", "--only", "on-disk, present"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0
    assert {
        name
        for row in json.loads(result.stdout)["tables"]["mappings"]
        for name, value in row.items()
        if name.endswith("_pages") and value
    } <= {"on_disk_pages", "present_pages"}


def test_a_directory_that_is_no_proc_is_an_error(tmp_path) -> None:
    result = CliRunner().invoke(cli, ["map", "1", "--proc", str(tmp_path)])
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
