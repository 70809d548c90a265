"""How this kernel was built."""

from memlens.kernel.features import parse_config


def test_configuration() -> None:
    assert parse_config("CONFIG_MMU=y\nCONFIG_NO_PAGE_MAPCOUNT=y\n") is True
    assert parse_config("# CONFIG_NO_PAGE_MAPCOUNT is not set\nCONFIG_MMU=y") is False
    assert parse_config("") is None
