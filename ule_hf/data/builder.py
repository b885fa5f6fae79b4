"""Runs a benchmark's `GeneratorBasedBuilder`, with a cache that notices other code, options and metadata."""

from __future__ import annotations

import errno
import hashlib
import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets import DatasetDict, GeneratorBasedBuilder
from datasets.exceptions import DatasetGenerationError

from ule_hf.errors import UleError


def build(
    builder: type[GeneratorBasedBuilder], root: Path, metadata: Iterable[Path] = (), **config: Any
) -> DatasetDict:
    """All splits that ``builder`` makes of the raw folder ``root``.

    The cache of `datasets` would give the old rows for new code: its key knows nothing of either code or files. Here
    it holds the builder's module, ``config``, and the contents of the ``metadata`` files.

    Raises:
        UleError: what the builder refuses, a split without images, or a full disk; nothing is left of a build that
            failed.
    """
    digest = hashlib.sha256(repr((sorted(config.items()), str(root))).encode())
    for file in (Path(inspect.getfile(builder)), Path(__file__), *metadata):
        digest.update(file.read_bytes())
    instance = builder(data_dir=str(root), hash=digest.hexdigest()[:16], **config)
    try:
        instance.download_and_prepare()
    except (DatasetGenerationError, OSError) as error:
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) else error
        if isinstance(cause, UleError):
            raise cause from error
        if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
            raise UleError(
                f"the disk is full: {instance.cache_dir} could not be built; free some space and try again"
            ) from error
        raise
    empty = [name for name, split in instance.info.splits.items() if not split.num_examples]
    if empty:
        raise UleError(f"{root} has no image for {' and '.join(empty)}; a run needs training, validation and test")
    return instance.as_dataset()
