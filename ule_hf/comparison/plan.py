"""A comparison as its YAML file says it: beds × methods × seeds, and what is searched. Refused before anything runs."""

from __future__ import annotations

import json
import re
import string
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import ule_hf.recipes
from ule_hf.arguments import parse
from ule_hf.errors import UleError

Options = dict[str, Any]

#: What every run is given beside the YAML file's options.
FIXED: Options = {"evaluate_test_each_epoch": True, "report_step_cost": True}
#: What is the comparison's to say, not the YAML file's.
RESERVED = (*FIXED, "seed", "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "push_to_hub", "hub_token")
#: Rule -> the validation figure that it maximises. Only the last one needs group labels.
RULES = {"worst_class": "worst_class_accuracy", "average": "accuracy", "worst_group": "worst_group_accuracy"}


@dataclass(frozen=True)
class Cell:
    """One run: its names, and what it is told by its bed, its method and the search."""

    bed: str
    method: str
    seed: int
    bed_options: Options
    method_options: Options
    search: Options = field(default_factory=dict)  # what was searched how, and under "found" what was found

    def options(self) -> Options:
        """What `recipes/train.py` is given, but for the output folder; the method's options win over the bed's."""
        merged = self.bed_options | self.method_options | self.search.get("found", {}) | FIXED | {"seed": self.seed}
        return {name: value for name, value in merged.items() if value is not None}

    def recorded(self) -> dict[str, Options]:
        """The options without machine paths, as a line holds them: two runs with the same ones may be averaged."""
        parts = {"bed": self.bed_options, "method": self.method_options, "search": self.search}
        return {part: {name: portable(value) for name, value in options.items()} for part, options in parts.items()}


@dataclass(frozen=True)
class Search:
    """The same number of trials for every method, judged on the validation split by ``rule``."""

    trials: int
    space: dict[str, dict[str, Any]]  # method -> option -> Optuna's distribution
    rule: str = "worst_class"
    seed: int = 0

    def ends(self, method: str) -> list[Options]:
        """The first and the last value of each option that is searched."""
        space = self.space[method].items()
        ends = {n: getattr(d, "choices", None) or (d.low, d.high) for n, d in space}
        return [{name: values[end] for name, values in ends.items()} for end in (0, -1)]


@dataclass(frozen=True)
class Plan:
    """What a comparison's file says, with its ``${NAME}`` placeholders as they stand there."""

    file: Path
    beds: dict[str, Options]
    methods: dict[str, Options]
    seeds: list[int]
    search: Search | None = None

    def cells(self, values: dict[str, str], beds: list[str] | None = None) -> list[Cell]:
        """The runs on ``beds`` (all by default), seed by seed, with placeholders replaced by ``values``.

        Raises:
            UleError: a bed that is not there, a placeholder without a value, or a value without a placeholder.
        """
        for name in beds or []:
            if name not in self.beds:
                raise UleError(f"{self.file}: there is no bed {name!r}; there are {', '.join(self.beds)}")
        filled: dict[str, Options] = {}
        unused = set(values)
        for bed in beds or self.beds:
            filled[bed] = {n: self._fill(bed, n, v, values, unused) for n, v in self.beds[bed].items()}
        if unused and beds is None:
            raise UleError(f"{self.file}: nothing there is called ${{{min(unused)}}}; leave --set {min(unused)}=… out")
        return [
            Cell(bed, method, seed, options, self.methods[method])
            for bed, options in filled.items()
            for seed in self.seeds
            for method in self.methods
        ]

    def names(self) -> list[tuple[str, str, int]]:
        """Bed, method and seed of every run."""
        return [(bed, method, seed) for bed in self.beds for method in self.methods for seed in self.seeds]

    def check(self, cells: list[Cell]) -> None:
        """Read every cell's options as `recipes/train.py` would.

        Raises:
            UleError: an option or a value that the recipe does not take, with file, bed and method.
        """
        recipes = Path(ule_hf.recipes.__file__).parent
        for cell in {(cell.bed, cell.method): cell for cell in cells}.values():
            for found in self.search.ends(cell.method) if self.search else [{}]:
                try:
                    parse(arguments(cell.options() | found), recipes)
                except UleError as error:
                    raise UleError(f"{self.file}: method {cell.method!r} on bed {cell.bed!r}: {error}") from error

    def _fill(self, bed: str, name: str, value: Any, values: dict[str, str], unused: set[str]) -> Any:
        if not isinstance(value, str):
            return value
        template = string.Template(value)
        found = (match["named"] or match["braced"] for match in template.pattern.finditer(value))
        for placeholder in filter(None, found):  # Python 3.11 has get_identifiers for it
            if placeholder not in values:
                raise UleError(
                    f"{self.file}: {name} of bed {bed!r} is {value}, and ${{{placeholder}}} has no value; "
                    f"give --set {placeholder}=…"
                )
            unused.discard(placeholder)
        return template.safe_substitute(values)


def arguments(options: Options) -> list[str]:
    """``{"attribute_columns": ["a", "b"], "bf16": True}`` as a command line.

    >>> arguments({"attribute_columns": ["a", "b"], "bf16": True, "learning_rate": 0.1})
    ['--attribute_columns', 'a', 'b', '--bf16', 'true', '--learning_rate', '0.1']
    """
    argv = []
    for name, value in options.items():
        values = value if isinstance(value, list) else [value]
        argv += [f"--{name}", *(json.dumps(v) if isinstance(v, (bool, dict)) else str(v) for v in values)]
    return argv


def portable(value: Any) -> Any:
    """A path without what only this machine has: the last part of one that is absolute or goes up.

    >>> portable("/mnt/data/birds"), portable("../weights/a.safetensors"), portable("timm/resnet50")
    ('birds', 'a.safetensors', 'timm/resnet50')
    """
    if isinstance(value, str) and (Path(value).is_absolute() or ".." in Path(value).parts):
        return Path(value).name
    return value


def read_plan(file: str | Path) -> Plan:
    """Read a comparison's YAML file.

    Raises:
        UleError: it cannot be read, or a key is missing, unknown, or no such thing as it should be.
    """
    file = Path(file)
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UleError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    _check_keys(content, f"{file}", required=("beds", "methods", "seeds"), optional=("search",))
    for kind in ("beds", "methods"):
        entries = content[kind]
        if not isinstance(entries, dict) or not entries:
            raise UleError(f"{file}: {kind} must be names with options below each; write 'name: {{option: value}}'")
        for name, options in entries.items():
            _check_options(file, kind.removesuffix("s"), name, options)
    seeds = content["seeds"]
    whole = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise UleError(f"{file}: seeds is {seeds!r}; write a list of different whole numbers, such as [0, 1, 2]")
    search = _read_search(file, content["search"], content["methods"]) if content.get("search") else None
    methods = {name: options or {} for name, options in content["methods"].items()}
    return Plan(file, {name: options or {} for name, options in content["beds"].items()}, methods, seeds, search)


def _check_options(file: Path, kind: str, name: Any, options: Any) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.+-]*", name):
        raise UleError(f"{file}: the {kind} name {name!r} must be of letters, digits and . + - _ (it names folders)")
    if not isinstance(options, dict | None):
        raise UleError(f"{file}: {kind} {name!r} holds a {type(options).__name__}; write one 'option: value' a line")
    for option in options or {}:
        if option in RESERVED:
            raise UleError(f"{file}: {kind} {name!r} sets {option}, which the comparison itself sets; leave it out")


