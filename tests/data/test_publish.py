from __future__ import annotations

import errno

import pytest
import yaml
from datasets import load_dataset
from huggingface_hub import DatasetCard

from tests.data.copies import ROWS, SIZES, published_of, tar, write_celeba, write_waterbirds
from ule_hf.data import BENCHMARKS, celeba, load, publish, waterbirds
from ule_hf.data.commands import build_main, verify_main
from ule_hf.data.publish import check_right, render_card, write_folder
from ule_hf.data.verify import label_of
from ule_hf.errors import UleError


@pytest.fixture(autouse=True)
def _small(monkeypatch, cache):
    """The small copies count as the published benchmarks."""
    monkeypatch.setattr(waterbirds, "PUBLISHED", published_of(waterbirds.GROUPS))
    monkeypatch.setattr(celeba, "PUBLISHED_SIZES", SIZES)


@pytest.fixture
def birds(tmp_path):
    return load("waterbirds", data_dir=write_waterbirds(tmp_path / "raw", masks=True))


def same(rows, others):
    assert len(rows) == len(others)
    for row, other in zip(rows, others, strict=True):
        for column in row:
            if column in ("image", "mask"):
                assert row[column].tobytes() == other[column].tobytes()
            else:
                assert row[column] == other[column]


# ---- the folder ------------------------------------------------------------------------------------------------------


def test_the_folder_loads_without_code_of_ours(birds, tmp_path):
    write_folder(birds, tmp_path / "out", waterbirds.CARD)
    loaded = load_dataset(str(tmp_path / "out"))
    assert list(loaded) == list(birds)
    for split, dataset in birds.items():
        assert loaded[split].features == dataset.features  # the ClassLabels' names too
        same(loaded[split], dataset)
    streamed = load_dataset(str(tmp_path / "out"), streaming=True)
    same(list(streamed["test"]), birds["test"])
    same(load("waterbirds", data_dir=tmp_path / "out")["train"], birds["train"])


def test_the_images_are_inside(birds, tmp_path):
    (tmp_path / "raw").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError):
        write_folder(birds, tmp_path / "out", waterbirds.CARD)
    (tmp_path / "elsewhere").rename(tmp_path / "raw")
    write_folder(birds, tmp_path / "out", waterbirds.CARD)
    (tmp_path / "raw").rename(tmp_path / "elsewhere")
    assert load_dataset(str(tmp_path / "out"))["train"][0]["image"].size == (9, 7)
    for file in (tmp_path / "out").rglob("*"):
        assert file.is_dir() or str(tmp_path).encode() not in file.read_bytes()


def test_several_shards(birds, tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "ROWS_PER_SHARD", 4)
    monkeypatch.setattr(publish, "_ROWS_PER_GROUP", 3)
    write_folder(birds, tmp_path / "out", waterbirds.CARD)
    assert len(list((tmp_path / "out" / "data").glob("train-*-of-00003.parquet"))) == 3
    same(load_dataset(str(tmp_path / "out"))["train"], birds["train"])


def test_a_full_disk_loses_nothing(birds, tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "ROWS_PER_SHARD", 4)
    write_shard, written = publish._write_shard, []

    def shard_on_a_full_disk(dataset, file):
        if len(written) == 2:
            file.with_suffix(".part").write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(file.name)
        write_shard(dataset, file)

    monkeypatch.setattr(publish, "_write_shard", shard_on_a_full_disk)
    with pytest.raises(UleError, match=r"the disk is full: .*out could not be built"):
        write_folder(birds, tmp_path / "out", waterbirds.CARD)
    assert not (tmp_path / "out").exists()

    def shard(dataset, file):
        written.append(file.name)
        write_shard(dataset, file)

    monkeypatch.setattr(publish, "_write_shard", shard)
    write_folder(birds, tmp_path / "out", waterbirds.CARD)
    files = sorted(file.name for file in (tmp_path / "out" / "data").iterdir())
    assert sorted(written) == files  # none twice, nothing else there
    same(load_dataset(str(tmp_path / "out"))["train"], birds["train"])


def test_shards_of_other_data_are_not_kept(birds, tmp_path):
    (tmp_path / "out.incomplete" / "data").mkdir(parents=True)
    old = tmp_path / "out.incomplete" / "data" / "train-00000-of-00001.parquet"
    birds["test"].to_parquet(old)
    write_folder(birds, tmp_path / "out", waterbirds.CARD)
    same(load_dataset(str(tmp_path / "out"))["train"], birds["train"])


