from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from datasets import ClassLabel

from benchmarks.dataset_counts import waterbirds_of
from tests.data.copies import ROWS, SIZES, published_of, tar, write_waterbirds
from ule_hf.data import load, waterbirds
from ule_hf.data.verify import count_groups, label_of, verify_images
from ule_hf.errors import UleError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def small(monkeypatch):
    """The small copy counts as the published benchmark."""
    monkeypatch.setattr(waterbirds, "PUBLISHED", published_of(waterbirds.GROUPS))


def test_published_totals():
    totals = {split: sum(sizes.values()) for split, sizes in waterbirds.PUBLISHED.items()}
    assert totals == {"train": 4795, "validation": 1199, "test": 5794}
    weights = [size / 4795 for size in waterbirds.PUBLISHED["train"].values()]
    assert [f"{weight:.4f}" for weight in weights] == ["0.7295", "0.0384", "0.0117", "0.2204"]


@pytest.mark.parametrize("layout", ["folder", "folder in folder", "archive", "folder with archive"])
def test_layouts(small, tmp_path, layout):
    root = write_waterbirds(tmp_path / "raw" / "waterbird_complete95_forest2water2")
    data_dir = {"folder": root, "folder in folder": root.parent, "archive": tmp_path / "only" / "w.tar.gz"}
    if "archive" in layout:
        (tmp_path / "only").mkdir()
        tar(root, tmp_path / "only" / "w.tar.gz")
    data = load("waterbirds", data_dir=data_dir.get(layout, tmp_path / "only"))

    assert label_of(data) == "waterbirds"
    assert {split: tuple(groups.values()) for split, groups in count_groups(data).items()} == SIZES
    features = data["train"].features
    assert features["label"] == ClassLabel(names=["land bird", "water bird"])
    assert features["place"] == ClassLabel(names=["land", "water"])
    assert "mask" not in features
    for split, rows in enumerate(data.values()):
        for row in rows:
            i = int(row["image_id"].removesuffix(".jpg").split("_")[1])
            assert (split, row["label"], row["place"]) == ROWS[i]
            assert row["group"] == 2 * row["label"] + row["place"]
            assert row["image"].size == (9, 7)


def test_masks(small, tmp_path):
    data = load("waterbirds", data_dir=write_waterbirds(tmp_path / "w", masks=True))
    for row in data["test"]:
        i = int(row["image_id"].removesuffix(".jpg").split("_")[1])
        assert row["mask"].size == row["image"].size
        assert bool(row["mask"].getpixel((0, 0))) == bool(i % 2)


def test_a_missing_mask(small, tmp_path):
    root = write_waterbirds(tmp_path / "w", masks=True)
    (root / "masks" / "000.Species" / "bird_0.png").unlink()
    with pytest.raises(UleError, match=r"bird_0\.png is missing"):
        load("waterbirds", data_dir=root)


def test_the_cache_notices_other_metadata(small, tmp_path):
    root = write_waterbirds(tmp_path / "w")
    load("waterbirds", data_dir=root)
    lines = (root / "metadata.csv").read_text().splitlines()
    (root / "metadata.csv").write_text("\n".join(lines[:-1]))
    with pytest.raises(UleError, match="not the published waterbirds"):
        load("waterbirds", data_dir=root)


@pytest.mark.parametrize("change", ["missing rows", "extra rows", "other groups"])
def test_wrong_copies(small, tmp_path, change):
    rows = {"missing rows": ROWS[1:], "extra rows": [*ROWS, (0, 1, 0)], "other groups": [(0, 1, 1), *ROWS[1:]]}[change]
    root = write_waterbirds(tmp_path / "w", rows)
    with pytest.raises(UleError, match=r"train +land bird, place=land +4 +[35]  differs|water bird, place=land +1 +2"):
        load("waterbirds", data_dir=root)
    data = load("waterbirds", data_dir=root, variant="odd")
    assert "variant odd" in label_of(data)
    assert sum(map(len, data.values())) == len(rows)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",place,", ",plaice,", "no column 'place'"),
        ("000.Species/bird_0.jpg", "../bird_0.jpg", "path outside"),
        ("000.Species/bird_0.jpg", "/etc/bird_0.jpg", "path outside"),
        ("000.Species/bird_0.jpg", "000.Species/bird_999.jpg", "file missing"),
        ("000.Species/bird_3.jpg", "000.Species/bird_0.jpg", "one file, several rows"),
        ("bird_0.jpg,0,0,0", "bird_0.jpg,2,0,0", "'2' is no label: metadata.csv row 2"),
        ("bird_0.jpg,0,0,0", "bird_0.jpg,0,3,0", "'3' is no split: metadata.csv row 2"),
        ("bird_0.jpg,0,0,0", "bird_0.jpg,0,0,", "'' is no place: metadata.csv row 2"),
    ],
)
def test_bad_metadata(tmp_path, old, new, message):
    root = write_waterbirds(tmp_path / "w")
    text = (root / "metadata.csv").read_text()
    assert old in text
    (root / "metadata.csv").write_text(text.replace(old, new))
    with pytest.raises(UleError, match=message):
        load("waterbirds", data_dir=root, variant="broken")