def _check_keys(content: Any, where: str, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
    known = f"there are {', '.join((*required, *optional))}"
    if not isinstance(content, dict):
        raise UleError(f"{where} holds a {type(content).__name__}; write 'key: value' lines ({known})")
    for key in content:
        if key not in (*required, *optional):
            raise UleError(f"{where}: key {key!r} is unknown; {known}")
    for key in required:
        if key not in content:
            raise UleError(f"{where}: key {key!r} is missing; {known}")


def _read_search(file: Path, content: Any, methods: dict[str, Options]) -> Search:
    where = f"{file}: search"
    _check_keys(content, where, required=("trials", "space"), optional=("rule", "seed"))
    trials, rule, seed = content["trials"], content.get("rule", "worst_class"), content.get("seed", 0)
    if type(trials) is not int or trials < 1:
        raise UleError(f"{where}: trials is {trials!r}; write one whole number, the same for every method")
    if rule not in RULES:
        raise UleError(f"{where}: rule {rule!r} is unknown; choose one of {', '.join(RULES)}")
    if type(seed) is not int or seed < 0:
        raise UleError(f"{where}: seed is {seed!r}; write a whole number")
    space = content["space"]
    _check_keys(space, f"{where}: space (every method is searched)", required=tuple(methods))
    return Search(
        trials, {name: _distributions(where, name, space[name], methods[name]) for name in methods}, rule, seed
    )


def _distributions(where: str, method: str, space: Any, fixed: Options | None) -> dict[str, Any]:
    from ule_hf.comparison.search import distribution  # Optuna is an extra

    where = f"{where}: space of {method!r}"
    if not isinstance(space, dict) or not space:
        raise UleError(f"{where} is empty; give each of its options {{low, high, log}} or {{choices}}")
    distributions = {}
    for option, limits in space.items():
        if option in RESERVED or option in (fixed or {}):
            raise UleError(f"{where}: {option} is set already; search it or set it")
        try:
            distributions[option] = distribution(**limits)
        except (TypeError, ValueError) as error:
            raise UleError(f"{where}: {option}: {error}; write {{low, high, log}} or {{choices}}") from error
    return distributions
