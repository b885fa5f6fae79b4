"""The model card as text and metadata; that the Hub takes it is shown in tests/hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from ule_hf.arguments import parse
from ule_hf.backbones import load_backbone, save_backbone
from ule_hf.card import CardFacts, card_metadata, plain_results, read_facts, render_card, write_card
from ule_hf.cli import main as cli
from ule_hf.config import ULEConfig
from ule_hf.errors import UleError
from ule_hf.publishing import initial_weights

REPOSITORY = Path(__file__).parents[1]


def results(weight: float, worst: float) -> dict:
    groups = {"cat, at=home": {"accuracy": 0.9, "size": 30}, "cat, at=a|b": {"accuracy": worst, "size": 10}}
    figures = {f"test_{key}": 0.8 for key in ("accuracy", "train_weighted_accuracy", "worst_class_accuracy")}
    figures |= {"test_worst_group_accuracy": worst, "groups": groups}
    run = {"unlearning_weight": weight, "selected_checkpoint": "checkpoint-7", "selected_score": 0.75}
    run |= {"versions": {"python": "3.11"}, "processes": 2, "device": "cpu"}
    return {"teacher": figures, "student": figures, "train_group_sizes": {"cat, at=home": 500}, "run": run}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder as the Trainer saves it before the test split has been evaluated."""
    classifier, processor = load_backbone("test_resnet", label_names=["cat", "dog"], image_size=32)
    save_backbone(classifier, processor, tmp_path)
    configure(tmp_path)
    return tmp_path


def configure(folder: Path, **options) -> None:
    config = ULEConfig("outputs/cats", use_cpu=True, **{"preset": "paper", **options}).to_sanitized_dict()
    (folder / "ule_config.json").write_text(json.dumps(config))


def test_what_is_not_known_is_left_out(folder):
    card = ModelCard(render_card(folder))
    assert card.data.eval_results is None and card.data.license is None and card.data.base_model is None
    assert "has not been evaluated yet" in card.text and "training data was not recorded" in card.text
    assert "is selected at the end of training" in card.text
    for word in ("None", "worst group", "## Saliency", "accelerate launch"):
        assert word not in card.text, word


def test_metadata_survives_the_hub_s_own_reader(folder):
    facts = CardFacts(
        model_id="me/cats", license="mit", initial_weights="timm/resnet50.a1_in1k", dataset="Cats", dataset_id="me/data"
    )
    (folder / "results.json").write_text(json.dumps(results(1.0, 0.5)))
    write_card(folder, facts)
    data = ModelCard.load(folder / "README.md").data
    assert (data.license, data.base_model, data.datasets) == ("mit", "timm/resnet50.a1_in1k", ["me/data"])
    assert (data.library_name, data.pipeline_tag, data.model_name) == ("timm", "image-classification", "cats")
    average, worst = data.eval_results
    assert (average.metric_value, worst.metric_value, worst.metric_args) == (0.8, 0.5, {"reduce": "worst_group"})
    assert {average.dataset_type, worst.dataset_type} == {"me/data"} and worst.dataset_split == "test"


def test_the_table_has_student_teacher_and_plain_training_with_sizes(folder):
    (folder / "results.json").write_text(json.dumps(results(1.0, 0.5)))
    write_card(folder, CardFacts(plain=results(0.0, 0.125)["teacher"]))
    text = ModelCard.load(folder / "README.md").text
    assert "|  | training images | test images | plain training | student | **teacher** |" in text
    assert "| worst group |  |  | 12.5 | 50.0 | 50.0 |" in text
    assert "| cat, at=home | 500 | 30 | 90.0 | 90.0 | 90.0 |" in text
    assert r"| cat, at=a\|b |  | 10 | 12.5 | 50.0 | 50.0 |" in text
    assert "`checkpoint-7`, where it was 0.750" in text and "2 processes on cpu" in text


def test_the_honest_status_and_the_citation_are_always_there(folder):
    text = render_card(folder)
    assert "full text of the paper could not be obtained" in text and "**our\nreading** of arXiv 2409.02792" in text
    assert "@article{mitchell2025unlearning" in text


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ("scratch", "trained from scratch"),
        ("local", "from a local folder or file"),
        ("timm/resnet50.a1_in1k", "https://huggingface.co/timm/resnet50.a1_in1k"),
    ],
)
def test_where_the_weights_came_from(folder, weights, sentence):
    write_card(folder, CardFacts(initial_weights=weights))
    card = ModelCard.load(folder / "README.md")
    assert sentence in card.text
    assert (card.data.base_model is None) == (weights in ("scratch", "local"))


