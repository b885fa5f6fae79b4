"""ULETrainer on tiny models and synthetic pictures; two processes are in tests/distributed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Features, Value
from torch.autograd.function import once_differentiable
from transformers import AutoModelForImageClassification, TrainerCallback, ViTConfig, ViTForImageClassification

from ule_hf.backbones import load_backbone
from ule_hf.config import ULEConfig
from ule_hf.errors import UleError
from ule_hf.pair import StudentTeacher
from ule_hf.trainer import ULETrainer

LABELS = ["cat", "dog"]
# its name from transformers 5.23 on, and before
CHECKPOINTING = next(
    name for name in ("activation_checkpointing", "gradient_checkpointing") if name in ULEConfig.__dataclass_fields__
)


class Pictures(torch.utils.data.Dataset):
    """``n`` pictures whose brightness is the label and whose left half shows the group."""

    def __init__(self, n: int = 16, size: int = 32):
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(n) % 2
        self.groups = 2 * self.labels + (torch.arange(n) // 2) % 2
        self.images = 0.1 * torch.randn(n, 3, size, size, generator=generator)
        self.images += self.labels.float()[:, None, None, None]
        self.images[..., : size // 2] += (self.groups % 2).float()[:, None, None, None]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.images[i], "labels": self.labels[i], "group": self.groups[i]}


def make_trainer(output_dir: Path, model: str = "test_resnet", callbacks=None, train=None, **options) -> ULETrainer:
    settings = {
        "preset": "paper",
        "use_cpu": True,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "disable_tqdm": True,
        "seed": 3,
    }
    args = ULEConfig(output_dir=str(output_dir), **{**settings, **options})
    teacher, processor = load_backbone(model, label_names=LABELS, image_size=32, seed=1)
    student, _ = load_backbone(model, label_names=LABELS, image_size=32, seed=2)
    return ULETrainer(
        model=StudentTeacher(student, teacher, args.variant()),
        args=args,
        train_dataset=train or Pictures(),
        eval_dataset=Pictures(8),
        processing_class=processor,
        train_group_sizes=[4, 4, 4, 4],
        callbacks=callbacks,
    )


def weights(trainer: ULETrainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def train_log(trainer: ULETrainer) -> list[dict]:
    return [line for line in trainer.state.log_history if "teacher_loss" in line or "student_loss" in line]


@pytest.mark.parametrize("preset", ["paper", "path"])
def test_every_trainable_parameter_of_both_models_changes(tmp_path, preset):
    trainer = make_trainer(tmp_path, preset=preset, student_head_start=0, weight_decay=0.0)
    before = weights(trainer)
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_the_log_names_losses_accuracies_overlap_and_norms(tmp_path):
    trainer = make_trainer(tmp_path, preset="path", student_head_start=1)
    trainer.train()
    alone, together = train_log(trainer)
    assert "student_loss" in alone and "teacher_loss" not in alone and "overlap" not in alone
    expected = {"student_loss", "teacher_loss", "unlearning_loss", "overlap", "student_accuracy", "teacher_accuracy"}
    assert expected | {"student_grad_norm", "teacher_grad_norm", "unlearning_weight"} <= together.keys()
    assert alone["unlearning_weight"] == 0 and together["unlearning_weight"] == 1
    assert 0 <= together["overlap"] <= 1


def test_the_weight_of_the_term_warms_up_after_the_head_start(tmp_path):
    seen = {}

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            seen[state.global_step] = trainer.current_unlearning_weight()

    trainer = make_trainer(
        tmp_path,
        callbacks=[Watch()],
        student_head_start=1,
        unlearning_warmup=2,
        unlearning_weight=4.0,
        num_train_epochs=4,
        save_strategy="no",
        load_best_model_at_end=False,
    )
    trainer.train()
    per_epoch = 4
    assert [seen[e * per_epoch] for e in range(4)] == [0.0, 0.0, 2.0, 4.0]


def test_a_checkpoint_is_a_teacher_with_its_student_below(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    checkpoint = tmp_path / "checkpoint-8"
    teacher = AutoModelForImageClassification.from_pretrained(checkpoint)
    student = AutoModelForImageClassification.from_pretrained(checkpoint, subfolder="student")
    picture = Pictures(2).images
    trainer.model.eval()
    trainer._load_from_checkpoint(str(checkpoint))
    with torch.no_grad():
        torch.testing.assert_close(teacher(picture).logits, trainer.model.teacher(picture).logits)
        torch.testing.assert_close(student(picture).logits, trainer.model.student(picture).logits)
    assert not torch.equal(teacher(picture).logits, student(picture).logits)
    assert teacher.config.id2label == {0: "cat", 1: "dog"}
    assert not list(tmp_path.rglob("training_args.bin"))


@pytest.mark.parametrize("preset", ["paper", "path"])
@pytest.mark.parametrize("at", [3, 4], ids=["within an epoch", "between epochs"])
def test_resuming_equals_no_interruption(tmp_path, preset, at):
    options = {
        "preset": preset,
        "student_head_start": 0.5,
        "unlearning_warmup": 1,
        "save_strategy": "steps",
        "save_steps": at,
        "eval_strategy": "steps",
        "eval_steps": at,
        "load_best_model_at_end": False,
        "num_train_epochs": 3,
        "lr_scheduler_type": "cosine",
        "save_total_limit": None,
    }
    whole = make_trainer(tmp_path / "whole", **options)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", **options)
    shutil.copytree(tmp_path / "whole" / f"checkpoint-{at}", tmp_path / "resumed" / f"checkpoint-{at}")
    resumed.train(resume_from_checkpoint=str(tmp_path / "resumed" / f"checkpoint-{at}"))
    assert_same(weights(whole), weights(resumed))
    optimizers = [t.optimizer.state_dict()["state"] for t in (whole, resumed)]
    for key, state in optimizers[0].items():
        for name, value in state.items():
            assert torch.equal(value, optimizers[1][key][name])


def test_the_best_epoch_brings_back_both_models(tmp_path):
    # the figure is written by hand so that the first epoch is the best one
    scores = iter([0.9, 0.1])
    trainer = make_trainer(tmp_path)
    compute = trainer.compute_metrics
    trainer.compute_metrics = lambda p: compute(p) | {"worst_class_accuracy": next(scores)}
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-4")
    best = weights(trainer)
    trainer._load_from_checkpoint(str(tmp_path / "checkpoint-4"))
    assert_same(best, weights(trainer))
    trainer._load_from_checkpoint(str(tmp_path / "checkpoint-8"))
    assert any(not torch.equal(value, best[name]) for name, value in weights(trainer).items())


def test_a_checkpoint_without_its_student_is_refused(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    shutil.rmtree(tmp_path / "checkpoint-8" / "student")
    with pytest.raises(UleError, match=r"no checkpoint of this method.*student"):
        trainer._load_from_checkpoint(str(tmp_path / "checkpoint-8"))


def test_student_and_teacher_have_their_own_learning_rate_and_decay(tmp_path):
    trainer = make_trainer(
        tmp_path, learning_rate=1e-3, weight_decay=0.1, student_learning_rate=5e-4, student_weight_decay=0.2
    )
    optimizer = trainer.create_optimizer()
    settings = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            settings[parameter] = (group["lr"], group["weight_decay"])
    for name, parameter in trainer.model.named_parameters():
        learning_rate, decay = (1e-3, 0.1) if name.startswith("teacher") else (5e-4, 0.2)
        assert settings[parameter] == (learning_rate, decay if parameter.ndim > 1 else 0.0), name


def test_clipping_is_per_model(tmp_path):
    trainer = make_trainer(tmp_path, max_grad_norm=1.0)
    for parameter in trainer.model.teacher.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    for parameter in trainer.model.student.parameters():
        parameter.grad = torch.full_like(parameter, 1e-6)
    trainer._clip_grad_norm(trainer.model)
    norms = [
        torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
        for model in (trainer.model.teacher, trainer.model.student)
    ]
    assert norms[0] == pytest.approx(1.0, rel=1e-3)
    expected = 1e-6 * sum(p.numel() for p in trainer.model.student.parameters()) ** 0.5
    assert norms[1] == pytest.approx(expected, rel=1e-3)


def test_accumulation_equals_the_whole_batch(tmp_path):
    """Without BatchNorm and with given order; the paths of preset `path` would be drawn within other batches."""
    results = []
    for batch, steps in ((8, 1), (2, 4)):
        trainer = make_trainer(
            tmp_path / str(batch),
            model="test_convnext",
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            num_train_epochs=1,
            optim="sgd",
            learning_rate=0.1,
            save_strategy="no",
            load_best_model_at_end=False,
        )
        trainer.train()
        results.append(weights(trainer))
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("preset", ["paper", "path"])
def test_switching_the_term_on_changes_nothing_of_the_student(tmp_path, preset):
    """Data order, initial weights and the student's steps: all draws of the term come from streams of its own."""
    students = []
    for weight in (0.0, 1.0):
        trainer = make_trainer(
            tmp_path / str(weight),
            preset=preset,
            unlearning_weight=weight,
            student_head_start=0,
            save_strategy="no",
            load_best_model_at_end=False,
        )
        trainer.train()
        students.append({n: v for n, v in weights(trainer).items() if n.startswith("student")})
    assert_same(*students)


