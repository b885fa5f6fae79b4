"""A few fixed cases of what `python -m tests.fuzz` draws by the thousand."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.check import CASES, check

COUNTS = {"folder": 25, "waterbirds": 15, "celeba": 15, "spawrious": 5, "urbancars": 10}


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")
@pytest.mark.parametrize("loader", CASES)
def test_every_folder_is_loaded_as_it_is_or_refused(loader):
    outcomes = []

    @settings(
        max_examples=COUNTS[loader],
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def case(data):
        outcomes.append(check(loader, data.draw))

    case()
    assert "loaded" in outcomes
