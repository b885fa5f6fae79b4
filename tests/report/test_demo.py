"""The demo in a real browser, and the Space that it becomes."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
from huggingface_hub import SpaceCard
from packaging.requirements import Requirement

from tests.report.models import save_model, save_pair
from ule_hf.cli import main as cli
from ule_hf.report.demo import serve
from ule_hf.report.explain import explain, load_pair


@pytest.mark.slow
def test_a_picture_put_into_the_page_comes_back_explained(tmp_path, browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    save_pair(tmp_path / "teacher")
    picture = tmp_path / "picture.png"
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(picture)
    page = serve(tmp_path / "teacher", prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    try:
        wait = WebDriverWait(browser, 90)
        browser.get(page.local_url)
        wait.until(lambda b: b.find_elements(By.CSS_SELECTOR, "input[type=file]"))[0].send_keys(str(picture))
        wait.until(lambda b: b.find_elements(By.CSS_SELECTOR, "img[src*='picture.png']"))
        next(b for b in browser.find_elements(By.TAG_NAME, "button") if b.text == "Look").click()
        wait.until(lambda b: "says" in b.find_element(By.TAG_NAME, "textarea").get_attribute("value"))
        said = browser.find_element(By.TAG_NAME, "textarea").get_attribute("value")
        (expected,) = explain(load_pair(tmp_path / "teacher"), [PIL.Image.open(picture)], ["your picture"])
        assert said == expected.alt_text()
        drawn = wait.until(lambda b: [i for i in b.find_elements(By.TAG_NAME, "img") if _width(i) > 600])
        assert len(drawn) == 1
        loaded = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
        assert loaded and all(address.startswith((page.local_url, "data:", "blob:")) for address in loaded)
    finally:
        page.close()


def _width(image) -> int:
    return int(image.get_attribute("naturalWidth"))


@pytest.mark.slow
def test_a_space_holds_all_that_it_needs(tmp_path, capsys):
    save_pair(tmp_path / "teacher")
    (tmp_path / "teacher" / "checkpoint-7").mkdir()
    (tmp_path / "teacher" / "checkpoint-7" / "optimizer.pt").write_bytes(b"large")
    space = tmp_path / "space"
    assert cli(["demo", str(tmp_path / "teacher"), "--space", str(space)]) == 0
    assert "hf upload" in capsys.readouterr().out
    card = SpaceCard.load(space / "README.md").data
    assert card.sdk == "gradio" and card.app_file == "app.py" and card.sdk_version
    names = {Requirement(line).name for line in (space / "requirements.txt").read_text().splitlines()}
    assert names >= {"torch", "transformers", "timm", "matplotlib", "captum"} and not names & {"gradio", "pytest"}
    assert not list(space.rglob("*.pt")) and not list(space.rglob("__pycache__"))
    # the copy, and not what is installed, builds the page
    app = (space / "app.py").read_text()
    check = app.replace("serve(", "page = build(").replace("import serve", "import build")
    check += "\nimport ule_hf, os\nassert os.path.dirname(ule_hf.__file__) == os.path.join(os.getcwd(), 'ule_hf')\n"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(space)}
    subprocess.run([sys.executable, "-c", check], cwd=space, env=environment, check=True)


def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "model")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        (["model", "--space", "full"], "--space full: there is something already"),
        (["empty"], "empty: "),
        (["empty", "--space", "space"], "empty: "),
    ):
        assert cli(["demo", *arguments]) == 2
        assert capsys.readouterr().err.strip().splitlines()[-1].startswith(f"error: {message}")
    assert not (tmp_path / "space").exists() and len(list((tmp_path / "full").iterdir())) == 1
