"""The `ule-hf` command: a thin front for the recipes."""

from __future__ import annotations

import sys

USAGE = """usage: ule-hf train [options]

  train    train a robust teacher (the same as recipes/train.py; see ule-hf train --help)

For several processes: accelerate launch -m ule_hf.cli train [options]"""


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console script; returns the exit status."""
    command, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help"):
        print(USAGE)
        return 0
    if command == "train":
        from ule_hf.recipes.train import main as train

        return train(rest)
    print(f"error: there is no command {command!r}\n{USAGE}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
