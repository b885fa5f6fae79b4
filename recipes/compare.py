"""Compare methods on the same data, with the same model and budget, over several seeds.

    python recipes/compare.py recipes/comparisons/quick.yaml --output results/quick.jsonl
    python recipes/compare.py recipes/comparisons/small.yaml --output results/small.jsonl --set data=DATA --processes 2

The YAML file has `beds` and `methods` (each a name with options of recipes/train.py), `seeds`, and perhaps a `search`;
`${NAME}` in a bed's option is replaced by what --set NAME=VALUE gives. Every run is one line of the output, and stands
there for good: the same command goes on where it was stopped. The table is written beside it, as Markdown.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    """Run what is missing and write the table; 0 when all is there, 1 when runs failed, 2 for bad input."""
    parser = argparse.ArgumentParser(
        "ule-hf compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="What is compared: a YAML file.")
    parser.add_argument("--output", type=Path, required=True, help="Results, one JSON line a run; ends in .jsonl.")
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], help="Value of ${NAME} in a bed.")
    parser.add_argument("--beds", nargs="+", help="Run these only.")
    parser.add_argument("--processes", type=int, default=1, help="Runs at a time.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of each run.")
    parser.add_argument("--retry_failed", action="store_true", help="Run again what failed.")
    parser.add_argument("--keep_models", type=Path, help="Keep what each run saves, in DIR/bed/method/seed.")
    parser.add_argument("--table", action="store_true", help="Run nothing; print the table of what there is.")
    arguments = parser.parse_args(sys.argv[1:] if argv is None else argv)

    from ule_hf.comparison.command import compare, table
    from ule_hf.errors import UleError

    terminated = signal.signal(signal.SIGTERM, signal.default_int_handler)  # end the runs too
    try:
        if arguments.table:
            print(table(arguments.file, arguments.output))
            return 0
        if wrong := [pair for pair in arguments.set if "=" not in pair]:
            raise UleError(f"--set {wrong[0]}: write NAME=VALUE")
        values = dict(pair.split("=", 1) for pair in arguments.set)
        failed = compare(
            arguments.file,
            arguments.output,
            values,
            beds=arguments.beds,
            processes=arguments.processes,
            threads=arguments.threads,
            retry_failed=arguments.retry_failed,
            keep_models=arguments.keep_models,
        )
        return 1 if failed else 0
    except UleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, terminated)


if __name__ == "__main__":
    sys.exit(main())
