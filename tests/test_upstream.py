"""Nothing that we call is on its way out: neither as a warning (see pyproject.toml) nor as a line in a log."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from transformers.utils import logging as transformers_logging

from ule_hf.arguments import parse
from ule_hf.experiment import run
from ule_hf.hub import load_teacher

LIBRARIES = ("transformers", "datasets", "accelerate", "huggingface_hub", "timm", "torch", "py.warnings")


@pytest.fixture
def log():
    """Every record of the libraries, which do not pass theirs on to the root logger."""
    transformers_logging.warning_once.cache_clear()  # what another test has seen is said again
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    for logger in loggers:
        logger.addHandler(handler)
    yield records
    for logger in loggers:
        logger.removeHandler(handler)


def test_a_run_from_training_to_loading_calls_nothing_deprecated(tmp_path, log):
    options = ["--output_dir", str(tmp_path), "--max_steps", "2", "--use_cpu", "--eval_strategy", "steps"]
    options += ["--save_strategy", "steps", "--eval_steps", "2", "--save_steps", "2", "--student_head_start", "0"]
    run(*parse(options, recipes=Path(__file__).parents[1] / "recipes"))
    load_teacher(tmp_path)
    transformers_logging.get_logger("transformers.trainer").warning_once("seen")
    said = [record.getMessage() for record in log]
    assert "seen" in said
    assert not [message for message in said if "deprecat" in message.lower()]
