from __future__ import annotations

import gzip
import shutil
import zipfile
from pathlib import Path

import PIL.Image
import pytest
from datasets import ClassLabel

from benchmarks.dataset_counts import celeba_of
from tests.data.copies import ROWS, SIZES, write_celeba
from ule_hf.data import celeba, load
from ule_hf.data.verify import count_groups, label_of
from ule_hf.errors import UleError

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "metadata" / "celeba"

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(autouse=True)
def _small(request, monkeypatch):
    """The small copy counts as the published benchmark."""
    if request.cls is None:
        monkeypatch.setattr(celeba, "PUBLISHED_SIZES", SIZES)


def check(data):
    assert label_of(data) == "celeba"
    assert {split: tuple(groups.values()) for split, groups in count_groups(data).items()} == SIZES
    features = data["train"].features
    assert features["label"] == ClassLabel(names=["not Blond_Hair", "Blond_Hair"])
    assert features["Male"] == ClassLabel(names=["no", "yes"])
    for split, rows in enumerate(data.values()):
        for row in rows:
            assert (split, row["label"], row["Male"]) == ROWS[int(row["image_id"].removesuffix(".jpg")) - 1]
            assert row["group"] == 2 * row["label"] + row["Male"]
            assert row["image"].size == (178, 218)


@pytest.mark.parametrize("csv", [False, True])
@pytest.mark.parametrize("negative", [-1, 0])
def test_text_and_csv_with_either_values(tmp_path, csv, negative):
    check(load("celeba", data_dir=write_celeba(tmp_path / "c", csv=csv, negative=negative)))


def test_official_sub_folders(tmp_path):
    root = write_celeba(tmp_path / "c")
    for folder, name in {
        "Anno": "list_attr_celeba.txt",
        "Eval": "list_eval_partition.txt",
        "Img": "img_align_celeba",
    }.items():
        (root / folder).mkdir()
        (root / name).rename(root / folder / name)
    check(load("celeba", data_dir=root))


@pytest.mark.parametrize("inner", ["img_align_celeba", "img_align_celeba/img_align_celeba"])
def test_zip_of_images_and_compressed_tables(tmp_path, inner):
    root = write_celeba(tmp_path / "c")
    with zipfile.ZipFile(root / "img_align_celeba.zip", "w") as file:
        for image in sorted((root / "img_align_celeba").iterdir()):
            file.write(image, f"{inner}/{image.name}")
    shutil.rmtree(root / "img_align_celeba")
    with zipfile.ZipFile(root / "list_attr_celeba.zip", "w") as file:
        file.write(root / "list_attr_celeba.txt", "list_attr_celeba.txt")
    (root / "list_eval_partition.txt.gz").write_bytes(gzip.compress((root / "list_eval_partition.txt").read_bytes()))
    for name in ("list_attr_celeba.txt", "list_eval_partition.txt"):
        (root / name).unlink()
    check(load("celeba", data_dir=root))


def test_other_attributes_have_published_totals_only(tmp_path):
    root = write_celeba(tmp_path / "c")
    data = load("celeba", data_dir=root, target="Young", attribute="Blond_Hair")
    assert label_of(data) == "celeba Young by Blond_Hair"
    assert data["train"].features["group"].names[3] == "Young, Blond_Hair=yes"
    assert set(data["train"]["label"]) == {1}
    check(load("celeba", data_dir=root))  # the cache holds both


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "Bold"}, "no attribute 'Bold'; choose one of Blond_Hair, Male, Young"),
        ({"attribute": "Mail"}, "no attribute 'Mail'"),
        ({"attribute": "Blond_Hair"}, "other than --target"),
        ({"attribute": "group"}, "other than --target"),
    ],
)
def test_unknown_attributes(tmp_path, options, message):
    root = write_celeba(tmp_path / "c")
    with pytest.raises(UleError, match=message):
        load("celeba", data_dir=root, **options)
    with pytest.raises(UleError, match=message):
        celeba.verify_metadata(root / "list_attr_celeba.txt", **options)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("list_attr_celeba.txt", "000002.jpg -1", "000002.jpg 2", "'2' of Blond_Hair is not -1, 0 or 1: 000002.jpg"),
        ("list_attr_celeba.txt", "000002.jpg -1 -1 1\n", "", r"1 images are in only one .* 000002.jpg in .*partition"),
        ("list_eval_partition.txt", "000002.jpg 0\n", "", r"1 images are in only one .* 000002.jpg in .*attr_celeba"),
        ("list_eval_partition.txt", "000002.jpg 0", "000002.jpg 5", "split is not 0, 1 or 2 for 000002.jpg"),
        ("list_attr_celeba.txt", "000002.jpg", "000001.jpg", "000001.jpg occurs twice"),
    ],
)
def test_bad_tables(tmp_path, file, old, new, message):
    root = write_celeba(tmp_path / "c")
    text = (root / file).read_text()
    assert old in text
    (root / file).write_text(text.replace(old, new))
    with pytest.raises(UleError, match=message):
        load("celeba", data_dir=root, variant="broken")


