"""What the Trainer writes beside the weights; pushes are in tests/hub."""

from __future__ import annotations

import json

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from tests.test_trainer import make_trainer
from ule_hf import ULEConfig, UleError, load_student, load_teacher
from ule_hf.arguments import ModelArguments
from ule_hf.card import CardFacts, read_facts
from ule_hf.data import load
from ule_hf.data.preprocessing import PublishedEvalTransform
from ule_hf.experiment import fit


@pytest.fixture
def trainer(tmp_path):
    return make_trainer(tmp_path, num_train_epochs=1, load_best_model_at_end=False)


def test_every_save_has_its_card(trainer, tmp_path):
    trainer.card = CardFacts(license="mit", initial_weights="scratch", command="train.py --seed 3")
    trainer.train()
    trainer.save_model()
    for folder in (tmp_path / "checkpoint-4", tmp_path):
        card = ModelCard.load(folder / "README.md")
        assert card.data.license == "mit" and card.data.eval_results is None
        assert "accelerate launch train.py --seed 3" in card.text and "- **Classes**: cat, dog" in card.text
        assert "fine-tuned version" not in card.text
        assert read_facts(folder) == trainer.card
        assert json.loads((folder / "ule_config.json").read_text())["preset"] == "paper"


def test_the_card_notes_where_the_weights_came_from(trainer):
    assert trainer.card.initial_weights == "scratch"


def test_results_of_other_weights_do_not_stay(trainer, tmp_path):
    (tmp_path / "results.json").write_text('{"teacher": "of another run"}')
    trainer.save_model()
    assert not (tmp_path / "results.json").exists()


def test_the_card_can_be_changed_afterwards(trainer, tmp_path):
    trainer.save_model()
    trainer.create_model_card(license="cc-by-4.0", dataset="Cats")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "cc-by-4.0" and "Trained on Cats." in card.text
    with pytest.raises(TypeError, match="licence"):
        trainer.create_model_card(licence="mit")


def test_a_teacher_is_loaded_with_the_preprocessing_it_was_evaluated_with(tmp_path):
    data = load("digits")
    for split in data:
        data[split] = data[split].select(range(0, len(data[split]), 10))
    data["train"].info.dataset_name = "celeba"
    model = ModelArguments(model="test_resnet", image_size=32)
    args = ULEConfig(str(tmp_path), use_cpu=True, num_train_epochs=1, disable_tqdm=True)
    fit(data, "published", model, args)
    picture = Image.effect_noise((178, 218), 80).convert("RGB")
    for loaded in (load_teacher(tmp_path), load_student(tmp_path)):
        pixels = loaded.transform({"image": [picture]})["pixel_values"]
        published = PublishedEvalTransform(loaded.image_processor, "celeba")({"image": [picture]})["pixel_values"]
        assert torch.equal(pixels, published)
    assert "as published for celeba" in (tmp_path / "README.md").read_text()
    (tmp_path / "card.json").write_text('{"published_preprocessing": "imagenet"}')
    with pytest.raises(UleError, match="imagenet"):
        load_teacher(tmp_path)


def test_no_pickle_is_written(trainer, tmp_path):
    trainer.train()
    assert not list(tmp_path.rglob("*.bin"))