def test_a_corrupt_picture(small, tmp_path):
    root = write_waterbirds(tmp_path / "w")
    picture = root / "000.Species" / "bird_3.jpg"
    picture.write_bytes(picture.read_bytes()[:300])
    with pytest.raises(UleError, match=r"unreadable image: .*bird_3\.jpg"):
        load("waterbirds", data_dir=root)
    assert "variant without 1 unreadable images" in label_of(load("waterbirds", data_dir=root, skip_bad_images=True))
    picture.write_bytes((root / "001.Species" / "bird_1.jpg").read_bytes())
    assert label_of(load("waterbirds", data_dir=root)) == "waterbirds"


def test_nothing_there(tmp_path):
    for data_dir, message in {"gone": "is no folder", ".": "holds no metadata.csv"}.items():
        with pytest.raises(UleError, match=message):
            load("waterbirds", data_dir=tmp_path / data_dir)


def test_parquet_of_a_mirror(small, tmp_path):
    """Columns image, label, place as integers: image_id and group are added, other columns left out."""
    data = load("waterbirds", data_dir=write_waterbirds(tmp_path / "w"))
    for split, dataset in data.items():
        plain = dataset.select_columns(["image", "label", "place"]).add_column("other", [0] * len(dataset))
        plain = plain.cast_column("label", ClassLabel(names=["landbird", "waterbird"]))
        plain.to_parquet(tmp_path / "mirror" / f"{split}.parquet")
    mirrored = load("waterbirds", data_dir=tmp_path / "mirror")
    assert count_groups(mirrored) == count_groups(data)
    assert mirrored["test"].features["label"] == data["test"].features["label"]
    assert mirrored["test"][1]["image_id"] == "test-000001"
    assert "other" not in mirrored["test"].features

    (tmp_path / "mirror" / "test.parquet").unlink()
    with pytest.raises(UleError, match="the splits are train, validation instead of"):
        load("waterbirds", data_dir=tmp_path / "mirror")


def test_parquet_without_a_column(tmp_path):
    data = load("waterbirds", data_dir=write_waterbirds(tmp_path / "w"), variant="small")
    for split, dataset in data.items():
        dataset.remove_columns("place").to_parquet(tmp_path / "mirror" / f"{split}.parquet")
    with pytest.raises(UleError, match="split train has no column 'place'"):
        load("waterbirds", data_dir=tmp_path / "mirror", variant="small")


# ---- the real tables and pictures ------------------------------------------------------------------------------------


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared development data")
class TestReal:
    def test_the_official_table_has_the_published_counts(self):
        counts = waterbirds.verify_metadata(SHARED / "metadata" / "waterbirds" / "metadata.csv")
        assert counts == waterbirds.PUBLISHED

    def test_all_rows_of_the_official_table_load(self, tmp_path):
        data = waterbirds_of(SHARED / "metadata" / "waterbirds" / "metadata.csv", tmp_path)
        assert count_groups(data) == waterbirds.PUBLISHED
        assert label_of(data) == "waterbirds"
        assert data["test"][5793]["image"].size == (64, 64)

    def test_the_regenerated_table_is_refused(self):
        with pytest.raises(UleError, match=r"not the published waterbirds[^$]*3498 +3525  differs"):
            waterbirds.verify_metadata(SHARED / "metadata" / "waterbirds" / "metadata_regenerated_Lainshower.csv")

    def test_recomposed_photographs_are_a_variant(self):
        with pytest.raises(UleError, match="not the published waterbirds"):
            load("waterbirds", data_dir=SHARED / "waterbirds50")
        data = load("waterbirds", data_dir=SHARED / "waterbirds50", variant="waterbirds50")
        assert sum(map(len, data.values())) == 2886
        assert "variant waterbirds50" in label_of(data)
        row = data["train"][0]
        assert row["image"].size == row["mask"].size == (160, 160)
        some = data["train"].select(range(40))
        verify_images("waterbirds50", type(data)(train=some), (160, 160))
        assert Counter(some["label"]) == {1: 40}
