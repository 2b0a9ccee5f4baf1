"""Settings of the protocol."""

import json
from dataclasses import FrozenInstanceError, fields
from typing import Any, get_type_hints

import pytest
import torch

from dam_lightning.evaluation import Recipe, RecipeOptions
from dam_lightning.functional import DSA


def test_the_defaults_are_the_protocol_of_distribution_matching() -> None:
    assert Recipe().as_dict() == {
        "backbone": "ConvNet",
        "backbone_args": {},
        "num_networks": 10,
        "epochs": 1001,
        "lr": 0.01,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "batch_size": 256,
        "augmentation": DSA,
        "precision": None,
    }


def test_options_are_the_fields() -> None:
    """What the command line offers and what a recipe has stay the same."""
    assert set(get_type_hints(RecipeOptions)) == {field.name for field in fields(Recipe)}
    assert RecipeOptions.__total__ is False


def test_a_recipe_survives_metadata() -> None:
    recipe = Recipe(backbone_args={"width": 8}, epochs=5, augmentation=None)
    assert Recipe(**json.loads(json.dumps(recipe.as_dict()))) == recipe


def test_a_recipe_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Recipe().epochs = 3  # type: ignore[misc]
    assert Recipe().backbone_args is not Recipe().backbone_args


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_networks": 0}, "recipe: num_networks must be at least 1, got 0"),
        ({"epochs": 0}, "recipe: epochs must be at least 1, got 0"),
        ({"batch_size": -1}, "recipe: batch_size must be at least 1, got -1"),
        ({"lr": 0.0}, "recipe: lr must be above 0, got 0.0"),
        ({"lr": -1}, "recipe: lr must be above 0, got -1"),
        ({"lr": float("nan")}, "recipe: lr must be a finite number, got nan"),
        ({"lr": float("inf")}, "recipe: lr must be a finite number, got inf"),
        ({"lr": 10**400}, "recipe: lr must be a finite number, got 10"),
        ({"lr": True}, "recipe: lr must be a finite number, got True"),
        ({"lr": None}, "recipe: lr must be a finite number, got None"),
        ({"momentum": "high"}, "recipe: momentum must be a finite number, got 'high'"),
        ({"momentum": False}, "recipe: momentum must be a finite number, got False"),
        ({"weight_decay": float("inf")}, "recipe: weight_decay must be a finite number, got inf"),
        ({"epochs": True}, "recipe: epochs must be a whole number, got True"),
        ({"batch_size": True}, "recipe: batch_size must be a whole number, got True"),
        ({"epochs": 2.5}, "recipe: epochs must be a whole number, got 2.5"),
        ({"num_networks": None}, "recipe: num_networks must be a whole number, got None"),
        ({"backbone": 3}, "recipe: backbone must be a text, got 3"),
        ({"backbone": None}, "recipe: backbone must be a text, got None"),
        ({"backbone_args": "wide"}, "recipe: backbone_args must be a mapping .*, got 'wide'"),
        ({"backbone_args": None}, "recipe: backbone_args must be a mapping .*, got None"),
        ({"backbone_args": {3: 4}}, "recipe: backbone_args must be a mapping .*, got {3: 4}"),
        ({"augmentation": 3}, "recipe: augmentation must be a text or none, got 3"),
        (
            {"augmentation": ["flip"]},
            r"recipe: augmentation must be a text or none, got \['flip'\]",
        ),
        ({"augmentation": "blur"}, "'blur' is no operation"),
        ({"precision": "half"}, "recipe: precision must be float32 or bfloat16, got 'half'"),
        ({"compile": "always"}, "recipe: compile must be true or false, got 'always'"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**options)


@pytest.mark.parametrize("wrong", ["wide", "", [3], 3, False])
def test_options_that_are_none_are_refused_before_they_are_merged(wrong: Any) -> None:
    stored = Recipe(backbone_args={"width": 8}).as_dict()
    message = "recipe: backbone_args must be a mapping of options"
    with pytest.raises(ValueError, match=message):
        Recipe.merged(stored, {"backbone_args": wrong})
    with pytest.raises(ValueError, match=message):
        Recipe.merged({**stored, "backbone_args": wrong}, {"backbone_args": {"width": 9}})
    # Those of another backbone are not looked at.
    assert Recipe.merged({"backbone_args": wrong}, {"backbone": "MLP"}).backbone_args == {}


def test_compiling_is_no_part_of_the_protocol() -> None:
    """But options that are merged keep it."""
    assert Recipe(compile=True) == Recipe()
    assert "compile" not in Recipe(compile=True).as_dict()
    assert Recipe.merged(Recipe(epochs=3).as_dict(), {"compile": False}).compile is False
    assert [Recipe().compiles(steps) for steps in (1, 10**6)] == [False, True]
    assert [Recipe(compile=False).compiles(10**6), Recipe(compile=True).compiles(1)] == [
        False,
        True,
    ]


@pytest.mark.parametrize("fast", [False, True])
def test_the_precision_is_one_the_device_is_fast_at(
    fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dam_lightning.precision.has_fast_bfloat16", lambda _: fast)
    device = torch.device("cpu")
    assert Recipe().precision_on(device) == ("bfloat16" if fast else "float32")
    for given in ("float32", "bfloat16"):
        assert Recipe(precision=given).precision_on(device) == given
    with torch.autocast("cpu", torch.bfloat16), Recipe().forward_passes(device):
        assert torch.is_autocast_enabled("cpu") == fast