def test_initial_weights_are_those_that_were_loaded(folder, tmp_path):
    labels = ["cat", "dog"]
    scratch, _ = load_backbone("test_resnet", label_names=labels, image_size=32)
    loaded, _ = load_backbone(folder, label_names=labels)
    checkpoint, _ = load_backbone(
        "test_resnet", label_names=labels, image_size=32, checkpoint_path=folder / "model.safetensors"
    )
    assert [initial_weights(c) for c in (scratch, loaded, checkpoint)] == ["scratch", "local", "local"]
    scratch.config.name_or_path = "timm/resnet50.a1_in1k"  # as transformers notes a Hub id
    assert initial_weights(scratch) == "timm/resnet50.a1_in1k"


def test_plain_training_and_controls_are_called_what_they_are(folder):
    assert "unlearned nothing" not in render_card(folder) and "**control**" not in render_card(folder)
    configure(folder, unlearning_weight=0.0)
    assert "unlearned nothing" in render_card(folder)
    configure(folder, control="constant")
    assert "**control**" in render_card(folder)


def test_the_selection_rule(folder):
    assert "`worst_class_accuracy`" in render_card(folder)
    configure(folder, metric_for_best_model="worst_group_accuracy")
    assert "`worst_group_accuracy`, which needs group labels" in render_card(folder)
    configure(folder, load_best_model_at_end=False)
    assert "No epoch was selected" in render_card(folder)


def test_the_command_renders_it_again(folder, tmp_path, capsys):
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "results.json").write_text(json.dumps(results(0.0, 0.125)))
    (folder / "results.json").write_text(json.dumps(results(1.0, 0.5)))
    assert cli(["card", str(folder), "--plain", str(plain), "--output", str(tmp_path / "card.md")]) == 0
    assert "plain training" in (tmp_path / "card.md").read_text() and not (folder / "README.md").exists()
    assert cli(["card", str(folder)]) == 0
    assert (folder / "README.md").read_text() == (tmp_path / "card.md").read_text()  # it is in card.json now
    assert cli(["card", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_plain_results_are_of_plain_training_on_the_same_groups(folder, tmp_path):
    (folder / "results.json").write_text(json.dumps(results(1.0, 0.5)))
    with pytest.raises(UleError, match="no plain training"):
        plain_results(folder, beside=folder)
    other = results(0.0, 0.5)
    other["teacher"]["groups"]["cat, at=home"]["size"] = 31
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "results.json").write_text(json.dumps(other))
    with pytest.raises(UleError, match="other groups"):
        plain_results(tmp_path / "plain", beside=folder)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"license": "Apache 2.0"}, "apache-2.0"),
        ({"dataset_id": "a/b/c"}, "dataset_id"),
        ({"model_id": "a b"}, "model_id"),
    ],
)
def test_facts_that_the_hub_would_not_take(facts, message):
    with pytest.raises(UleError, match=message):
        CardFacts(**facts)


def test_a_card_json_with_a_wrong_key(folder):
    (folder / "card.json").write_text('{"licence": "mit"}')
    with pytest.raises(UleError, match="licence"):
        read_facts(folder)
    (folder / "card.json").write_text("{")
    with pytest.raises(UleError, match="cannot be read"):
        read_facts(folder)


def test_transformers_models_are_of_that_library():
    assert card_metadata(CardFacts(), is_timm=False).library_name == "transformers"


@pytest.mark.parametrize("path", sorted((REPOSITORY / "model_cards").glob("*.md")), ids=lambda path: path.stem)
def test_the_cards_of_the_readme_s_teachers(path):
    card = ModelCard.load(path)
    assert len(card.data.eval_results) == 2 and card.data.license
    command = card.text.split("```bash\naccelerate launch recipes/train.py ")[1].split("\n")[0]
    data_args, _, args, _ = parse(command.split(), recipes=REPOSITORY / "recipes")
    assert f"| preset | {args.preset} |" in card.text and f"Trained on {data_args.dataset}" in card.text
