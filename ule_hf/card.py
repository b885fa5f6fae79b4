"""The model card of a teacher: ``README.md``, rendered from what its folder holds.

``config.json``, ``ule_config.json``, ``card.json`` and, once the test split has been evaluated, ``results.json`` are
read and nothing else, so that the card of a folder can be made again at any time. What is not known is left out.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ule_hf.errors import UleError
from ule_hf.metrics import SUMMARY

CARD_FILE, FACTS_FILE, CONFIG_FILE, RESULTS_FILE = "README.md", "card.json", "ule_config.json", "results.json"
PICTURES = "saliency/*.png"
FROM_SCRATCH, LOCAL_WEIGHTS = "scratch", "local"
RENDERED = "Rendered by `ule-hf card`; without this line, what you change here stays as it is."
TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
METHOD_OPTIONS = (
    *("preset", "attribution", "score", "grid", "map_sign", "map_norm", "term", "control", "unlearning_weight"),
    *("unlearning_warmup", "unlearning_interval", "unlearning_fraction", "coverage"),
    *("student_loss", "gce_q", "student_head_start", "head_start_accuracy", "freeze_student"),
    "class_balanced_sampling",
)
TRAINING_OPTIONS = (
    *("num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "optim", "learning_rate"),
    *("student_learning_rate", "weight_decay", "student_weight_decay", "lr_scheduler_type", "warmup_steps"),
    *("max_grad_norm", "bf16", "seed"),
)


@dataclass
class CardFacts:
    """What the card says and no other file of the folder knows; kept in ``card.json``, to be mended there.

    Args:
        model_id: the repository, ``me/my-teacher``.
        license: of the weights, one of the Hub's identifiers, such as ``apache-2.0``.
        initial_weights: a Hub id, ``scratch`` or ``local`` (a folder or file nobody else has).
        dataset: its name, for people. dataset_id: its Hub id.
        data_license, data_note: free text: under which terms the images may be used; what is spurious in them,
            where they come from, what they cannot show.
        published_preprocessing: the benchmark whose published preprocessing evaluation used instead of the model's.
        command: what was typed.
        method: what trained it, where that was not ULE.
        plain: the ``teacher`` part of the results of plain training with the same recipe.

    Raises:
        UleError: a licence or an id that the Hub would not take.
    """

    model_id: str | None = None
    license: str | None = None
    initial_weights: str | None = None
    dataset: str | None = None
    dataset_id: str | None = None
    data_license: str | None = None
    data_note: str | None = None
    published_preprocessing: str | None = None
    command: str | None = None
    method: str | None = None
    plain: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.\-]*", self.license):
            raise UleError(
                f"license {self.license!r} is no identifier of the Hub; write it as apache-2.0, cc-by-nc-4.0 or other"
            )
        for name in ("model_id", "dataset_id"):
            try:
                validate_repo_id(getattr(self, name) or "name")
            except HFValidationError as error:
                raise UleError(f"{name} {getattr(self, name)!r} is no Hub id; write it as NAMESPACE/NAME") from error


def write_card(folder: str | Path, facts: CardFacts | None = None, output: str | Path | None = None) -> Path:
    """Render the card of ``folder`` into its ``README.md``, or into ``output``; ``facts`` replace its ``card.json``.

    Raises:
        UleError: the folder holds no teacher, or a file in it cannot be read.
    """
    folder = Path(folder)
    if facts is not None:
        text = json.dumps(asdict(facts), indent=2) + "\n"
        (folder / FACTS_FILE).write_text(text, encoding="utf-8")
    path = folder / CARD_FILE if output is None else Path(output)
    path.write_text(render_card(folder), encoding="utf-8")
    return path


def render_card(folder: str | Path) -> str:
    """The card of ``folder`` as Markdown with its metadata in front."""
    folder = Path(folder)
    model = read_json(folder / "config.json")
    config = read_json(folder / CONFIG_FILE)
    facts = read_facts(folder)
    results = read_json(folder / RESULTS_FILE) if (folder / RESULTS_FILE).is_file() else None
    is_timm = model.get("model_type") == "timm_wrapper"
    card = ModelCard.from_template(
        card_metadata(facts, is_timm, _title(facts, config), results),
        template_path=str(TEMPLATE),
        facts=facts,
        address=facts.model_id or config["output_dir"],
        title=_title(facts, config),
        is_timm=is_timm,
        architecture=_architecture(model),
        student=_architecture(read_json(path)) if (path := folder / "student" / "config.json").is_file() else None,
        labels=model.get("label_names") or list(model["id2label"].values()),
        config=config,
        method={name: config[name] for name in METHOD_OPTIONS if _is_set(config.get(name))},
        training={name: config[name] for name in TRAINING_OPTIONS if _is_set(config.get(name))},
        is_plain=config["unlearning_weight"] == 0 and facts.method is None,
        results=results,
        table=_table(results, facts.plain) if results else None,
        selection=_selection(config, results),
        pictures=[path.relative_to(folder).as_posix() for path in sorted(folder.glob(PICTURES))],
        version=version("ule_hf"),
        mark=RENDERED,
    )
    return str(card).rstrip() + "\n"


def card_metadata(
    facts: CardFacts, is_timm: bool, title: str | None = None, results: dict[str, Any] | None = None
) -> ModelCardData:
    """What the Hub reads of the card: licence, tags, base model, data, average and worst-group accuracy."""
    has_base = facts.initial_weights not in (None, FROM_SCRATCH, LOCAL_WEIGHTS)
    return ModelCardData(
        license=facts.license,
        library_name="timm" if is_timm else "transformers",
        pipeline_tag="image-classification",
        tags=["image-classification", "spurious-correlations", "group-robustness"]
        + (["ule", "ule_hf"] if facts.method is None else ["ule_hf"])
        + (["timm", "transformers"] if is_timm else []),
        base_model=facts.initial_weights if has_base else None,
        datasets=[facts.dataset_id] if facts.dataset_id else None,
        model_name=title if results else None,
        eval_results=_eval_results(facts, shipped(results)) if results else None,
    )


def read_facts(folder: str | Path) -> CardFacts:
    """``card.json``, or empty facts where there is none.

    Raises:
        UleError: it holds what the card does not know, or cannot be read.
    """
    path = Path(folder) / FACTS_FILE
    try:
        return CardFacts(**read_json(path)) if path.is_file() else CardFacts()
    except TypeError as error:
        raise UleError(f"{path}: {str(error).rpartition(' got ')[2]}; see ule_hf.card.CardFacts") from error


def plain_results(folder: str | Path, beside: str | Path) -> dict[str, Any]:
    """The figures of the plain training in ``folder``, to be shown beside those of the teacher in ``beside``.

    Raises:
        UleError: the run used the term, or was tested on other groups.
    """
    plain, results = (read_json(Path(path) / RESULTS_FILE) for path in (folder, beside))
    if plain["run"].get("method", "ule") not in ("ule", "erm"):
        raise UleError(f"{folder}: no plain training, its method is {plain['run']['method']}")
    if plain["run"].get("unlearning_weight", 0) != 0:
        raise UleError(f"{folder}: no plain training, its unlearning_weight is {plain['run']['unlearning_weight']}")
    sizes = [{n: group["size"] for n, group in shipped(r)["groups"].items()} for r in (plain, results)]
    if sizes[0] != sizes[1]:
        raise UleError(f"{folder}: tested on other groups than {beside}; train both with the same data options")
    return shipped(plain)


def shipped(results: dict[str, Any]) -> dict[str, Any]:
    """The figures of the model that is in the folder."""
    return results.get("teacher") or results["model"]


def read_json(path: Path) -> dict[str, Any]:
    """One of the folder's files.

    Raises:
        UleError: it is missing or no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise UleError(f"{path} {reason}; give an output folder of ule-hf train or ULETrainer") from error
    if not isinstance(value, dict):
        raise UleError(f"{path} holds a {type(value).__name__}, no JSON object")
    return value


