"""Teachers on the Hub: load one, push one.

A push is one commit of named files, so that a repository never holds half a teacher and nothing else of an output
folder leaves the machine. Weights that an interrupted push has already sent are not sent again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    get_token,
    snapshot_download,
)
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    PreTrainedModel,
)
from transformers.image_processing_utils import BaseImageProcessor
from yaml import YAMLError

from ule_hf.card import (
    CARD_FILE,
    CONFIG_FILE,
    FACTS_FILE,
    PICTURES,
    RENDERED,
    RESULTS_FILE,
    read_facts,
    read_json,
    write_card,
)
from ule_hf.data.preprocessing import PUBLISHED, PublishedEvalTransform
from ule_hf.data.transforms import EvalTransform
from ule_hf.errors import UleError, first_line
from ule_hf.hub_errors import hub_errors
from ule_hf.model_files import MODEL_FILES, check_model_folder, check_weights, refuse_what_is_not_finite

STUDENT_FOLDER = "student"
TEACHER_FILES = (*MODEL_FILES, CARD_FILE, FACTS_FILE, CONFIG_FILE, RESULTS_FILE, PICTURES)
STUDENT_FILES = tuple(f"{STUDENT_FOLDER}/{name}" for name in MODEL_FILES)
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")


class NoStudent(UleError):
    """A teacher whose student was not kept, or not pushed."""


class LoadedModel(NamedTuple):
    """What :func:`load_teacher` gives.

    ``classifier`` is in evaluation mode; ``classifier(pixel_values=x).logits`` is ``[B, K]``. ``transform`` makes the
    ``pixel_values`` of a batch ``{"image": [...]}``. ``results`` is the folder's ``results.json``, None where the test
    split had not been evaluated; ``options`` those of the training (``ule_config.json``), empty where none are known.
    """

    classifier: PreTrainedModel
    image_processor: BaseImageProcessor
    transform: EvalTransform
    results: dict[str, Any] | None
    options: dict[str, Any]


def load_teacher(repo_or_folder: str | os.PathLike, revision: str | None = None) -> LoadedModel:
    """The teacher of a Hub repository or an output folder, its evaluation transform and recorded results.

    Args:
        revision: branch, tag or commit of a repository.

    Raises:
        UleError: there is no such teacher, or its files do not fit one another.
    """
    folder = _local_folder(os.fspath(repo_or_folder), revision, TEACHER_FILES)
    return load_model_folder(os.fspath(repo_or_folder), folder, folder)


def load_student(repo_or_folder: str | os.PathLike, revision: str | None = None) -> LoadedModel:
    """As :func:`load_teacher` for the student in ``student/``, where it was kept; the results are those of both."""
    name = os.fspath(repo_or_folder)
    folder = _local_folder(name, revision, (*STUDENT_FILES, CONFIG_FILE, FACTS_FILE, RESULTS_FILE))
    if not (folder / STUDENT_FOLDER).is_dir():
        raise NoStudent(f"{name}: holds no student; push it with ule-hf push --with_student")
    return load_model_folder(name, folder, folder / STUDENT_FOLDER)


def push_teacher(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    with_student: bool = False,
    token: str | None = None,
) -> str:
    """Push an output folder; return the address of the commit. It is loaded first: what is pushed can be read.

    A card without its last line (:data:`ule_hf.card.RENDERED`) was changed by hand and is pushed as it is; any other is
    rendered anew with the repository's name.

    Args:
        repo_id: ``NAMESPACE/NAME``, or a name in your own namespace; created if it does not exist.
        private: of a new repository; True also refuses an existing public one.
        revision: a branch, created if it does not exist.
        token: by default that of ``hf auth login`` or ``HF_TOKEN``.

    Raises:
        UleError: the folder holds no teacher, or the Hub refuses; nothing has been committed then.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UleError(f"{folder}: is no folder")
    load_teacher(folder)
    if with_student:
        load_student(folder)
    repo_id = full_repo_id(repo_id, token)
    card = folder / CARD_FILE
    if not card.is_file() or RENDERED in card.read_text(encoding="utf-8"):
        write_card(folder, replace(read_facts(folder), model_id=repo_id))
    check_card(card.read_text(encoding="utf-8"))
    files = teacher_files(folder, with_student)
    refuse_secrets(folder, files)
    open_repository(repo_id, private=private, revision=revision, token=token)
    return commit(repo_id, {name: folder / name for name in files}, "Upload teacher", revision=revision, token=token)


def teacher_files(folder: Path, with_student: bool) -> list[str]:
    """What a push takes of ``folder``, relative to it: neither checkpoints nor logs nor anything unknown."""
    patterns = TEACHER_FILES + (STUDENT_FILES if with_student else ())
    return [path.relative_to(folder).as_posix() for pattern in patterns for path in sorted(folder.glob(pattern))]


def refuse_secrets(folder: Path, files: list[str]) -> None:
    """Raises a UleError if a text file among ``files`` holds what looks like an access token."""
    for name in files:
        if name.endswith((".json", ".md")) and _TOKEN.search((folder / name).read_text(encoding="utf-8")):
            raise UleError(f"{folder / name}: holds what looks like an access token; take it out, and revoke it")


