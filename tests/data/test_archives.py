from __future__ import annotations

import errno
import hashlib
import http.server
import io
import re
import tarfile
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import huggingface_hub
import pytest

from ule_hf.data import archives
from ule_hf.data.archives import building, download, unpack
from ule_hf.errors import UleError

CONTENT = bytes(range(256)) * 400


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `CONTENT`, also from the middle; closes the connection early while ``cut`` is set."""

    cut = None
    requests: list

    def do_GET(self):
        match = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(match[1]) if match else 0
        self.requests.append(start)
        if start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if match else 200)
        if match:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start : type(self).cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    handler = type("Handler", (Server,), {"requests": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        handler.url = f"http://127.0.0.1:{running.server_port}/some/archive.tar.gz?dl=1"
        yield handler
        running.shutdown()


def test_download(server, tmp_path):
    file = download(server.url, tmp_path, md5=hashlib.md5(CONTENT).hexdigest())
    assert file == tmp_path / "archive.tar.gz"
    assert file.read_bytes() == CONTENT
    download(server.url, tmp_path)
    assert server.requests == [0]  # it is there


def test_a_download_goes_on_where_it_stopped(server, tmp_path):
    (tmp_path / "archive.tar.gz.part").write_bytes(CONTENT[:5000])
    assert download(server.url, tmp_path).read_bytes() == CONTENT
    assert server.requests == [5000]


def test_what_has_come_stays(server, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what it holds back of a broken stream
    server.cut = 70000
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(UleError, match=r"cannot be downloaded: .*; try again"):
        download(server.url, tmp_path)
    assert not (tmp_path / "archive.tar.gz").exists()
    assert (tmp_path / "archive.tar.gz.part").read_bytes() == CONTENT[:70000]
    server.cut = None
    assert download(server.url, tmp_path).read_bytes() == CONTENT
    assert server.requests[-1] == 70000


def test_another_checksum(server, tmp_path):
    with pytest.raises(UleError, match=r"has md5 .* instead of 0123; it was removed"):
        download(server.url, tmp_path, md5="0123")
    assert not [file for file in tmp_path.iterdir() if not file.name.startswith(".")]


def test_a_part_that_is_too_long_is_begun_anew(server, tmp_path):
    (tmp_path / "archive.tar.gz.part").write_bytes(CONTENT + b"x")
    with pytest.raises(UleError, match="cannot be downloaded"):
        download(server.url, tmp_path)
    assert download(server.url, tmp_path).read_bytes() == CONTENT


def test_no_server(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(UleError, match=r"http://127.0.0.1:9/x.zip cannot be downloaded"):
        download("http://127.0.0.1:9/x.zip", tmp_path)


# ---- archives --------------------------------------------------------------------------------------------------------


def write_tar(path, name="inside/file.txt", content=CONTENT, **member):
    with tarfile.open(path, "w:gz") as file:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        for field, value in member.items():
            setattr(info, field, value)
        file.addfile(info, io.BytesIO(content))
    return path


def write_zip(path, name="inside/file.txt", content=CONTENT):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(zipfile.ZipInfo(name), content)
    return path


WRITERS = {"a.tar.gz": write_tar, "a.zip": write_zip}


@pytest.mark.parametrize("name", WRITERS)
def test_unpack_once(cache, tmp_path, name):
    folder = unpack(WRITERS[name](tmp_path / name), "toy")
    assert (folder / "inside" / "file.txt").read_bytes() == CONTENT
    assert folder.is_relative_to(cache)
    (folder / "mark").touch()
    assert (unpack(tmp_path / name, "toy") / "mark").exists()
    WRITERS[name](tmp_path / name, content=CONTENT[::-1])  # the zip has the same size
    assert (unpack(tmp_path / name, "toy") / "inside" / "file.txt").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("name", WRITERS)
def test_a_truncated_archive(cache, tmp_path, name, keep):
    archive = WRITERS[name](tmp_path / name)
    content = archive.read_bytes()
    archive.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(UleError, match=rf"{name} is truncated or damaged .* get it anew"):
        unpack(archive, "toy")
    assert not [path for path in (cache / "ule_hf" / "toy").iterdir() if path.is_dir()]


def test_a_damaged_archive(cache, tmp_path):
    archive = write_zip(tmp_path / "a.zip")
    content = bytearray(archive.read_bytes())
    content[1000] ^= 255
    archive.write_bytes(content)
    with pytest.raises(UleError, match="truncated or damaged"):
        unpack(archive, "toy")


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("member", ["../outside.txt", "inside/../../outside.txt"])
def test_a_path_that_leaves_the_folder(cache, tmp_path, name, member):
    with pytest.raises(UleError, match="holds a path that leaves its folder"):
        unpack(WRITERS[name](tmp_path / name, name=member), "toy")
    assert not list(tmp_path.rglob("outside.txt"))


def test_a_link_that_leaves_the_folder(cache, tmp_path):
    archive = write_tar(tmp_path / "a.tar.gz", name="link", content=b"", type=tarfile.SYMTYPE, linkname="../../secret")
    with pytest.raises(UleError, match="holds a path that leaves its folder"):
        unpack(archive, "toy")


# ---- building --------------------------------------------------------------------------------------------------------


def test_a_folder_is_whole_or_not_there(tmp_path):
    with pytest.raises(RuntimeError), building(tmp_path / "x") as temporary:
        (temporary / "half").touch()
        assert not (tmp_path / "x").exists()
        raise RuntimeError
    assert not (tmp_path / "x").exists()
    assert not temporary.exists()
    with building(tmp_path / "x") as temporary:
        (temporary / "all").touch()
    assert [file.name for file in (tmp_path / "x").iterdir()] == ["all"]


def test_parts_are_kept_where_asked(tmp_path):
    with pytest.raises(RuntimeError), building(tmp_path / "x", keep_parts=True) as temporary:
        (temporary / "part").touch()
        raise RuntimeError
    with building(tmp_path / "x", keep_parts=True) as temporary:
        assert (temporary / "part").exists()
    assert (tmp_path / "x" / "part").exists()


def test_what_a_killed_process_left_is_not_taken_for_whole(tmp_path):
    (tmp_path / "x.incomplete").mkdir()
    (tmp_path / "x.incomplete" / "half").touch()
    with building(tmp_path / "x"):
        pass
    assert not list((tmp_path / "x").iterdir())


def test_a_full_disk(tmp_path):
    with pytest.raises(UleError, match=r"the disk is full: .*x could not be built"), building(tmp_path / "x"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="other"), building(tmp_path / "x"):
        raise OSError(errno.EIO, "other")


def test_two_builds_at_once(cache, tmp_path, monkeypatch):
    archive = write_tar(tmp_path / "a.tar.gz")
    extract, count = archives._extract, []

    def slow(*args):
        count.append(1)
        time.sleep(0.3)
        extract(*args)

    monkeypatch.setattr(archives, "_extract", slow)
    with ThreadPoolExecutor(4) as threads:
        folders = set(threads.map(lambda _: unpack(archive, "toy"), range(4)))
    assert len(count) == len(folders) == 1
    assert (folders.pop() / "inside" / "file.txt").read_bytes() == CONTENT
