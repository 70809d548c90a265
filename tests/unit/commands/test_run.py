"""Ctrl-C during a scan, and when a bar is drawn."""

import io
import re
import signal
import sys

import pytest
import rich.progress

from memlens.commands import run
from memlens.commands.run import Watch

# mypy: disable-error-code="no-untyped-def"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_first_interrupt_stops_the_second_kills() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Watch("scan") as seen:
        assert not seen.should_stop()
        signal.raise_signal(signal.SIGINT)
        assert seen.should_stop()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert seen.is_interrupted
    assert signal.getsignal(signal.SIGINT) is before


def test_who_ignores_interrupts_is_not_interrupted() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Watch("scan") as seen:
            signal.raise_signal(signal.SIGINT)
            assert not seen.should_stop()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("error", "patience_s", "is_drawn"),
    [(Terminal, 0.0, True), (Terminal, 1000.0, False), (io.StringIO, 0.0, False)],
)
def test_a_bar_is_drawn_late_and_only_on_a_terminal(
    monkeypatch, error: type[io.StringIO], patience_s: float, is_drawn: bool
) -> None:
    stream = error()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(run, "_PATIENCE_S", patience_s)
    monkeypatch.setenv("TERM", "xterm")
    with Watch("reading process 7") as seen:
        seen.should_stop()
        seen.on_progress(5, 10)
        seen.on_progress(10, 10)
        seen.end_scan()
    assert ("reading process 7" in stream.getvalue()) == is_drawn
    if not is_drawn:
        assert stream.getvalue() == ""


@pytest.mark.parametrize("color", ["auto", "never"])
def test_the_bar_has_no_colour_if_none_is_wanted(monkeypatch, color: str) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(run, "_PATIENCE_S", 0.0)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with Watch("reading", color) as seen:
        seen.should_stop()
        seen.on_progress(5, 10)
        seen.end_scan()
    assert "reading" in stream.getvalue()
    has_color = bool(re.search(r"\x1b\[[0-9;]*m", stream.getvalue()))
    assert has_color == (color == "auto")


def test_an_interrupt_gives_the_cursor_back_at_once(monkeypatch, tmp_path) -> None:
    """For the second one kills."""
    with open(tmp_path / "terminal", "w+") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with Watch("reading") as seen:
            seen._bar = rich.progress.Progress()
            signal.raise_signal(signal.SIGINT)
            assert (tmp_path / "terminal").read_bytes() == b"\x1b[?25h"


def test_a_bar_begins_with_what_was_done_before(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(run, "_PATIENCE_S", 1000.0)
    monkeypatch.setenv("TERM", "xterm")
    with Watch("reading") as seen:
        seen.on_progress(3, 4)
        monkeypatch.setattr(run, "_PATIENCE_S", 0.0)
        seen.should_stop()
        assert seen._bar is not None
        assert seen._bar.tasks[0].percentage == 75
