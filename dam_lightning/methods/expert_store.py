"""Trajectories of experts on disk: one safetensors file each, which tells what it depends on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dam_lightning.files import written_beside

__all__ = ["ExpertStore"]


class ExpertStore:
    """Experts that were trained on the same data by the same recipe.

    ``expert_0007.safetensors`` holds ``trajectory``, (E + 1, P) float32: the parameters before
    training and after each of E epochs.

    Args:
        folder: where the files are, or will be.
        description: what the trajectories depend on, from `ExpertData.describe`.
        size: number of parameters, P.
    """

    def __init__(self, folder: Path, description: Mapping[str, Any], size: int) -> None:
        self.folder = folder
        self._description = dict(description)
        self._size = size

    def path(self, number: int) -> Path:
        """File of an expert."""
        return self.folder / f"expert_{number:04d}.safetensors"

    def epochs(self, number: int) -> int | None:
        """Epochs that an expert was trained, from the header of its file; None: there is no file.

        Raises:
            ValueError: if it is another expert's, or damaged.
        """
        path = self.path(number)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                theirs = json.loads((file.metadata() or {})["description"])
                trajectory = file.get_slice("trajectory")
                shape, dtype = trajectory.get_shape(), trajectory.get_dtype()
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise ValueError(
                f"{path} is no expert, or is damaged ({error}): delete it, and it is trained again"
            ) from error
        names = {**self._description, **theirs} if isinstance(theirs, dict) else self._description
        theirs = theirs if isinstance(theirs, dict) else {}
        differing = [name for name in names if self._description.get(name) != theirs.get(name)]
        if differing:
            listed = "; ".join(
                f"{name} {theirs.get(name)} there, {self._description.get(name)} here"
                for name in differing
            )
            raise ValueError(
                f"the experts in {self.folder} are others than those asked for: {listed}. Use "
                "their data and settings, or name another folder (or none, for one in the cache)"
            )
        if dtype != "F32" or len(shape) != 2 or shape[0] < 1 or shape[1] != self._size:
            raise ValueError(
                f"{path} should hold float32 (epochs + 1, {self._size}), but holds {dtype} "
                f"{tuple(shape)}: delete it, and it is trained again"
            )
        return int(shape[0]) - 1

    def save(self, number: int, trajectory: Tensor) -> None:
        """Write a trajectory, (E + 1, P)."""
        metadata = {"description": json.dumps(self._description)}
        tensors = {"trajectory": trajectory.to("cpu", torch.float32).contiguous()}
        with written_beside(self.path(number)) as beside:
            save_file(tensors, beside, metadata)

    def parameters(self, number: int, epochs: slice | int) -> Tensor:
        """Parameters of an expert, (P,) after an epoch or (E, P) after several, on the CPU.

        Only what is asked for is read.
        """
        with safe_open(self.path(number), framework="numpy") as file:
            return torch.from_numpy(file.get_slice("trajectory")[epochs])
