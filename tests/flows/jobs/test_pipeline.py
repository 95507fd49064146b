import pytest

from flows.jobs.pipeline import overrides_of
from storage_schemas.errors import UserError


def test_overrides_go_to_both_runs_or_to_the_named_one() -> None:
    given = ("train.steps=9", "pretrain.name=a", "finetune.name=b")
    assert overrides_of("pretrain", given) == ("train.steps=9", "name=a")
    assert overrides_of("finetune", given) == ("train.steps=9", "name=b")


@pytest.mark.parametrize("bad", ["train.steps", "=3", "pretrain"])
def test_what_is_no_override_is_named(bad: str) -> None:
    with pytest.raises(UserError, match="key=value"):
        overrides_of("pretrain", (bad,))