def test_a_path_that_leaves_the_folder(tmp_path):
    root = write_celeba(tmp_path / "c")
    (root / "img_align_celeba" / "000002.jpg").rename(root / "x.jpg")
    for file in ("list_attr_celeba.txt", "list_eval_partition.txt"):
        (root / file).write_text((root / file).read_text().replace("000002.jpg", "../x.jpg"))
    with pytest.raises(UleError, match="path outside"):
        load("celeba", data_dir=root)


@pytest.mark.parametrize(
    "name", ["list_attr_celeba.txt", "list_eval_partition.txt", "img_align_celeba", "img_align_celeba/000001.jpg"]
)
def test_missing_files(tmp_path, name):
    root = write_celeba(tmp_path / "c")
    shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink()
    with pytest.raises(UleError, match=f"(holds no {name}|missing).*"):
        load("celeba", data_dir=root)


def test_a_corrupt_picture(tmp_path):
    root = write_celeba(tmp_path / "c")
    picture = root / "img_align_celeba" / "000003.jpg"
    picture.write_bytes(picture.read_bytes()[:2000])
    with pytest.raises(UleError, match=r"unreadable image: .*000003\.jpg"):
        load("celeba", data_dir=root)
    data = load("celeba", data_dir=root, skip_bad_images=True)
    assert len(data["train"]) == sum(SIZES["train"]) - 1
    assert "variant without 1 unreadable images" in label_of(data)


def test_a_copy_of_another_size(tmp_path):
    root = write_celeba(tmp_path / "c")
    for image in (root / "img_align_celeba").iterdir():
        PIL.Image.open(image).resize((64, 64)).save(image)
    with pytest.raises(UleError, match="images are not 178 x 218 pixels"):
        load("celeba", data_dir=root)
    assert load("celeba", data_dir=root, variant="at 64 pixels")["test"][0]["image"].size == (64, 64)


def test_where_to_get_it_by_hand(monkeypatch):
    monkeypatch.setattr(celeba, "SOURCES", ())
    with pytest.raises(UleError, match="get it by hand from https://mmlab"):
        load("celeba")


# ---- Parquet of others -----------------------------------------------------------------------------------------------


def mirror(folder, sizes, negative=-1):
    """Attributes as columns of integers."""
    root = write_celeba(folder / "raw", negative=negative)
    data = load("celeba", data_dir=root)
    splits = dict(zip(sizes, data.values(), strict=True))
    for split, dataset in splits.items():
        values = {"Blond_Hair": dataset["label"], "Male": dataset["Male"]}
        plain = dataset.select_columns(["image"])
        for name, column in values.items():
            plain = plain.add_column(name, [1 if value else negative for value in column])
        plain.to_parquet(folder / "mirror" / f"{split}.parquet")
    return folder / "mirror"


@pytest.mark.parametrize("negative", [-1, 0])
def test_attributes_as_columns(tmp_path, negative):
    data = load("celeba", data_dir=mirror(tmp_path, ["train", "validation", "test"], negative))
    assert {split: tuple(groups.values()) for split, groups in count_groups(data).items()} == SIZES
    assert data["test"][0]["image_id"] == "test-000000"
    with pytest.raises(UleError, match="has no attribute 'Young'"):
        load("celeba", data_dir=tmp_path / "mirror", attribute="Young")


def test_swapped_names_of_validation_and_test(tmp_path, caplog):
    data = load("celeba", data_dir=mirror(tmp_path, ["train", "test", "validation"]))
    assert {split: tuple(groups.values()) for split, groups in count_groups(data).items()} == SIZES
    assert "swapped back" in caplog.text


def test_a_prepared_copy_is_of_one_label(tmp_path):
    data = load("celeba", data_dir=write_celeba(tmp_path / "raw"))
    for split, dataset in data.items():
        dataset.to_parquet(tmp_path / "prepared" / f"{split}.parquet")
    check(load("celeba", data_dir=tmp_path / "prepared"))
    with pytest.raises(UleError, match="made for another label than Young"):
        load("celeba", data_dir=tmp_path / "prepared", target="Young")


# ---- the real tables -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared development data")
class TestReal:
    def test_the_official_tables_have_the_published_counts(self):
        counts = celeba.verify_metadata(SHARED / "list_attr_celeba.zip")
        assert counts == celeba.published(**celeba.OPTIONS)
        assert sum(counts["test"].values()) == 19962
        assert list(celeba.published("Smiling", "Male").values()) == [162770, 19867, 19962]

    def test_a_lost_row_is_refused(self, tmp_path):
        text = gzip.decompress((SHARED / "celeba_blond_metadata.csv.gz").read_bytes()).decode()
        options = {"target": "y_blond", "attribute": "a_male"}
        (tmp_path / "table.csv").write_text(text)
        celeba.verify_metadata(tmp_path / "table.csv", **options)
        (tmp_path / "table.csv").write_text(text.rstrip().rsplit("\n", 1)[0])
        with pytest.raises(UleError, match=r"test +all groups +19962 +19961  differs"):
            celeba.verify_metadata(tmp_path / "table.csv", **options)

    @pytest.mark.slow
    def test_all_rows_of_the_official_tables_load(self, tmp_path):
        data = celeba_of(SHARED, tmp_path)
        assert count_groups(data) == celeba.published(**celeba.OPTIONS)
        assert data["test"][19961]["image_id"] == "202599.jpg"
