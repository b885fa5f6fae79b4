"""What a teacher unlearns, epoch by epoch: the share of its attribution on the shortcut beside its worst group.

    python -m benchmarks.mechanism --data_dir FOLDER   # FOLDER holds mnist/ and cifar10/; writes the table

Dominoes at correlation 0.95: the digit above is the shortcut and fills half of the picture, so that a model that
looks everywhere alike has a share of 50. Attributions of the predicted class at 128 test images: `path` from each to
the image 64 further on, summed over an 8 × 8 grid, and the plain `gradient` (:mod:`ule_hf.report.saliency`).
Completeness is checked: what an image's path attributions add up to, against the change of the score between the ends.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers.trainer_utils import get_last_checkpoint

from benchmarks.runs import ROOT
from ule_hf.arguments import parse
from ule_hf.attribution import class_score
from ule_hf.backbones import load_backbone
from ule_hf.comparison.plan import arguments as as_arguments
from ule_hf.comparison.plan import read_plan
from ule_hf.data.preprocessing import transforms_of
from ule_hf.experiment import fit, load_data
from ule_hf.metrics import accuracy_by_group
from ule_hf.report.saliency import expected_gradients, saliency, share_on_object

RESULTS = ROOT / "results" / "mechanism.jsonl"
BED, SEED, CHOSEN = "dominoes-0.95", 0, ("erm", "auto", "constant")  # of recipes/comparisons/beds.yaml
IMAGES, EPOCHS = 128, (1, 2, 3, 6, 9, 12)


def look(folder: Path, test, method: str, epoch: int) -> dict[str, object]:
    """Worst group, shares on the shortcut, and what is missing to completeness, of the model in ``folder``."""
    model, processor = load_backbone(folder, label_names=test.features["label"].names)
    model.eval()
    rows = test.with_transform(transforms_of(test, processor, "none", seed=0)[1])[:]
    images, groups = torch.stack(list(rows["pixel_values"])), np.asarray(rows["group"])
    with torch.no_grad():
        answers = torch.cat([model(pixel_values=part).logits.argmax(dim=1) for part in images.split(256)]).numpy()
    by_group = accuracy_by_group(answers, np.asarray(rows["labels"]), groups, 4)
    some = images[torch.linspace(0, len(images) - 1, IMAGES).long()]
    others = some.roll(64, dims=0)
    shortcut = torch.zeros(IMAGES, 8, 8)
    shortcut[:, :4] = 1
    shares = {
        "path": share_on_object(saliency(model, some, "path", others[:, None], (8, 8)), shortcut),
        "gradient": share_on_object(saliency(model, some, "gradient", grid=(8, 8)), shortcut),
    }
    return {
        "method": method,
        "epoch": epoch,
        "model": "student" if folder.name == "student" else "teacher",
        "worst_group_accuracy": float(by_group.min()),
        **{f"{kind}_on_shortcut": float(np.nanmean(share)) for kind, share in shares.items()},
        "missing_to_completeness": missing_to_completeness(model, some, others),
    }


def missing_to_completeness(model: nn.Module, images: Tensor, others: Tensor) -> float:
    """Σ |summed attribution − change of the score| / Σ |change of the score|."""
    with torch.no_grad():
        logits, at_others = model(pixel_values=images).logits, model(pixel_values=others).logits
    predicted = logits.argmax(dim=1)
    change = class_score(at_others, predicted, "log_prob") - class_score(logits, predicted, "log_prob")
    summed = expected_gradients(model, images, predicted, others[:, None]).flatten(1).sum(dim=1)
    return float((summed - change).abs().sum() / change.abs().sum())


def table(lines: list[dict[str, object]]) -> str:
    rows = [
        "| method | model | epoch | worst group | path on the shortcut | gradient on the shortcut "
        "| missing to completeness |",
        "|---" * 7 + "|",
    ]
    for line in lines:
        figures = " | ".join(f"{100 * v:.1f}" for v in list(line.values())[3:])
        rows.append(f"| {line['method']} | {line['model']} | {line['epoch']} | {figures} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=ROOT.parent / "shared" / "data")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    plan = read_plan(ROOT / "recipes" / "comparisons" / "beds.yaml")
    lines = []
    for cell in plan.cells({"data": str(arguments.data_dir)}, [BED]):
        if cell.seed != SEED or cell.method not in CHOSEN:
            continue
        with tempfile.TemporaryDirectory() as folder:
            kept = {"output_dir": folder, "disable_tqdm": True, "save_total_limit": 100, "report_step_cost": False}
            data_args, model_args, args, method_args = parse(as_arguments(cell.options() | kept))
            data = load_data(data_args, args.seed)
            fit(data, "none", model_args, args, method_args=method_args)
            last = int(Path(get_last_checkpoint(folder)).name.rpartition("-")[2])
            for checkpoint in Path(folder).glob("checkpoint-*"):
                epoch = round(int(checkpoint.name.rpartition("-")[2]) / last * args.num_train_epochs)
                for model in (checkpoint, checkpoint / "student") if epoch in EPOCHS else ():
                    if model.is_dir():
                        lines.append(look(model, data["test"], cell.method, epoch))
    lines.sort(key=lambda line: (CHOSEN.index(line["method"]), line["model"], line["epoch"]))
    RESULTS.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    RESULTS.with_suffix(".md").write_text(table(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
