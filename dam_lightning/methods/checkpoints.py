"""Checkpoints of a condensation: what they must agree on, and the condensed set beside each."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from dam_lightning.checkpoint_io import CheckedCheckpointIO
from dam_lightning.condensed_set import CondensedSet
from dam_lightning.functional import Whitening, same_whitening

__all__ = [
    "CondensedSetBeside",
    "changed_arguments",
    "changed_clipping",
    "changed_data",
    "check_data",
    "check_described",
    "check_shapes",
    "check_whitening",
    "of_the_images",
]

_SHAPING = ("ipc", "num_classes", "image_shape", "backbone", "backbone_args", "domain_step_size")
_OF_THE_TEST = (
    "recipe.",
    "adjoint",
    "compile",
    "max_images",
    "max_skipped",
    "precision",
    "data.download",
    "data.steps_per_epoch",
    "data.test_batch_size",
)
"""How the names of arguments begin that no image depends on beyond rounding."""


class CondensedSetBeside(CheckedCheckpointIO):
    """Writes the condensed set next to every checkpoint, whoever asked for the checkpoint.

    The set of ``name.ckpt`` is ``name.safetensors``; it is removed with the checkpoint.

    Args:
        inner: does the work.
        condensed_set: makes the set.
    """

    def __init__(self, inner: CheckpointIO, condensed_set: Callable[[], CondensedSet]) -> None:
        super().__init__(inner)
        self._condensed_set = condensed_set

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write both."""
        super().save_checkpoint(checkpoint, path, storage_options)
        beside = _beside(path)
        # Others are bare weights, which spawned processes hand over in a file, or another module's.
        if beside is not None and "condenser" in checkpoint:
            self._condensed_set().save(beside)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove both."""
        super().remove_checkpoint(path)
        beside = _beside(path)
        if beside is not None:
            beside.unlink(missing_ok=True)


def _beside(path: Any) -> Path | None:
    """Where the set of a checkpoint goes; nowhere for remote storage, which has no renaming."""
    if "://" in str(path):
        return None
    name = Path(path).name.removesuffix(".ckpt")
    return Path(path).with_name(f"{name}.safetensors")


def check_shapes(
    ours: Mapping[str, Any],
    our_state: Mapping[str, Tensor],
    theirs: Mapping[str, Any],
    their_state: Mapping[str, Tensor],
) -> None:
    """Refuse a checkpoint whose parameters do not fit.

    Args:
        ours: hyperparameters of the module.
        our_state: its parameters.
        theirs: hyperparameters in the checkpoint.
        their_state: parameters in the checkpoint.

    Raises:
        MisconfigurationException: naming every argument that differs, with both values.
    """
    differing = []
    for name in _SHAPING:
        values = [_plain(hparams.get(name)) for hparams in (ours, theirs)]
        differing += [(name, *values)] if values[0] != values[1] else []
    masks = [state.get("dam.logits") for state in (our_state, their_state)]
    for name, dimension in (("dam.num_domains", 1), ("dam.mask_channels", 2)):
        sizes = [None if mask is None else mask.shape[dimension] for mask in masks]
        differing += [(name, *sizes)] if sizes[0] != sizes[1] else []
    if differing:
        lines = "; ".join(f"{name}: {o} here, {t} in the checkpoint" for name, o, t in differing)
        raise MisconfigurationException(
            f"the checkpoint does not fit: {lines}. Use the checkpoint's values (--config "
            "config.yaml of its run has them), or begin anew"
        )


def check_data(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Refuse data whose classes or normalisation are not those the images were made for.

    Args:
        ours: provenance of the data at hand; empty where there are none.
        theirs: provenance in the checkpoint.

    Raises:
        MisconfigurationException: naming what differs, with both values.
    """
    for name in ("class_names", "mean", "std"):
        if ours and theirs and ours[name] != theirs[name]:
            raise MisconfigurationException(
                f"the data have {name} {ours[name]}, those of the checkpoint {theirs[name]}; give "
                "the data module it was made with"
            )


