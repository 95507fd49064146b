import pytest
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import ValidationError, validate

from flows.deploy.forms import parameters_form
from flows.pipeline import pretrain_then_finetune

SCHEMA = parameter_schema(pretrain_then_finetune).model_dump(exclude_unset=True)
NEEDED = {"pretrain": "debug", "finetune": "debug"}


def test_what_may_be_left_out_is_a_blank_field() -> None:
    form = parameters_form(SCHEMA)
    assert form["definitions"]["EvalOptions"]["properties"]["samples"]["default"] == 64
    assert "default" not in form["definitions"]["EvalOptions"]["properties"]["steps"]
    assert form["properties"]["pretrain_settings"]["default"] == {"data": []}
    steps = form["definitions"]["Settings"]["properties"]["steps"]
    assert steps == {"title": "steps", "description": "training steps.", "type": "integer", "exclusiveMinimum": 0}


def test_what_has_to_be_given_stays_as_it_is() -> None:
    form = parameters_form(SCHEMA)
    assert form["required"] == SCHEMA["required"] == ["pretrain", "finetune"]
    assert form["properties"]["pretrain"] == SCHEMA["properties"]["pretrain"]
    assert (
        form["definitions"]["DatasetRef"]["properties"]["weight"]
        == SCHEMA["definitions"]["DatasetRef"]["properties"]["weight"]
    )


@pytest.mark.parametrize("given", [{}, {"hours": None}, {"hours": 2, "finetune_settings": {"steps": None, "lr": 0.1}}])
def test_the_server_takes_from_the_form_what_the_flow_takes(given: dict[str, object]) -> None:
    validate({**NEEDED, **given}, parameters_form(SCHEMA), raise_on_error=True)
    pretrain_then_finetune.validate_parameters({**NEEDED, **given})


@pytest.mark.parametrize(
    "wrong",
    [
        {"hours": "long"},
        {"hours": -1},
        {"pretrain": "nonsense"},
        {"pretrain_settings": {"steps": 0}},
        {"pretrain_settings": {"name": "a b"}},
        {"pretrain_settings": {"stepz": 1}},
        {"overrides": ["train.steps"]},
        {"options": {"samples": 0}},
        {"options": {"split": "test"}},
        {"nonsense": 1},
    ],
)
def test_the_server_refuses_what_makes_no_sense(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        validate({**NEEDED, **wrong}, parameters_form(SCHEMA), raise_on_error=True)
