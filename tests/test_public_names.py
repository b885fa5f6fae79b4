"""What `import ule_hf` gives, and what it does not load."""

from __future__ import annotations

import subprocess
import sys

import pytest

import ule_hf


def test_every_public_name_is_there():
    for name in ule_hf.__all__:
        assert getattr(ule_hf, name).__module__.startswith("ule_hf.") and name in dir(ule_hf)
    with pytest.raises(AttributeError, match="no attribute 'ULETrainr'"):
        _ = ule_hf.ULETrainr


def test_the_metrics_need_numpy_only():
    check = "import sys, ule_hf.metrics; assert not {'torch', 'transformers', 'datasets'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", check], check=True)
