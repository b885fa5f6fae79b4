"""Which data and which code a result is of."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

from datasets import DatasetDict


def data_fingerprint(data: DatasetDict) -> str:
    """A SHA-256 of what a run was given to learn and to be measured on.

    It covers, of each split and in its order, the images' ids, labels and groups, and the names of classes and groups;
    not the pixels, and not where the files lie.
    """
    digest = hashlib.sha256()
    for split in sorted(data):
        rows = data[split].with_format(None)
        columns = [name for name in ("image_id", "label", "group") if name in rows.features]
        names = [getattr(rows.features[name], "names", None) for name in columns]
        digest.update(json.dumps([split, columns, names, *(list(rows[name]) for name in columns)]).encode())
    return digest.hexdigest()


def git_revision() -> str | None:
    """The commit of the checkout that this package is run from, with ``-dirty`` where files differ from it; None where
    it is installed without one."""
    checkout = Path(__file__).parents[1]
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
