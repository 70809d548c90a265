"""How faults end, and what the shared options accept."""

import io
import os
import sys

import click
import pytest
from click.testing import CliRunner

from memlens.commands import common
from memlens.errors import AccessDenied, MemlensError
from memlens.kernel.features import can_look_at_others
from memlens.kernel.procfs import READ_NEEDS

# mypy: disable-error-code="no-untyped-def"


def raises(error: BaseException):
    def call() -> None:
        raise error

    return call


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (MemlensError("it broke", path="/proc/1"), 1, "memlens: it broke (/proc/1)\n"),
        (
            AccessDenied("no", path="/proc/1", needs="root"),
            1,
            "memlens: no (/proc/1): needs root\n",
        ),
        (MemlensError("two\nlines \x1b[2J"), 1, "memlens: two\\x0alines \\x1b[2J\n"),
        (MemlensError("\udcff"), 1, "memlens: \\udcff\n"),
        (click.UsageError("wrong"), 2, "memlens: wrong\n"),
        (click.BadParameter("bad\n  thing"), 2, "memlens: Invalid value: bad thing\n"),
        (ValueError("MEMLENS_DISABLE: unknown x"), 2, "memlens: MEMLENS_DISABLE: unknown x\n"),
        (click.exceptions.Exit(3), 3, ""),
        (click.Abort(), 130, ""),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
        (OSError(28, "No space left on device"), 1, "memlens: No space left on device\n"),
    ],
)
def test_faults_become_exit_codes(
    capfd, monkeypatch, error: BaseException, code: int, line: str
) -> None:
    # What is buffered is dropped together with standard output, which pytest needs.
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert common.exit_code_of(raises(error)) == code
    assert capfd.readouterr().err == line


def test_who_closed_standard_error_gets_no_message_elsewhere(capfd, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    common.complain("nobody wants to know")
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(
    os.geteuid() != 0 or not can_look_at_others(), reason="needs root with CAP_SYS_PTRACE"
)
def test_root_is_not_told_to_be_root(capfd: pytest.CaptureFixture[str]) -> None:
    refusal = AccessDenied("no", path="/proc/1/maps", needs=READ_NEEDS)
    assert common.exit_code_of(raises(refusal)) == 1
    assert capfd.readouterr().err == "memlens: no (/proc/1/maps), even to root\n"


def test_bugs_are_not_hidden() -> None:
    with pytest.raises(ValueError, match="a bug"):
        common.exit_code_of(raises(ValueError("a bug")))


@pytest.mark.parametrize(("value", "code"), [(None, 0), ("text", 0), (3, 3)])
def test_what_a_command_returns(value: object, code: int) -> None:
    assert common.exit_code_of(lambda: value) == code


@click.command()
@common.pid_argument
@common.address_argument
@common.range_option
def everything(**values: object) -> None:
    """Print what was parsed."""
    click.echo(repr(sorted(values.items())))


def test_shared_options() -> None:
    arguments = ["007", "0x1000", "--range", "0-10000000000000000"]
    result = CliRunner().invoke(everything, arguments)
    assert result.output == (
        f"[('address', 4096), ('addresses', (0, {1 << 64})), ('pid', 7)]\n"
    )
    default = CliRunner().invoke(everything, ["1", "0"])
    assert "('addresses', None)" in default.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["0", "0"],
        ["x", "0"],
        ["-1", "0"],
        ["1.5", "0"],
        ["\u0661", "0"],
        ["9" * 5000, "0"],
        ["1", "zz"],
        ["1", "1" + "0" * 16],
        ["1", "-1"],
        ["1", "0", "--range", "5"],
        ["1", "0", "--range", "2-1"],
        ["1", "0", "--range", "1-1"],
        ["1", "0", "--range", "0-10000000000000001"],
    ],
)
def test_nonsense_is_wrong_usage(arguments: list[str]) -> None:
    assert CliRunner().invoke(everything, arguments).exit_code == 2


def test_no_colour_without_a_terminal_or_if_unwanted(monkeypatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert not common.is_colored()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert common.is_colored()
    assert common.console().color_system is not None
    assert not common.is_colored("never")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not common.is_colored()
    monkeypatch.setenv("NO_COLOR", "")
    assert common.is_colored()
    monkeypatch.setenv("TERM", "dumb")
    assert not common.is_colored()
    assert common.is_colored("always")


def test_colour_where_it_is_forced(monkeypatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for value, is_forced in (("1", True), ("0", False), ("", False)):
        monkeypatch.setenv("CLICOLOR_FORCE", value)
        assert common.is_colored() is is_forced
    monkeypatch.setenv("CLICOLOR_FORCE", "1")
    assert not common.is_colored("never")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not common.is_colored()


def test_a_console_passes_a_closed_pipe_on(monkeypatch) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        with pytest.raises(BrokenPipeError):
            common.console().print("nobody reads this")
        common._drop_output()
