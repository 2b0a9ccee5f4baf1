"""What is computed of the training images once, and kept: by one process, while others wait."""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from dam_lightning.data.resident import read_tensors, write_tensors
from dam_lightning.data.scratch import locked

__all__ = ["computed_once"]


def computed_once(path: Path, compute: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """Read the tensors of a cache file, or compute and write them where it is missing or damaged.

    Args:
        path: the file, whose name must tell what is in it.
        compute: makes CPU tensors by name.

    Raises:
        OSError: the file cannot be written.
    """
    found = read_tensors(path)
    if found is not None:
        return found[0]
    with locked(path.with_name(f".{path.name}.lock"), f"which computes {path}"):
        found = read_tensors(path)
        if found is not None:
            return found[0]
        tensors = compute()
        write_tensors(path, tensors, {})
        return tensors
