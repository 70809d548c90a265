"""The group: what it imports, and how it ends."""

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

import memlens
from memlens.commands.main import COMMANDS, cli

HEAVY = (
    "numpy",
    "rich",
    "psutil",
    "memlens.residency",
    "memlens.scan",
    "memlens.kernel",
    "memlens.views",
)


def modules_after(*arguments: str) -> set[str]:
    """Return the modules that a command line leaves imported."""
    program = (
        "import sys, memlens.__main__ as m\n"
        f"sys.argv = ['memlens', *{list(arguments)!r}]\n"
        "try:\n    m.main()\nexcept SystemExit:\n    pass\n"
        "print('\\n' + ' '.join(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return set(done.stdout.splitlines()[-1].split())


def test_version_imports_nothing() -> None:
    modules = modules_after("--version")
    assert not {name for name in modules if name.split(".")[0] in ("click", "numpy", "rich")}
    assert {name for name in modules if name.startswith("memlens")} <= {
        "memlens",
        "memlens.__main__",
    }


@pytest.mark.parametrize("arguments", [["--help"], [], ["no-such-command"]])
def test_the_group_imports_no_command(arguments: list[str]) -> None:
    modules = modules_after(*arguments)
    assert not {name for name in modules if name.startswith(HEAVY)}
    assert not modules & {f"memlens.commands.{name}" for name in COMMANDS}


def test_map_imports_no_other_command_and_no_rich() -> None:
    modules = modules_after("map", "--no-color", "0x")
    assert "memlens.commands.map" in modules
    assert not {name for name in modules if name.startswith(("rich", "memlens.commands.demo"))}


def test_help_lists_every_command() -> None:
    result = CliRunner().invoke(cli, ["--help"])
    assert result.exit_code == 0
    for name, line in COMMANDS.items():
        assert any(
            row.split() == [name, *line.split()] for row in result.output.splitlines()
        ), name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_loads_and_has_help(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert f"memlens {name}" in result.output


def test_both_ways_to_the_version_agree() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "memlens", "--version"], capture_output=True, text=True
    )
    assert told.stdout == f"memlens {memlens.__version__}\n"
    assert CliRunner().invoke(cli, ["--version"]).output == told.stdout


@pytest.mark.parametrize("arguments", [["nonsense"], ["--nonsense"], ["map"], ["map", "x"]])
def test_wrong_usage_is_one_line_and_exit_2(arguments: list[str]) -> None:
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("memlens: ")
    assert len(result.stderr.splitlines()) == 1


def test_another_system_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    result = CliRunner().invoke(cli, ["map", "1"])
    assert result.exit_code == 1
    assert result.stderr == "memlens: needs Linux; this is darwin\n"
    assert CliRunner().invoke(cli, ["--help"]).exit_code == 0


def test_the_group_is_a_click_group() -> None:
    """So that documentation tools can walk it."""
    context = click.Context(cli)
    assert cli.list_commands(context) == list(COMMANDS)
    assert cli.get_command(context, "nonsense") is None
