"""What each process of tests/distributed runs: `python -m tests.distributed.program OUT PROCESSES [FAULT]`."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback

from tests.test_trainer import Pictures, make_trainer, train_log
from tests.test_watch import Named
from ule_hf import checkpoints
from ule_hf.attribution import draw_path
from ule_hf.backbones import load_backbone
from ule_hf.errors import UleError
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


def with_accumulation(out: Path, processes: int) -> None:
    """Eight pictures an update: at once, or two for each process and twice."""
    trainer = make_trainer(
        out / "accumulation",
        model="test_convnext",
        per_device_train_batch_size=8 if processes == 1 else 2,
        gradient_accumulation_steps=1 if processes == 1 else 2,
        optim="sgd",
        learning_rate=0.1,
        num_train_epochs=2,
    )
    synchronised = []

    def note(pair: StudentTeacher, inputs: tuple) -> None:
        if pair.training and processes > 1:
            synchronised.append(trainer.model_wrapped.require_backward_grad_sync)

    trainer.model.register_forward_pre_hook(note)
    trainer.train()
    if processes > 1:
        assert synchronised == [False, True] * 4, synchronised
    save_state(trainer.model, out / f"accumulation-rank{trainer.args.process_index}.safetensors")


def with_batch_norm(out: Path) -> None:
    """Thirteen pictures, which no number of processes divides; one of them is broken, so one process skips a step."""
    trainer = make_trainer(
        out / "batch-norm",
        train=Named({5: float("nan")}, n=13),
        per_device_train_batch_size=3,
        preset="path",
        student_head_start=0,
        on_nonfinite="skip",
    )
    trainer.train()
    rank = trainer.args.process_index
    save_state(trainer.model, out / f"batch-norm-rank{rank}.safetensors")
    log = train_log(trainer)[-1]
    (out / f"batch-norm-rank{rank}.json").write_text(
        json.dumps([trainer.evaluate()["eval_loss"], log["skipped_steps"]])
    )


def with_a_model_of_its_own(out: Path) -> None:
    """A process whose teacher differs says so at the end."""

    class Differ(TrainerCallback):
        def on_epoch_end(self, args, state, control, model=None, **kwargs):
            if args.process_index == 1 and state.epoch == 2:
                model.teacher.get_parameter("timm_model.head.fc.bias").data += 1e-3

    trainer = make_trainer(out / "differ", model="test_convnext", callbacks=[Differ()], eval_strategy="no",
                           save_strategy="no", load_best_model_at_end=False)  # fmt: skip
    try:
        trainer.train()
    except UleError as error:
        (out / f"differ-rank{trainer.args.process_index}.txt").write_text(str(error))


def with_folders_apart(out: Path) -> None:
    """Two machines without common storage."""
    checkpoints.SECONDS_TO_SEE_A_FILE = 1
    trainer = make_trainer(out / f"apart-{dist.get_rank()}")
    try:
        trainer.train()
    except UleError as error:
        (out / f"apart-rank{dist.get_rank()}.txt").write_text(str(error))


def with_fault(out: Path, fault: str) -> None:
    """Process 1 is killed in its third step, or one process meets a broken picture."""

    class Die(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            (out / "time").write_text(str(time.time()))
            if fault == "killed" and state.global_step == 2 and args.process_index == 1:
                os.kill(os.getpid(), signal.SIGKILL)

    broken = {5: float("nan")} if fault == "broken" else {}
    make_trainer(out / fault, model="test_convnext", train=Named(broken), callbacks=[Die()]).train()


def run(out: Path, processes: int) -> None:
    for head_start in (0.0, 1.0):
        with_trainer(out, processes, head_start)
    with_pair(out, processes)
    with_accumulation(out, processes)
    if processes > 1:
        with_batch_norm(out)
        with_a_model_of_its_own(out)
        with_folders_apart(out)


if __name__ == "__main__":
    if len(sys.argv) > 3:
        with_fault(Path(sys.argv[1]), sys.argv[3])
    else:
        run(Path(sys.argv[1]), int(sys.argv[2]))
    dist.destroy_process_group()
