"""Images, labels and groups: every dataset is a `datasets.DatasetDict` with the same columns and splits.

A benchmark is a module that offers ``load(data_dir=None, variant=None, **options)``, which returns data that
`verify.verify` has compared with the module's published counts; ``CARD`` (`publish.Card`), ``IMAGE_SIZE`` (width and
height that every image has, or None), ``OPTIONS`` (names and defaults of ``load``'s own options), and, where a metadata
file alone tells the counts, ``verify_metadata(file, **options)``.
"""

from __future__ import annotations

from inspect import signature
from typing import Any

from datasets import DatasetDict

from ule_hf.data import celeba, spawrious, urbancars, waterbirds
from ule_hf.data.digit_pairs import build_digit_pairs
from ule_hf.data.digits import build_digits
from ule_hf.data.dominoes import build_dominoes
from ule_hf.data.folder import load_folder
from ule_hf.errors import UleError

#: The published benchmarks, by the name they are loaded and verified under.
BENCHMARKS = {"waterbirds": waterbirds, "celeba": celeba, "spawrious": spawrious, "urbancars": urbancars}
_LOADERS = {
    "digits": build_digits,
    "digit_pairs": build_digit_pairs,
    "dominoes": build_dominoes,
    "folder": load_folder,
}
_LOADERS |= {name: module.load for name, module in BENCHMARKS.items()}


def load(name: str, **options: Any) -> DatasetDict:
    """The dataset ``name`` with the splits ``train``, ``validation`` and ``test``.

    Every split has the columns ``image`` (`Image`), ``label`` and ``group`` (`ClassLabel`), ``image_id`` (a stable
    string), and one `ClassLabel` for each spurious attribute.

    Args:
        name: ``digits``, ``digit_pairs``, ``dominoes``, ``folder``, or one of `BENCHMARKS`.
        options: what :func:`~ule_hf.data.digits.build_digits`, :func:`~ule_hf.data.digit_pairs.build_digit_pairs`,
            :func:`~ule_hf.data.dominoes.build_dominoes`, :func:`~ule_hf.data.folder.load_folder` or the benchmark's
            ``load`` takes, such as ``data_dir`` and ``variant``.

    Raises:
        UleError: an unknown name or option, or what the dataset's own function refuses.
    """
    if name not in _LOADERS:
        raise UleError(f"dataset '{name}' is unknown; choose one of {', '.join(_LOADERS)}")
    loader = _LOADERS[name]
    unknown = sorted(set(options) - set(signature(loader).parameters))
    if unknown:
        raise UleError(f"dataset '{name}' has no option {unknown[0]}; leave it out")
    return loader(**options)
