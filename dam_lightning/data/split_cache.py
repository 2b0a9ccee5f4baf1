"""Decoded splits on disk: complete or not there, read without being loaded.

A cache is a folder: for each split its pixels as they are in memory (``train.images``: bytes of
shape N x C x H x W), and ``index.safetensors`` with everything else. The index is written last, so
that a cache without one is not complete. Reading it cannot execute anything. The pixels are
memory-mapped, so that opening a cache takes the same time and memory for ten images and for ten
million, but for the labels and names.
"""

import errno
import json
import math
import mmap
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

from dam_lightning.data.resident import (
    Split,
    piece_digest,
    piece_digests,
    piece_length,
    read_tensors,
    write_tensors,
)
from dam_lightning.data.scratch import locked, made_folder
from dam_lightning.files import written_beside

__all__ = [
    "VERIFIED_BYTES",
    "images_file",
    "load_splits",
    "map_images",
    "prepare_splits",
    "read_splits",
    "write_index",
    "write_splits",
]

_INDEX = "index.safetensors"

VERIFIED_BYTES = 2**29
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
    with file.open("rb") as opened:
        if sys.platform == "win32":
            mapped = mmap.mmap(opened.fileno(), size, access=mmap.ACCESS_COPY)
        else:
            # Without a reserve, else the system refuses files larger than its memory. The number is
            # that of Linux, for Python before 3.13.
            unreserved = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
            mapped = mmap.mmap(opened.fileno(), size, mmap.MAP_PRIVATE | unreserved)
    return torch.frombuffer(mapped, dtype=torch.uint8).view(*shape)


def write_splits(folder: Path, splits: Mapping[str, Split], metadata: Mapping[str, str]) -> None:
    """Write decoded splits, and some text, as a cache.

    The caller sees to it that no other process writes this cache.

    Raises:
        OSError: the folder cannot be written to.
    """
    digests = {}
    for name, split in splits.items():
        images = split.images.cpu().contiguous()
        with written_beside(images_file(folder, name)) as beside:
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
            check = _Unchanged(images_file(folder, name), shape, digests[name])
            paths = tensors[f"{name}.paths"].numpy().tobytes().decode("utf-8", "surrogatepass")
            listed = paths.split("\0") if shape[0] else []
            splits[name] = Split(
                check.images, tensors[f"{name}.labels"], tensors[f"{name}.domains"], listed, check
            )
    except (KeyError, ValueError, OSError):  # intact, but no index; or without its intact pixels
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
                if (folder / _INDEX).exists():
                    # Files are not written over: processes that have them open keep what they see.
                    for file in (folder / _INDEX, *folder.glob("*.images")):
                        file.unlink()
                build()
                found = read_splits(folder)
    if found is None:
        raise OSError(f"the cache {folder} cannot be read back after writing it")
    return found


class _Unchanged:
    """Pixels in a file, and whether they are still what they were when it was opened.

    Reading what was cut off a mapped file ends the process without a word, and other values in it
    would change a run unnoticed.

    Args:
        file: the file.
        shape: of the pixels.
        digests: of their pieces.

    Attributes:
        images: uint8 of this shape, memory-mapped.

    Raises:
        OSError: the file is not there, or has other pixels.
    """

    def __init__(self, file: Path, shape: Sequence[int], digests: Sequence[str]) -> None:
        self._file = file
        self._digests = digests
        # A file that another takes the place of stays as it is for those who have it open.
        self._opened = file.open("rb")
        self._size, self._changed = self._look()
        self.images = map_images(file, shape)
        if not _intact(self.images, digests):
            raise OSError(f"{file} has other pixels than were written")

    def _look(self) -> tuple[int, int]:
        """Bytes, and the time of the last change in nanoseconds."""
        found = os.fstat(self._opened.fileno())
        return found.st_size, found.st_mtime_ns

    def __call__(self) -> None:
        size, changed = self._look()
        if changed == self._changed and size == self._size:
            return
        # Some only touch files, so that they are not cleared away.
        if size != self._size or not _intact(self.images, self._digests, thoroughly=True):
            raise OSError(
                f"the cache file {self._file} was changed while it was in use: start again, and it "
                "is made anew"
            )
        self._changed = changed


def _intact(images: Tensor, digests: Sequence[str], thoroughly: bool = False) -> bool:
    """Whether pieces of the pixels, in large sets some of them, are what was written."""
    length = piece_length(images.shape[1:])
    count = math.ceil(len(images) / length)
    if len(digests) != count:
        return False
    piece_bytes = max(1, length * math.prod(images.shape[1:]))
    step = 1 if thoroughly else max(1, math.ceil(count * piece_bytes / VERIFIED_BYTES))
    # The last piece is where a disk that was full would show.
    looked_at = {*range(0, count, step), *range(max(0, count - 1), count)}
    return all(
        piece_digest(images[number * length : (number + 1) * length]) == digests[number]
        for number in looked_at
    )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """The only process that builds this cache."""
    lock = folder.parent / f".{folder.name}.lock"
    with (
        made_folder(folder.parent, "cache_dir"),
        _named_error(folder),
        locked(lock, f"which writes {folder}"),
    ):
        folder.mkdir(exist_ok=True)
        try:
            yield
        finally:
            # What was begun stays, to go on with; nothing does not.
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def _named_error(folder: Path) -> Iterator[None]:
    """Tell where there is no room."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            f"cannot write the cache {folder} ({error.strerror}). Free some space there, or name "
            "another folder with the argument cache_dir."
        ) from error
