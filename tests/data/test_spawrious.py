from __future__ import annotations

import os
import tarfile

import numpy as np
import PIL.Image
import pytest

from ule_hf.data import spawrious
from ule_hf.data.spawrious import COMBINATIONS, FOLDER_SIZE, LABELS, LOCATIONS, PUBLISHED, cells
from ule_hf.data.verify import count_groups, label_of
from ule_hf.errors import UleError

pytestmark = pytest.mark.usefixtures("cache")


def sizes(counts, split):
    return sorted(size for size in counts[split].values() if size)


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_published_counts_are_those_of_the_paper(combination):
    counts = PUBLISHED[combination]
    both = {group: counts["train"][group] + counts["validation"][group] for group in counts["train"]}
    assert sum(both.values()) == sum(counts["test"].values()) == 25344
    if combination.startswith("o2o"):
        assert sorted(both.values()) == [508] * 4 + [5828] * 4
        assert sizes(counts, "test") == [6336] * 4
        # a fifth of 3072, 2756, 96 and 412
        assert sizes(counts, "validation") == [19 + 82] * 4 + [614 + 551] * 4
    else:
        assert sorted(both.values()) == [3168] * 8
        assert sizes(counts, "test") == [3168] * 8
        assert sizes(counts, "validation") == [633] * 8


def test_places_of_o2o_hard_and_m2m_hard():
    def places(combination, environment):
        return {(c.breed, c.location, c.count) for c in cells(combination) if c.environment == environment}

    assert places("o2o_hard", "train 1") >= {("corgi", "desert", 2756), ("corgi", "beach", 412)}
    assert places("o2o_hard", "test") >= {("corgi", "jungle", FOLDER_SIZE), ("bulldog", "mountain", FOLDER_SIZE)}
    both = places("m2m_hard", "train 0") | places("m2m_hard", "train 1")
    assert {location for breed, location, _ in both if breed == "dachshund"} == {"dirt", "jungle"}
    # the pair swaps its places between the environments
    assert ("dachshund", "jungle", FOLDER_SIZE) in places("m2m_hard", "train 0")
    assert ("dachshund", "dirt", FOLDER_SIZE) in places("m2m_hard", "train 1")
    swapped = places("m2m_hard_swapped", "train 0") | places("m2m_hard_swapped", "train 1")
    assert not any(breed == "bulldog" and location == "dirt" for breed, location, _ in swapped)
    assert swapped == places("m2m_hard", "test")
    with pytest.raises(UleError, match="combination 'hard' is unknown"):
        cells("hard")


@pytest.mark.parametrize("combination", ["o2o_medium", "m2m_easy"])
def test_loads_what_is_published(small_spawrious, combination):
    data = spawrious.load(small_spawrious, combination)
    assert label_of(data) == f"spawrious {combination}"
    for split in data.values():
        for row in split.select(range(0, len(split), 7)):
            _, location, breed, name = row["image_id"].split("/")
            assert (LABELS[row["label"]], LOCATIONS[row["location"]]) == (breed, location)
            assert row["group"] == row["label"] * 6 + row["location"]
            assert name.startswith(f"{location}_{breed}_")
            on_disk = np.asarray(PIL.Image.open(small_spawrious / row["image_id"]))
            assert (np.asarray(row["image"]) == on_disk).all()
    assert set(data["test"].unique("environment")) == {2}
    assert set(data["train"].unique("environment")) == set(data["validation"].unique("environment")) == {0, 1}


def test_a_part_of_a_folder_is_the_first_in_the_order_of_names(small_spawrious):
    data = spawrious.load(small_spawrious, "o2o_medium")
    filler = [i for split in ("train", "validation") for i in data[split]["image_id"] if "0/desert/corgi" in i]
    assert filler == ["0/desert/corgi/desert_corgi_1.png"]
    own = {i for split in ("train", "validation") for i in data[split]["image_id"] if "1/jungle/corgi" in i}
    names = sorted(f"jungle_corgi_{i}.png" for i in range(1, 21))[:15]
    assert own == {f"1/jungle/corgi/{name}" for name in names}


def test_validation_is_a_seeded_fifth(small_spawrious):
    first, again, other = (spawrious.load(small_spawrious, "m2m_hard", seed=seed) for seed in (0, 0, 1))
    assert first["validation"]["image_id"][:] == again["validation"]["image_id"][:]
    assert first["validation"]["image_id"][:] != other["validation"]["image_id"][:]
    assert count_groups(first) == count_groups(other)
    assert len(first["validation"]) == 32 and len(first["train"]) == 128


