"""Many image files into a cache: by all cores, interrupted and resumed without loss.

The pixels are decoded in pieces of a few megabytes by worker processes, each of which writes its
piece into the file of its split. What is done is kept in a log beside; a build that was interrupted
goes on after it. The cache becomes complete, and usable, when its index is written at the end.
"""

import gc
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dam_lightning.data.decoding import ListedFile, Resize, decode
from dam_lightning.data.resident import (
    Split,
    content_fingerprint,
    piece_digest,
    piece_digests,
    piece_length,
)
from dam_lightning.data.split_cache import VERIFIED_BYTES, images_file, map_images, write_index
from dam_lightning.files import written_beside

__all__ = ["build_splits"]

_LOG = "decoded.log"

_NAMED = 5
"""Unreadable images that a message names; the others it counts."""


class _Piece(NamedTuple):
    """Images of a split that are decoded together."""

    split: str
    start: int
    stop: int


class _Decoded(NamedTuple):
    """What became of a piece."""

    number: int
    digest: str
    unreadable: dict[int, str]
    """Why images cannot be read, by their numbers within the split."""


def build_splits(
    folder: Path,
    root: Path,
    listed: Mapping[str, Sequence[ListedFile]],
    class_names: Sequence[str],
    image_size: int,
    resize: Resize = "squash",
    skip_unreadable: bool = False,
) -> None:
    """Decode image files into a cache, with a progress bar.

    The caller sees to it that no other process builds this cache.

    Args:
        folder: the cache; what an interrupted build of the same files left there is kept.
        root: the folder that the files' paths are relative to.
        listed: the files of each split, in order.
        class_names: in the order of the labels.
        image_size: height and width of the images in pixels, see
            :func:`~dam_lightning.data.decoding.decode`.
        resize: how images become squares.
        skip_unreadable: leave out images that cannot be read, saying which, instead of refusing.

    Raises:
        ValueError: files cannot be read as images; names some of them and counts all.
        OSError: there is no room for the pixels.
    """
    pieces = _Pieces(folder, root, listed, image_size, resize)
    _make_room(folder, pieces)
    done = {piece.number: piece for piece in _already_done(pieces)}
    with written_beside(folder / _LOG) as beside, beside.open("w") as log:
        for piece in done.values():
            _note(log, piece)
    with _progress(pieces.count) as progress, (folder / _LOG).open("a") as log:
        progress(sum(pieces.size(number) for number in done))
        for piece in _decode_all(pieces, [n for n in range(len(pieces)) if n not in done]):
            done[piece.number] = piece
            _note(log, piece)
            progress(pieces.size(piece.number))
    unreadable = {
        name: {
            position: reason
            for number, piece in done.items()
            if pieces.pieces[number].split == name
            for position, reason in piece.unreadable.items()
        }
        for name in listed
    }
    if any(unreadable.values()):
        try:
            _report(root, listed, unreadable, skip_unreadable)
        except ValueError:
            # Mended files have other times of modification, and so another cache.
            shutil.rmtree(folder, ignore_errors=True)
            raise
    _complete(folder, pieces, done, unreadable, class_names)


class _Pieces(Dataset[_Decoded | OSError]):
    """The pieces of all splits; taking one decodes it and writes it to its place."""

    def __init__(
        self,
        folder: Path,
        root: Path,
        listed: Mapping[str, Sequence[ListedFile]],
        image_size: int,
        resize: Resize,
    ) -> None:
        self.folder = folder
        self.root = str(root)
        self.listed = listed
        self.image_size = image_size
        self.resize: Resize = resize
        self.image_shape = (3, image_size, image_size)
        length = piece_length(self.image_shape)
        self.pieces = [
            _Piece(name, start, min(start + length, len(files)))
            for name, files in listed.items()
            for start in range(0, len(files), length)
        ]

    @property
    def count(self) -> int:
        """Images in all."""
        return sum(len(files) for files in self.listed.values())

    def shape(self, split: str) -> tuple[int, ...]:
        """Of all images of a split."""
        return (len(self.listed[split]), *self.image_shape)

    def size(self, number: int) -> int:
        """Images of a piece."""
        return self.pieces[number].stop - self.pieces[number].start

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, number: int) -> _Decoded | OSError:
        try:
            return self._decoded(number)
        except OSError as error:
            # Raised by the parent: on its way there a raised one would lose its number.
            return error

    def _decoded(self, number: int) -> _Decoded:
        split, start, stop = self.pieces[number]
        pixels = np.zeros((stop - start, *self.image_shape), dtype=np.uint8)
        unreadable: dict[int, str] = {}
        for position, file in enumerate(self.listed[split][start:stop]):
            image = decode(f"{self.root}/{file.path}", self.image_size, self.resize)
            if isinstance(image, str):
                unreadable[start + position] = image
            else:
                pixels[position] = image
        with images_file(self.folder, split).open("r+b") as file_of_split:
            file_of_split.seek(start * math.prod(self.image_shape))
            file_of_split.write(pixels.data)
        return _Decoded(number, piece_digest(torch.from_numpy(pixels)), unreadable)


def _decode_all(pieces: _Pieces, wanted: Sequence[int]) -> Iterator[_Decoded]:
    """Decode pieces by as many processes as there are cores; a single piece by this one."""
    workers = min(_cores(), len(wanted))
    loader: DataLoader[_Decoded | OSError] = DataLoader(
        pieces,
        batch_size=None,
        sampler=wanted,
        num_workers=workers if workers > 1 else 0,
        collate_fn=_as_it_is,
        worker_init_fn=_start_worker,
        # It would draw from the global one.
        generator=torch.Generator(),
    )
    for piece in loader:
        if isinstance(piece, OSError):
            raise piece
        yield piece


