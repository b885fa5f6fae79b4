"""Train a robust teacher.

    accelerate launch recipes/train.py --dataset digits
    accelerate launch recipes/train.py --dataset digits --preset path --shortcut half --correlation 1.0
    accelerate launch recipes/train.py --dataset folder --data_dir my_images --model timm/resnet50.a1_in1k
    accelerate launch recipes/train.py --config recipes/digits/default.yaml --seed 1 --output_dir outputs/digits-1

Every option of `ule_hf.arguments.DataArguments`, `ModelArguments` and `ule_hf.config.ULEConfig` (a transformers
`TrainingArguments`) can be given on the command line or in a YAML file; the command line wins. Without --config,
recipes/<dataset>/default.yaml is read.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    """Run the recipe; 0 when it went well, 2 with one line on standard error for bad input."""
    argv = sys.argv[1:] if argv is None else argv
    from tqdm.auto import tqdm

    from ule_hf.arguments import parse
    from ule_hf.errors import UleError
    from ule_hf.experiment import run

    try:
        run(*parse(argv, recipes=Path(__file__).parent), command=shlex.join(["recipes/train.py", *argv]))
    except UleError as error:
        tqdm.write(f"error: {error}", file=sys.stderr)  # below a progress bar, not behind it
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
