"""What the student is asked: at one point of a path or at several, at the image or at a layer inside the network.

    python -m benchmarks.student_attribution --data_dir FOLDER   # FOLDER holds mnist/ and cifar10/; resumes; the table

The default asks at one point, at the image. Beds, seeds and recipe are those of recipes/comparisons/beds.yaml; form
`image, 1 point` is its `auto`. At a layer, the path goes from the layer's output for an image to that for its partner,
and the attribution is again complete (Sundararajan et al. 2017, with the rest of the network as the function). Its
cells are those of the layer, laid over the picture.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.runs import ROOT, read
from ule_hf.arguments import parse
from ule_hf.attribution import class_score, mix, path_attribution
from ule_hf.card import CardFacts
from ule_hf.comparison.plan import Cell, read_plan
from ule_hf.comparison.plan import arguments as as_arguments
from ule_hf.comparison.statistics import mean_and_spread
from ule_hf.data.preprocessing import transforms_of
from ule_hf.experiment import load_data
from ule_hf.pair import StudentTeacher
from ule_hf.task import Task, load_initial
from ule_hf.trainer import ULETrainer

RESULTS = ROOT / "results" / "student_attribution.jsonl"
BEDS = ("half-1.0", "moving-1.0", "dominoes-0.95")
#: Points on each path, timm's name of the layer, and seeds: what was behind after one had no more. The image's 40 or 48
#: pixels are 10 or 12 wide in layer1, 5 or 6 in layer2, 2 or 3 in layer4.
FORMS = {
    "image, 1 point": (1, None, (0, 1, 2)),
    "image, 4 points": (4, None, (0, 1, 2)),
    "layer1, 1 point": (1, "layer1", (0,)),
    "layer2, 1 point": (1, "layer2", (0,)),
    "layer4, 1 point": (1, "layer4", (0,)),
}
FIGURES = ("worst_group", "average", "trial_student_turned")


class AskedElsewhere(StudentTeacher):
    """A pair whose student is asked at ``points`` points of each path, at the output of its layer ``layer``."""

    points = 1
    layer: str | None = None

    def _path_attribution(
        self, model: nn.Module, images: Tensor, labels: Tensor, path: tuple[Tensor, Tensor], *rest: object
    ) -> Tensor:
        partners, first = path
        # the first point is the default's; the others follow at equal distances, from the end of the path to its start
        points = [(first + number / self.points) % 1 for number in range(self.points)]
        return torch.stack([self._at(model, images, labels, (partners, point), *rest) for point in points]).mean(dim=0)

    def _at(
        self, model: nn.Module, images: Tensor, labels: Tensor, path: tuple[Tensor, Tensor], *rest: object
    ) -> Tensor:
        if self.layer is None:
            return super()._path_attribution(model, images, labels, path, *rest)
        layer = model.get_submodule(f"timm_model.{self.layer}")
        with torch.no_grad(), captured(layer) as seen:
            model(pixel_values=images)
        inside, difference = mix(seen[0], *path)
        with replaced(layer, inside.requires_grad_()):
            logits = model(pixel_values=images).logits
        score = class_score(logits, labels, self.variant.score, labels[path[0]])
        return path_attribution(score, inside, difference)


@contextmanager
def captured(layer: nn.Module) -> Iterator[list[Tensor]]:
    """A list that takes the layer's outputs."""
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        yield seen
    finally:
        hook.remove()


@contextmanager
def replaced(layer: nn.Module, output: Tensor) -> Iterator[None]:
    """The layer gives ``output``, whatever it is given."""
    hook = layer.register_forward_hook(lambda module, inputs, own: output)
    try:
        yield
    finally:
        hook.remove()


def run(cell: Cell, points: int, layer: str | None) -> dict[str, float]:
    """The teacher's worst group and average on the test split, in the last epoch."""
    with tempfile.TemporaryDirectory() as folder:
        kept = {"output_dir": folder, "disable_tqdm": True, "report_step_cost": False, "save_strategy": "no"}
        kept |= {"load_best_model_at_end": False, "eval_strategy": "no", "evaluate_test_each_epoch": False}
        data_args, model_args, args, method_args = parse(as_arguments(cell.options() | kept))
        data = load_data(data_args, args.seed)
        student, processor = load_initial(model_args, data["train"].features["label"].names, args.seed, "student")
        transforms = transforms_of(data["train"], processor, "none", args.seed)
        task = Task(data, transforms, processor, model_args, method_args, args, CardFacts())
        pair = AskedElsewhere(student, task.classifier(), args.variant())
        pair.points, pair.layer = points, layer
        trainer = task.train(task.trainer(ULETrainer, pair))
        found = trainer.evaluate(task.for_evaluation(data["test"]), metric_key_prefix="test")
    return {
        "worst_group": found["test_worst_group_accuracy"],
        "average": found["test_accuracy"],
        **{f"trial_{name}": share for name, share in trainer.trial().items()},
    }


def table(lines: list[dict]) -> str:
    rows = ["| bed | the student is asked at | seeds | worst group | average | turned |", "|---" * 6 + "|"]
    for bed in BEDS:
        for form in FORMS:
            found = [line for line in lines if line["key"]["bed"] == bed and line["key"]["form"] == form]
            if found:
                figures = ([line[name] for line in found] for name in FIGURES)
                cells = " | ".join(mean_and_spread(values) for values in figures)
                rows.append(f"| {bed} | {form} | {len(found)} | {cells} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=ROOT.parent / "shared" / "data")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    plan = read_plan(ROOT / "recipes" / "comparisons" / "beds.yaml")
    cells = [c for c in plan.cells({"data": str(arguments.data_dir)}, BEDS) if c.method == "auto"]
    for cell in sorted(cells, key=lambda cell: cell.seed):
        for form, (points, layer, seeds) in FORMS.items():
            key = {"bed": cell.bed, "form": form, "seed": cell.seed}
            if cell.seed not in seeds or key in (line["key"] for line in read(RESULTS)):
                continue
            line = {"key": key, **run(cell, points, layer)}
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(line, flush=True)
    RESULTS.with_suffix(".md").write_text(table(read(RESULTS)), encoding="utf-8")


if __name__ == "__main__":
    main()
