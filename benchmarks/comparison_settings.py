"""All that a run depends on: a config, options of the command line, a variant and a seed."""

import contextlib
import copy
import inspect
import io
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]

from benchmarks.comparison_questions import Variant
from dam_lightning import DomainAwareModule, cli
from dam_lightning.evaluation.recipe import Recipe
from dam_lightning.version import __version__

__all__ = ["Settings", "check_base", "resolved", "settings_of"]

_OF_THE_RUN = (
    "default_root_dir",
    "enable_checkpointing",
    "enable_model_summary",
    "enable_progress_bar",
    "logger",
)
"""Arguments of the Trainer that change nothing of the result, and that runs have values of their
own for."""
_REFUSED = ("callbacks", "plugins", "profiler", "fast_dev_run", "limit_val_batches")
"""Those that might change it, or leave nothing of it; a callback might even look at test images."""


@dataclass(frozen=True)
class Settings:
    """All that a run depends on.

    Attributes:
        model: ``class_path`` and ``init_args`` of the module, with its seed.
        data: those of the data module, likewise.
        trainer: arguments of the Trainer.
        threads: of PyTorch on the CPU.
        versions: of the package and of PyTorch.
    """

    model: dict[str, Any]
    data: dict[str, Any]
    trainer: dict[str, Any]
    threads: int
    versions: dict[str, str]

    @property
    def key(self) -> str:
        """32 hexadecimal digits that no run with any other setting has."""
        text = json.dumps(asdict(self), sort_keys=True)
        return blake2b(text.encode(), digest_size=16).hexdigest()


def resolved(config: str, options: Sequence[str]) -> dict[str, Any]:
    """Every argument of a fit: of class defaults, a config and options together.

    Args:
        config: a file or a shipped config.
        options: of ``dam-lightning fit``.

    Returns:
        ``model``, ``data`` and ``trainer``, as in a config.

    Raises:
        SystemExit: the options are no good, which the command line has told.
        ValueError: they make no comparison.
    """
    printed = io.StringIO()
    arguments = ["fit", "--config", config, *options, "--print_config"]
    # It takes arguments of this command for its own, given a second time.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    with contextlib.redirect_stdout(printed):
        try:
            cli.main(arguments)
        except SystemExit as end:
            if end.code:
                raise
    content = yaml.safe_load(printed.getvalue())
    _check(content)
    return {part: content[part] for part in ("model", "data", "trainer")}


def _check(content: dict[str, Any]) -> None:
    model, data, trainer = (content[part] for part in ("model", "data", "trainer"))
    if "dam" not in model.get("init_args", {}):
        raise ValueError(f"{model['class_path']} condenses nothing: give the config of a method")
    if model["init_args"]["dam"] is None:
        raise ValueError("the base is with DAM: give a config with model.dam, such as dm_dam_ipc1")
    for name, part in (("model", model), ("data", data)):
        if part["init_args"].get("seed") is not None:
            raise ValueError(f"{name}.seed is given: leave it out, and name the seeds by --seeds")
    if "validation_share" in data["init_args"] and data["init_args"]["validation_share"] is None:
        raise ValueError(
            "nothing may be chosen by test images: hold some training images out, with "
            "--data.validation_share 0.2"
        )
    given = [
        f"trainer.{name}"
        for name in _REFUSED
        if trainer[name] is not None and trainer[name] is not False
    ]
    given += ["ckpt_path"] if content.get("ckpt_path") is not None else []
    given += ["model.ledger"] if model["init_args"].get("ledger") is not None else []
    if given:
        raise ValueError(f"runs have no {', '.join(given)}: leave it out")


def check_base(base: dict[str, Any], variant: Variant) -> None:
    """See that the base has what a question takes it to have.

    Args:
        base: from `resolved`.
        variant: the question's base.

    Raises:
        ValueError: it has something else.
    """
    for option, wanted in variant.options.items():
        found = _value(base, option)
        if found != wanted:
            raise ValueError(
                f"{option} is {found}, but its question compares with {wanted}: leave it out, or "
                "leave out the question (--questions)"
            )
        if option == "model.augment_views" and _value(base, "model.augmentation") is None:
            raise ValueError(
                "nothing is augmented (model.augmentation), so that the question augmentation "
                "would compare equals: leave it out (--questions)"
            )


def _value(base: dict[str, Any], option: str) -> Any:
    part, *inner = option.split(".")
    value = base[part]["init_args"]
    for name in inner[:-1]:
        value = value[name]
    if inner[0] == "dam" and inner[-1] not in value:
        return inspect.signature(DomainAwareModule).parameters[inner[-1]].default
    return value[inner[-1]]


def settings_of(base: dict[str, Any], variant: Variant, seed: int) -> Settings:
    """The base with a variant's options and a seed; threads are as PyTorch has them now.

    Args:
        base: from `resolved`.
        variant: what differs.
        seed: of all draws. The split into training and validation images does not depend on it.
    """
    changed = copy.deepcopy(base)
    for option, value in variant.options.items():
        part, *inner = option.split(".")
        arguments = changed[part]["init_args"]
        for name in inner[:-1]:
            arguments = arguments[name]
        arguments[inner[-1]] = value
    model: dict[str, Any] = changed["model"]
    data: dict[str, Any] = changed["data"]
    if variant.baseline is not None:
        model = _baseline(base, variant.baseline)
    model["init_args"]["seed"] = data["init_args"]["seed"] = seed
    trainer = {name: value for name, value in base["trainer"].items() if name not in _OF_THE_RUN}
    return Settings(
        model,
        data,
        # Several processes have runs of their own; a run has one.
        {**trainer, "devices": 1, "num_nodes": 1, "strategy": "auto"},
        torch.get_num_threads(),
        {"dam_lightning": __version__, "torch": torch.__version__},
    )


def _baseline(base: dict[str, Any], condensed: str) -> dict[str, Any]:
    """An `Evaluation` of real images, by the recipe that condensed ones are judged by."""
    arguments = base["model"]["init_args"]
    inherited = {
        "backbone": arguments["backbone"],
        "backbone_args": arguments["backbone_args"] or {},
        "augmentation": arguments["augmentation"],
    }
    recipe = Recipe.merged(inherited, arguments["recipe"])
    return {
        "class_path": "dam_lightning.Evaluation",
        "init_args": {
            "condensed": condensed,
            "ipc": arguments["ipc"],
            "recipe": {**recipe.as_dict(), "compile": recipe.compile},
        },
    }
