"""How the laws are tried: a busy machine must not fail a test that is only slow."""

from hypothesis import settings

settings.register_profile("memlens", deadline=None, print_blob=True)
settings.load_profile("memlens")
