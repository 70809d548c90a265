"""Ctrl-C while the program starts: exit code 130, without a word, at any import."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from memlens.commands.main import COMMANDS

# Python imports this before anything else: a real Ctrl-C at the import of one module.
SITE = """
import os, signal, sys

class Interrupter:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["INTERRUPT_AT"]:
            print("interrupted")
            sys.stdout.flush()
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupter())
"""
SCRIPT = str(Path(sys.executable).with_name("memlens"))
ARGUMENTS = {
    "map": (str(os.getpid()),),
    "page": (str(os.getpid()), "1000"),
    "files": ("/etc/passwd",),
    "sharing": (str(os.getpid()),),
    "flags": (str(os.getpid()),),
    "huge": (str(os.getpid()),),
    "demo": ("--no-swap",),
}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "sitecustomize.py").write_text(SITE)
    return tmp_path


def run(
    site: Path, program: list[str], command: str, module: str, ignored: bool = False
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*program, command, *ARGUMENTS.get(command, ())],
        env={**os.environ, "PYTHONPATH": str(site), "INTERRUPT_AT": module},
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_IGN if ignored else signal.SIG_DFL
        ),
    )


@pytest.mark.parametrize("module", ["memlens.__main__", "click", "memlens.errors"])
@pytest.mark.parametrize("command", ["map", "--help"])
def test_while_the_program_is_imported(site: Path, command: str, module: str) -> None:
    done = run(site, [SCRIPT], command, module)
    assert (done.returncode, done.stdout, done.stderr) == (130, "interrupted\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_while_a_command_is_imported(site: Path, command: str) -> None:
    done = run(site, [SCRIPT], command, f"memlens.commands.{command}")
    assert (done.returncode, done.stdout, done.stderr) == (130, "interrupted\n", "")


@pytest.mark.parametrize("command", ["map", "page", "swap", "shm", "ps", "flags", "huge"])
def test_while_libraries_are_imported(site: Path, command: str) -> None:
    done = run(site, [SCRIPT], command, "numpy")
    assert (done.returncode, done.stdout, done.stderr) == (130, "interrupted\n", "")


def test_as_a_module(site: Path) -> None:
    done = run(site, [sys.executable, "-m", "memlens"], "map", "click")
    assert (done.returncode, done.stdout, done.stderr) == (130, "interrupted\n", "")


def test_who_wants_it_ignored_is_obeyed(site: Path) -> None:
    done = run(site, [SCRIPT], "--help", "click", ignored=True)
    assert done.returncode == 0
    assert "Commands:" in done.stdout


def outcome_of(code: str) -> tuple[int, str, str]:
    program = f"import os, sys\nfrom memlens.commands.startup import begin, leave\n{code}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_numpy_starts_no_threads() -> None:
    code = "begin()\nimport numpy\nprint(len(os.listdir('/proc/self/task')))"
    assert outcome_of(code) == (0, "1\n", "")


def test_what_the_user_says_of_threads_stands() -> None:
    code = (
        "os.environ['OPENBLAS_NUM_THREADS'] = '7'\n"
        "begin()\nprint(os.environ['OPENBLAS_NUM_THREADS'])"
    )
    assert outcome_of(code) == (0, "7\n", "")


@pytest.mark.parametrize(("code", "expected"), [("None", 0), ("0", 0), ("3", 3)])
def test_what_was_printed_is_not_lost_at_the_end(code: str, expected: int) -> None:
    text = f"print('out'); print('err', end='', file=sys.stderr); leave({code})"
    assert outcome_of(text) == (expected, "out\n", "err")


def test_an_end_with_words_prints_them() -> None:
    assert outcome_of("leave('why')") == (1, "", "why\n")
