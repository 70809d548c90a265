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
    A kernel file does not read as documented.

    :param line_number: 1 for the first line, 0 if not about a line.
    :param text: what was found, verbatim.
    """

    def __init__(
        self, message: str, *, path: str = "", line_number: int = 0, text: str = ""
    ) -> None:
        super().__init__(f"{message}: line {line_number}: {text!r}", path=path)
        self.line_number = line_number
        self.text = text


class SnapshotError(MemlensError):
    """A file of captures is damaged or of another version."""
