"""What a run is told: data, models, method; and a parser whose YAML files the command line overrides."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml
from transformers import HfArgumentParser

from ule_hf.config import ULEConfig
from ule_hf.errors import UleError


@dataclass
class DataArguments:
    """Which images, and how they are read."""

    dataset: str = field(
        default="digits",
        metadata={
            "help": "digits; folder, digit_pairs, dominoes with --data_dir; waterbirds, celeba, spawrious, urbancars."
        },
    )
    data_dir: str | None = field(
        default=None,
        metadata={
            "help": "folder: your images and their metadata. Benchmarks: raw folder, archive, Parquet, or Hub id. "
            "digit_pairs, dominoes: folder with mnist/, and for dominoes cifar10/."
        },
    )
    variant: str | None = field(
        default=None, metadata={"help": "Benchmarks: your name for a copy that is not the published one."}
    )
    target: str = field(default="Blond_Hair", metadata={"help": "celeba: attribute to tell."})
    attribute: str = field(default="Male", metadata={"help": "celeba: spurious attribute."})
    combination: str = field(default="o2o_hard", metadata={"help": "spawrious: o2o or m2m, _easy, _medium or _hard."})
    shortcut: Literal["patch", "half", "moving", "two"] = field(
        default="patch",
        metadata={"help": "Kind of shortcut: of digits patch or half, of digit_pairs half, moving or two."},
    )
    correlation: float = field(
        default=0.95,
        metadata={
            "help": "digits, digit_pairs, dominoes, urbancars: share of training images whose shortcut agrees with the "
            "label."
        },
    )
    classes: list[str] = field(
        default_factory=list, metadata={"help": "dominoes: two classes of CIFAR-10; automobile and truck if left out."}
    )
    image_column: str | None = field(default=None, metadata={"help": "folder: column with the file names."})
    label_column: str = field(default="label", metadata={"help": "folder: column with the labels."})
    split_column: str | None = field(default=None, metadata={"help": "folder: column with the splits."})
    attribute_columns: list[str] = field(
        default_factory=list, metadata={"help": "folder: columns with spurious attributes; groups are label x these."}
    )
    skip_bad_images: bool = field(default=False, metadata={"help": "Leave out unreadable images, with a count."})
    augmentation: Literal["none", "flip", "crop", "published"] | None = field(
        default=None,
        metadata={
            "help": "Training images: as they are, mirrored, cropped and mirrored, or, of a benchmark, training and "
            "evaluation as published."
        },
    )
    cache_resized: int | None = field(
        default=None, metadata={"help": "Decode images once and keep them with so many pixels on the shorter side."}
    )
    dataset_id: str | None = field(default=None, metadata={"help": "Model card: Hub id of the data."})
    data_license: str | None = field(default=None, metadata={"help": "Model card: terms under which the data is used."})
    data_note: str | None = field(
        default=None, metadata={"help": "Model card: what is spurious in the data, where it comes from, its limits."}
    )


@dataclass
class ModelArguments:
    """Which two models."""

    model: str = field(
        default="timm/resnet50.a1_in1k",
        metadata={"help": "Hub id (timm or transformers), local folder, or timm architecture (from scratch)."},
    )
    student_model: str | None = field(default=None, metadata={"help": "The student's, where it differs."})
    checkpoint_path: str | None = field(
        default=None, metadata={"help": "A safetensors file for a bare timm architecture; for both models."}
    )
    model_args: str | None = field(
        default=None, metadata={"help": 'JSON given on to timm.create_model, such as {"img_size": 64}.'}
    )
    image_size: int | None = field(default=None, metadata={"help": "Pixels; by default what the model was made for."})
    freeze_backbone: bool = field(
        default=False,
        metadata={"help": "Train only the last layer, of every model; the rest works as in evaluation."},
    )
    license: str | None = field(
        default=None, metadata={"help": "Model card: licence of the weights, one of the Hub's, such as apache-2.0."}
    )

    def parsed_model_args(self) -> dict[str, Any] | None:
        if self.model_args is None:
            return None
        try:
            parsed = json.loads(self.model_args)
        except json.JSONDecodeError as error:
            raise UleError(f'--model_args is no JSON ({error}); write it as {{"img_size": 64}}, in quotes') from error
        if not isinstance(parsed, dict):
            raise UleError(f'--model_args is a {type(parsed).__name__}; write a JSON object such as {{"img_size": 64}}')
        return parsed


Method = Literal[
    "ule", "erm", "group_dro", "jtt", "lff", "dfr", "afr", "class_balanced", "group_balanced", "eiil"
]  # fmt: skip


@dataclass
class MethodArguments:
    """How the model is trained, and what is written down of it. Defaults are those of the methods' papers.

    Raises:
        UleError: a value outside its range.
    """

    method: Method = field(default="ule", metadata={"help": "ule, or what it is compared with: see ule_hf.baselines."})
    evaluate_test_each_epoch: bool = field(
        default=False,
        metadata={"help": "Record the test figures of every epoch, and what each rule of selection would have chosen."},
    )
    group_dro_step_size: float = field(default=0.01, metadata={"help": "group_dro: η, the step of the group weights."})
    group_dro_adjustment: float = field(
        default=0.0, metadata={"help": "group_dro: C; C/√n is added to the loss of a group of n training images."}
    )

    jtt_first_epochs: float = field(default=1.0, metadata={"help": "jtt: T, epochs of the first model."})
    jtt_upweight: float = field(default=20.0, metadata={"help": "jtt: λ, how much more often errors are drawn."})
    lff_decay: float = field(default=0.7, metadata={"help": "lff: decay of each image's average losses."})
    dfr_subsets: int = field(default=20, metadata={"help": "dfr: balanced subsets whose weights are averaged."})
    afr_held_out: float = field(
        default=0.2, metadata={"help": "afr: share of training that the last layer is fitted to."}
    )
    afr_gamma: float = field(default=1.44, metadata={"help": "afr: γ, how much what is hard weighs more."})
    afr_penalty: float = field(default=0.1, metadata={"help": "afr: λ, of the distance to the first model's layer."})
    eiil_first_epochs: float = field(default=1.0, metadata={"help": "eiil: epochs of the reference model."})

    def __post_init__(self) -> None:
        above_zero = ("group_dro_step_size", "jtt_first_epochs", "jtt_upweight", "dfr_subsets", "eiil_first_epochs")
        allowed = {
            "above 0": {name: getattr(self, name) > 0 for name in above_zero},
            "0 or more": {n: getattr(self, n) >= 0 for n in ("group_dro_adjustment", "afr_gamma", "afr_penalty")},
            "in [0, 1)": {"lff_decay": 0 <= self.lff_decay < 1},
            "between 0 and 1": {"afr_held_out": 0 < self.afr_held_out < 1},
        }
        for where, names in allowed.items():
            for name, holds in names.items():
                if not holds:
                    raise UleError(f"{name} is {getattr(self, name)}; it must be {where}")

    def of_method(self) -> dict[str, Any]:
        """The options of this method alone."""
        return {name: value for name, value in vars(self).items() if name.startswith(f"{self.method}_")}


Arguments = tuple[DataArguments, ModelArguments, ULEConfig, MethodArguments]


def parse(argv: list[str], recipes: Path | None = None) -> Arguments:
    """Command line to dataclasses. ``--config FILE.yaml`` gives defaults that the command line overrides.

    Without ``--config``, ``<recipes>/<dataset>/default.yaml`` is used where it exists.

    Raises:
        UleError: a file that cannot be read, or an option that does not exist.
    """
    parser = _Parser((DataArguments, ModelArguments, ULEConfig, MethodArguments))
    parser.add_argument("--config", help="YAML file with options; the command line overrides it.")
    chosen = parser.parse_known_args(argv)[0]
    config = Path(chosen.config) if chosen.config else None
    if config is None and recipes is not None and (recipes / chosen.dataset / "default.yaml").is_file():
        config = recipes / chosen.dataset / "default.yaml"
    if config is not None:
        parser.set_defaults(**_read_yaml(config, known=set(vars(chosen)) - {"config"}))
    if parser.parse_known_args(argv)[0].method != "ule":
        # a teacher without a student: what is saved of the options must not look like ULE
        parser.set_defaults(preset="paper", unlearning_weight="0", student_head_start="0")
    *parsed, _config, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    if unknown:
        options = [f"--{name}" for name in vars(chosen)]
        raise UleError(f"option {unknown[0]} does not exist{_close_matches(unknown[0], options)}; see --help")
    return tuple(parsed)


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        """argparse would print every option there is before the message."""
        raise UleError(f"{message.removeprefix('argument ')}; see --help")


def _read_yaml(path: Path, known: set[str]) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise UleError(f"config {path} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict):
        raise UleError(f"config {path} holds a {type(values).__name__}; write one 'option: value' a line")
    for name in values:
        if name not in known:
            raise UleError(f"config {path}: option {name} does not exist{_close_matches(name, sorted(known))}")
    # YAML 1.1 reads 1e-4 as a string; argparse converts defaults that are strings, as it does what is typed
    return {n: str(v) if isinstance(v, (int, float)) and not isinstance(v, bool) else v for n, v in values.items()}


def _close_matches(name: str, options: list[str]) -> str:
    matches = difflib.get_close_matches(name, options)
    return f" (did you mean {', '.join(matches)}?)" if matches else ""