def test_a_folder_that_is_there_is_left_alone(birds, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(UleError, match="is there already"):
        write_folder(birds, tmp_path / "out", waterbirds.CARD)
    assert (tmp_path / "out" / "mine").exists()


@pytest.mark.parametrize("variant", [None, "mine"])
def test_card(tmp_path, variant):
    data = load("waterbirds", data_dir=write_waterbirds(tmp_path / "raw"), variant=variant)
    card = DatasetCard(str(render_card(data, waterbirds.CARD)))
    assert card.data.license == "other"
    assert card.data.pretty_name == "Waterbirds"
    assert {entry["split"] for entry in card.data.configs[0]["data_files"]} == set(data)
    assert ("variant mine (not the published benchmark)" in card.text) == (variant is not None)
    assert "| land bird, place=water | 2 | 2 | 3 |" in card.text
    assert "| all | 10 | 6 | 8 |" in card.text
    for part in (waterbirds.CARD.source, waterbirds.CARD.construction, *waterbirds.CARD.traps, "@inproceedings{sagawa"):
        assert part in card.text
    yaml.safe_load(card.data.to_yaml())


def test_what_may_not_be_passed_on_is_not():
    with pytest.raises(UleError, match="--i_have_the_right_to_publish"):
        check_right(waterbirds.CARD, right_to_publish=False)
    check_right(waterbirds.CARD, right_to_publish=True)
    free = publish.Card("t", "s", "l", "c", (), "c", license_id="cc-by-4.0", restricted=False)
    check_right(free, right_to_publish=False)


# ---- the commands ----------------------------------------------------------------------------------------------------


def test_build_main(tmp_path, capsys):
    root = write_waterbirds(tmp_path / "raw")
    command = ["--data_dir", str(root), "--output_dir", str(tmp_path / "out")]
    assert build_main(waterbirds, "", command) == 0
    assert "waterbirds: written to" in capsys.readouterr().out
    assert label_of(load("waterbirds", data_dir=tmp_path / "out")) == "waterbirds"
    assert build_main(waterbirds, "", command) == 2
    assert "is there already" in capsys.readouterr().err


def test_build_main_with_options(tmp_path):
    root = write_celeba(tmp_path / "raw")
    command = ["--data_dir", str(root), "--output_dir", str(tmp_path / "out"), "--attribute", "Young"]
    assert build_main(celeba, "", command) == 0
    assert load_dataset(str(tmp_path / "out"))["train"].features["Young"].names == ["no", "yes"]


@pytest.mark.parametrize("variant", [None, "mine"])
def test_build_main_and_a_wrong_copy(tmp_path, capsys, variant):
    root = write_waterbirds(tmp_path / "raw", ROWS[1:])
    command = ["--data_dir", str(root), "--output_dir", str(tmp_path / "out")]
    assert build_main(waterbirds, "", command + (["--variant", variant] if variant else [])) == (0 if variant else 2)
    assert (tmp_path / "out").exists() == (variant is not None)
    assert ("differs" in capsys.readouterr().err) == (variant is None)


def test_build_main_asks_for_the_right_before_it_builds(tmp_path, capsys, monkeypatch):
    root = write_waterbirds(tmp_path / "raw")
    command = ["--data_dir", str(root), "--output_dir", str(tmp_path / "out"), "--push_to_hub", "me/birds"]
    pushed = []
    monkeypatch.setattr("ule_hf.data.commands.push", lambda *args: pushed.append(args))
    assert build_main(waterbirds, "", command) == 2
    assert "--i_have_the_right_to_publish" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert build_main(waterbirds, "", [*command, "--i_have_the_right_to_publish"]) == 0
    assert pushed == [(tmp_path / "out", "me/birds", waterbirds.CARD, True)]


@pytest.mark.parametrize("source", ["folder", "archive", "metadata"])
def test_verify_main(tmp_path, capsys, source):
    root = write_waterbirds(tmp_path / "raw")
    archive = tar(root, tmp_path / "w.tar.gz")
    options = {
        "folder": ["--data_dir", str(root)],
        "archive": ["--data_dir", str(archive)],
        "metadata": ["--metadata", str(root / "metadata.csv")],
    }[source]
    assert verify_main(BENCHMARKS, ["waterbirds", *options]) == 0
    out = capsys.readouterr().out
    assert "train       land bird, place=land          4" in out
    assert "waterbirds: the published benchmark" in out
    assert ("no image was looked at" in out) == (source == "metadata")


@pytest.mark.parametrize("option", ["--data_dir", "--metadata"])
def test_verify_main_and_a_wrong_copy(tmp_path, capsys, option):
    root = write_waterbirds(tmp_path / "raw", ROWS[1:])
    where = root if option == "--data_dir" else root / "metadata.csv"
    assert verify_main(BENCHMARKS, ["waterbirds", option, str(where)]) == 2
    printed = capsys.readouterr()
    assert "land bird, place=land            4          3  differs" in printed.err
    assert not printed.out


def test_verify_main_looks_at_the_pixels(tmp_path, capsys):
    """Counts are right, but a training image is a test image under another name."""
    root = write_waterbirds(tmp_path / "raw")
    (root / "000.Species" / "bird_0.jpg").write_bytes((root / "002.Species" / "bird_23.jpg").read_bytes())
    assert verify_main(BENCHMARKS, ["waterbirds", "--data_dir", str(root)]) == 2
    assert "1 images occur in two splits: train 000.Species/bird_0.jpg = test" in capsys.readouterr().err


def test_verify_main_and_celeba(tmp_path, capsys):
    root = write_celeba(tmp_path / "raw")
    assert verify_main(BENCHMARKS, ["celeba", "--data_dir", str(root)]) == 0
    assert verify_main(BENCHMARKS, ["celeba", "--metadata", str(root / "list_attr_celeba.txt")]) == 0
    assert "Blond_Hair, Male=yes" in capsys.readouterr().out
    (root / "img_align_celeba" / "000001.jpg").write_bytes(b"")
    assert verify_main(BENCHMARKS, ["celeba", "--data_dir", str(root), "--target", "Young"]) == 2


def test_verify_main_through_the_command(tmp_path, capsys):
    from ule_hf.cli import main

    root = write_waterbirds(tmp_path / "raw")
    assert main(["verify", "waterbirds", "--metadata", str(root / "metadata.csv")]) == 0
    assert main(["verify", "waterbirds", "--data_dir", str(tmp_path / "nowhere")]) == 2
    assert "nowhere is no folder" in capsys.readouterr().err


def test_a_folder_in_the_place_of_a_metadata_file(tmp_path, capsys):
    assert verify_main({"waterbirds": waterbirds}, ["waterbirds", "--metadata", str(tmp_path)]) == 2
    assert "is a folder; name the metadata file" in capsys.readouterr().err
