"""Decoded splits on disk: complete or not there, read without being loaded.

A cache is a folder: for each split its pixels as they are in memory (``train.images``: N x C x H x
    W
bytes), and ``index.safetensors`` with everything else. The index is written last, so that a cache
without one is not complete. Reading it cannot execute anything. The pixels are memory-mapped, so
that opening a cache takes the same time and memory for ten images and for ten million, but for the
labels and names.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from dam_lightning.data.resident import (
    Split,
    piece_digest,
    piece_digests,
    piece_length,
    read_tensors,
    write_tensors,
)
from dam_lightning.data.scratch import made_folder
from dam_lightning.files import written_beside

__all__ = [
    "images_file",
    "load_splits",
    "map_images",
    "prepare_splits",
    "read_splits",
    "write_index",
    "write_splits",
]

_INDEX = "index.safetensors"

_VERIFIED = 2**29
"""Bytes of pixels of each split that are compared with their checksums when a cache is opened: all
of a small set (43,000 images of 64 x 64), pieces all over a large one (a second's work)."""


def images_file(folder: Path, split: str) -> Path:
    """The file of a split's pixels."""
    return folder / f"{split}.images"


def map_images(file: Path, shape: Sequence[int]) -> Tensor:
    """Memory-map pixels: uint8 of this shape. What is written into them stays in memory.

    Raises:
        OSError: the file is not there, or its size is another.
    """
    size = math.prod(shape)
    found = file.stat().st_size
    if found != size:
        raise OSError(f"{file} has {found} bytes, not {size}")
    if size == 0:  # nothing can be mapped
        return torch.empty(*shape, dtype=torch.uint8)
    return torch.from_file(str(file), shared=False, size=size, dtype=torch.uint8).view(*shape)


def write_splits(folder: Path, splits: Mapping[str, Split], metadata: Mapping[str, str]) -> None:
    """Write decoded splits, and some text, as a cache.

    Raises:
        OSError: the folder cannot be written to.
    """
    digests = {}
    for name, split in splits.items():
        images = split.images.cpu().contiguous()
        with _named_error(folder), written_beside(images_file(folder, name)) as beside:
            images.numpy().tofile(beside)
        digests[name] = piece_digests(images)
    write_index(folder, splits, digests, metadata)


def write_index(
    folder: Path,
    splits: Mapping[str, Split],
    digests: Mapping[str, Sequence[str]],
    metadata: Mapping[str, str],
) -> None:
    """Make a cache complete whose pixels are written.

    Args:
        folder: the cache.
        splits: what is in it.
        digests: of the pieces of each split's pixels, see
            :func:`~dam_lightning.data.resident.piece_digests`.
        metadata: text kept with them.
    """
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name, split in splits.items():
        tensors[f"{name}.labels"] = split.labels
        tensors[f"{name}.domains"] = split.domains
        # No file's name has a zero byte in it.
        names = "\0".join(split.paths).encode("utf-8", "surrogatepass")
        tensors[f"{name}.paths"] = torch.frombuffer(bytearray(names or b"\0"), dtype=torch.uint8)
        shapes[name] = list(split.images.shape)
    described = {"shapes": json.dumps(shapes), "digests": json.dumps(digests)}
    write_tensors(folder / _INDEX, tensors, {**metadata, **described})


def read_splits(folder: Path) -> tuple[dict[str, Split], dict[str, str]] | None:
    """Open a cache.

    Returns:
        Splits, whose pixels are memory-mapped, and text as given to :func:`write_splits`; None
        where the cache is not there, not complete or damaged.
    """
    found = read_tensors(folder / _INDEX)
    if found is None:
        return None
    tensors, metadata = found
    splits: dict[str, Split] = {}
    try:
        shapes: dict[str, list[int]] = json.loads(metadata.pop("shapes"))
        digests: dict[str, list[str]] = json.loads(metadata.pop("digests"))
        for name, shape in shapes.items():
            images = map_images(images_file(folder, name), shape)
            if not _intact(images, digests[name]):
                return None
            paths = tensors[f"{name}.paths"].numpy().tobytes().decode("utf-8", "surrogatepass")
            listed = paths.split("\0") if shape[0] else []
            splits[name] = Split(
                images, tensors[f"{name}.labels"], tensors[f"{name}.domains"], listed
            )
    except (KeyError, ValueError, OSError):  # intact, but no index; or without its pixels
        return None
    return splits, metadata


def prepare_splits(folder: Path, build: Callable[[], None]) -> None:
    """Build a cache that is not there or not complete; see :func:`load_splits`."""
    if not (folder / _INDEX).exists():
        with _alone(folder):
            if not (folder / _INDEX).exists():
                build()


def load_splits(folder: Path, build: Callable[[], None]) -> tuple[dict[str, Split], dict[str, str]]:
    """Open a cache as :func:`read_splits`, but build one that is missing or damaged first.

    Args:
        folder: the cache.
        build: writes it. While one process does, others wait.

    Raises:
        OSError: it cannot be read back.
    """
    found = read_splits(folder)
    if found is None:
        with _alone(folder):
            found = read_splits(folder)
            if found is None:
                # Not usable from here on; processes that have it open keep what they see.
                (folder / _INDEX).unlink(missing_ok=True)
                build()
                found = read_splits(folder)
    if found is None:
        raise OSError(f"the cache {folder} cannot be read back after writing it")
    return found


def _intact(images: Tensor, digests: Sequence[str]) -> bool:
    """Whether pieces of the pixels, in large sets some of them, are what was written."""
    length = piece_length(images.shape[1:])
    count = math.ceil(len(images) / length)
    if len(digests) != count:
        return False
    piece_bytes = max(1, length * math.prod(images.shape[1:]))
    step = max(1, math.ceil(count * piece_bytes / _VERIFIED))
    # The last piece is where a disk that was full would show.
    looked_at = {*range(0, count, step), *range(max(0, count - 1), count)}
    return all(
        piece_digest(images[number * length : (number + 1) * length]) == digests[number]
        for number in looked_at
    )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """The only process that builds this cache."""
    with made_folder(folder.parent, "cache_dir"):
        with _named_error(folder):
            folder.mkdir(exist_ok=True)
            lock = FileLock(folder / ".lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                rank_zero_info(f"Waiting for another process, which writes {folder}")
                lock.acquire()
        try:
            yield
        except BaseException:
            lock.release()
            # What was begun stays, to go on with; nothing does not.
            if [path.name for path in folder.glob("*")] in ([], [".lock"]):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        lock.release()


@contextmanager
def _named_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            f"cannot write the cache {folder} ({error}). Free some space there, or name another "
            "folder with the argument cache_dir."
        ) from error
