from typing import Any

import pytest
from pydantic import ValidationError

from pipelines.names import CHECKS, FORMATS
from pipelines.options import IngestOptions


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"format": "droid_rlds"}, "did you mean droid-rlds"),
        ({"format": "zzz"}, f"use {', '.join(FORMATS)}"),
        ({"reject": ("statik",)}, "did you mean static"),
        ({"fps": 0}, "greater than 0"),
        ({"fps": float("inf")}, "finite"),
        ({"fps": float("nan")}, "finite"),
        ({"clip_steps": 4}, "greater than or equal to 5"),
        ({"val_percent": 101}, "less than or equal to 100"),
        ({"batch_episodes": 0}, "greater than or equal to 1"),
        ({"speed": 3}, "Extra inputs"),
    ],
)
def test_what_makes_no_sense_is_refused_where_it_is_declared(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        IngestOptions(**given)


def test_no_filter_has_a_name() -> None:
    assert IngestOptions(reject=("none",)).reject == ()
    assert IngestOptions(reject=(" black", "static ")).reject == ("black", "static")
    assert IngestOptions().reject is None


def test_the_description_tells_every_name() -> None:
    fields = IngestOptions.model_fields
    assert all(name in (fields["reject"].description or "") for name in CHECKS)
    assert all(name in (fields["format"].description or "") for name in FORMATS)
