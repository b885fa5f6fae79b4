from __future__ import annotations

import datasets
import pytest


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of the test's own, for datasets' builders and for unpacked archives."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder
