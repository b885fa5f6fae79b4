"""Files from elsewhere: downloads that resume, archives unpacked safely, folders that are whole or not there at all."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import datasets
from filelock import FileLock
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get

from ule_hf.errors import UleError

logger = logging.getLogger(__name__)

ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")


def cache_folder(name: str) -> Path:
    """Where downloads and unpacked archives of a benchmark are kept: beside datasets' own cache (``HF_HOME``)."""
    return Path(datasets.config.HF_DATASETS_CACHE) / "ule_hf" / name


def is_archive(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(ARCHIVES)


def download(url: str, folder: Path, md5: str | None = None) -> Path:
    """The file behind ``url`` in ``folder``. A download that broke off goes on where it stopped.

    Raises:
        UleError: it cannot be had (what has come stays for the next try), or it has another ``md5`` (it is removed).
    """
    file = folder / PurePosixPath(urlsplit(url).path).name
    with _locked(file):
        if file.is_file():
            return file
        part = file.with_name(file.name + ".part")
        try:
            with part.open("ab") as stream:
                http_get(url, stream, resume_size=part.stat().st_size, displayed_filename=file.name)
        except Exception as error:  # of the HTTP library, which huggingface_hub passes on; OSError of the disk
            if isinstance(error, HfHubHTTPError) and error.response.status_code == 416:
                part.unlink()  # there is nothing after what has come: another file, or one too long
            reason = str(error).strip().splitlines()[0]
            raise UleError(f"{url} cannot be downloaded: {reason}; try again: it goes on where it stopped") from error
        if md5 is not None and (found := _md5(part)) != md5:
            part.unlink()
            raise UleError(f"{url} has md5 {found} instead of {md5}; it was removed: try again, or another source")
        part.replace(file)
    return file


def unpack(archive: Path, name: str) -> Path:
    """The contents of ``archive``, unpacked once into the cache of the benchmark ``name``.

    Raises:
        UleError: a truncated or damaged archive, one whose paths leave the folder, or a full disk; nothing is left.
    """
    stat = archive.stat()
    key = hashlib.sha256(f"{archive.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:12]
    folder = cache_folder(name) / f"{archive.name}-{key}"
    with building(folder) as temporary:
        if temporary is not None:
            logger.warning("unpacking %s into %s", archive, folder)
            try:
                _extract(archive, temporary)
            except (tarfile.ReadError, zipfile.BadZipFile, EOFError, zlib.error) as error:
                reason = str(error).splitlines()[0]
                raise UleError(f"{archive} is truncated or damaged ({reason}); get it anew") from error
            except tarfile.FilterError as error:
                raise UleError(f"{archive} holds a path that leaves its folder ({error}); get another copy") from error
    return folder


@contextmanager
def building(folder: Path, keep_parts: bool = False) -> Iterator[Path | None]:
    """A temporary folder that is renamed to ``folder`` when the block ends well; None where ``folder`` is there.

    A second process that builds the same folder waits for the first, and is then given None.

    Args:
        keep_parts: after an error, leave the temporary folder to the next try, which finds in it what was complete.
            Without it the temporary folder is always empty at first, and is removed after an error.

    Raises:
        UleError: the disk is full.
    """
    with _locked(folder):
        if folder.exists():
            yield None
            return
        temporary = folder.with_name(folder.name + ".incomplete")
        if not keep_parts:
            shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(exist_ok=True)
            yield temporary
            temporary.rename(folder)
        except BaseException as error:
            if not keep_parts:
                shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise UleError(
                    f"the disk is full: {folder} could not be built; free some space and try again"
                ) from error
            raise


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock of a process that was killed is free."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    with lock.acquire(poll_interval=0.2):
        yield


def _extract(archive: Path, folder: Path) -> None:
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as file:
            for member in file.namelist():
                # zipfile would not follow it out of the folder, but put it somewhere else inside, without a word
                if os.path.isabs(member) or ".." in PurePosixPath(member.replace("\\", "/")).parts:
                    raise UleError(f"{archive} holds a path that leaves its folder ({member}); get another copy")
            file.extractall(folder)
    else:
        with tarfile.open(archive) as file:
            file.extractall(folder, filter="data")
            while file.fileobj.read(1 << 20):  # to its checksum: tarfile takes a cut end for an end
                pass


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