def test_bf16_trains(tmp_path):
    for model in ("test_resnet", "test_vit"):
        trainer = make_trainer(tmp_path / model, model=model, bf16=True)
        trainer.train()
        assert train_log(trainer)[-1]["unlearning_loss"] > 0
        assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path, where):
    class Poison(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 5:
                parameter = next(model.teacher.parameters())
                if where == "loss":
                    parameter.data.fill_(float("nan"))
                else:
                    parameter.register_hook(lambda grad: grad * float("inf"))

    trainer = make_trainer(tmp_path, callbacks=[Poison()])
    with pytest.raises(UleError, match=rf"{where} is not finite at step 6.*checkpoint-4"):
        trainer.train()
    AutoModelForImageClassification.from_pretrained(tmp_path / "checkpoint-4")


def test_a_batch_of_one_class_is_counted(tmp_path):
    train = Pictures()
    train.labels = torch.zeros_like(train.labels)
    trainer = make_trainer(tmp_path, preset="path", student_head_start=0, train=train)
    trainer.train()
    assert train_log(trainer)[-1]["batches_of_one_class"] == 8


def test_metrics_of_both_models_by_group(tmp_path):
    trainer = make_trainer(tmp_path)
    metrics = trainer.evaluate()
    for prefix in ("eval_", "eval_student_"):
        assert {f"{prefix}group_{g}_accuracy" for g in range(4)} <= metrics.keys()
        by_group = [metrics[f"{prefix}group_{g}_accuracy"] for g in range(4)]
        assert metrics[f"{prefix}worst_group_accuracy"] == min(by_group)
        assert metrics[f"{prefix}accuracy"] == pytest.approx(sum(by_group) / 4)


def test_step_cost_is_reported_once_and_touches_nothing(tmp_path):
    runs = [make_trainer(tmp_path / str(on), report_step_cost=on) for on in (False, True)]
    for trainer in runs:
        trainer.train()
    assert_same(*(weights(trainer) for trainer in runs))
    reports = [line["step_cost"] for line in runs[1].state.log_history if "step_cost" in line]
    assert len(reports) == 1 and reports[0] > 1


def test_the_configuration_is_saved_without_secrets(tmp_path):
    trainer = make_trainer(tmp_path, hub_token="hf_secret", num_train_epochs=1)
    trainer.train()
    texts = [p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.stat().st_size < 1e6]
    assert texts and not any(b"hf_secret" in text for text in texts)
    assert json.loads((tmp_path / "checkpoint-4" / "ule_config.json").read_text())["unlearning_weight"] == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fp16": True}, "fp16 cannot be used with ULE"),
        ({"torch_compile": True}, "torch_compile cannot be used"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor cannot be used"),
        ({f"{CHECKPOINTING}_kwargs": {"use_reentrant": True}}, "use_reentrant cannot be used"),
        ({"unlearning_weight": -1.0}, "must not be negative"),
        ({"eval_strategy": "sometimes"}, "sometimes"),
        ({"student_head_start": 3.0}, "the teacher would never be trained"),
        ({"grid": "4by4"}, "grid '4by4' is not understood"),
        ({"preset": "papr"}, "preset 'papr' is not known"),
        ({"term": "cosine"}, "term 'cosine' is not known"),
        ({"preset": "paper", "score": "difference"}, "needs a partner"),
        ({"term": "kl", "map_sign": "signed"}, "without negative values"),
    ],
)
def test_options_that_cannot_work_are_refused_at_construction(tmp_path, options, message):
    with pytest.raises(UleError, match=message):
        ULEConfig(output_dir=str(tmp_path), use_cpu=True, **options)


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return grad.clone()


