"""The `ule-hf` command: a thin front for the recipes, the model card and the Hub."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

USAGE = """usage: ule-hf train [options]
       ule-hf compare FILE.yaml --output FILE.jsonl [options]
       ule-hf report RESULTS... [--output DIR] [--models DIR]
       ule-hf explain MODEL IMAGE... [--output DIR] [--student DIR] [--attribution gradient|path] [--grid CELLS]
       ule-hf demo MODEL [--student DIR] [--port PORT] [--share] [--space DIR]
       ule-hf card DIR [--plain DIR] [--output FILE]
       ule-hf push DIR REPO [--private] [--revision BRANCH] [--with_student]
       ule-hf verify BENCHMARK [--data_dir DIR | --metadata FILE]

  train    train a robust teacher (the same as recipes/train.py; see ule-hf train --help)
  compare  methods x seeds x datasets from one file, with a table (see ule-hf compare --help)
  report   one HTML page with tables, charts and pictures of a comparison
  explain  pictures of where a teacher and its student look in your images
  demo     the same as a page in the browser, or as a Space
  card     render the model card of an output folder anew
  push     put the teacher of an output folder on the Hub
  verify   compare a copy of a benchmark with the published one (see ule-hf verify --help)

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
    if command == "compare":
        from ule_hf.recipes.compare import main as compare

        return compare(rest)
    if command == "verify":
        from ule_hf.data import BENCHMARKS
        from ule_hf.data.commands import verify_main

        return verify_main(BENCHMARKS, rest)
    if command not in ("card", "push", "report", "explain", "demo"):
        print(f"error: there is no command {command!r}\n{USAGE}", file=sys.stderr)
        return 2
    from ule_hf.errors import UleError

    try:
        print(_run(command, rest))
    except UleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _run(command: str, argv: list[str]) -> str:
    if command == "report":
        from ule_hf.report.page import report_main

        return report_main(argv)
    if command == "explain":
        from ule_hf.report.explain import explain_main

        return explain_main(argv)
    if command == "demo":
        from ule_hf.report.demo import demo_main

        return demo_main(argv)
    return card(argv) if command == "card" else push(argv)


def card(argv: list[str]) -> str:
    """``ule-hf card``; returns where the card was written."""
    from ule_hf.card import plain_results, read_facts, write_card

    parser = argparse.ArgumentParser("ule-hf card", description="Render the model card of an output folder anew.")
    parser.add_argument("dir", help="What ule-hf train or a ULETrainer saved; what card.json says can be mended there.")
    parser.add_argument("--plain", help="Output folder of plain training (--unlearning_weight 0), to show beside it.")
    parser.add_argument("--output", help="Write it here and not to DIR/README.md.")
    args = parser.parse_args(argv)
    facts = None
    if args.plain:
        facts = replace(read_facts(args.dir), plain=plain_results(args.plain, beside=args.dir))
    return str(write_card(args.dir, facts, args.output))


def push(argv: list[str]) -> str:
    """``ule-hf push``; returns the address of the commit."""
    parser = argparse.ArgumentParser("ule-hf push", description="Put the teacher of an output folder on the Hub.")
    parser.add_argument("dir", help="What ule-hf train or a ULETrainer saved.")
    parser.add_argument("repo", help="NAMESPACE/NAME, or a name in your own namespace; created if it does not exist.")
    parser.add_argument("--private", action="store_true", default=None, help="Make a new repository private.")
    parser.add_argument("--revision", help="Branch; created if it does not exist.")
    parser.add_argument("--with_student", action="store_true", help="Push the trained student too, as student/.")
    args = parser.parse_args(argv)
    from ule_hf.hub import push_teacher

    options = {"private": args.private, "revision": args.revision, "with_student": args.with_student}
    return push_teacher(args.dir, args.repo, **options)


if __name__ == "__main__":
    sys.exit(main())
