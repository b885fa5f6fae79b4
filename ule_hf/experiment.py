"""One run from data to results: build, train, evaluate, save. What `recipes/train.py` calls."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from datasets import DatasetDict, Image

from ule_hf.arguments import DataArguments, MethodArguments, ModelArguments
from ule_hf.attribution import check_grid
from ule_hf.baselines import afr, dfr, eiil, erm, group_dro, jtt, lff, sampling
from ule_hf.card import CardFacts, read_facts
from ule_hf.checkpoints import last_checkpoint
from ule_hf.classifier_trainer import ClassifierTrainer
from ule_hf.config import ULEConfig
from ule_hf.data import BENCHMARKS, load
from ule_hf.data.preprocessing import cache_resized, transforms_of
from ule_hf.data.transforms import pixel_format
from ule_hf.data.verify import label_of
from ule_hf.errors import UleError
from ule_hf.pair import StudentTeacher
from ule_hf.provenance import data_fingerprint
from ule_hf.results import (
    Results,
    curve,
    evaluate_last_epoch,
    figures,
    format_table,
    model_names,
    record,
    selections,
)
from ule_hf.task import FIRST_STAGE, Task, earlier_run, load_initial
from ule_hf.trainer import ULETrainer

logger = logging.getLogger(__name__)

DIGITS_LICENSE = "CC BY 4.0 (UCI, Optical Recognition of Handwritten Digits)"
#: Datasets whose pictures this package composes.
COMPOSED = ("digits", "digit_pairs", "dominoes")


def run(
    data_args: DataArguments,
    model_args: ModelArguments,
    args: ULEConfig,
    method_args: MethodArguments | None = None,
    command: str | None = None,
) -> Results:
    """Load the data that ``data_args`` names, then :func:`fit`."""
    _checkpoint_to_resume(args)  # refuse before anything is loaded
    # a crop could cut off what holds the shortcut
    augmentation = data_args.augmentation or ("none" if data_args.dataset in COMPOSED else "crop")
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
    return fit(data, augmentation, model_args, args, command, card, method_args)


def fit(
    data: DatasetDict,
    augmentation: str,
    model_args: ModelArguments,
    args: ULEConfig,
    command: str | None = None,
    card: CardFacts | None = None,
    method_args: MethodArguments | None = None,
) -> Results:
    """Train by one method, evaluate on the test split, save the model that is shipped: of ULE the teacher.

    Args:
        data: ``train``, ``validation`` and ``test`` as :func:`ule_hf.data.load` gives them.
        augmentation: see :class:`ule_hf.data.transforms.TrainTransform`.
        command: what the user typed, recorded in the results.
        card: what the model card says of data, licence and origin.
        method_args: the method; by default ULE.

    Returns:
        What is written to ``<output_dir>/results.json``: for ``teacher`` and ``student``, or of another method than
        ULE for ``model``, each ``test_accuracy``, ``test_worst_group_accuracy``, ``test_train_weighted_accuracy``,
        ``test_worst_class_accuracy``, the benchmark's own figures (:func:`ule_hf.metrics.benchmark_metrics`) and
        ``groups`` (name -> accuracy and size); the same under ``last_epoch``, whichever epoch was selected; with
        ``evaluate_test_each_epoch`` also ``curve`` and ``selections`` (:mod:`ule_hf.results`); and under ``run`` what
        it takes to do it again.

    Raises:
        UleError: any bad input; nothing has been written then, except by training itself.
    """
    method_args = method_args or MethodArguments()
    method = METHODS[method_args.method]
    with_groups = _have_attributes(data)
    if not with_groups and (method.training_groups or method.validation_groups):
        raise UleError(
            f"--method {method_args.method} needs group labels, and the data has none beside its classes; name the "
            "spurious attributes (--attribute_columns), or choose a method that needs none"
        )
    checkpoint = _checkpoint_to_resume(args)
    if checkpoint is not None and (trained_by := read_facts(checkpoint).method) != method.title:
        raise UleError(
            f"{checkpoint} is of {trained_by or 'ULE'}; go on with that --method, or give another --output_dir"
        )
    processor = load_initial(model_args, data["train"].features["label"].names, args.seed, "teacher")[1]
    published = data["train"].info.dataset_name if augmentation == "published" else None
    task = Task(
        data=data,
        transforms=transforms_of(data["train"], processor, augmentation, args.seed),
        processor=processor,
        model_args=model_args,
        method_args=method_args,
        args=args,
        card=replace(card or CardFacts(), published_preprocessing=published, method=method.title),
        checkpoint=checkpoint,
        resuming=args.resume_from_checkpoint is not None,
    )
    wall, cpu = time.perf_counter(), time.process_time()
    trainer = method.train(task)
    seconds = {"wall_seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    names = model_names(method_args.method)
    recorded = _curve(task, trainer, names, with_groups) if method_args.evaluate_test_each_epoch else {}
    test = task.for_evaluation(data["test"])
    results = {
        **figures(trainer.evaluate(test, metric_key_prefix="test"), data["test"], names),
        "last_epoch": figures(evaluate_last_epoch(trainer, test), data["test"], names),
        "train_group_sizes": dict(zip(data["train"].features["group"].names, task.group_sizes, strict=True)),
        **recorded,
        "run": {
            "dataset": label_of(data),
            "data_fingerprint": data_fingerprint(data),
            **record(augmentation, model_args, method_args, args, trainer, command),
            "labels_used": method.labels_used(),
            **{name: round(value, 2) for name, value in seconds.items()},
        },
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


def train_ule(task: Task) -> ULETrainer:
    """Train a student and a teacher, each initialised from a seed of its own name."""
    variant = task.args.variant()
    pixels = pixel_format(task.processor)
    check_grid(variant.grid, pixels.height, pixels.width)
    model_args = task.model_args
    if model_args.student_model is not None:  # one of its own kind has to take what the teacher's processor makes
        model_args = replace(model_args, model=model_args.student_model, image_size=pixels.height)
    student, _ = load_initial(model_args, task.labels, task.args.seed, "student")
    sampler = sampling.class_balanced(task) if task.args.class_balanced_sampling else None
    return task.train(
        task.trainer(ULETrainer, StudentTeacher(student, task.classifier(), variant), train_sampler=sampler)
    )


@dataclass(frozen=True)
class Method:
    """How a method trains, what people call it, and which group labels it reads itself, selection apart."""

    train: Callable[[Task], ClassifierTrainer]
    title: str | None
    training_groups: bool = False
    validation_groups: bool = False

    def labels_used(self) -> dict[str, str]:
        """What the method has seen of the two splits."""
        used = {"training": self.training_groups, "validation": self.validation_groups}
        return {split: "class and group" if groups else "class" for split, groups in used.items()}


METHODS = {
    "ule": Method(train_ule, None),
    "erm": Method(erm.train, "plain training (empirical risk minimisation)"),
    "group_dro": Method(group_dro.train, "Group DRO (Sagawa et al. 2020)", training_groups=True),
    "jtt": Method(jtt.train, "JTT (Liu et al. 2021)"),
    "lff": Method(lff.train, "LfF (Nam et al. 2020)"),
    "dfr": Method(dfr.train, "DFR (Kirichenko et al. 2023)", validation_groups=True),
    "afr": Method(afr.train, "AFR (Qiu et al. 2023)"),
    "eiil": Method(eiil.train, "EIIL (Creager et al. 2021) with Group DRO"),
    "class_balanced": Method(sampling.train_class_balanced, "plain training with class-balanced sampling"),
    "group_balanced": Method(
        sampling.train_group_balanced, "plain training with group-balanced sampling", training_groups=True
    ),
}


def _have_attributes(data: DatasetDict) -> bool:
    """Whether groups are more than the classes in training and validation."""
    return all(data[s].features["group"].names != data[s].features["label"].names for s in ("train", "validation"))


def _curve(task: Task, trainer: ClassifierTrainer, names: dict[str, str], with_groups: bool) -> Results:
    splits = (task.data["validation"], task.data["test"], names)
    first_stage = [{**entry, "stage": 1} for entry in curve(task.first_stage_log, *splits)]
    entries = first_stage + curve(trainer.state.log_history, *splits)
    head_start = trainer.head_start_ends if isinstance(trainer, ULETrainer) else 0.0
    return {"curve": entries, "selections": selections(entries, head_start, with_groups)}


def load_data(data_args: DataArguments, seed: int) -> DatasetDict:
    """The dataset that ``data_args`` names, see :func:`ule_hf.data.load`, with no other images than the model's."""
    data = _load_named(data_args, seed)
    others = [column for column, feature in data["train"].features.items() if isinstance(feature, Image)]
    data = data.remove_columns([column for column in others if column != "image"])  # masks, decoded in vain
    return cache_resized(data, data_args.cache_resized) if data_args.cache_resized is not None else data


