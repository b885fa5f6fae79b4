"""Images, labels and groups: every dataset is a `datasets.DatasetDict` with the same columns and splits."""

from __future__ import annotations

from typing import Any

from datasets import DatasetDict

from ..errors import UleError
from .digits import build_digits
from .folder import load_folder

_LOADERS = {"digits": build_digits, "folder": load_folder}


def load(name: str, **options: Any) -> DatasetDict:
    """The dataset ``name`` with the splits ``train``, ``validation`` and ``test``.

    Every split has the columns ``image`` (`Image`), ``label`` and ``group`` (`ClassLabel`), ``image_id`` (a stable
    string), and one `ClassLabel` for each spurious attribute.

    Args:
        name: ``digits`` or ``folder``.
        options: what :func:`~ule_hf.data.digits.build_digits` or :func:`~ule_hf.data.folder.load_folder` takes.

    Raises:
        UleError: an unknown name, or what the dataset's own function refuses.
    """
    if name not in _LOADERS:
        raise UleError(f"dataset '{name}' is unknown; choose one of {', '.join(_LOADERS)}")
    return _LOADERS[name](**options)
