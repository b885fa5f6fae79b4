"""One run from data to results: build, train, evaluate both models, save. What `recipes/train.py` calls."""

from __future__ import annotations

import logging
import os
import platform
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Image
from transformers import ProgressCallback
from transformers.trainer_utils import get_last_checkpoint

from ule_hf.arguments import DataArguments, ModelArguments
from ule_hf.attribution import check_grid
from ule_hf.backbones import load_backbone
from ule_hf.card import RESULTS_FILE, CardFacts
from ule_hf.config import ULEConfig
from ule_hf.data import BENCHMARKS, load
from ule_hf.data.preprocessing import cache_resized, transforms_of
from ule_hf.data.transforms import pixel_format
from ule_hf.data.verify import label_of
from ule_hf.errors import UleError
from ule_hf.metrics import BENCHMARK_SUMMARY, SUMMARY, benchmark_metrics
from ule_hf.pair import StudentTeacher
from ule_hf.progress import EpochLines
from ule_hf.seeds import named_seed
from ule_hf.trainer import ULETrainer

logger = logging.getLogger(__name__)

DIGITS_LICENSE = "CC BY 4.0 (UCI, Optical Recognition of Handwritten Digits)"
Results = dict[str, Any]


def run(data_args: DataArguments, model_args: ModelArguments, args: ULEConfig, command: str | None = None) -> Results:
    """Load the data that ``data_args`` names, then :func:`fit`."""
    _checkpoint_to_resume(args)  # refuse before anything is loaded
    # a crop could cut off what holds the shortcut
    augmentation = data_args.augmentation or ("none" if data_args.dataset in ("digits", "dominoes") else "crop")
    if command and args.hub_token:
        command = command.replace(args.hub_token, "<HUB_TOKEN>")  # results and card are published
    data = load_data(data_args, args.seed)
    name = Path(data_args.data_dir or "").name if data_args.dataset == "folder" else data_args.dataset
    licences = {"digits": DIGITS_LICENSE} | {name: module.CARD.licence for name, module in BENCHMARKS.items()}
    card = CardFacts(
        license=model_args.license,
        dataset=label_of(data) or name,
        dataset_id=data_args.dataset_id,
        data_license=data_args.data_license or licences.get(data_args.dataset),
        data_note=_data_note(data_args),
        command=command,
    )
    return fit(data, augmentation, model_args, args, command, card)


def fit(
    data: DatasetDict,
    augmentation: str,
    model_args: ModelArguments,
    args: ULEConfig,
    command: str | None = None,
    card: CardFacts | None = None,
) -> Results:
    """Train a student and a teacher, evaluate both on the test split, save the teacher.

    Args:
        data: ``train``, ``validation`` and ``test`` as :func:`ule_hf.data.load` gives them.
        augmentation: see :class:`ule_hf.data.transforms.TrainTransform`.
        command: what the user typed, recorded in the results.
        card: what the model card says of data, licence and origin.

    Returns:
        What is written to ``<output_dir>/results.json``: for ``teacher`` and ``student`` each ``test_accuracy``,
        ``test_worst_group_accuracy``, ``test_train_weighted_accuracy``, ``test_worst_class_accuracy``, the benchmark's
        own figures (:func:`ule_hf.metrics.benchmark_metrics`) and ``groups`` (name -> accuracy and size); the same
        under ``last_epoch``, whichever epoch was selected; and under ``run`` what it takes to do it again.

    Raises:
        UleError: any bad input; nothing has been written then, except by training itself.
    """
    checkpoint = _checkpoint_to_resume(args)
    pair, processor = build_pair(model_args, data["train"].features["label"].names, args)
    published = data["train"].info.dataset_name if augmentation == "published" else None
    train_transform, eval_transform = transforms_of(data["train"], processor, augmentation, args.seed)
    trainer = ULETrainer(
        model=pair,
        args=args,
        train_dataset=data["train"].with_transform(train_transform),
        eval_dataset=data["validation"].with_transform(eval_transform),
        processing_class=processor,
        card=replace(card or CardFacts(), published_preprocessing=published),
    )
    if not args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(EpochLines)
    if args.overwrite_output_dir and checkpoint is None and trainer.is_world_process_zero():
        _remove_earlier_run(Path(args.output_dir))
    trainer.accelerator.wait_for_everyone()
    trainer.train(resume_from_checkpoint=checkpoint)
    test = data["test"].with_transform(eval_transform)
    results = {
        **_figures(trainer.evaluate(test, metric_key_prefix="test"), data["test"]),
        "last_epoch": _figures(_evaluate_last_epoch(trainer, test), data["test"]),
        "train_group_sizes": dict(zip(data["train"].features["group"].names, trainer.train_group_sizes, strict=True)),
        "run": {"dataset": label_of(data), **_record(augmentation, model_args, args, trainer, command)},
    }
    trainer.results = results
    trainer.save_model(_internal_call=True)
    trainer.save_state()
    if trainer.is_world_process_zero():
        print(format_table(results))
    if args.push_to_hub:
        try:
            trainer.push_to_hub()
        except UleError as error:  # the results are there; a Hub that is away must not make the run a failure
            repo_id = args.hub_model_id or Path(args.output_dir).resolve().name
            logger.warning("%s; push it later: ule-hf push %s %s", error, args.output_dir, repo_id)
    return results