def _load_named(data_args: DataArguments, seed: int) -> DatasetDict:
    if data_args.dataset == "digits":
        return load("digits", kind=data_args.shortcut, correlation=data_args.correlation, seed=seed)
    if data_args.dataset in ("digit_pairs", "dominoes"):
        options = {"data_dir": data_args.data_dir, "correlation": data_args.correlation, "seed": seed}
        if data_args.dataset == "digit_pairs":
            options["shortcut"] = data_args.shortcut
        elif data_args.classes:
            options["classes"] = tuple(data_args.classes)
        return load(data_args.dataset, **options)
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
        checkpoint = last_checkpoint(output_dir) if latest else wanted
        if checkpoint is None and (output_dir / FIRST_STAGE).is_dir():
            return None  # the last stage has not begun, the first is gone on with
        if checkpoint is None or not Path(checkpoint, "trainer_state.json").is_file():
            raise UleError(
                f"--resume_from_checkpoint {wanted}: no checkpoint there or in {output_dir}; "
                "name a checkpoint-N folder, or leave the option out to start anew"
            )
        return str(checkpoint)
    if earlier_run(output_dir) and not args.overwrite_output_dir:
        raise UleError(
            f"{output_dir} already holds a model; give another --output_dir, or go on with "
            "--resume_from_checkpoint latest, or discard it with --overwrite_output_dir"
        )
    return None
