"""The code blocks of docs/, and how each kind is run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from accelerate.commands.launch import launch_command_parser

from ule_hf.arguments import parse
from ule_hf.cli import main as cli

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
ON_THE_HUB = ("load_a_teacher", "publish")  # in tests/hub/inside, where there is one


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of ``docs/<page>.md`` in ``language``."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def run_python(page: str) -> dict:
    """Execute the Python blocks of a page in their order, as one program; its names."""
    names = {"__name__": "__main__"}
    for block in blocks(page, "python"):
        exec(compile(block, f"docs/{page}.md", "exec"), names)
    return names


def commands(page: str) -> list[list[str]]:
    """The commands of a page's shell blocks, split into words."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def check_command(words: list[str], run: bool = False) -> None:
    """Fails unless the options of a command exist. ``run``: ule-hf card and push are executed."""
    if words[:2] == ["accelerate", "launch"]:
        launch = launch_command_parser().parse_args(words[2:])
        assert (REPOSITORY / launch.training_script).is_file()
        # --use_cpu, because bf16 is refused where there is neither a GPU nor this option
        parse([*launch.training_script_args, "--use_cpu"], recipes=REPOSITORY / "recipes")
    elif words[0] == "ule-hf" and run:
        assert cli(words[1:]) == 0, words
    elif words[0] == "ule-hf":
        assert words[1] in ("card", "push", "compare", "demo", "explain", "report"), words
    else:
        assert words == ["pip", "install", "-e", "."], words