def check_whitening(ours: Whitening | None, theirs: Whitening | None) -> None:
    """Refuse data that are whitened otherwise than those the images were made for.

    Args:
        ours: of the data at hand.
        theirs: in the checkpoint.

    Raises:
        MisconfigurationException: they differ.
    """
    if (ours is None) != (theirs is None):
        zca = theirs is not None
        raise MisconfigurationException(
            f"the data have zca {not zca}, those of the checkpoint {zca}; give --data.zca "
            f"{str(zca).lower()}"
        )
    if ours is not None and theirs is not None and not same_whitening(ours, theirs):
        raise MisconfigurationException(
            "the images of the checkpoint were whitened as other training images ask for; give "
            "the data module it was made with (the same validation_share and split_seed, if any)"
        )


def changed_data(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Differences of the data that are allowed: name -> (ours, theirs)."""
    if not (ours and theirs):
        return {}
    flat = [
        {"data": p["fingerprint"], **{f"data.{k}": v for k, v in (p["data"] or {}).items()}}
        for p in (ours, theirs)
    ]
    if flat[0].get("data.seed") is None:
        # Nobody gave one, and the checkpoint's is taken up.
        flat[0]["data.seed"] = flat[1].get("data.seed")
    return _differences(*flat)


def of_the_images(changed: Mapping[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    """Those of the changed arguments, name -> (ours, theirs), on which images depend."""
    return {name: pair for name, pair in changed.items() if not name.startswith(_OF_THE_TEST)}


def check_described(
    changed: Mapping[str, tuple[Any, Any]], resumed: Sequence[Mapping[str, Any]]
) -> None:
    """Refuse a ledger's row of arguments that the images were not made with.

    Args:
        changed: name -> (ours, theirs).
        resumed: at which steps the run went on with other arguments, and what they were before.

    Raises:
        MisconfigurationException: an argument differs that changes images, or differed while they
            were made.
    """
    if resumed:
        listed = "; ".join(f"{', '.join(each['was'])} at step {each['step']}" for each in resumed)
        raise MisconfigurationException(
            f"no command makes these images, and a ledger's row has one: arguments were changed "
            f"while they were made ({listed}). Leave out --model.ledger"
        )
    wrong = list(of_the_images(changed))
    if wrong:
        raise MisconfigurationException(
            f"the ledger's row would tell of other images than these: {', '.join(wrong)} differ "
            "from the checkpoint's. Give the checkpoint's values (--config config.yaml of its run "
            "has them), or leave out --model.ledger"
        )


def changed_clipping(
    ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Differences in how gradients are clipped: name -> (ours, theirs)."""
    differing = _differences(ours, theirs)
    return {f"trainer.{name}": pair for name, pair in differing.items()}


def changed_arguments(
    ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Arguments that may differ from the checkpoint's, and do: name -> (ours, theirs)."""
    return _differences(_reported(ours), _reported(theirs))


def _reported(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by dotted name, without the seed and those that `check_shapes` compares."""
    flat: dict[str, Any] = {}
    for name, value in hparams.items():
        if name in ("dam", "recipe"):
            flat |= {f"{name}.{key}": v for key, v in (value or {}).items()}
        elif name not in (*_SHAPING, "seed", "ledger") and not name.startswith("_"):
            flat[name] = value
    for name in ("dam.num_domains", "dam.mask_channels"):
        flat.pop(name, None)
    return flat


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    pairs = {name: (ours.get(name), theirs.get(name)) for name in {**ours, **theirs}}
    return {name: pair for name, pair in pairs.items() if _plain(pair[0]) != _plain(pair[1])}


def _plain(value: Any) -> Any:
    """Lists for tuples, and an empty mapping for none, as YAML and Python may each write them."""
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()} or None
    return value
