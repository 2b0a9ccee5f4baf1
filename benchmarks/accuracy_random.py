"""Random real images, judged as a condensation was: by its recipe, on its data."""

import json
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]

from benchmarks.accuracy_runs import Job, read_yaml
from dam_lightning.condensed_set import CondensedSet
from dam_lightning.evaluation.recipe import Recipe
from dam_lightning.files import written_beside

__all__ = ["Terms", "random_job", "terms_of"]

_FOR_CONDENSING = {"batch_real", "steps_per_epoch", "fft_ratio", "seed"}
"""Arguments of the data module on which no evaluation depends."""
_FOR_TESTING = ("accelerator", "strategy", "devices", "num_nodes")
"""Arguments of the Trainer on which an evaluation depends."""


class Terms(NamedTuple):
    """What accuracies must have in common to be compared, but for the images per class.

    Attributes:
        dataset: folder of the configs.
        text: the rest as JSON: recipe, seeds, data and machine.
    """

    dataset: str
    text: str

    @property
    def content(self) -> dict[str, Any]:
        """The rest, as a config of an `Evaluation` without ``ipc``."""
        content: dict[str, Any] = json.loads(self.text)
        return content


def terms_of(checkpoint: Path, dataset: str) -> Terms:
    """How a condensation is tested.

    Args:
        checkpoint: its ``last.ckpt``, with the condensed set and ``config.yaml`` beside it. They
            tell what came of class defaults, config and arguments together.
        dataset: folder of its config.
    """
    stored = CondensedSet.load(checkpoint.with_suffix(".safetensors")).metadata["recipe"]
    config: Mapping[str, Any] = read_yaml(checkpoint.parent / "config.yaml")
    data, model = config["data"], config["model"]["init_args"]
    # A step size that was learned with the images is of no use to others.
    recipe = {**stored, "lr": (model.get("recipe") or {}).get("lr", Recipe.lr)}
    arguments = data.get("init_args", {})
    content = {
        "seed_everything": config["seed_everything"],
        "model": {
            "class_path": "Evaluation",
            "init_args": {
                "condensed": "random",
                "recipe": recipe,
                "seed": model.get("seed"),
            },
        },
        "data": {
            "class_path": data["class_path"],
            "init_args": {k: v for k, v in arguments.items() if k not in _FOR_CONDENSING},
        },
        "trainer": {name: config["trainer"][name] for name in _FOR_TESTING},
    }
    return Terms(dataset, json.dumps(content, sort_keys=True))


def random_job(terms: Terms, ipc: int, out: Path) -> Job:
    """Write the config that tests random real images.

    Args:
        terms: of the condensations they are compared with.
        ipc: images per class.
        out: folder of all runs.
    """
    digest = blake2b(terms.text.encode(), digest_size=4).hexdigest()
    name = f"{terms.dataset}/random_ipc{ipc}_{digest}"
    content = terms.content
    content["model"]["init_args"]["ipc"] = ipc
    config = out / name / "evaluate.yaml"
    with written_beside(config) as beside:
        beside.write_text(yaml.safe_dump(content))
    return Job(name, config)
