"""What a scan cost."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cost:
    """
    What a scan cost.

    :param wall_s: seconds from the first read to the last.
    :param read_bytes: bytes that kernel files gave, scan results included.
    :param longest_read_s: longest single call that can hold the target's mmap lock.
    """

    wall_s: float
    read_bytes: int
    longest_read_s: float

    def plus(self, other: "Cost") -> "Cost":
        """Return what this scan and another one cost."""
        return Cost(
            self.wall_s + other.wall_s,
            self.read_bytes + other.read_bytes,
            max(self.longest_read_s, other.longest_read_s),
        )
