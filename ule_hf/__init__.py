"""UnLearning from Experience (Mitchell, Martínez del Rincón, McLaughlin, 2025) for the Hugging Face ecosystem."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ule_hf.backbones import load_backbone, save_backbone
    from ule_hf.card import CardFacts
    from ule_hf.config import ULEConfig
    from ule_hf.errors import UleError
    from ule_hf.hub import load_student, load_teacher, push_teacher
    from ule_hf.pair import StudentTeacher, StudentTeacherOutput
    from ule_hf.trainer import ULETrainer
    from ule_hf.variant import Variant

# Where each public name lives. Imported when it is asked for, so that ule_hf.metrics needs NumPy only.
_MODULES = {
    "CardFacts": "card",
    "StudentTeacher": "pair",
    "StudentTeacherOutput": "pair",
    "ULEConfig": "config",
    "ULETrainer": "trainer",
    "UleError": "errors",
    "Variant": "variant",
    "load_backbone": "backbones",
    "load_student": "hub",
    "load_teacher": "hub",
    "push_teacher": "hub",
    "save_backbone": "backbones",
}

__all__ = [
    "CardFacts",
    "StudentTeacher",
    "StudentTeacherOutput",
    "ULEConfig",
    "ULETrainer",
    "UleError",
    "Variant",
    "load_backbone",
    "load_student",
    "load_teacher",
    "push_teacher",
    "save_backbone",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