def build_pair(model_args: ModelArguments, label_names: list[str], args: ULEConfig) -> tuple[StudentTeacher, Any]:
    """Student and teacher, each initialised from a seed of its own name, and the teacher's image processor."""
    options = {
        "label_names": label_names,
        "model_args": model_args.parsed_model_args(),
        "checkpoint_path": model_args.checkpoint_path,
    }
    teacher, processor = load_backbone(
        model_args.model, seed=named_seed(args.seed, "teacher"), image_size=model_args.image_size, **options
    )
    pixels = pixel_format(processor)
    check_grid(args.variant().grid, pixels.height, pixels.width)
    # a student of its own kind has to take what the teacher's processor makes
    student_size = model_args.image_size if model_args.student_model is None else pixels.height
    student, _ = load_backbone(
        model_args.student_model or model_args.model,
        seed=named_seed(args.seed, "student"),
        image_size=student_size,
        **options,
    )
    return StudentTeacher(student, teacher, args.variant()), processor


def format_table(results: Results) -> str:
    """Student beside teacher: average, train-weighted average, worst class, worst group, each group with its size."""
    student, teacher = results["student"], results["teacher"]
    shown = {f"test_{key}": name for key, name in (SUMMARY | BENCHMARK_SUMMARY).items()}
    rows = [(name, "", student[key], teacher[key]) for key, name in shown.items() if key in teacher]
    rows += [
        (f"  {name}", str(group["size"]), student["groups"][name]["accuracy"], group["accuracy"])
        for name, group in teacher["groups"].items()
    ]
    width = max(len(row[0]) for row in rows)
    lines = [f"{'test accuracy':<{width}}  {'images':>6}  student  teacher"]
    lines += [f"{name:<{width}}  {size:>6}  {100 * s:>7.1f}  {100 * t:>7.1f}" for name, size, s, t in rows]
    return "\n".join(lines)


def load_data(data_args: DataArguments, seed: int) -> DatasetDict:
    """The dataset that ``data_args`` names, see :func:`ule_hf.data.load`, with no other images than the model's."""
    data = _load_named(data_args, seed)
    others = [column for column, feature in data["train"].features.items() if isinstance(feature, Image)]
    data = data.remove_columns([column for column in others if column != "image"])  # masks, decoded in vain
    return cache_resized(data, data_args.cache_resized) if data_args.cache_resized is not None else data


def _load_named(data_args: DataArguments, seed: int) -> DatasetDict:
    if data_args.dataset == "digits":
        return load("digits", kind=data_args.shortcut, correlation=data_args.correlation, seed=seed)
    if data_args.dataset == "dominoes":
        return load("dominoes", data_dir=data_args.data_dir, correlation=data_args.correlation, seed=seed)
    if data_args.dataset in BENCHMARKS:
        options = {option: getattr(data_args, option) for option in BENCHMARKS[data_args.dataset].OPTIONS}
        if data_args.skip_bad_images:
            options["skip_bad_images"] = True
        return load(data_args.dataset, data_dir=data_args.data_dir, variant=data_args.variant, **options)
    return load(
        data_args.dataset,
        data_dir=data_args.data_dir,
        image_column=data_args.image_column,
        label_column=data_args.label_column,
        split_column=data_args.split_column,
        attribute_columns=tuple(data_args.attribute_columns),
        skip_bad_images=data_args.skip_bad_images,
        seed=seed,
    )


