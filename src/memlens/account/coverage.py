"""Which parts of a file system no mount has shown yet, others being mounted over them."""

from collections.abc import Collection
from dataclasses import dataclass, field

from memlens.kernel.tmpfs import is_below

WHOLE = "/"


@dataclass(slots=True)
class Coverage:
    """
    What of one file system was gone through: directories are paths from its own root.

    >>> seen = Coverage()
    >>> seen.starts("/", ["/shm"]), seen.add("/", ["/shm"])
    (['/'], None)
    >>> seen.starts("/", ["/shm", "/pts"]), seen.starts("/", ["/pts"])
    ([], ['/shm'])

    :param hidden: directories not gone through; what lies below one of them is not, either.
    """

    hidden: set[str] = field(default_factory=lambda: {WHOLE})
    _parts: set[tuple[str, frozenset[str]]] = field(default_factory=set)

    def starts(self, root: str, covered: Collection[str]) -> list[str]:
        """
        Return the directories at which to begin, so that a mount shows what is new.

        :param root: what of the file system is mounted.
        :param covered: directories of it that others are mounted over there.
        """
        found = [
            place
            for place in sorted(self.hidden)
            if _is_in(place, root) and not any(_is_in(place, point) for point in covered)
        ]
        is_part = any(is_below(root, place) for place in self.hidden)
        if is_part and (root, frozenset(covered)) not in self._parts:
            found.append(root)
        return found

    def add(self, start: str, covered: Collection[str]) -> None:
        """
        Note that a directory was gone through.

        :param start: one of ``starts``.
        :param covered: as it was given there.
        """
        if start not in self.hidden:
            self._parts.add((start, frozenset(covered)))
            return
        below = {point for point in covered if is_below(point, start)}
        self.hidden.remove(start)
        self.hidden |= {p for p in below if not any(is_below(p, other) for other in below)}

    def is_seen(self, root: str) -> bool:
        """Return whether a directory was gone through, but for what was covered below it."""
        return not any(_is_in(root, place) for place in self.hidden) or any(
            part == root for part, _ in self._parts
        )


def _is_in(path: str, place: str) -> bool:
    return path == place or is_below(path, place)
