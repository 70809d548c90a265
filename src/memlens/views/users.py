"""Names of users."""

import pwd
from functools import lru_cache


@lru_cache(maxsize=1024)
def user_name(uid: int) -> str:
    """
    Return the name of a user of this machine, the number if it has none.

    >>> user_name(0), user_name(4294967294)
    ('root', '4294967294')
    """
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)
