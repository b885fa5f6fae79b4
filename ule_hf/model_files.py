"""What somebody else's model folder may say, read before anything is built from it.

Only JSON and safetensors are read, never a pickle, and no code that a folder brings along is run. A configuration that
would take more memory than its weights do, or that reaches out of its folder, is refused.
"""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from transformers import AutoModelForImageClassification, PreTrainedConfig

from ule_hf.errors import UleError, first_line

#: Everything that is read of a model folder or a repository, as patterns.
MODEL_FILES = (
    *("config.json", "model.safetensors", "model.safetensors.index.json", "model-*.safetensors"),
    "preprocessor_config.json",
)
#: What `timm.create_model` takes for itself: names of files and repositories among them.
_TIMMS_OWN = {name for name, p in inspect.signature(timm.create_model).parameters.items() if p.kind != p.VAR_KEYWORD}
_LARGEST = 1_000_000  # of the numbers in a configuration: classes, units, layers, pixels
_LONGEST_SIDE = 4096  # in pixels
_SMALLEST_CROP = 0.1
_MOST_MODULES = 100_000
_LONGEST_TEXT = 50_000_000  # bytes of a JSON file


def check_model_folder(name: str, folder: Path) -> None:
    """Raises a UleError, of one line that begins with ``name``, where the files of ``folder`` are not to be trusted."""
    config = _read_json(name, folder / "config.json")
    _check_numbers(name, "config.json", config, _LARGEST)
    architecture = config.get("architecture")
    if architecture is not None and not (isinstance(architecture, str) and timm.is_model(architecture.split(".")[0])):
        raise UleError(f"{name}: its config.json names {architecture!r}, which is no architecture of timm")
    model_args = config.get("model_args") or {}
    foreign = sorted(_TIMMS_OWN & set(model_args)) if isinstance(model_args, dict) else ["no object"]
    if foreign:
        raise UleError(f"{name}: the model_args of its config.json hold {foreign[0]}, which is not for a model to say")
    pictures = {"config.json": config.get("pretrained_cfg")}
    if (folder / "preprocessor_config.json").is_file():
        pictures["preprocessor_config.json"] = _read_json(name, folder / "preprocessor_config.json")
    for file, preprocessing in pictures.items():
        _check_numbers(name, file, preprocessing, _LONGEST_SIDE)


def check_weights(name: str, folder: Path, config: PreTrainedConfig) -> None:
    """That the model of ``config`` is about as large as the weights in ``folder``, before any memory is taken for it.

    It is built on the meta device, and left at the first module that is too much.

    Raises:
        UleError: it is larger, it cannot be built, or there are no safetensors files that hold what they claim.
    """
    # weights may be stored once for two layers, and a new head may be larger
    limits = {"parameters": 2 * _stored_numbers(name, folder) + _LARGEST, "modules": _MOST_MODULES}
    sizes = dict.fromkeys(limits, 0)

    def count(kind: str, size: int) -> None:
        sizes[kind] += size
        if sizes[kind] > limits[kind]:
            raise UleError(f"{name}: its config.json describes more {kind} than its weights have")

    def parameter(module: nn.Module, key: str, value: nn.Parameter | None) -> None:
        if value is not None and getattr(module, key, None) is None:  # else one takes the place of another
            count("parameters", value.numel())

    hooks = [
        register_module_parameter_registration_hook(parameter),
        register_module_module_registration_hook(lambda *_: count("modules", 1)),
    ]
    try:
        with torch.device("meta"):
            AutoModelForImageClassification.from_config(config, trust_remote_code=False)
    except UleError:
        raise
    except Exception as error:  # whatever a layer makes of numbers that make no sense
        raise UleError(f"{name}: no model can be built of its config.json: {first_line(error)}") from error
    finally:
        for hook in hooks:
            hook.remove()


def _stored_numbers(name: str, folder: Path) -> int:
    """Numbers in the safetensors files of ``folder``, by their headers."""
    files = [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not files[0].is_file() and index.is_file():
        shards = _read_json(name, index).get("weight_map")
        names = list(shards.values()) if isinstance(shards, dict) else [None]
        strange = [shard for shard in names if not isinstance(shard, str) or Path(shard).name != shard]
        if strange:
            raise UleError(f"{name}: its {index.name} names {strange[0]!r}, which is no file of the folder")
        files = [folder / shard for shard in sorted(set(names))]
    total = 0
    for file in files:
        try:
            with safe_open(file, "pt") as tensors:
                total += sum(math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            reason = f"{file.name}: {first_line(error)}"
            raise UleError(f"{name}: its weights cannot be loaded (only safetensors are read): {reason}") from error
    return total


def refuse_what_is_not_finite(name: str, model: nn.Module) -> None:
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UleError(f"{name}: its weights hold NaN or infinity, first in {key}; get another copy")


def _read_json(name: str, file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > _LONGEST_TEXT:
            raise UleError(f"{name}: its {file.name} is of {file.stat().st_size} bytes, which no configuration is")
        value = json.loads(file.read_text(encoding="utf-8"))
    except UleError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UleError(f"{name}: its {file.name} cannot be read: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise UleError(f"{name}: its {file.name} holds a {type(value).__name__}, no JSON object")
    return value


def _check_numbers(name: str, file: str, value: Any, largest: int) -> None:
    """In ``value`` and all that it holds: sizes up to ``largest``, and crops that enlarge a picture tenfold at most."""
    parts = [("", value)]
    while parts:
        key, part = parts.pop()
        if isinstance(part, dict):
            parts += part.items()
        elif isinstance(part, list):
            parts += [(key, item) for item in part]
        elif isinstance(part, int | float) and not isinstance(part, bool):
            too_small = key == "crop_pct" and part < _SMALLEST_CROP
            if abs(part) > largest or too_small or not math.isfinite(part):
                raise UleError(f"{name}: its {file} says {key} {part:.6g}, which no model needs")
