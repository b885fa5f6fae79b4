"""From a name or a path to an image classifier and its image processor, and back to a folder.

Every backbone is a transformers ``PreTrainedModel``; those of timm sit in transformers' own
``TimmWrapperForImageClassification``. A saved folder needs nothing of this package to be loaded.
"""

from __future__ import annotations

import copy
import difflib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

import timm
import torch
from huggingface_hub import snapshot_download
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import resolve_input_data_config
from timm.models import get_model_args, get_model_input_config
from torch import nn
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    TimmWrapperImageProcessor,
)
from transformers.image_processing_utils import BaseImageProcessor

from ule_hf.errors import UleError, first_line
from ule_hf.model_files import MODEL_FILES, check_model_folder, check_weights, refuse_what_is_not_finite
from ule_hf.seeds import named_seed

# What stays of a pretrained_cfg: how a picture becomes the input. The rest (address, licence, label offset)
# is about other weights than those of the model at hand.
_KEPT_CFG = ("interpolation", "crop_pct", "crop_mode", "mean", "std", "input_size", "first_conv", "classifier")


def load_backbone(
    name_or_path: str | os.PathLike,
    *,
    label_names: Sequence[str],
    seed: int = 0,
    image_size: int | None = None,
    model_args: dict[str, Any] | None = None,
    checkpoint_path: str | os.PathLike | None = None,
    revision: str | None = None,
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """An image classifier for ``label_names`` (float32, CPU, eval mode) and its image processor.

    ``classifier(pixel_values=x).logits`` maps ``[B, C, H, W]`` to ``[B, len(label_names)]``.

    Args:
        name_or_path: a local folder saved by transformers, timm or :func:`save_backbone`; a Hub id of
            transformers or timm (it has a "/"); or a bare timm architecture, which starts from scratch
            with timm's own initialisation.
        label_names: the classes in the order of their ids. The head of a folder or Hub model is kept if
            its names are the same, else it is new.
        seed: draws what is new (the whole model or its head); the global random state is left alone.
        image_size: side of the square that pictures are squeezed into, nothing cut off; timm models of a
            fixed size are built for it, or resampled if they are pretrained. Default: the model's own
            size and cropping.
        model_args: given on to ``timm.create_model``, e.g. ``{"img_size": 64}``; timm backbones only.
        checkpoint_path: a safetensors file for a bare timm architecture; it must fit exactly, except for
            a head of another size, which stays new.
        revision: branch, tag or commit of a Hub id.

    Raises:
        UleError: there is no such model or weights, they do not fit, or the model cannot run on what its
            image processor makes.
    """
    name = os.fspath(name_or_path)
    labels = list(label_names)
    if len(set(labels)) != len(labels) or len(labels) < 2:
        raise UleError(f"label_names: at least two different names are needed, got {labels}")
    if image_size is not None and image_size < 1:
        raise UleError(f"image_size: must be positive, got {image_size}")

    # Only the CPU generator: torch.manual_seed would also move the accelerators' ones.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(named_seed(seed, "weights"))
        if os.path.isdir(name) or "/" in name:
            if checkpoint_path is not None:
                raise UleError(f"checkpoint_path: {name} brings its own weights; give a bare timm architecture with it")
            classifier = _load_pretrained(name, labels, model_args, revision)
        else:
            classifier = _create_timm(name, labels, image_size, model_args, checkpoint_path)
        if isinstance(classifier, TimmWrapperForImageClassification):
            processor = _timm_processor(name, classifier, image_size)
        else:
            processor = _transformers_processor(name, image_size, revision)
        classifier.eval()
        _check_that_it_runs(name, classifier, processor, image_size)
    return classifier, processor


def save_backbone(classifier: PreTrainedModel, image_processor: BaseImageProcessor, folder: str | os.PathLike) -> None:
    """Write ``config.json``, ``model.safetensors`` and, for transformers, the image processor's file.

    ``AutoModelForImageClassification``, ``AutoImageProcessor``, ``pipeline("image-classification")`` and
    :func:`load_backbone` read the folder; for a timm backbone also ``timm.create_model("local-dir:...")``
    and, once pushed, ``"hf-hub:..."``.

    Raises:
        UleError: the image processor is of the other library than the backbone; no such folder can be read.
    """
    is_timm = isinstance(classifier, TimmWrapperForImageClassification)
    if image_processor is None or isinstance(image_processor, TimmWrapperImageProcessor) != is_timm:
        raise UleError(
            f"image_processor: a {'timm' if is_timm else 'transformers'} backbone is saved with an image processor "
            f"of its own library, got {type(image_processor).__name__}"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not is_timm:
        classifier.save_pretrained(folder)
        image_processor.save_pretrained(folder)
        return

    # transformers would prefix the weights with "timm_model.", which timm cannot read, and timm would
    # write the number of classes into model_args, on which transformers trips. This form suits both.
    config, timm_model = classifier.config, classifier.timm_model
    label_names = [config.id2label[i] for i in range(config.num_labels)]
    text = json.dumps(
        {
            "model_type": config.model_type,
            "architectures": [type(classifier).__name__],
            "architecture": config.architecture,
            "num_classes": config.num_labels,
            "label_names": label_names,
            "model_args": _model_args(timm_model),
            "pretrained_cfg": {**config.pretrained_cfg, **image_processor.data_config},
        },
        indent=2,
    )
    # Contiguous copies: safetensors takes neither channels_last tensors nor shared ones.
    weights = {k: v.clone(memory_format=torch.contiguous_format) for k, v in timm_model.state_dict().items()}
    _write(folder / "config.json", lambda path: path.write_text(text + "\n", encoding="utf-8"))
    _write(folder / "model.safetensors", lambda path: save_file(weights, path, metadata={"format": "pt"}))


def load_weights(classifier: PreTrainedModel, folder: str | os.PathLike) -> None:
    """Put the weights that :func:`save_backbone` has written to ``folder`` into ``classifier``, strictly."""
    if isinstance(classifier, TimmWrapperForImageClassification):
        weights = load_file(Path(folder) / "model.safetensors")
    else:  # transformers renames some weights when it saves, and back when it loads
        weights = type(classifier).from_pretrained(folder, dtype=classifier.dtype).state_dict()
    classifier.load_state_dict(weights)


def freeze_backbone(classifier: PreTrainedModel) -> None:
    """Leave only the layers that make the logits to be trained: a linear probe.

    All other weights need no gradient, and their modules stay in evaluation mode whatever ``train()`` is called on
    the classifier or on what holds it: running statistics stand still and nothing drops out. ``copy.deepcopy`` keeps
    that; names, saved files and ``config`` know nothing of it.

    Raises:
        UleError: no layer of the classifier belongs to the classes.
    """
    head = head_names(classifier)
    if not head:
        raise UleError(f"freeze_backbone: no layer of {type(classifier).__name__} makes logits; leave it out")
    for name, parameter in classifier.named_parameters():
        if name.rpartition(".")[0] not in head:
            parameter.requires_grad_(False)
    classifier.train = MethodType(_train_the_head, classifier)  # the Trainer calls train() at every step
    classifier.train(classifier.training)


def is_convolutional(model: nn.Module) -> bool:
    """Whether ``model`` has convolutions beyond a patch embedding, so that channels_last pays.

    >>> is_convolutional(nn.Conv2d(3, 8, kernel_size=3)), is_convolutional(nn.Conv2d(3, 8, 16, stride=16))
    (True, False)
    """
    convolutions = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    return any(convolution.kernel_size != convolution.stride for convolution in convolutions)


def _train_the_head(classifier: PreTrainedModel, mode: bool = True) -> PreTrainedModel:
    """``classifier.train(mode)``, but only modules with a trainable weight of their own and the whole take it up.

    The whole does because a Trainer and a pair of models look there; what is between, such as timm's dropout before
    the head, does not.
    """
    type(classifier).train(classifier, mode)
    for module in classifier.modules():
        trained = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        if module is not classifier and not trained:
            module.training = False
    return classifier


def _load_pretrained(
    name: str, labels: list[str], model_args: dict[str, Any] | None, revision: str | None
) -> PreTrainedModel:
    """A classifier from a local folder or the Hub, with a new head unless its label names are ``labels``."""
    folder = _files_of(name, revision)
    if not (folder / "config.json").is_file():
        raise UleError(f"{name}: holds no model: it has no config.json")
    check_model_folder(name, folder)
    with _one_line(f"{name}: its config.json cannot be read"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        raise UleError(f"{name}: holds a {config.model_type!r} model, which has no image classifier")

    is_timm = isinstance(config, TimmWrapperConfig)
    if model_args and not is_timm:
        raise UleError(f"model_args: {name} is no timm model; its own config.json describes it completely")
    if is_timm:
        # timm saves the number of classes among the arguments, where transformers passes it a second time.
        saved_args = {k: v for k, v in (config.model_args or {}).items() if k != "num_classes"}
        config.model_args = {**saved_args, **(model_args or {})}
        if not hasattr(config, "pretrained_cfg"):
            config.pretrained_cfg = timm.get_pretrained_cfg(config.architecture).to_dict(remove_source=True)
    keeps_head = list(config.id2label.values()) == labels
    _set_labels(config, labels)
    # A flash attention chosen by the saved model has no second derivative: back to the default, sdpa or
    # eager, which have one under sdpa_kernel(SDPBackend.MATH).
    config._attn_implementation = None

    check_weights(name, folder, config)
    with _one_line(f"{name}: its weights cannot be loaded (only safetensors are read)"), _no_load_report():
        classifier, info = AutoModelForImageClassification.from_pretrained(
            folder,
            config=config,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            use_safetensors=True,  # a pickle can run code
            dtype=torch.float32,  # the default is the saved precision
            trust_remote_code=False,
        )
    classifier.config.name_or_path = name
    refuse_what_is_not_finite(name, classifier)
    head = head_names(classifier)
    replaced = sorted(info["missing_keys"] | {key for key, *_ in info["mismatched_keys"]})
    lost = [key for key in replaced if key.rpartition(".")[0] not in head]
    if lost:
        raise UleError(f"{name}: its weights do not fit its config.json and model_args, first at {lost[:3]}")
    if replaced or not keeps_head:
        for part in head:
            classifier.get_submodule(part).reset_parameters()
    return classifier


def _files_of(name: str, revision: str | None) -> Path:
    """The folder itself, or the place in the cache of what is read of a repository."""
    if os.path.isdir(name):
        return Path(name)
    with _one_line(f"{name}: neither a local folder nor a Hub model that can be read"):
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(MODEL_FILES)))


def _create_timm(
    name: str,
    labels: list[str],
    image_size: int | None,
    model_args: dict[str, Any] | None,
    checkpoint_path: str | os.PathLike | None,
) -> TimmWrapperForImageClassification:
    """A timm architecture with timm's own initialisation, or the weights of ``checkpoint_path``."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture) or (tag and name not in timm.list_pretrained(f"{architecture}.*")):
        close = difflib.get_close_matches(name, timm.list_models() + timm.list_pretrained(), n=5)
        hint = f"did you mean {', '.join(close)}?" if close else "see timm.list_models()"
        raise UleError(f"{name}: neither a local folder nor a timm architecture; {hint}")
    if tag and checkpoint_path is None:
        raise UleError(f"{name}: names weights; write timm/{name} for them, {architecture} to start from scratch")

    arguments = dict(model_args or {})
    if image_size and checkpoint_path is None and timm.get_pretrained_cfg(name).fixed_input_size:
        if "img_size" in arguments:
            raise UleError(f"image_size and model_args img_size: {name} is built for one size, give one of them")
        arguments["img_size"] = image_size
    with _one_line(f"{name}: timm cannot build it with model_args={arguments}"):
        timm_model = timm.create_model(name, pretrained=False, checkpoint_path="", num_classes=len(labels), **arguments)
    input_size = get_model_input_config(timm_model)["input_size"]
    config = TimmWrapperConfig(
        architecture=architecture,
        model_args=_model_args(timm_model),
        pretrained_cfg={**timm_model.pretrained_cfg, "input_size": input_size},
    )
    _set_labels(config, labels)
    classifier = TimmWrapperForImageClassification(config)
    # The wrapper draws every weight anew, N(0, 0.02), on the assumption that a checkpoint follows.
    classifier.timm_model = timm_model
    if checkpoint_path is not None:
        _load_checkpoint(classifier, Path(checkpoint_path))
        config.name_or_path = os.path.abspath(checkpoint_path)  # as transformers notes it of a folder
    return classifier


def _load_checkpoint(classifier: TimmWrapperForImageClassification, path: Path) -> None:
    if path.suffix != ".safetensors":
        raise UleError(
            f"checkpoint_path: {path}: only safetensors files are read, since a pickle can run code; convert a "
            "trusted one: safetensors.torch.save_file(torch.load(PATH, weights_only=True), 'weights.safetensors')"
        )
    with _one_line(f"checkpoint_path: {path} cannot be read"):
        weights = {f"timm_model.{k.removeprefix('timm_model.')}": v for k, v in load_file(path).items()}
    expected = classifier.state_dict()
    wrong = weights.keys() ^ expected.keys()
    wrong |= {k for k in weights.keys() & expected.keys() if weights[k].shape != expected[k].shape}
    head = head_names(classifier)
    body = sorted(k.removeprefix("timm_model.") for k in wrong if k.rpartition(".")[0] not in head)
    if body:
        raise UleError(
            f"checkpoint_path: {path} is of another architecture or size: {len(body)} tensors are missing, "
            f"unknown or of another shape, first {body[:3]}"
        )
    classifier.load_state_dict({k: v for k, v in weights.items() if k not in wrong}, strict=False)
    if wrong:
        # timm draws the heads of EfficientNet and MobileNet with a deviation of 0.4 for two classes, 25 times that of a
        # linear layer, and a short training does not get over it
        for part in head:
            classifier.get_submodule(part).reset_parameters()


def _timm_processor(
    name: str, classifier: TimmWrapperForImageClassification, image_size: int | None
) -> TimmWrapperImageProcessor:
    """Fit a timm classifier to ``image_size`` if one is given; its processor, recorded in its config."""
    config, timm_model = classifier.config, classifier.timm_model
    with _one_line(f"image_size: {name} cannot be fitted to {image_size}"):
        current = get_model_input_config(timm_model)
        if image_size and current["fixed_input_size"] and current["input_size"][1:] != (image_size, image_size):
            if not hasattr(timm_model, "set_input_size"):
                raise UleError(f"image_size: {name} takes pictures of {current['input_size'][1:]} only; leave it out")
            timm_model.set_input_size(img_size=(image_size, image_size))  # resamples the position embedding
            config.model_args = _model_args(timm_model)
        whole_picture = {"img_size": image_size, "crop_pct": 1.0, "crop_mode": "squash"} if image_size else {}
        # Not timm_model.pretrained_cfg, which is that of the architecture's default weights.
        cfg = {k: v for k, v in config.pretrained_cfg.items() if k in _KEPT_CFG}
        cfg |= resolve_input_data_config(timm_model, whole_picture, pretrained_cfg=cfg)
        cfg["fixed_input_size"] = current["fixed_input_size"]
        config.pretrained_cfg = cfg
        return TimmWrapperImageProcessor(pretrained_cfg=cfg, architecture=config.architecture)


def _transformers_processor(name: str, image_size: int | None, revision: str | None) -> BaseImageProcessor:
    with _one_line(f"{name}: it has no image processor that can be read (preprocessor_config.json)"):
        processor = AutoImageProcessor.from_pretrained(_files_of(name, revision), trust_remote_code=False)
        if image_size is None:
            return processor
        square = {"height": image_size, "width": image_size}
        changes: dict[str, Any] = {"size": square, "crop_size": square, "do_center_crop": False}
        if hasattr(processor, "crop_pct"):  # ResNet's and ConvNeXt's know the shortest edge only
            changes = {"size": {"shortest_edge": image_size}, "crop_size": square, "crop_pct": 1.0}
        return type(processor).from_dict({**processor.to_dict(), **changes})


def _check_that_it_runs(
    name: str, classifier: PreTrainedModel, processor: BaseImageProcessor, image_size: int | None
) -> None:
    """Run one blank picture through both, so that a misfit shows here and not in the first step."""
    picture = Image.new("RGB", (96, 64))
    misfit = f"{name}: the model does not run on what its image processor makes; see image_size and model_args"
    with _one_line(misfit), torch.no_grad():
        pixel_values = processor(picture, return_tensors="pt")["pixel_values"]
        logits = classifier(pixel_values=pixel_values).logits
    if image_size and tuple(pixel_values.shape[-2:]) != (image_size, image_size):
        raise UleError(f"image_size: {name}: its image processor cannot be set to {image_size}; leave it out")
    if tuple(getattr(logits, "shape", ())) != (1, classifier.config.num_labels):
        raise UleError(f"{name}: with its model_args the model does not end in one logit for each class")


def _set_labels(config: PreTrainedConfig, labels: list[str]) -> None:
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    if hasattr(config, "label_names"):  # a timm configuration's own copy would win over id2label when saved
        del config.label_names


def _model_args(timm_model: nn.Module) -> dict[str, Any]:
    """What rebuilds ``timm_model`` as it is now, except the number of classes."""
    return {k: v for k, v in get_model_args(timm_model).items() if k != "num_classes"}


def head_names(classifier: PreTrainedModel) -> list[str]:
    """The modules that make the logits: those that one more class would change."""
    config = copy.deepcopy(classifier.config)
    config.num_labels += 1
    with torch.device("meta"):
        wider = type(classifier)(config)
    shapes = {name: parameter.shape for name, parameter in classifier.named_parameters()}
    changed = (name for name, parameter in wider.named_parameters() if parameter.shape != shapes[name])
    return sorted({name.rpartition(".")[0] for name in changed})


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Through a temporary name, so that no reader ever sees half a file."""
    temporary = path.with_name(f".{path.name}.tmp")
    write(temporary)
    os.replace(temporary, path)


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Turn what other libraries raise into a UleError that ends with the first line of their message."""
    try:
        yield
    except UleError:
        raise
    except Exception as error:  # a configuration at fault makes libraries raise whatever there is
        raise UleError(f"{what}: {first_line(error)}") from error


@contextmanager
def _no_load_report() -> Iterator[None]:
    """Silence transformers' table of replaced weights: a new head is wanted, and any other is an error here."""

    def is_no_report(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(is_no_report)
    try:
        yield
    finally:
        logger.removeFilter(is_no_report)