def check_card(text: str) -> None:
    """Ask the Hub whether it takes the metadata of a card.

    Raises:
        UleError: it does not; the Hub's reason follows.
    """
    try:
        card = ModelCard(text)
    except YAMLError as error:
        raise UleError(f"{CARD_FILE}: its metadata is no YAML ({' '.join(str(error).split())})") from error
    with hub_errors(CARD_FILE):
        card.validate(repo_type="model")


def full_repo_id(repo_id: str, token: str | None = None) -> str:
    """``repo_id`` with its namespace, by default that of the token.

    Raises:
        UleError: there is no token, or the Hub does not accept it.
    """
    if token is None and get_token() is None:
        raise UleError("no token of the Hub was found; log in with hf auth login, or set HF_TOKEN")
    with hub_errors(repo_id):
        user = HfApi(token=token).whoami()["name"]
    return repo_id if "/" in repo_id else f"{user}/{repo_id}"


def open_repository(
    repo_id: str, *, private: bool | None = None, revision: str | None = None, token: str | None = None
) -> None:
    """Create the model repository ``repo_id`` and the branch ``revision`` where they do not exist.

    Raises:
        UleError: the token may not write there, or the name stands for something else than a teacher.
    """
    api = HfApi(token=token)
    with hub_errors(repo_id):
        if api.repo_exists(repo_id):
            info = api.model_info(repo_id)
            files = {file.rfilename for file in info.siblings}
            if "config.json" in files and CONFIG_FILE not in files:
                raise UleError(f"{repo_id}: already holds another model, not trained by ule_hf; choose another name")
            if private and not info.private:
                raise UleError(f"{repo_id}: is there already and public; make it private, or choose another name")
        else:
            for kind in ("dataset", "space"):
                if api.repo_exists(repo_id, repo_type=kind):
                    raise UleError(f"{repo_id}: is a {kind}; choose another name, or create a model of that name first")
            api.create_repo(repo_id, private=private, exist_ok=True)
        api.auth_check(repo_id, write=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)


def commit(
    repo_id: str,
    files: dict[str, Path],
    message: str,
    *,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Put ``files`` (name in the repository -> path) there in one commit and return its address.

    Files of an earlier teacher that this one does not have (results, its student) are taken away in the same commit.

    Raises:
        UleError: the Hub does not take them; nothing has been committed then.
    """
    api = HfApi(token=token)
    ours = TEACHER_FILES + STUDENT_FILES
    with hub_errors(repo_id):
        there = api.list_repo_files(repo_id, revision=revision)
        stale = [n for n in there if n not in files and any(fnmatchcase(n, pattern) for pattern in ours)]
        operations = [CommitOperationAdd(name, path) for name, path in files.items()]
        operations += [CommitOperationDelete(name) for name in stale]
        return api.create_commit(repo_id, operations, commit_message=message, revision=revision).commit_url


def _local_folder(name: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    """The folder itself, or a download of those files of a repository that fit ``patterns``."""
    folder = Path(name)
    if not folder.is_dir():
        with hub_errors(f"{name}: no local folder; on the Hub"):
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    if not (folder / CONFIG_FILE).is_file():
        raise UleError(
            f"{name}: holds no {CONFIG_FILE}, so it is no teacher of ule_hf; ule_hf.load_backbone reads other models"
        )
    return folder


def load_model_folder(name: str, folder: Path, model_folder: Path) -> LoadedModel:
    """The image classifier in ``model_folder``, with what the output folder ``folder`` says of data and results.

    Args:
        name: what messages call it.

    Raises:
        UleError: there is no image classifier, or its files do not fit one another.
    """
    check_model_folder(name, model_folder)
    with _reading(f"{name}: it has no config.json of an image classifier"):
        config = AutoConfig.from_pretrained(model_folder, trust_remote_code=False)
    if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        raise UleError(f"{name}: holds a {config.model_type!r} model, which has no image classifier")
    # names that do not fit its classes are dropped without a word by the configuration of a timm model
    names = read_json(model_folder / "config.json").get("label_names") or list(config.id2label.values())
    if len(set(names)) != len(names) or len(names) != config.num_labels:
        raise UleError(f"{name}: its config.json has {config.num_labels} classes, but the label names {names}")
    with _reading(f"{name}: it has no image processor that can be read"):
        processor = AutoImageProcessor.from_pretrained(model_folder, trust_remote_code=False)
    check_weights(name, model_folder, config)
    with _reading(f"{name}: its weights cannot be loaded"):
        classifier, info = AutoModelForImageClassification.from_pretrained(
            model_folder, config=config, use_safetensors=True, output_loading_info=True, trust_remote_code=False
        )
    refuse_what_is_not_finite(name, classifier)
    if missing := sorted(info["missing_keys"]):
        raise UleError(f"{name}: its weights do not fit its config.json, first at {missing[:3]}")
    results = read_json(folder / RESULTS_FILE) if (folder / RESULTS_FILE).is_file() else None
    benchmark = read_facts(folder).published_preprocessing
    if benchmark not in (None, *PUBLISHED):
        raise UleError(f"{name}: {FACTS_FILE} names {benchmark!r}, of which no published preprocessing is known")
    transform = PublishedEvalTransform(processor, benchmark) if benchmark else EvalTransform(processor)
    options = read_json(folder / CONFIG_FILE) if (folder / CONFIG_FILE).is_file() else {}
    return LoadedModel(classifier.eval(), processor, transform, results, options)


@contextmanager
def _reading(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # files at fault make libraries raise whatever there is
        raise UleError(f"{what} ({first_line(error)})") from error
