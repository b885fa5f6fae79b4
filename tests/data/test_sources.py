from __future__ import annotations

import errno
import inspect
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import datasets
import pytest
from datasets import ClassLabel, DatasetDict, Features, Value

from tests.data.copies import published_of, tar, write_waterbirds
from ule_hf.data import publish, sources, waterbirds
from ule_hf.data.builder import build
from ule_hf.data.publish import write_folder
from ule_hf.data.sources import Source, open_data, show_once
from ule_hf.data.verify import label_of
from ule_hf.errors import UleError

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(waterbirds, "PUBLISHED", published_of(waterbirds.GROUPS))
    show_once.cache_clear()


# ---- in which order --------------------------------------------------------------------------------------------------


@pytest.fixture
def served(monkeypatch, tmp_path):
    """A world in which one URL has the archive, others nothing; what was asked for, in order."""
    asked = []
    archive = tar(write_waterbirds(tmp_path / "raw"), tmp_path / "w.tar.gz")

    def download(url, folder, md5=None):
        asked.append((url, md5))
        if "good" not in url:
            raise UleError(f"{url} cannot be downloaded")
        return archive

    monkeypatch.setattr(sources, "download", download)
    return asked


def test_the_first_source_that_can_be_had(served, monkeypatch, caplog):
    chosen = (Source("http://x/dead.tar.gz", md5="0"), Source("http://x/good.tar.gz"), Source("http://x/never.tar.gz"))
    monkeypatch.setattr(waterbirds, "SOURCES", chosen)
    assert label_of(waterbirds.load()) == "waterbirds"
    assert served == [("http://x/dead.tar.gz", "0"), ("http://x/good.tar.gz", None)]
    assert "dead.tar.gz cannot be downloaded" in caplog.text


def test_no_source(served, monkeypatch):
    monkeypatch.setattr(waterbirds, "SOURCES", (Source("http://x/dead.tar.gz"), Source("http://x/gone.tar.gz")))
    with pytest.raises(UleError, match=r"(?s)cannot be had from any source; name a folder.*dead.*gone"):
        waterbirds.load()


def test_a_folder_of_the_user_goes_before_all_sources(served, tmp_path):
    waterbirds.load(tmp_path / "raw")
    assert not served


def test_the_hub(monkeypatch, tmp_path):
    data = waterbirds.load(write_waterbirds(tmp_path / "raw"))
    asked = []

    def load_dataset(where):
        asked.append(where)
        return data

    monkeypatch.setattr(sources, "load_dataset", load_dataset)
    monkeypatch.setattr(waterbirds, "SOURCES", (Source("someone/birds"),))
    assert label_of(waterbirds.load()) == label_of(waterbirds.load("another/birds")) == "waterbirds"
    assert asked == ["someone/birds", "another/birds"]


@pytest.mark.parametrize("where", ["no/such/folder", "nothing", "file.txt"])
def test_neither_folder_nor_archive_nor_repository(tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").touch()
    with pytest.raises(UleError, match=f"{where} is no folder, no archive"):
        waterbirds.load(where)


def test_parquet_that_is_none(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(UleError, match="cannot be read"):
        waterbirds.load(tmp_path)


def test_the_licence_is_shown_once(tmp_path, caplog):
    root = write_waterbirds(tmp_path / "raw")
    with caplog.at_level(logging.WARNING):
        waterbirds.load(root)
        waterbirds.load(root)
    assert caplog.text.count(waterbirds.LICENCE) == 1


def test_a_truncated_archive(tmp_path):
    archive = tar(write_waterbirds(tmp_path / "raw"), tmp_path / "w.tar.gz")
    archive.write_bytes(archive.read_bytes()[:-5])
    with pytest.raises(UleError, match=r"w\.tar\.gz is truncated or damaged"):
        waterbirds.load(archive)


def test_open_data_needs_no_benchmark_of_ours(tmp_path):
    (tmp_path / "x").touch()
    got = open_data(
        "toy", tmp_path, (), build=lambda root: DatasetDict({root.name: None}), conform=None, licence="free"
    )
    assert list(got) == [tmp_path.name]


# ---- building --------------------------------------------------------------------------------------------------------


class Toy(datasets.GeneratorBasedBuilder):
    error: Exception | None = None

    def _info(self):
        return datasets.DatasetInfo(features=Features(label=ClassLabel(names=["a", "b"]), image_id=Value("string")))

    def _split_generators(self, dl_manager):
        return [datasets.SplitGenerator("train", gen_kwargs={})]

    def _generate_examples(self):
        yield 0, {"label": 0, "image_id": "0"}
        if self.error:
            raise self.error


@pytest.mark.parametrize(
    ("error", "message"),
    [(OSError(errno.ENOSPC, "No space left on device"), "the disk is full"), (UleError("bad row"), "bad row")],
)
def test_a_build_that_fails_leaves_nothing(tmp_path, cache, monkeypatch, error, message):
    monkeypatch.setattr(Toy, "error", error)
    with pytest.raises(UleError, match=message):
        build(Toy, tmp_path)
    assert not list(cache.rglob("*.arrow"))
    monkeypatch.setattr(Toy, "error", None)
    assert build(Toy, tmp_path)["train"].num_rows == 1


def test_the_cache_notices_other_code(tmp_path, monkeypatch):
    code = tmp_path / "code.py"
    monkeypatch.setattr(inspect, "getfile", lambda _: code)
    code.write_text("before")
    first = build(Toy, tmp_path).cache_files["train"][0]["filename"]
    assert build(Toy, tmp_path).cache_files["train"][0]["filename"] == first
    code.write_text("after")
    assert build(Toy, tmp_path).cache_files["train"][0]["filename"] != first


def test_two_builds_into_one_folder(tmp_path, monkeypatch):
    data = waterbirds.load(write_waterbirds(tmp_path / "raw"))
    write_shard, running, most = publish._write_shard, threading.Semaphore(1), []

    def alone(*args):
        most.append(running.acquire(blocking=False))
        time.sleep(0.1)
        write_shard(*args)
        running.release()

    def attempt(_):
        try:
            write_folder(data, tmp_path / "out", waterbirds.CARD)
        except UleError as error:
            return str(error)
        return "written"

    monkeypatch.setattr(publish, "_write_shard", alone)
    with ThreadPoolExecutor(2) as threads:
        first, second = sorted(threads.map(attempt, range(2)), key="written".__ne__)
    assert first == "written"
    assert "is there already" in second
    assert most == [True] * 3  # each of the three splits once, never two at a time
    assert label_of(waterbirds.load(tmp_path / "out")) == "waterbirds"
