"""What commands print of this machine, to any user."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner

from memlens.commands.main import COMMANDS as EVERY
from memlens.commands.main import cli
from memlens.schema import json_schema
from memlens.shm.records import Inventory
from memlens.views.shm import render
from memlens.views.text import TableOptions

COMMANDS = ("swap", "shm", "ps")
SCHEMAS = {"swap": "memlens.swap/2", "shm": "memlens.shm/2", "ps": "memlens.ps/2"}


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli, list(arguments))
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="session", autouse=True)
def machine() -> None:
    """Let any user run these, beside whatever goes on: nothing of the machine is changed."""


@pytest.mark.parametrize("name", COMMANDS)
def test_json_csv_and_text_of_this_machine(name: str) -> None:
    code, out, _ = run(name, "--json")
    assert code == 0
    assert json.loads(out)["schema"] == SCHEMAS[name]
    code, out, _ = run(name, "--csv")
    assert code == 0
    assert next(csv.reader(io.StringIO(out)))
    code, out, _ = run(name)
    assert code == 0
    assert "\x1b" not in out


def test_one_object_by_its_descriptor() -> None:
    fd = os.memfd_create("seen\x1b[31m")
    os.pwrite(fd, b"x", 0)
    try:
        code, out, _ = run("shm", f"{os.getpid()}:{fd}", "--pages")
    finally:
        os.close(fd)
    assert code == 0
    assert r"memfd:seen\x1b[31m" in out
    assert "\x1b" not in out
    assert "cached" in out
    assert str(os.getpid()) in out


def test_an_object_read_back_is_drawn_as_it_was(tmp_path: Path) -> None:
    fd = os.memfd_create("again")
    os.pwrite(fd, b"x", 0)
    try:
        _, out, _ = run("shm", f"{os.getpid()}:{fd}", "--json")
    finally:
        os.close(fd)
    jsonschema.validate(json.loads(out), json_schema(Inventory))
    (tmp_path / "report").write_text(out)
    lines = render(Inventory.from_json(out), TableOptions(80), has_runs=True)
    drawn = "".join("".join(part.text for part in line) + "\n" for line in lines)
    again = ("shm", "--pages", "--from", str(tmp_path / "report"))
    result = CliRunner(charset="ascii", env={"COLUMNS": "80"}).invoke(cli, again)
    assert result.stdout == drawn
    assert "memfd:again" in drawn


def test_a_process_by_its_pid_and_by_what_it_is_not() -> None:
    found = json.loads(run("ps", str(os.getpid()), "--json")[1])
    assert [row["pid"] for row in found["tables"]["processes"]] == [os.getpid()]
    found = json.loads(run("ps", "--name", "no such name", "--json")[1])
    assert found["tables"]["processes"] == []


def test_filters_leave_only_what_they_name() -> None:
    user = str(os.geteuid())
    found = json.loads(run("ps", "--user", user, "--group-by", "name", "--json")[1])["tables"]
    assert {row["uid"] for row in found["processes"]} == {os.geteuid()}
    members = Counter(row["name"] for row in found["processes"])
    assert {row["key"]: row["processes"] for row in found["groups"]} == members


MAPPED = id(COMMANDS)
WHAT = {
    **{name: [str(os.getpid())] for name in ("map", "sharing", "flags", "huge")},
    "page": [str(os.getpid()), f"{MAPPED:x}"],
    "files": [__file__],
    "demo": ["--no-swap"],
}


@pytest.mark.parametrize("name", EVERY)
def test_a_budget_that_is_too_small_is_said(name: str) -> None:
    asked = [name, *WHAT.get(name, ()), "--budget", "0.000001"]
    code, out, err = run(*asked, "--json")
    found = json.loads(out)
    # Without swap nothing is scanned.
    is_cut_short = name != "swap" or bool(found["tables"]["areas"])
    assert code == 0
    assert found["is_complete"] is not is_cut_short
    assert err == "memlens: stopped early: the answer is incomplete\n" * is_cut_short
    code, out, _ = run(*asked, "--strict")
    assert code == (3 if is_cut_short else 0)
    assert out.startswith("INCOMPLETE") is is_cut_short


# The first thing that a scan does is to list /proc: then comes Ctrl-C.
INTERRUPTED = """
import os, signal, sys
from memlens.commands.main import COMMANDS as EVERY
from memlens.commands.main import cli
seen = []
def interrupt(event, arguments):
    if event == "os.listdir" and arguments[0] == "/proc" and not seen:
        seen.append(event)
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(interrupt)
cli("{words}".format(os.getpid()).split())
"""


@pytest.mark.parametrize("words", ["shm", "ps", "sharing {}"])
def test_ctrl_c_prints_what_is_known(words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED.replace("{words}", words)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 128 + signal.SIGINT
    assert done.stdout.startswith("INCOMPLETE")
    assert "the scan was stopped" in done.stdout
