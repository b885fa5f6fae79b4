"""The recipes; an installed package has them as `ule_hf.recipes`."""

from __future__ import annotations
