"""What a command says that can change its result, in a form in which commands can be compared."""

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

__all__ = ["DAM", "NETWORKS", "STEPS", "Command", "Settings", "parse", "read", "without_dam"]

Settings = dict[str, str]
"""All settings of a run that differ from the defaults of the classes, as ``--KEY VALUE`` has them.

The classes themselves are at ``model`` and ``data``; ``model.dam`` is ``on`` or not there.
"""

DAM = "model.dam"
NETWORKS = "model.recipe.num_networks"
STEPS = "trainer.max_steps"

_PACKAGE = Path(__file__).parents[1]

_WITHOUT_EFFECT = (
    "ckpt_path",
    "traceback",
    # The ledger has a column for the seed.
    "seed_everything",
    "model.seed",
    "model.ledger",
    "model.compile",
    "model.precision",
    "model.max_images",
    "model.adjoint",
    "model.experts.folder",
    "model.domain_experts.folder",
    "model.recipe.compile",
    "model.recipe.precision",
    "data.cache_dir",
    "data.download",
    "data.steps_per_epoch",
    "data.test_batch_size",
)
"""Options that change where, how fast or by which draws something is computed, and not what."""
_OF_THE_TRAINER = (
    STEPS,
    "trainer.limit_test_batches",
    "trainer.fast_dev_run",
    "trainer.gradient_clip_val",
    "trainer.gradient_clip_algorithm",
)
"""The Trainer's only options that do change it."""
_ROOT = "data.root"
"""Where a dataset lies changes nothing, but own images are those of their folder."""
_ON_BY_DEFAULT = ("model.augmentation", "model.recipe.augmentation", "model.max_loss")
"""Options of which null is no default, but for the first of DC."""
_OF_DOMAINS = (
    DAM,
    "data.pseudo",
    "data.fft",
    "model.augment_views",
    "model.batch_syn_domain",
    "model.domain",
    "model.lr_masks",
)
"""How the settings begin that nothing but DAM reads."""


@dataclass(frozen=True)
class Command:
    """A command without its program.

    Attributes:
        subcommand: ``fit`` or ``test``.
        configs: in their order, those of the package by their names below ``configs/``.
        options: those that can change the result, with their values as YAML reads them.
    """

    subcommand: str
    configs: tuple[str, ...]
    options: Mapping[str, Any]

    @property
    def settings(self) -> Settings:
        """What the configs and the options come to.

        A config that the package does not have is a setting of its own, ``config``.
        """
        settings: Settings = {}
        for name in self.configs:
            path = _shipped(name)
            if path is None:
                settings["config"] = name
                continue
            for key, value in yaml.safe_load(path.read_text(encoding="utf-8")).items():
                _put(settings, key, value)
        for key, value in self.options.items():
            _put(settings, key, value)
        if settings.get("data") != "ImageFolder":
            settings.pop(_ROOT, None)
        if settings.get("model") == "DC" and settings.get("model.augmentation") == "null":
            del settings["model.augmentation"]
        return {key: value for key, value in settings.items() if _matters(key)}

    def __str__(self) -> str:
        """Configs and options, for people."""
        options: Settings = {}
        for key, value in self.options.items():
            if key != _ROOT:
                options[key] = _text(value)
        return " ".join([*self.configs, *(f"--{key} {value}" for key, value in options.items())])


def read(text: str) -> Command:
    """A command as the ledger has it: the program, the subcommand, options.

    Raises:
        ValueError: it is no command of the package.
    """
    words = shlex.split(text)
    starts = [number for number, word in enumerate(words[:4]) if word in ("fit", "test")]
    if not starts:
        raise ValueError("neither fit nor test")
    return parse(words[starts[0] :])


def parse(arguments: Sequence[str]) -> Command:
    """A subcommand and its options, in any order, ``--key value`` and ``--key=value`` alike.

    Raises:
        ValueError: there is something else among them.
    """
    subcommand, *words = arguments
    configs: list[str] = []
    options: dict[str, Any] = {}
    while words:
        name, equals, value = words.pop(0).partition("=")
        if not name.startswith("-"):
            raise ValueError(f"{name} stands where an option should")
        if not equals:
            value = words.pop(0) if words and not words[0].startswith("--") else "true"
        key = (
            name.lstrip("-").removesuffix("+").replace(".init_args", "").removesuffix(".class_path")
        )
        if key in ("c", "config"):
            configs.append(value.removeprefix("./").removeprefix("configs/"))
        elif _matters(key):
            options[key] = _value(value)
    return Command(subcommand, tuple(configs), options)


def without_dam(settings: Settings) -> Settings:
    """The same run without DAM."""
    return {key: value for key, value in settings.items() if not key.startswith(_OF_DOMAINS)}


def _matters(key: str) -> bool:
    if _within(key, "trainer"):
        return key in _OF_THE_TRAINER
    return not any(_within(key, other) for other in _WITHOUT_EFFECT)


def _within(key: str, other: str) -> bool:
    return key == other or key.startswith(f"{other}.")


def _put(settings: Settings, key: str, value: Any) -> None:
    """Set a key, and what is below it, as the command line does."""
    if _within(key, DAM) and key != DAM:
        settings.setdefault(DAM, "on")
    if isinstance(value, Mapping) and key != DAM:
        for name, inner in value.items():
            _put(settings, {"class_path": key, "init_args": key}.get(name, f"{key}.{name}"), inner)
        return
    if key == DAM or value is None:
        for known in [known for known in settings if _within(known, key)]:
            del settings[known]
    if key == DAM and value is not None:
        settings[DAM] = "on"
        settings.update({f"{DAM}.{name}": _text(inner) for name, inner in value.items()})
    elif key in _ON_BY_DEFAULT and value is None:
        settings[key] = "null"
    elif value is not None:
        # A class may be given by its whole path.
        settings[key] = (
            _text(value).rpartition(".")[2] if key in ("model", "data") else _text(value)
        )


def _value(text: str) -> Any:
    # YAML takes 1e-3 for a text.
    with suppress(ValueError):
        return float(text)
    with suppress(yaml.YAMLError):
        return yaml.safe_load(text)
    return text


def _text(value: Any) -> str:
    """Equal for equal values, however they were written."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        texts = [_text(each) for each in value]
        return texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_text(each)}" for name, each in value.items()) + "}"
    if isinstance(value, str):
        with suppress(ValueError):
            value = float(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    return str(value)


def _shipped(name: str) -> Path | None:
    # An installed package carries its configs inside; a checkout has them beside it.
    paths = (folder / "configs" / name for folder in (_PACKAGE, _PACKAGE.parent))
    return next((path for path in paths if path.is_file()), None)
