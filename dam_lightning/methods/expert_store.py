"""Trajectories of experts on disk: one safetensors file each, which tells what it depends on."""

import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dam_lightning.files import written_beside

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["ExpertStore"]


class ExpertStore:
    """Experts that were trained on the same data by the same recipe.

    ``expert_0007.safetensors`` holds ``trajectory``, (E + 1, P) float32: the parameters before
    training and after each of E epochs, and a checksum of each of these. Every reading looks at
    both again, since a run lasts for days and others can reach its files.

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
        with self._opened(path) as file:
            return len(self._checksums(path, file)) - 1

    @contextmanager
    def _opened(self, path: Path) -> Iterator[Any]:
        """An open file; whatever goes wrong with it is told of it."""
        try:
            with safe_open(path, framework="numpy") as file:
                yield file
        except (
            SafetensorError,
            OSError,
            json.JSONDecodeError,
            KeyError,
            TypeError,
            AttributeError,
            # Where JSON is nested too deep.
            RecursionError,
        ) as error:
            raise ValueError(
                f"{path} is no expert, or is damaged ({error}): delete it, and it is trained again"
            ) from error

    def _checksums(self, path: Path, file: Any) -> list[str]:
        """Of each epoch, from the header of a file that is as it should be.

        Raises:
            ValueError: if it is another expert's, or damaged.
        """
        theirs = json.loads((file.metadata() or {})["description"])
        theirs = theirs if isinstance(theirs, dict) else {}
        checksums: list[str] = theirs.pop("checksums", [])
        names = {**self._description, **theirs}
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
        trajectory = file.get_slice("trajectory")
        shape, dtype = trajectory.get_shape(), trajectory.get_dtype()
        if dtype != "F32" or len(shape) != 2 or shape[0] < 1 or shape[1] != self._size:
            raise ValueError(
                f"{path} should hold float32 (epochs + 1, {self._size}), but holds {dtype} "
                f"{tuple(shape)}: delete it, and it is trained again"
            )
        if not isinstance(checksums, list) or len(checksums) != shape[0]:
            raise ValueError(
                f"{path} is no expert, or is damaged: delete it, and it is trained again"
            )
        return checksums

    def save(self, number: int, trajectory: Tensor) -> None:
        """Write a trajectory, (E + 1, P)."""
        whole = trajectory.to("cpu", torch.float32).contiguous()
        checksums = [_checksum(epoch) for epoch in whole.numpy()]
        # One entry: several would come in any order, and equal experts be different files.
        metadata = {"description": json.dumps({**self._description, "checksums": checksums})}
        with written_beside(self.path(number)) as beside:
            save_file({"trajectory": whole}, beside, metadata)

    def parameters(self, number: int, epochs: slice | int) -> Tensor:
        """Parameters of an expert, (P,) after an epoch or (E, P) after several, on the CPU.

        Only what is asked for is read.

        Raises:
            ValueError: if the file is not there, or no longer what it was.
        """
        path = self.path(number)
        with self._opened(path) as file:
            checksums = self._checksums(path, file)
            if isinstance(epochs, int) and epochs >= len(checksums):
                raise ValueError(
                    f"{path} has {len(checksums) - 1} epochs by now, and epoch {epochs} is needed: "
                    "start again, and it is trained on"
                )
            asked = range(len(checksums))[epochs]
            found = torch.from_numpy(file.get_slice("trajectory")[epochs])
        rows = [asked] if isinstance(asked, int) else asked
        for row, parameters in zip(rows, found.view(len(rows), -1).numpy(), strict=True):
            if _checksum(parameters) != checksums[row]:
                raise ValueError(
                    f"{path} is damaged (epoch {row}): delete it, and it is trained again"
                )
        return found


def _checksum(parameters: "NDArray[np.float32]") -> str:
    return f"{zlib.crc32(parameters.data):08x}"
