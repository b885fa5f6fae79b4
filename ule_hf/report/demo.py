"""A page where one puts in a picture and sees where teacher and student look: `ule-hf demo`, and as a Space."""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import PIL.Image

import ule_hf
from ule_hf.data.transforms import to_rgb
from ule_hf.errors import UleError
from ule_hf.hub import STUDENT_FILES, TEACHER_FILES
from ule_hf.report.explain import explain, load_pair
from ule_hf.report.pictures import draw

if TYPE_CHECKING:
    import gradio

APP = """\
from ule_hf.report.demo import serve

serve({model!r})
"""


def build(model: str | os.PathLike, student: str | os.PathLike | None = None) -> gradio.Blocks:
    """The page for a teacher, see :func:`ule_hf.report.explain.load_pair`; ``.launch()`` serves it.

    Raises:
        UleError: there is no such model, or Gradio is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is imported
    try:
        import gradio
    except ImportError as error:
        raise UleError("the demo needs Gradio; install it with: pip install 'ule_hf[demo]'") from error
    pair = load_pair(model, student)
    names = list(pair.models())

    def look(image: PIL.Image.Image | None, attribution: str) -> list:
        if image is None:
            raise gradio.Error("Put in a picture first.")
        one = explain(pair, [to_rgb(image)], ["your picture"], attribution)[0]
        buffer = io.BytesIO()
        draw(one).savefig(buffer, format="png")
        return [PIL.Image.open(buffer), *(view.probabilities for view in one.views), one.alt_text()]

    with gradio.Blocks(title=f"Where {Path(model).name} looks", analytics_enabled=False) as page:
        gradio.Markdown(f"# Where `{Path(model).name}` looks\n\nPut in a picture. Dark is where a model looks.")
        with gradio.Row():
            image = gradio.Image(type="pil", label="Picture", sources=["upload", "clipboard"], height=260)
            with gradio.Column():
                attribution = gradio.Radio(["gradient", "path"], value=pair.trained_with[0], label="Attribution")
                button = gradio.Button("Look", variant="primary")
        shown = gradio.Image(show_label=False, format="png", interactive=False, buttons=["download", "fullscreen"])
        with gradio.Row():
            labels = [gradio.Label(label=f"The {name} says", num_top_classes=5) for name in names]
        words = gradio.Textbox(label="In words", interactive=False, lines=3)
        button.click(look, [image, attribution], [shown, *labels, words], api_name="look")
    return page


def serve(model: str | os.PathLike, student: str | os.PathLike | None = None, **options: Any) -> gradio.Blocks:
    """Serve :func:`build`'s page; ``options`` are those of Gradio's ``launch``. Returns when it is stopped."""
    page = build(model, student)
    import gradio

    # Gradio's own theme takes its fonts from Google
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    page.launch(theme=theme, **options)
    return page


def write_space(folder: Path, model: str) -> Path:
    """Write a Space that shows ``model``: `app.py`, `requirements.txt`, `README.md`, a copy of this package, and of
    the model where it is a local folder. ``hf upload me/my-space FOLDER --repo-type space`` puts it on the Hub.

    Raises:
        UleError: ``folder`` holds something already, or there is no such model.
    """
    from huggingface_hub import SpaceCard, SpaceCardData

    load_pair(model)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UleError(f"--space {folder}: there is something already; name a new or empty folder")
    local = Path(model).is_dir()
    package = Path(ule_hf.__file__).parent
    shutil.copytree(package, folder / "ule_hf", ignore=shutil.ignore_patterns("__pycache__", "recipes"))
    if local:
        for path in (path for pattern in (*TEACHER_FILES, *STUDENT_FILES) for path in Path(model).glob(pattern)):
            copy = folder / "model" / path.relative_to(model)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    (folder / "app.py").write_text(APP.format(model="model" if local else model), encoding="utf-8")
    (folder / "requirements.txt").write_text("\n".join(_requirements()) + "\n", encoding="utf-8")
    card = SpaceCardData(
        title=f"Where {Path(model).name} looks",
        sdk="gradio",
        sdk_version=importlib.metadata.version("gradio"),
        app_file="app.py",
        models=None if local else [model],
    )
    text = f"---\n{card}\n---\n\n# {card.title}\n\nStudent and teacher of UnLearning from Experience, and their maps.\n"
    SpaceCard(text).save(folder / "README.md")
    return folder


def _requirements() -> list[str]:
    """What the package needs beside itself, with the extras of the report; a Space brings its own Gradio."""
    found = []
    for requirement in importlib.metadata.requires("ule_hf") or []:
        name, _, marker = requirement.partition(";")
        if not marker or re.search(r"extra\s*==\s*['\"]report['\"]", marker):
            found.append(name.strip())
    return list(dict.fromkeys(found))


def demo_main(argv: list[str]) -> str:
    """``ule-hf demo``; serves until it is stopped. With ``--space`` it writes the folder and returns what to do."""
    parser = argparse.ArgumentParser("ule-hf demo", description="A page that shows where a teacher looks.")
    parser.add_argument("model", help="Output folder of ule-hf train, a teacher on the Hub, or a folder with a model.")
    parser.add_argument("--student", help="Folder of the student, where it is not in MODEL/student.")
    parser.add_argument("--port", type=int, help="Default: the first free one from 7860.")
    parser.add_argument("--share", action="store_true", help="Make the page public, through Gradio's server.")
    parser.add_argument("--space", type=Path, help="Serve nothing; write a Space into this folder.")
    args = parser.parse_args(argv)
    if args.space:
        write_space(args.space, args.model)
        return f"{args.space}: put it on the Hub with: hf upload NAME {args.space} --repo-type space"
    serve(args.model, args.student, server_port=args.port, share=args.share)
    return "stopped"
