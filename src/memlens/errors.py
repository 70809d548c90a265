"""Everything that memlens raises on purpose, in one tree."""


class MemlensError(Exception):
    """
    Base of every error of memlens; ``path`` names the file it is about.

    >>> str(MemlensError("no such process", path="/proc/4194305"))
    'no such process (/proc/4194305)'

    :param message: one line, for a person.
    :param path: the file or directory that was asked, "" if there is none.
    """

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.path = path

    def __str__(self) -> str:
        return f"{self.message} ({self.path})" if self.path else self.message


class ProcessGone(MemlensError):
    """The process does not exist, has ended, or executed another program."""


class AccessDenied(MemlensError):
    """
    The kernel refused; ``needs`` says what would be enough.

    :param needs: the least privilege that would give access, as text.
    """

    def __init__(self, message: str, *, path: str = "", needs: str = "") -> None:
        super().__init__(message, path=path)
        self.needs = needs

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text}: needs {self.needs}" if self.needs else text


class Unsupported(MemlensError):
    """This kernel, or this kind of process, has no such thing."""


class ParseError(MemlensError):
    """
    A file does not read as documented: one of the kernel, or a report that was saved.

    :param line_number: 1 for the first line, 0 if not about a line.
    :param text: what was found, verbatim.
    """

    def __init__(
        self, message: str, *, path: str = "", line_number: int = 0, text: str = ""
    ) -> None:
        where = f": line {line_number}" if line_number else ""
        found = f": {text!r}" if text or line_number else ""
        super().__init__(message + where + found, path=path)
        self.line_number = line_number
        self.text = text


class UnknownName(MemlensError):
    """
    There is no table or column of this name.

    >>> str(UnknownName("column", "rss", ("pid", "name")))
    "no such column: 'rss'; there are pid, name"

    :param kind: ``table`` or ``column``.
    :param name: what was asked for.
    :param names: what there is.
    """

    def __init__(self, kind: str, name: str, names: tuple[str, ...]) -> None:
        super().__init__(f"no such {kind}: {name!r}; there are {', '.join(names)}")
        self.names = names


class SnapshotError(MemlensError):
    """A file of captures is damaged or of another version."""