def _start_worker(_: int) -> None:
    # What the parent has made is never garbage here, and looking through it copies its memory.
    gc.freeze()


def _as_it_is(piece: Any) -> Any:
    return piece


def _cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _make_room(folder: Path, pieces: _Pieces) -> None:
    """Give the files of pixels their full size, so that no disk is full half way."""
    sizes = {images_file(folder, name): math.prod(pieces.shape(name)) for name in pieces.listed}
    for file, size in sizes.items():
        _beside(file).unlink(missing_ok=True)
        if file.exists() and file.stat().st_size != size:
            file.unlink()
    missing = sum(size for file, size in sizes.items() if not file.exists())
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise OSError(
            f"{pieces.count} images of {pieces.image_size} x {pieces.image_size} pixels need "
            f"{missing / 2**20:,.1f} MiB in {folder}, where {free / 2**20:,.1f} MiB are free: free "
            "some space there, name another folder with cache_dir, or lower image_size"
        )
    for file, size in sizes.items():
        file.touch()
        # Not to append to it: where the file system cannot take the space, zeros are written.
        with file.open("r+b") as opened:
            if size and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(opened.fileno(), 0, size)
            else:
                opened.truncate(size)


def _note(log: TextIO, piece: _Decoded) -> None:
    """Add a piece to the log, where it outlives this process."""
    log.write(json.dumps(piece) + "\n")
    log.flush()


def _already_done(pieces: _Pieces) -> Iterator[_Decoded]:
    """Pieces that an interrupted build wrote; those with unreadable images are tried again."""
    try:
        lines = (pieces.folder / _LOG).read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    images = {
        name: map_images(images_file(pieces.folder, name), pieces.shape(name))
        for name in pieces.listed
    }
    for line in lines:
        try:
            number, digest, unreadable = json.loads(line)
        except ValueError:  # cut off
            continue
        split, start, stop = pieces.pieces[number]
        # What a power failure took is in the log, but not in the file.
        if not unreadable and piece_digest(images[split][start:stop]) == digest:
            yield _Decoded(number, digest, {})


def _complete(
    folder: Path,
    pieces: _Pieces,
    done: Mapping[int, _Decoded],
    unreadable: Mapping[str, Mapping[int, str]],
    class_names: Sequence[str],
) -> None:
    """Write the index, without what is unreadable."""
    splits: dict[str, Split] = {}
    digests: dict[str, list[str]] = {}
    compact: list[str] = []
    for name, files in pieces.listed.items():
        images = map_images(images_file(folder, name), pieces.shape(name))
        digests[name] = [
            done[number].digest for number, piece in enumerate(pieces.pieces) if piece.split == name
        ]
        if unreadable[name]:
            files = [file for number, file in enumerate(files) if number not in unreadable[name]]
            kept = torch.ones(len(images), dtype=torch.bool)
            kept[list(unreadable[name])] = False
            images = _without_gaps(images_file(folder, name), images, kept)
            digests[name] = piece_digests(images)
            compact.append(name)
        splits[name] = Split(
            images,
            torch.tensor([file.label for file in files], dtype=torch.int64),
            torch.tensor([file.domain for file in files], dtype=torch.int64),
            [file.path for file in files],
        )
    for name in compact:
        _beside(images_file(folder, name)).replace(images_file(folder, name))
    for name in splits:
        _to_disk(images_file(folder, name))
    fingerprint = content_fingerprint(splits["train"], class_names, digests["train"])
    write_index(folder, splits, digests, {"fingerprint": fingerprint})
    (folder / _LOG).unlink()


def _without_gaps(file: Path, images: Tensor, kept: Tensor) -> Tensor:
    """Write some of the images of a file beside it, and map them."""
    with _beside(file).open("wb") as new:
        for part in torch.split(kept.nonzero().flatten(), piece_length(images.shape[1:])):
            new.write(images[part].numpy().data)
    return map_images(_beside(file), (int(kept.sum()), *images.shape[1:]))


def _beside(file: Path) -> Path:
    return file.with_name(f"{file.name}.compact")


def _to_disk(file: Path) -> None:
    """Wait for the disk, where opening a cache will not look at all of the file."""
    if file.stat().st_size > VERIFIED_BYTES:
        with file.open("r+b") as opened:
            os.fsync(opened.fileno())


def _report(
    root: Path,
    listed: Mapping[str, Sequence[ListedFile]],
    unreadable: Mapping[str, Mapping[int, str]],
    skip: bool,
) -> None:
    """Name what cannot be read; an error unless it may be skipped."""
    named = [
        f"{root / listed[name][position].path} ({reason})"
        for name, reasons in unreadable.items()
        for position, reason in sorted(reasons.items())
    ]
    count = sum(map(len, listed.values()))
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    line = f"{len(named)} of {count} images cannot be read: {', '.join(named[:_NAMED])}{more}."
    if not skip:
        raise ValueError(
            f"{line} Replace them with intact copies or remove them, or leave them out with "
            "skip_unreadable: true."
        )
    rank_zero_info(f"{line} They are left out.")


@contextmanager
def _progress(count: int) -> Iterator[Callable[[int], None]]:
    """A bar on the standard error; where that is no terminal, a line when all is done."""
    with Progress(
        TextColumn("Decoding"),
        MofNCompleteColumn(),
        BarColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        # Drawing takes the processor from decoding.
        refresh_per_second=2,
    ) as bar:
        task = bar.add_task("", total=count)
        yield lambda images: bar.advance(task, images)
