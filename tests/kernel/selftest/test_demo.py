"""The demo on the real kernel: right about everything, and gone without a trace."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import validate

from memlens.errors import Unsupported
from memlens.schema import json_schema
from memlens.selftest.demo import run_demo
from memlens.selftest.records import DemoResult
from tests.kernel.support.machine import wait_until

MEMLENS = (sys.executable, "-m", "memlens")
# Huge pages have to be set aside by whoever runs the machine.
MAY_BE_MISSING = {"hugetlbfs"}
# What only swap can show.
NEEDS_SWAP = "swapped out"


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = state()
    yield
    assert state() == before


def state() -> tuple[str, list[str], list[str]]:
    zram = sorted(path.name for path in Path("/sys/block").glob("zram*"))
    files = sorted(str(path) for path in Path("/tmp").glob("memlens-swap-*"))
    return Path("/proc/swaps").read_text(), zram, files


def demo(
    *arguments: str, prefix: tuple[str, ...] = (), err: str = "", **environment: str
) -> dict[str, Any]:
    done = subprocess.run(
        [*prefix, *MEMLENS, "demo", "--json", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )
    assert (done.returncode, done.stderr) == (0, err)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def assert_right(result: DemoResult) -> None:
    assert list(result.disagreements) == []
    assert list(result.reasons) == []
    assert [row for row in result.left_out if row.family not in MAY_BE_MISSING] == []
    assert result.swap.leftovers == ""
    assert result.is_complete


@pytest.mark.parametrize(("kind", "shown"), [("zram", "zram"), ("file", "slow")])
def test_right_on_swap_of_its_own(kind: str, shown: str) -> None:
    result = run_demo(swap_kinds=(kind,))
    assert (result.swap.kind, result.swap.is_made) == (shown, True), result.swap
    assert_right(result)
    assert result.total.pages > 1500
    assert result.total.misled_pages > 0


def test_the_command_says_so() -> None:
    found = demo()
    assert found["schema"] == "memlens.demo/2"
    assert found["sections"]["total"]["wrong_pages"] == 0
    assert found["sections"]["total"]["unknown_pages"] == 0
    assert found["cost"]["wall_s"] < 10
    validate(found, json_schema(DemoResult))


def test_every_class_that_can_be_made_is_shown() -> None:
    answers = demo()["tables"]["answers"]
    assert {answer["found"] for answer in answers} == {
        *("present", "zero", "cached", "swap_cached", "swapped", "on_disk", "preallocated"),
        *("none", "guard", "poisoned", "beyond_end", "device"),
    }


def test_without_swap_it_says_what_it_left_out() -> None:
    found = demo("--no-swap")
    missing = [row for row in found["tables"]["left_out"] if "--no-swap" in row["reason"]]
    assert len(missing) >= 8
    assert all(
        NEEDS_SWAP in row["how"] or "on swap" in row["how"] or "swapped" in row["how"]
        for row in missing
    )
    assert found["sections"]["total"]["wrong_pages"] == 0
    assert "swapped" not in {row["found"] for row in found["tables"]["answers"]}


@pytest.mark.parametrize(
    "disabled", ["pagemap_scan", "cachestat", "mincore", "seek_data", "map_files", "smaps"]
)
def test_no_path_of_evidence_is_ever_wrong(disabled: str) -> None:
    found = demo("--no-swap", MEMLENS_DISABLE=disabled)
    assert found["sections"]["total"]["wrong_pages"] == 0


def test_without_capabilities_it_knows_less_and_is_not_wrong() -> None:
    found = demo(prefix=("setpriv", "--bounding-set=-all", "--inh-caps=-all"))
    assert found["sections"]["total"]["wrong_pages"] == 0
    assert found["sections"]["total"]["unknown_pages"] > 0
    assert found["sections"]["swap"]["kind"] == "none"
    assert "Operation not permitted" in found["sections"]["swap"]["reason"]
    reasons = {row["reason"] for row in found["tables"]["reasons"]}
    assert all(reasons)


def test_ended_early_it_has_taken_everything_away() -> None:
    stages: list[str] = []
    result = run_demo(on_stage=stages.append, should_stop=lambda: len(stages) > 2)
    assert stages[-1].startswith("looking")
    assert not result.is_complete
    assert len(result.specimens) == 0


def test_a_budget_ends_it() -> None:
    found = demo(
        "--budget", "0.000001", err="memlens: stopped early: the answer is incomplete\n"
    )
    assert not found["is_complete"]
    assert [row["reason"] for row in found["missed"]] == ["the budget was spent"]


def test_another_proc_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="does not show this process"):
        run_demo(proc=str(tmp_path))


STOPPED = """
import signal
from memlens.selftest.demo import run_demo

def stop(stage):
    if stage.startswith("looking"):
        print(stage, flush=True)
        signal.pause()

run_demo(swap_kinds=("{kind}",), on_stage=stop)
"""


@pytest.mark.parametrize("kind", ["zram", "file"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_killed_it_leaves_nothing(kind: str, number: signal.Signals) -> None:
    before = state()
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED.format(kind=kind)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"looking")
        assert state() != before
        process.send_signal(number)
        process.wait()
    wait_until(lambda: state() == before, "swap taken away after the demo was killed")


def test_ctrl_c_is_130() -> None:
    """The signal goes to the whole group, as a terminal sends it; helpers must survive it."""
    process = subprocess.Popen(
        [*MEMLENS, "demo"], stdout=subprocess.DEVNULL, start_new_session=True
    )
    before = state()
    try:
        wait_until(lambda: state() != before or process.poll() is not None, "swap of the demo")
        os.killpg(process.pid, signal.SIGINT)
    finally:
        process.wait()
    assert process.returncode == 130
    wait_until(lambda: state() == before, "swap taken away after Ctrl-C")


def test_output_that_nobody_reads() -> None:
    process = subprocess.Popen(
        [*MEMLENS, "demo", "--no-swap"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait() == 141
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
