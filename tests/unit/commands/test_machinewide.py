"""``memlens swap``, ``shm`` and ``ps``: what they refuse before they look."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from memlens.commands.main import cli

COMMANDS = ("swap", "shm", "ps")


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli, list(arguments))
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        *(([name, "--json", "--csv"], "exclude each other") for name in COMMANDS),
        *(([name, "--sort", "beauty"], "no such column: 'beauty'") for name in ("swap", "shm")),
        (["ps", "--sort", "beauty"], "swap_share_bytes"),
        (["ps", "--group-by", "user", "--sort", "pid"], "distinct_rss_pages"),
        (["ps", "--table", "beauty"], "processes"),
        (["sharing", "1", "--sort", "beauty"], "copied_pages"),
        (["sharing", "1", "--table", "beauty"], "mappings"),
        (["sharing", "1", "--budget", "nan"], "--budget"),
        (["sharing"], "name PID"),
        (["sharing", "1", "--from", "x"], "leave out PID"),
        (["sharing", "--tree", "--from", "x"], "leave out --tree"),
        *(([name, "--top", "0"], "--top") for name in COMMANDS),
        *(([name, "--budget", text], "--budget") for name in COMMANDS for text in ("0", "nan")),
        (["swap", "--by", "colour"], "colour"),
        (["shm", "--pages"], "--pages is for one OBJECT"),
        (["shm", "--from", "-", "sysv:1"], "leave out OBJECT"),
        (["swap", "--map"], "--map goes with --by area"),
        (["swap", "--by", "area", "--map", "--csv"], "--map goes with --by area"),
        (["ps", "x"], "not a PID"),
        (["ps", "--user", "no such user"], "no such user"),
        (["ps", "--group-by", "colour"], "colour"),
    ],
)
def test_what_makes_no_sense_is_wrong_usage(arguments: list[str], part: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert part in err
    assert len(err.splitlines()) == 1


def test_a_wrong_column_is_answered_with_the_right_ones() -> None:
    assert "freed_on_exit_pages" in run("swap", "--sort", "x")[2]
    assert "charged_pages" in run("swap", "--by", "cgroup", "--sort", "x")[2]
    assert "mapped_pages" in run("shm", "--table", "holders", "--sort", "-x")[2]
    assert "slot_runs" in run("swap", "--table", "x")[2]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_directory_that_is_no_proc_is_an_error(name: str, tmp_path: Path) -> None:
    code, out, err = run(name, "--proc", str(tmp_path))
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert f"({tmp_path})" in err
    assert run(name, "--proc", f"{tmp_path}/") == (code, out, err)
