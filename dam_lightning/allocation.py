"""Memory of a CPU that is freed and wanted again at once."""

from functools import cache

__all__ = ["keep_freed_memory"]

_LARGEST = 31 * 2**20
"""Bytes of a block, just below the largest from which glibc learns."""


@cache
def keep_freed_memory() -> None:
    """Let the C library keep freed memory for what is allocated next, instead of giving it back.

    By default glibc returns memory of activations to the system after each layer, and gets it back
    page by page, filled with zeros, for the next: that takes a fifth of the time of a network's
    gradient. Having freed one large block, it keeps up to twice its size (``mallopt(3)``, on
    ``M_MMAP_THRESHOLD``). Other C libraries take no notice. Once for a process is enough.
    """
    bytes(_LARGEST)