def _eval_results(facts: CardFacts, teacher: dict[str, Any]) -> list[EvalResult]:
    name = facts.dataset or facts.dataset_id or "unnamed"
    common = {"task_type": "image-classification", "dataset_type": facts.dataset_id or name, "dataset_name": name}
    average = EvalResult(
        **common, dataset_split="test", metric_type="accuracy", metric_name="Accuracy",
        metric_value=round(teacher["test_accuracy"], 4),
    )  # fmt: skip
    worst = EvalResult(
        **common, dataset_split="test", metric_type="accuracy", metric_name="Worst-group accuracy",
        metric_value=round(teacher["test_worst_group_accuracy"], 4), metric_args={"reduce": "worst_group"},
    )  # fmt: skip
    return [average, worst]


def _table(results: dict[str, Any], plain: dict[str, Any] | None) -> list[list[str]]:
    """Rows of cells, heading first: each summary and group with its sizes, plain training, student, teacher."""
    models = ([plain] if plain else []) + [results[name] for name in ("student", "teacher", "model") if name in results]
    names = ["student", "**teacher**"] if "teacher" in results else ["**model**"]
    heading = ["", "training images", "test images", *(["plain training"] if plain else []), *names]
    rows = [[name, "", "", *(_percent(m[f"test_{key}"]) for m in models)] for key, name in SUMMARY.items()]
    trained_on = results.get("train_group_sizes", {})
    for name, group in shipped(results)["groups"].items():
        accuracies = [_percent(m["groups"][name]["accuracy"]) for m in models]
        rows.append([name.replace("|", "\\|"), str(trained_on.get(name, "")), str(group["size"]), *accuracies])
    return [heading, ["---", *["---:"] * (len(heading) - 1)], *rows]


def _selection(config: dict[str, Any], results: dict[str, Any] | None) -> str:
    if not config["load_best_model_at_end"]:
        return "No epoch was selected: this is the last one, so no validation label was looked at."
    metric = config["metric_for_best_model"].removeprefix("eval_")
    groups = "" if metric not in ("worst_group_accuracy", "train_weighted_accuracy") else ", which needs group labels"
    rule = f"The epoch with the best validation `{metric}`{groups} (of equally good ones the last)"
    if results and results["run"]["selected_checkpoint"]:
        run = results["run"]
        return f"{rule}: `{run['selected_checkpoint']}`, where it was {run['selected_score']:.3f}."
    return f"{rule} is selected at the end of training."


def _title(facts: CardFacts, config: dict[str, Any]) -> str:
    return Path(facts.model_id or config["output_dir"]).name


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _architecture(model: dict[str, Any]) -> str:
    return model.get("architecture") or model["architectures"][0]


def _is_set(value: Any) -> bool:
    return value not in (None, "None")  # ule_config.json writes None as a word
