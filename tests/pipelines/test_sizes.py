"""From asked to rendered size, for both recipes of Lumina2."""

from __future__ import annotations

import pytest
from comfyui_aitk.pipelines.errors import InputError
from comfyui_aitk.pipelines.models import find_model
from comfyui_aitk.pipelines.pictures.sizes import snap
from hypothesis import given
from hypothesis import strategies as st

LARGEST = 8192
REFERENCE, TRAINER = (find_model("lumina2").recipes[name].size for name in ("reference pipeline", "trainer preview"))
sides = st.integers(min_value=-10, max_value=LARGEST + 100)


@pytest.mark.parametrize(
    ("rule", "asked", "rendered"),
    [
        (REFERENCE, (1024, 1024), (1024, 1024)),
        (REFERENCE, (1040, 1023), (1024, 992)),
        (REFERENCE, (64, 95), (64, 64)),
        (TRAINER, (1040, 1024), (1040, 1024)),
        (TRAINER, (1047, 1029), (1040, 1024)),
        (TRAINER, (63, 1), (64, 64)),
    ],
)
def test_known_sizes(rule, asked, rendered):
    size = snap(*asked, rule, LARGEST)
    assert (size.width, size.height) == rendered
    assert bool(size.notes) == (asked != rendered)


@given(width=sides, height=sides)
def test_reference_floors_to_32(width, height):
    if min(width, height) < 64 or max(width, height) > LARGEST:
        with pytest.raises(InputError):
            snap(width, height, REFERENCE, LARGEST)
    else:
        size = snap(width, height, REFERENCE, LARGEST)
        assert size.width % 32 == size.height % 32 == 0
        assert 0 <= width - size.width < 32
        assert 0 <= height - size.height < 32


@given(width=sides, height=sides)
def test_trainer_floors_to_8_and_then_insists_on_16(width, height):
    floored = [max(64, side - side % 8) for side in (width, height)]
    valid = min(width, height) > 0 and max(width, height) <= LARGEST and all(side % 16 == 0 for side in floored)
    if valid:
        size = snap(width, height, TRAINER, LARGEST)
        assert [size.width, size.height] == floored
        assert snap(size.width, size.height, TRAINER, LARGEST).notes == ()
    else:
        with pytest.raises(InputError):
            snap(width, height, TRAINER, LARGEST)
