"""Small image folders that the tests write and then break."""

from __future__ import annotations

import json

import PIL.Image


def write_image(path, colour=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (9, 7), (colour, 50, 100)).save(path)


def rows_of(counts):
    """``{(label, split, place): count}`` to metadata rows."""
    return [
        {"file_name": f"{label}-{split}-{place}-{i}.png", "label": label, "split": split, "place": place}
        for (label, split, place), count in counts.items()
        for i in range(count)
    ]


def write_folder(root, rows, file="metadata.csv", images=True):
    """The rows as metadata, and an image for each."""
    root.mkdir(parents=True, exist_ok=True)
    if file.endswith(".csv"):
        lines = [",".join(rows[0])] + [",".join(f'"{value}"' for value in row.values()) for row in rows]
    else:
        lines = [json.dumps(row) for row in rows]
    (root / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
    for i, row in enumerate(rows if images else []):
        write_image(root / row["file_name"], colour=i % 256)
    return root


def small_rows():
    """Two classes in three splits."""
    return rows_of({(label, split, "x"): 2 for label in ("cat", "dog") for split in ("train", "val", "test")})


def without(rows, *columns):
    return [{name: value for name, value in row.items() if name not in columns} for row in rows]


def sizes(data):
    return {split: len(data[split]) for split in data}