def _data_note(data_args: DataArguments) -> str | None:
    if data_args.dataset in BENCHMARKS and not data_args.data_note:
        card = BENCHMARKS[data_args.dataset].CARD
        return "\n".join([f"{card.construction} Source: {card.source}.", "", *(f"* {trap}" for trap in card.traps)])
    if data_args.data_note or data_args.dataset != "digits":
        return data_args.data_note
    picture = {
        "patch": "a coloured patch in the corner, one colour for each class,",
        "half": "the digit 0 or 1 in the upper half",
    }
    return (
        "scikit-learn's 8x8 digits, even or odd, with an artificial shortcut: "
        f"{picture[data_args.shortcut]} which agrees with the label in {100 * data_args.correlation:g} % of the "
        "training images and in half of the test images."
    )


def _checkpoint_to_resume(args: ULEConfig) -> str | None:
    """What ``--resume_from_checkpoint`` means (a folder, or ``latest``); refuses to train over a model."""
    output_dir = Path(args.output_dir)
    wanted = args.resume_from_checkpoint
    if wanted is not None:
        latest = str(wanted).lower() in ("latest", "true")
        checkpoint = get_last_checkpoint(output_dir) if latest and output_dir.is_dir() else wanted
        if checkpoint is None or not Path(checkpoint, "trainer_state.json").is_file():
            raise UleError(
                f"--resume_from_checkpoint {wanted}: no checkpoint there or in {output_dir}; "
                "name a checkpoint-N folder, or leave the option out to start anew"
            )
        return str(checkpoint)
    if _earlier_run(output_dir) and not args.overwrite_output_dir:
        raise UleError(
            f"{output_dir} already holds a model; give another --output_dir, or go on with "
            "--resume_from_checkpoint latest, or discard it with --overwrite_output_dir"
        )
    return None


def _earlier_run(output_dir: Path) -> list[Path]:
    names = ("model.safetensors", "student", RESULTS_FILE, "checkpoint-*")
    return [path for name in names for path in output_dir.glob(name)]


def _remove_earlier_run(output_dir: Path) -> None:
    for path in _earlier_run(output_dir):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _evaluate_last_epoch(trainer: ULETrainer, test: Dataset) -> dict[str, float]:
    """Test metrics of the last epoch, to show beside the selected one what selection did."""
    best, last = trainer.state.best_model_checkpoint, get_last_checkpoint(trainer.args.output_dir)
    selected_earlier = bool(trainer.args.load_best_model_at_end and best and last and not os.path.samefile(best, last))
    if selected_earlier:
        trainer._load_from_checkpoint(last)
    metrics = trainer.evaluate(test, metric_key_prefix="test")
    if selected_earlier:
        trainer._load_best_model()
    return metrics


def _figures(metrics: dict[str, float], test: Dataset) -> Results:
    names = test.features["group"].names
    ids = list(test.with_format(None)["group"])
    figures: Results = {}
    for model, prefix in (("teacher", "test_"), ("student", "test_student_")):
        figures[model] = {f"test_{key}": metrics[f"{prefix}{key}"] for key in SUMMARY}
        figures[model]["groups"] = {
            name: {"accuracy": metrics[f"{prefix}group_{g}_accuracy"], "size": ids.count(g)}
            for g, name in enumerate(names)
            if f"{prefix}group_{g}_accuracy" in metrics
        }
        by_group = [metrics.get(f"{prefix}group_{g}_accuracy", float("nan")) for g in range(len(names))]
        own = benchmark_metrics(test.info.dataset_name, metrics[f"{prefix}accuracy"], by_group)
        figures[model] |= {f"test_{key}": value for key, value in own.items()}
    return figures


def _record(
    augmentation: str, model_args: ModelArguments, args: ULEConfig, trainer: ULETrainer, command: str | None
) -> dict[str, Any]:
    packages = ("ule_hf", "torch", "torchvision", "transformers", "datasets", "accelerate", "timm")
    return {
        "command": command,
        "seed": args.seed,
        "variant": vars(args.variant()),
        "unlearning_weight": args.unlearning_weight,
        "student_head_start": args.student_head_start,
        "epochs": args.num_train_epochs,
        "selected_by": args.metric_for_best_model if args.load_best_model_at_end else "last epoch",
        "selected_checkpoint": os.path.basename(trainer.state.best_model_checkpoint or "") or None,
        "selected_score": trainer.state.best_metric,
        "processes": args.world_size,
        "device": str(args.device),
        "machine": platform.machine(),
        "augmentation": augmentation,
        "model": vars(model_args),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
    }
