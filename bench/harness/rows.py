"""What a benchmark reports: rows, each a number and, if there is one, its limit."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Row:
    """
    One measured number.

    :param figure: what was measured, and against what.
    :param value: the number, None if it could not be measured.
    :param unit: "x" for a ratio, else a unit such as "ms" or "MiB".
    :param limit: the number may not be above this; None for a number to know.
    :param note: how it came about, or why there is none.
    """

    figure: str
    value: float | None
    unit: str
    limit: float | None = None
    note: str = ""

    @property
    def is_missed(self) -> bool:
        """Return whether there is a limit and it was not kept, or not measured."""
        return self.limit is not None and (self.value is None or self.value > self.limit)

    def cells(self) -> tuple[str, str, str, str, str]:
        """Return figure, value, limit, reached, note as text."""
        if self.limit is None:
            return self.figure, _format(self.value, self.unit), "", "", self.note
        reached = "**no**" if self.is_missed else "yes"
        limit = f"≤ {_format(self.limit, self.unit)}"
        return self.figure, _format(self.value, self.unit), limit, reached, self.note


@dataclass(frozen=True, slots=True)
class Section:
    """The rows of one scenario."""

    name: str
    title: str
    rows: list[Row] = field(default_factory=list)


def _format(value: float | None, unit: str) -> str:
    if value is None:
        return "not measured"
    digits = 0 if value >= 100 else 1 if value >= 20 else 2
    separator = "" if unit == "x" else " "
    return f"{value:.{digits}f}{separator}{unit}"
