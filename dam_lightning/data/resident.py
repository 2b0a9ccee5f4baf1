"""Decoded images, kept as uint8, and gathered by index where they lie.

A :class:`Split` is one part of a dataset as tensors; :mod:`dam_lightning.data.split_cache` keeps it
on disk. :func:`write_tensors` and :func:`read_tensors` do the same for any other result. Cache
files are safetensors: reading one cannot execute anything.
"""

import json
import math
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dam_lightning.files import written_beside
from dam_lightning.functional.host import to_device

__all__ = [
    "Split",
    "content_fingerprint",
    "default_cache_dir",
    "part_fingerprint",
    "piece_digest",
    "piece_digests",
    "piece_length",
    "read_tensors",
    "write_tensors",
]

CACHE_VERSION = 4
"""Raised whenever a cache file of an earlier version must not be read any more."""

_PIECE_BYTES = 2**22
"""Pixels that are decoded, checked and written together: 341 images of 64 x 64."""


class Split:
    """One part of a dataset (train or test), in memory, index by index.

    A plain class: Lightning's batch mover walks into dataclasses and would copy the images.

    Args:
        images: (N, C, H, W) uint8, on any device.
        labels: (N,) int64 class numbers, on the CPU.
        domains: (N,) int64 domain numbers, on the CPU; all 0 where the dataset has no domains.
        paths: N names, relative to the dataset's folder with forward slashes; for datasets without
            files, whatever tells the images apart.
        check: called whenever images are asked for, of images in a memory-mapped file, and raises
            OSError if that was changed. None: images are in memory.

    Raises:
        ValueError: the four do not describe the same N images.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        domains: Tensor,
        paths: Sequence[str],
        check: Callable[[], None] | None = None,
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(
                f"images must be uint8 (N, C, H, W), not {images.dtype} {tuple(images.shape)}"
            )
        if labels.dtype != torch.int64 or domains.dtype != torch.int64:
            raise ValueError("labels and domains must be int64")
        lengths = (len(images), len(labels), len(domains), len(paths))
        if len(set(lengths)) != 1:
            raise ValueError(f"images, labels, domains and paths differ in number: {lengths}")
        self._images = images
        self.labels = labels
        self.domains = domains
        self.paths = list(paths)
        self._check = check

    @property
    def images(self) -> Tensor:
        """(N, C, H, W) uint8.

        Raises:
            OSError: they are in a file that was changed since it was opened.
        """
        if self._check is not None:
            self._check()
        return self._images

    def __len__(self) -> int:
        return len(self.paths)

    def __getstate__(self) -> dict[str, Any]:
        # Whoever gets a copy has the images in memory.
        return {**self.__dict__, "_images": self.images, "_check": None}

    def to(self, device: torch.device) -> "Split":
        """The same split with its images on ``device``; labels and domains stay on the CPU."""
        images = self.images.to(device)
        check = self._check if images is self._images else None
        return Split(images, self.labels, self.domains, self.paths, check)

    def subset(self, chosen: Tensor) -> "Split":
        """Some of the images, by number: (K,) int64 or (N,) bool, on the CPU.

        Images that follow one another are not copied.
        """
        numbers = chosen.nonzero().flatten() if chosen.dtype == torch.bool else chosen
        first = int(numbers[0]) if len(numbers) else 0
        is_view = torch.equal(numbers, torch.arange(first, first + len(numbers)))
        if is_view:
            images = self.images[first : first + len(numbers)]
        else:
            images = self.images.index_select(0, numbers.to(self._images.device))
        return Split(
            images,
            self.labels[numbers],
            self.domains[numbers],
            [self.paths[number] for number in numbers.tolist()],
            self._check if is_view else None,
        )

    def gather(self, indices: Tensor) -> Tensor:
        """Pick images.

        The host does not wait for the device, unless ``indices`` are on the device and the images
        are not.

        Args:
            indices: int64 of any shape, image numbers.

        Returns:
            ``(*indices.shape, C, H, W)`` uint8, where the images are.
        """
        images = self.images
        indices = to_device(indices, images.device)
        picked = images.index_select(0, indices.flatten())
        return picked.view(*indices.shape, *images.shape[1:])


def piece_length(image_shape: Sequence[int]) -> int:
    """Images of a piece, by the (C, H, W) of one; the last piece of a split may have fewer."""
    return max(1, _PIECE_BYTES // max(1, math.prod(image_shape)))


def piece_digest(images: Tensor) -> str:
    """Checksum of the pixels of one piece; nothing slower, as decoding waits for it."""
    return f"{zlib.crc32(images.cpu().contiguous().numpy().data):08x}"


def piece_digests(images: Tensor) -> list[str]:
    """Checksum of each piece of a split's pixels, (N, C, H, W) uint8."""
    length = piece_length(images.shape[1:])
    return [piece_digest(piece) for piece in torch.split(images, length)] if len(images) else []


def content_fingerprint(
    train: Split, class_names: Sequence[str], digests: Sequence[str] | None = None
) -> str:
    """Hex digest of the decoded training images, their labels, domains and class names.

    Equal fingerprints mean equal training data, wherever the files came from; as far as checksums
    of the pieces tell, which are proof against damage and chance, not against intent.

    Args:
        train: the training split.
        class_names: in the order of the labels.
        digests: of the pixels' pieces, where they are known; see :func:`piece_digests`.
    """
    digest = blake2b(digest_size=16)
    pieces = piece_digests(train.images) if digests is None else list(digests)
    digest.update(json.dumps([list(train.images.shape), list(class_names), pieces]).encode())
    for tensor in (train.labels, train.domains):
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def part_fingerprint(whole: str, chosen: Tensor) -> str:
    """Hex digest of part of the training data, from that of the whole.

    Args:
        whole: fingerprint of the data that the part is chosen of.
        chosen: (N,) bool, the images of the part.
    """
    digest = blake2b(whole.encode(), digest_size=16)
    digest.update(chosen.numpy().data)
    return digest.hexdigest()


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/dam_lightning``, or ``~/.cache/dam_lightning`` where that is not set."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dam_lightning"


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Of the values, and of all that tells what they are."""
    names = sorted(tensors)
    kinds = [(name, str(tensors[name].dtype), list(tensors[name].shape)) for name in names]
    total = zlib.crc32(json.dumps([kinds, sorted(metadata.items())]).encode())
    for name in names:
        total = zlib.crc32(tensors[name].contiguous().numpy().data, total)
    return f"{total:08x}"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a cache file so that no reader ever sees part of it.

    Written beside and renamed, so that several processes may write one file at once, as long as
    they write the same: the name of a cache file must tell what is in it.

    Args:
        path: the file; its folder is made if need be.
        tensors: CPU tensors by name.
        metadata: text kept with them.

    Raises:
        OSError: the folder cannot be written to.
    """
    try:
        with written_beside(path) as beside:
            save_file(dict(tensors), beside, {**metadata, "checksum": _checksum(tensors, metadata)})
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"cannot write the cache file {path} ({error}). "
            "Free some space there, or name another folder with the argument cache_dir."
        ) from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Read what :func:`write_tensors` wrote.

    Returns:
        Tensors in memory, and metadata; or None where there is no such file or it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            # Copies: of a file that is cut short while it is mapped the process would die.
            tensors = {name: file.get_tensor(name).clone() for name in names}
            metadata = dict(file.metadata() or {})
    except (OSError, SafetensorError):
        return None
    checksum = metadata.pop("checksum", None)
    return (tensors, metadata) if checksum == _checksum(tensors, metadata) else None
