"""Named random streams: one seed per purpose, so that using one never shifts another."""

from __future__ import annotations

import hashlib

import torch


def named_seed(seed: int, *name: str | int) -> int:
    """A 63-bit seed for the stream ``name`` of a run with ``seed``, the same on every machine.

    >>> named_seed(0, "student") == named_seed(0, "student")
    True
    >>> named_seed(0, "student") == named_seed(0, "teacher")
    False
    """
    digest = hashlib.sha256(repr((seed, *name)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def named_generator(seed: int, *name: str | int) -> torch.Generator:
    """A CPU generator seeded with :func:`named_seed`; draws are the same whatever device trains."""
    return torch.Generator().manual_seed(named_seed(seed, *name))