def test_a_layer_without_a_second_derivative_is_named(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.model.teacher.timm_model.conv1[0].register_forward_hook(lambda module, args, output: _Once.apply(output))
    with pytest.raises(UleError, match=r"no second derivative.*attn_implementation"):
        trainer.train()


def test_a_pair_from_two_libraries_is_refused(tmp_path):
    vit, _ = load_backbone("test_vit", label_names=LABELS, image_size=32)
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32)
    with pytest.raises(UleError, match="take both of one library"):
        ULETrainer(StudentTeacher(vit, ViTForImageClassification(config)), ULEConfig(), processing_class=object())


def test_labels_outside_the_range_are_refused(tmp_path):
    features = Features(label=Value("int64"), pixel_values=Value("float32"))
    dataset = Dataset.from_dict({"label": [0, 2], "pixel_values": [0.0, 0.0]}, features=features)
    with pytest.raises(UleError, match="labels of train_dataset run from 0 to 2, but the teacher has 2 classes"):
        make_trainer(tmp_path, train=dataset)


def test_several_gpus_in_one_process_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ULEConfig, "n_gpu", property(lambda self: 2))
    with pytest.raises(UleError, match="accelerate launch"):
        ULEConfig(output_dir=str(tmp_path), use_cpu=True)


def test_checkpointing_with_batch_norm_is_refused_and_works_without(tmp_path):
    with pytest.raises(UleError, match="BatchNorm"):
        make_trainer(tmp_path / "resnet", **{CHECKPOINTING: True}).train()
    plain, checkpointed = (
        make_trainer(tmp_path / str(on), model="test_vit", optim="sgd", **{CHECKPOINTING: on}) for on in (False, True)
    )
    for trainer in (plain, checkpointed):
        trainer.train()
    for name, value in weights(plain).items():
        torch.testing.assert_close(value, weights(checkpointed)[name], rtol=1e-4, atol=1e-6)
