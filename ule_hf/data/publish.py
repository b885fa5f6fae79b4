"""A verified benchmark as a folder of Parquet with a card: what `load_dataset` reads, here or from the Hub.

A program of `dataset_scripts/` is three lines, see :func:`ule_hf.data.commands.build_main`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict
from datasets.table import embed_table_storage
from huggingface_hub import DatasetCard, DatasetCardData, HfApi

from ule_hf.data.archives import building
from ule_hf.data.verify import count_groups, label_of
from ule_hf.errors import UleError
from ule_hf.hub_errors import hub_errors

logger = logging.getLogger(__name__)

#: A shard is what a restart does not write again: some hundred megabytes.
ROWS_PER_SHARD = 4096
#: Images that are in memory at once, and that a stream reads at once.
_ROWS_PER_GROUP = 100

_TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

{{ label }}. Columns: {{ columns }}.

## Source

{{ source }}

## Licence

{{ licence }}

## Construction

{{ construction }}

## Groups

{{ groups }}

## Traps

{{ traps }}

## Citation

```bibtex
{{ citation }}
```
"""


@dataclass(frozen=True)
class Card:
    """What a dataset card says beside what is read from the data themselves.

    Args:
        licence: a sentence; ``license_id`` is the Hub's name for it.
        traps: sentences, what figures are spoilt by.
        restricted: publishing asks for a right that not everybody has.
    """

    title: str
    source: str
    licence: str
    construction: str
    traps: tuple[str, ...]
    citation: str
    license_id: str = "other"
    restricted: bool = True


def write_folder(data: DatasetDict, folder: Path, card: Card) -> None:
    """Writes ``data/<split>-00000-of-00003.parquet`` with the images inside, and ``README.md``.

    The folder appears when it is whole. After an error, such as a full disk, the shards that were complete are kept in
    ``<folder>.incomplete``, and the next try with the same data goes on from there.

    Raises:
        UleError: the folder is there already, or the disk is full.
    """
    with building(folder, keep_parts=True) as temporary:
        if temporary is None:
            raise UleError(f"{folder} is there already; remove it, or give another --output_dir")
        shards = temporary / "data"
        _discard_other_data(temporary, _digest(data))
        shards.mkdir(exist_ok=True)
        for split, dataset in data.items():
            count = max(1, -(-len(dataset) // ROWS_PER_SHARD))
            for number in range(count):
                file = shards / f"{split}-{number:05d}-of-{count:05d}.parquet"
                if not file.is_file():
                    rows = range(number * ROWS_PER_SHARD, min((number + 1) * ROWS_PER_SHARD, len(dataset)))
                    _write_shard(dataset.with_format(None).select(rows), file)
        render_card(data, card).save(temporary / "README.md")
        (temporary / _DIGEST).unlink()


def render_card(data: DatasetDict, card: Card) -> DatasetCard:
    """The card of ``data``: its label (a variant's name is in it), columns and group sizes, and what ``card`` says."""
    files = [{"split": split, "path": f"data/{split}-*"} for split in data]
    card_data = DatasetCardData(
        license=card.license_id,
        task_categories=["image-classification"],
        tags=["spurious-correlations", "group-robustness"],
        pretty_name=card.title,
        configs=[{"config_name": "default", "data_files": files}],
    )
    return DatasetCard.from_template(
        card_data,
        template_str=_TEMPLATE,
        title=card.title,
        label=label_of(data),
        columns=", ".join(f"`{column}`" for column in next(iter(data.values())).column_names),
        source=card.source,
        licence=card.licence,
        construction=card.construction,
        groups=_markdown(count_groups(data)),
        traps="\n".join(f"* {trap}" for trap in card.traps),
        citation=card.citation,
    )


def push(folder: Path, repo_id: str, card: Card, right_to_publish: bool) -> None:
    """Uploads a folder that :func:`write_folder` wrote; ``load_dataset(repo_id)`` reads it, streaming too.

    Raises:
        UleError: the licence restricts publication, and ``right_to_publish`` is False; or the Hub does not take it.
    """
    check_right(card, right_to_publish)
    api = HfApi()
    with hub_errors(repo_id):
        api.create_repo(repo_id, repo_type="dataset", exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, repo_type="dataset")


def check_right(card: Card, right_to_publish: bool) -> None:
    """Raises UleError where publishing asks for a right that the user does not claim."""
    if card.restricted and not right_to_publish:
        raise UleError(
            f"{card.title} may not be passed on by everybody: {card.licence}; if you may, say so with "
            "--i_have_the_right_to_publish"
        )


_DIGEST = "digest.json"


def _digest(data: DatasetDict) -> str:
    """Tells whether the shards of an earlier try are of the same rows."""
    digest = hashlib.sha256(str(ROWS_PER_SHARD).encode())
    for split, dataset in data.items():
        rows = dataset.with_format(None)
        digest.update(json.dumps([split, str(dataset.features), rows["image_id"][:], rows["group"][:]]).encode())
    return digest.hexdigest()


def _discard_other_data(temporary: Path, digest: str) -> None:
    file = temporary / _DIGEST
    shards = list(temporary.glob("data/*"))
    if shards and file.is_file() and file.read_text() == digest:
        logger.warning("%s holds %d shards of an earlier try: going on from there", temporary, len(shards))
        return
    for shard in shards:
        shard.unlink()
    file.write_text(digest)


def _write_shard(dataset: Dataset, file: Path) -> None:
    part = file.with_suffix(".part")
    schema = dataset.features.arrow_schema  # carries the ClassLabels' names
    with pq.ParquetWriter(part, schema) as writer:
        for table in dataset.with_format("arrow").iter(batch_size=_ROWS_PER_GROUP):
            writer.write_table(embed_table_storage(table.replace_schema_metadata(schema.metadata)).cast(schema))
    part.rename(file)


def _markdown(counts: Mapping[str, Mapping[str, int]]) -> str:
    groups = list(next(iter(counts.values())))
    lines = ["| group | " + " | ".join(counts) + " |", "|---|" + "---:|" * len(counts)]
    lines += [f"| {group} | " + " | ".join(str(counts[split][group]) for split in counts) + " |" for group in groups]
    totals = (str(sum(sizes.values())) for sizes in counts.values())
    return "\n".join([*lines, "| all | " + " | ".join(totals) + " |"])
