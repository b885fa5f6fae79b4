"""What each process of tests/distributed runs: `python -m tests.distributed.program OUT PROCESSES`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel

from tests.test_trainer import Pictures, make_trainer
from ule_hf.attribution import draw_path
from ule_hf.backbones import load_backbone
from ule_hf.pair import StudentTeacher
from ule_hf.variant import Variant


def save_state(model: torch.nn.Module, file: Path) -> None:
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, file)


def with_trainer(out: Path, processes: int, head_start: float) -> None:
    """8 pictures a step, whatever the number of processes; an odd number of pictures to evaluate."""
    name = f"head-start-{head_start:g}"
    trainer = make_trainer(
        out / name,
        model="test_convnext",
        per_device_train_batch_size=8 // processes,
        num_train_epochs=2,
        student_head_start=head_start,
        optim="sgd",
        learning_rate=0.1,
    )
    assert trainer.args.world_size == processes, "the processes do not know of one another"
    trainer.eval_dataset = Pictures(7)
    trainer.train()
    metrics = trainer.evaluate()
    save_state(trainer.model, out / f"{name}-rank{trainer.args.process_index}.safetensors")
    if trainer.is_world_process_zero():
        log = next(line for line in reversed(trainer.state.log_history) if "student_loss" in line)
        figures = [metrics["eval_accuracy"], log["student_loss"], log["overlap"]]
        (out / f"{name}.json").write_text(json.dumps(figures))


def with_pair(out: Path, processes: int) -> None:
    """One step of preset `path` on given partners and points, in halves or whole."""
    torch.manual_seed(0)
    models = [load_backbone("test_convnext", label_names=["a", "b"], image_size=32, seed=s)[0] for s in (1, 2)]
    variant = Variant(attribution="path", score="difference", grid=(2, 2), term="overlap")
    pair = StudentTeacher(*models, variant).train()
    pictures = Pictures(8)
    images, labels = pictures.images, pictures.labels
    halves = [draw_path(labels[i : i + 4], torch.Generator().manual_seed(i)) for i in (0, 4)]
    rank = 0
    if processes == 1:
        partners = torch.cat([halves[0][0], halves[1][0] + 4])
        points = torch.cat([halves[0][1], halves[1][1]])
        module = pair
    else:
        rank = dist.get_rank()
        part = slice(4 * rank, 4 * rank + 4)
        images, labels, (partners, points) = images[part], labels[part], halves[rank]
        module = DistributedDataParallel(pair)
    optimizer = torch.optim.SGD(pair.parameters(), lr=0.1)
    module(images, labels, unlearning_weight=1.0, partners=partners, points=points).loss.backward()
    optimizer.step()
    save_state(pair, out / f"path-rank{rank}.safetensors")


def run(out: Path, processes: int) -> None:
    for head_start in (0.0, 1.0):
        with_trainer(out, processes, head_start)
    with_pair(out, processes)


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]))
    dist.destroy_process_group()
