"""
Where every page of a Linux process and of shared memory really is.

The names below are loaded when they are first used, so that ``import memlens`` costs
nothing and ``memlens --version`` imports no numpy.
"""

# Not typing.TYPE_CHECKING: typing is milliseconds of every ``memlens --version``.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from memlens.account.capture import map_process
    from memlens.account.explain import PageExplanation, explain_page
    from memlens.account.model import (
        Cost,
        Kernel,
        MappingPages,
        Process,
        ProcessMap,
        UnknownRun,
        Words,
    )
    from memlens.errors import (
        AccessDenied,
        MemlensError,
        ParseError,
        ProcessGone,
        SnapshotError,
        Unsupported,
    )
    from memlens.kernel.probes import Features, probe_features
    from memlens.pages.classes import PageClass
    from memlens.pages.runs import Runs

__version__ = "0.1.0"

_HOMES = {
    "AccessDenied": "errors",
    "Cost": "account.model",
    "Features": "kernel.probes",
    "Kernel": "account.model",
    "MappingPages": "account.model",
    "MemlensError": "errors",
    "PageClass": "pages.classes",
    "PageExplanation": "account.explain",
    "ParseError": "errors",
    "Process": "account.model",
    "ProcessGone": "errors",
    "ProcessMap": "account.model",
    "Runs": "pages.runs",
    "SnapshotError": "errors",
    "UnknownRun": "account.model",
    "Unsupported": "errors",
    "Words": "account.model",
    "explain_page": "account.explain",
    "map_process": "account.capture",
    "probe_features": "kernel.probes",
}

__all__ = [
    "AccessDenied",
    "Cost",
    "Features",
    "Kernel",
    "MappingPages",
    "MemlensError",
    "PageClass",
    "PageExplanation",
    "ParseError",
    "Process",
    "ProcessGone",
    "ProcessMap",
    "Runs",
    "SnapshotError",
    "UnknownRun",
    "Unsupported",
    "Words",
    "explain_page",
    "map_process",
    "probe_features",
]


def __getattr__(name: str) -> object:
    from importlib import import_module

    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'memlens' has no attribute {name!r}")
    found: object = getattr(import_module(f"memlens.{home}"), name)
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
