"""What a refusal comes to for this reader."""

import os

from memlens.errors import AccessDenied, MemlensError
from memlens.kernel.procfs import READ_NEEDS
from memlens.kernel.visibility import can_look_at_others


def refusal_line(error: AccessDenied) -> str:
    """
    Return what was refused and what would be needed, unless this reader has that already.

    >>> refusal_line(AccessDenied("cannot read it", needs="a key"))
    'cannot read it: needs a key'
    """
    if error.needs != READ_NEEDS or os.geteuid() != 0 or not can_look_at_others():
        return str(error)
    return f"{MemlensError.__str__(error)}, even to root"
