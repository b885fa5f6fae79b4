"""What the Trainer writes beside the weights; pushes are in tests/hub."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import ModelCard

from tests.test_trainer import make_trainer
from ule_hf.card import CardFacts, read_facts


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


def test_no_pickle_is_written(trainer, tmp_path):
    trainer.train()
    assert not list(tmp_path.rglob("*.bin"))