def test_another_copy_is_refused_or_named(small_spawrious):
    (small_spawrious / "0" / "dirt" / "bulldog" / "dirt_bulldog_3.png").unlink()
    with pytest.raises(UleError, match=r"not the published spawrious.*0/dirt/bulldog \(19\).*--variant"):
        spawrious.load(small_spawrious, "m2m_hard")
    data = spawrious.load(small_spawrious, "m2m_hard", variant="mine")
    assert "variant mine" in label_of(data)
    assert len(data["train"]) + len(data["validation"]) == 159


def test_an_added_picture_is_noticed_though_the_cache_knew_the_folder(small_spawrious):
    spawrious.load(small_spawrious, "m2m_easy", variant="mine")
    PIL.Image.new("RGB", (2, 2)).save(small_spawrious / "0" / "dirt" / "bulldog" / "extra.png")
    assert len(spawrious.load(small_spawrious, "m2m_easy", variant="mine")["test"]) == 161


def test_a_corrupt_picture(small_spawrious):
    corrupt = small_spawrious / "1" / "beach" / "labrador" / "beach_labrador_4.png"
    corrupt.write_bytes(corrupt.read_bytes()[:50])
    with pytest.raises(UleError, match=r"unreadable image.*beach_labrador_4.*--skip_bad_images"):
        spawrious.load(small_spawrious, "o2o_medium")
    data = spawrious.load(small_spawrious, "o2o_medium", skip_bad_images=True)
    assert label_of(data) == "spawrious o2o_medium, variant without 1 unreadable images (not the published benchmark)"
    assert len(data["test"]) == 159
    # no other combination needs that file
    assert label_of(spawrious.load(small_spawrious, "m2m_easy", skip_bad_images=True)) == "spawrious m2m_easy"


def test_skipping_unreadable_pictures_does_not_let_a_short_copy_pass(small_spawrious):
    (small_spawrious / "0" / "dirt" / "bulldog" / "dirt_bulldog_3.png").unlink()
    with pytest.raises(UleError, match="not the published"):
        spawrious.load(small_spawrious, "m2m_hard", skip_bad_images=True)


def test_archive_and_folder_around_it(small_spawrious, tmp_path):
    with tarfile.open(tmp_path / "spawrious224.tar.gz", "w:gz", compresslevel=1) as archive:
        archive.add(small_spawrious, "spawrious224")
    from_folder = spawrious.load(small_spawrious.parent, "m2m_hard")
    from_archive = spawrious.load(tmp_path / "spawrious224.tar.gz", "m2m_hard")
    assert from_archive["train"]["image_id"][:] == from_folder["train"]["image_id"][:]


def test_folders_that_are_not_there(small_spawrious, tmp_path):
    with pytest.raises(UleError, match="no spawrious224/0"):
        spawrious.load(tmp_path / "spawrious224" / "0", "m2m_hard")
    os.rename(small_spawrious / "0" / "snow", small_spawrious / "0" / "ice")
    with pytest.raises(UleError, match="no folder 0/snow/bulldog"):
        spawrious.load(small_spawrious, "m2m_hard")


def test_a_link_out_of_the_folder_is_refused(small_spawrious, tmp_path):
    (tmp_path / "elsewhere.png").write_bytes(
        (small_spawrious / "0" / "dirt" / "corgi" / "dirt_corgi_1.png").read_bytes()
    )
    link = small_spawrious / "0" / "dirt" / "corgi" / "dirt_corgi_1.png"
    link.unlink()
    link.symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(UleError, match="link out of"):
        spawrious.load(small_spawrious, "m2m_hard")


@pytest.mark.slow
@pytest.mark.parametrize("combination", ["o2o_hard", "m2m_hard"])
def test_a_whole_tree_has_the_published_counts(tmp_path, monkeypatch, combination):
    monkeypatch.setattr(spawrious, "IMAGE_SIZE", (1, 1))
    PIL.Image.new("RGB", (1, 1)).save(tmp_path / "one.png")
    one = (tmp_path / "one.png").read_bytes()
    root = tmp_path / "spawrious224"
    for folder in {f"{c.folder}/{c.location}/{c.breed}" for c in cells(combination)}:
        (root / folder).mkdir(parents=True)
        for i in range(FOLDER_SIZE):
            (root / folder / f"{i}.png").write_bytes(one)
    assert label_of(spawrious.load(root, combination)) == f"spawrious {combination}"
