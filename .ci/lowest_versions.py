"""Prints pyproject.toml's lower bounds as a constraints file of pip: ``name==lowest`` for each requirement."""

from __future__ import annotations

from pathlib import Path

import tomli
from packaging.requirements import Requirement

project = tomli.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"].values()
for text in sorted({text for listed in (project["dependencies"], *extras) for text in listed}):
    requirement = Requirement(text)
    lowest = [bound.version for bound in requirement.specifier if bound.operator in (">=", "==", "~=")]
    if lowest:  # the package's own extras have none
        print(f"{requirement.name}=={lowest[0]}")
