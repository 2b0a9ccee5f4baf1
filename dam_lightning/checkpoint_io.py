"""Reading checkpoints: what is none, or is damaged, is named."""

import zipfile
from collections.abc import Mapping
from pickle import UnpicklingError
from typing import Any, Self

from lightning.fabric.plugins import CheckpointIO
from torch import Tensor

from dam_lightning.files import written_beside

__all__ = ["CheckedCheckpointIO"]

_KINDS: dict[str, type] = {
    "state_dict": Mapping,
    "loops": Mapping,
    "callbacks": Mapping,
    "hyper_parameters": Mapping,
    "condenser": Mapping,
    "evaluation": Mapping,
    "optimizer_states": list,
    "lr_schedulers": list,
    "epoch": int,
    "global_step": int,
    "pytorch-lightning_version": str,
}
"""What Lightning and this package look into, where it is there; entries of lists are mappings."""
_ALWAYS = ("pytorch-lightning_version", "loops", "epoch", "global_step")
"""What Lightning writes into every checkpoint."""


class CheckedCheckpointIO(CheckpointIO):
    """Refuses files that are no checkpoints, in words.

    Args:
        inner: does the work.
    """

    def __init__(self, inner: CheckpointIO) -> None:
        self._inner = inner

    @classmethod
    def around(cls, inner: CheckpointIO, *arguments: Any) -> Self:
        """Like the constructor, but takes the place of an earlier one, of another module."""
        innermost = inner._inner if isinstance(inner, CheckedCheckpointIO) else inner
        return cls(innermost, *arguments)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write the checkpoint, all of it or nothing.

        Lightning writes into the folder for temporary files, from where a file is copied if that is
        another file system, and half of it may be there when a process is killed.

        Raises:
            OSError: it cannot be written.
        """
        if "://" in str(path):
            self._inner.save_checkpoint(checkpoint, path, storage_options)
            return
        with written_beside(path) as beside:
            self._inner.save_checkpoint(checkpoint, beside, storage_options)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read the checkpoint.

        Whether it fits the module at hand is for the module to say.

        Raises:
            ValueError: the file is damaged, or is no checkpoint of Lightning's; or a condensation's
                images or masks in it have values that are not finite.
        """
        reason = "it holds something else"
        try:
            _check_bytes(path)
            checkpoint = self._inner.load_checkpoint(path, map_location, weights_only)
            if isinstance(checkpoint, dict) and "state_dict" in checkpoint:
                _check_kinds(checkpoint)
                return checkpoint
        except (FileNotFoundError, IsADirectoryError, PermissionError):
            raise
        except UnpicklingError:
            # PyTorch would advise to load whatever it is.
            reason = "it holds more than plain values, or is no file of PyTorch's"
        # torch.load raises almost anything of damaged and foreign files.
        except Exception as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{path} is no checkpoint, or is damaged ({reason}). Give the last.ckpt of a run's "
            "folder; condensed.safetensors files are evaluated with model.condensed"
        )

    def remove_checkpoint(self, path: Any) -> None:
        """Remove it."""
        self._inner.remove_checkpoint(path)

    def teardown(self) -> None:
        """Close what does the work."""
        self._inner.teardown()


def _check_bytes(path: Any) -> None:
    """PyTorch stores checksums, but does not look at them.

    Raises:
        ValueError: saying which part is damaged.
    """
    if "://" in str(path) or not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as file:
        damaged = file.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged} is wrong")


def _check_kinds(checkpoint: dict[str, Any]) -> None:
    """Whether it can be looked into.

    Raises:
        ValueError: saying what is missing, of another kind, or not finite.
    """
    is_condensation = "condenser" in checkpoint
    for name in (*_ALWAYS, *(["hyper_parameters"] if is_condensation else [])):
        if name not in checkpoint:
            raise ValueError(f"{name} is missing")
    for name, kind in _KINDS.items():
        value = checkpoint.get(name)
        if name in checkpoint and not isinstance(value, kind):
            raise ValueError(f"{name} is not what it should be")
        if isinstance(value, list) and not all(isinstance(entry, Mapping) for entry in value):
            raise ValueError(f"{name} is not what it should be")
    if not is_condensation:
        return
    for name in ("class", "seed", "steps", "provenance"):
        if name not in checkpoint["condenser"]:
            raise ValueError(f"condenser: {name} is missing")
    state = checkpoint["state_dict"]
    if "images" not in state:
        raise ValueError("state_dict: images is missing")
    for name in ("images", "dam.logits"):
        values = state.get(name, state["images"])
        if not isinstance(values, Tensor) or not values.is_floating_point():
            raise ValueError(f"state_dict: {name} is not what it should be")
        if not bool(values.isfinite().all()):
            raise ValueError(f"state_dict: {name} has values that are not finite")
