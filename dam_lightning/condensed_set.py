"""The product of condensation: one file with images, labels and everything needed to use them."""

import json
import os
import textwrap
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset

from dam_lightning.files import written_beside
from dam_lightning.functional import Whitening, unwhiten, whiten
from dam_lightning.kinds import is_finite, is_whole

__all__ = ["CondensedSet", "as_json"]

_REQUIRED = ("class_names", "mean", "std")
_TENSORS = {"images", "labels", "whitening_mean", "whitening_matrix"}

_LONGEST = 255
"""Bytes of a name, in nearly every file system."""


def as_json(value: Any) -> Any:
    """The value as JSON has it; what JSON cannot hold, such as a path, as text."""
    return json.loads(json.dumps(value, default=str))


class CondensedSet(Dataset[tuple[Tensor, Tensor]]):
    """A handful of synthetic images per class, with their labels and where they come from.

    It is a `torch.utils.data.Dataset` of (image, label) pairs, so ordinary PyTorch code trains on
    it::

        condensed = CondensedSet.load("condensed.safetensors")
        for images, labels in DataLoader(condensed, batch_size=256, shuffle=True):
            ...

    Images are in normalised space, the space in which they were condensed: (x - mean) / std channel
    by channel, or ZCA whitening where ``whitening`` is not None. They must not be normalised again,
    and test images must be normalised in the same way; :meth:`normalise` does that in either case::

        for pixels, labels in test_loader:  # (N, C, H, W) in [0, 1], as ToTensor makes them
            logits = network(condensed.normalise(pixels))

    The file is safetensors with JSON in its header; nothing in it can be executed.

    Args:
        images: (M, C, H, W) float32, normalised, all values finite.
        labels: (M,) int64, indices into ``class_names``.
        metadata: JSON values; ``class_names`` (list of str), ``mean`` and ``std`` (one float a
            channel) are required. A condensation adds ``method`` (a text), ``ipc``, ``dam``,
            ``seed`` and ``steps`` (whole numbers), ``version``, ``config``, ``fingerprint`` (of the
            real data) and ``recipe`` (how it is to be evaluated); where the run went on with other
            arguments than it began with, also ``resumed``, at which steps, and what they were.
        whitening: mean image and matrix, if the images were whitened. ``mean`` and ``std`` are then
            zeros and ones.

    Attributes:
        images: as given.
        labels: as given.
        metadata: as given.
        whitening: as given.
        class_names: names of the classes, by label.

    Raises:
        ValueError: if tensors and metadata do not fit each other.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        metadata: Mapping[str, Any],
        whitening: Whitening | None = None,
    ) -> None:
        if "checksum" in metadata:
            raise ValueError("metadata cannot have a checksum: a file has one of its own")
        missing = [key for key in _REQUIRED if key not in metadata]
        if missing:
            raise ValueError(f"metadata lacks {', '.join(missing)}")
        _check_kinds(metadata)
        if images.ndim != 4 or images.dtype != torch.float32:
            raise ValueError(
                f"images must be float32 (M, C, H, W), got {images.dtype} {tuple(images.shape)}"
            )
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"labels must be int64 ({len(images)},), got {labels.dtype} {tuple(labels.shape)}"
            )
        self.images = images
        self.labels = labels
        self.metadata = dict(metadata)
        self.class_names: list[str] = list(metadata["class_names"])
        if images[:1].numel() == 0:
            raise ValueError(f"images must not be empty, got {tuple(images.shape)}")
        if not bool(images.isfinite().all()):
            raise ValueError("images have values that are not finite")
        if len(labels) == 0 or int(labels.min()) < 0 or int(labels.max()) >= len(self.class_names):
            raise ValueError(f"labels must lie in 0..{len(self.class_names) - 1} and not be empty")
        for key in ("mean", "std"):
            if len(metadata[key]) != images.shape[1]:
                raise ValueError(
                    f"{key} has {len(metadata[key])} values, the images "
                    f"have {images.shape[1]} channels"
                )
        self.whitening = whitening
        if whitening is not None:
            self._check_whitening(whitening)

    def _check_whitening(self, whitening: Whitening) -> None:
        size = self.images[0].numel()
        for name, part, shape in (
            ("whitening_mean", whitening.mean, (size,)),
            ("whitening_matrix", whitening.matrix, (size, size)),
        ):
            if part.dtype != torch.float32 or part.shape != shape:
                raise ValueError(
                    f"{name} must be float32 {shape} for images of {self.image_shape}, "
                    f"got {part.dtype} {tuple(part.shape)}"
                )
            if not bool(part.isfinite().all()):
                raise ValueError(f"{name} has values that are not finite")
        if any(self.metadata["mean"]) or any(value != 1 for value in self.metadata["std"]):
            raise ValueError(
                "whitened images have no other normalisation: mean must be 0 and std 1, got "
                f"{self.metadata['mean']} and {self.metadata['std']}"
            )

    def __repr__(self) -> str:
        method = self.metadata.get("method")
        made = f", by {method}" if method else ""
        shape = "x".join(map(str, self.image_shape))
        classes = len(self.class_names)
        return f"CondensedSet({len(self)} images {shape} of {classes} classes{made})"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def pixels(self) -> Tensor:
        """The images as one would look at them: (M, C, H, W) float32, clipped to [0, 1]."""
        return self.denormalise(self.images).clamp(0, 1)

    def denormalise(self, images: Tensor) -> Tensor:
        """Undo `normalise`: (N, C, H, W) in the space of the set -> pixels, not clipped."""
        if self.whitening is not None:
            return unwhiten(images, *self._whitening_on(images.device))
        mean, std = self._mean_and_std_on(images.device)
        return images * std + mean

    def normalise(self, pixels: Tensor) -> Tensor:
        """Normalise real images as those of the set are, to test or compare on them.

        Args:
            pixels: (N, C, H, W) floating in [0, 1], on any device.

        Returns:
            (N, C, H, W) float32 on the same device.

        Raises:
            ValueError: ``pixels`` are not floating, or not of the set's image shape.
        """
        if not pixels.is_floating_point() or pixels.shape[1:] != self.image_shape:
            raise ValueError(
                f"pixels must be floating (N, {', '.join(map(str, self.image_shape))}) in [0, 1], "
                f"got {pixels.dtype} {tuple(pixels.shape)}"
            )
        if self.whitening is not None:
            return whiten(pixels.float(), *self._whitening_on(pixels.device))
        mean, std = self._mean_and_std_on(pixels.device)
        return (pixels.float() - mean) / std

    def _mean_and_std_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Both (C, 1, 1) float32."""
        mean, std = (
            torch.tensor(self.metadata[key], dtype=torch.float32, device=device).view(-1, 1, 1)
            for key in ("mean", "std")
        )
        return mean, std

    def _whitening_on(self, device: torch.device) -> Whitening:
        assert self.whitening is not None
        return Whitening(*(part.to(device) for part in self.whitening))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the set to one file, which appears there whole or not at all."""
        metadata = {key: json.dumps(value) for key, value in self.metadata.items()}
        tensors = {"images": self.images.detach(), "labels": self.labels}
        if self.whitening is not None:
            tensors |= {f"whitening_{k}": part for k, part in self.whitening._asdict().items()}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        metadata["checksum"] = json.dumps(_checksum(tensors, metadata))
        with written_beside(path) as beside:
            save_file(tensors, beside, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "CondensedSet":
        """Read a set from its file.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is not a condensed set, or is damaged.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no condensed set at {path}")
        try:
            with safe_open(path, framework="pt") as file:
                names = sorted(_TENSORS & set(file.keys()))
                tensors = {name: file.get_tensor(name) for name in names}
                stored = dict(file.metadata() or {})
            checksum = json.loads(stored.pop("checksum", "null"))
            # Files made by hand may come without; what this package wrote tells its version.
            by_hand = checksum is None and "version" not in stored
            if not by_hand and checksum != _checksum(tensors, stored):
                raise ValueError("its checksum is wrong")
            whitening = None
            # Half a whitening must not pass for none.
            if {"whitening_mean", "whitening_matrix"} & set(tensors):
                whitening = Whitening(tensors["whitening_mean"], tensors["whitening_matrix"])
            metadata = {key: json.loads(value) for key, value in stored.items()}
            return cls(tensors["images"], tensors["labels"], metadata, whitening)
        # The last where JSON is nested too deep.
        except (SafetensorError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(
                f"{path} is not a condensed set, or is damaged ({error}); condense again, "
                "or give the condensed.safetensors of a run's folder"
            ) from error

    def to_image_folder(self, directory: str | os.PathLike[str]) -> None:
        """Export as PNG files ``directory/<class>/<number>.png``, for any image folder reader.

        Rounding to 8 bits and clipping lose a little: train on the set itself where the last tenth
        of a percent counts.

        Raises:
            ValueError: if a class name cannot be the name of a folder, has characters that are not
                printable or more than 255 bytes, or if two classes share one.
            FileExistsError: if the folder of a class exists: its pictures would be mixed up with
                these.
        """
        for name, count in Counter(self.class_names).items():
            reason = _no_folder(name)
            if reason:
                raise ValueError(
                    f"class name {_short(name)} cannot be the name of a folder: {reason}"
                )
            if count > 1:
                raise ValueError(
                    f"several classes are named {name!r}; they need folders of their own"
                )
            if (Path(directory) / name).exists():
                raise FileExistsError(f"{Path(directory) / name} exists; give a new folder")
        pixels = (self.pixels() * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        counts = [0] * len(self.class_names)
        for image, label in zip(pixels, self.labels.tolist(), strict=True):
            folder = Path(directory) / self.class_names[label]
            folder.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
            picture.save(folder / f"{counts[label]:04d}.png")
            counts[label] += 1


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Of all that a file holds, in whatever order it holds it."""
    found = zlib.crc32(json.dumps(metadata, sort_keys=True).encode())
    for _, tensor in sorted(tensors.items()):
        found = zlib.crc32(tensor.contiguous().view(-1).view(torch.uint8).numpy().data, found)
    return f"{found:08x}"


def _check_kinds(metadata: Mapping[str, Any]) -> None:
    """Whether what is read of the metadata is what it should be, whoever wrote it."""
    names = metadata["class_names"]
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"class_names must be a list of texts, got {_short(names)}")
    for key in ("mean", "std"):
        values = metadata[key]
        if not isinstance(values, list | tuple) or not all(map(is_finite, values)):
            raise ValueError(f"{key} must be a list of finite numbers, got {_short(values)}")
    if not all(value > 0 for value in metadata["std"]):
        raise ValueError(f"std must be above 0, got {_short(metadata['std'])}")
    # These end in a ledger's row.
    if not isinstance(metadata.get("method", ""), str):
        raise ValueError(f"method must be a text, got {_short(metadata['method'])}")
    for key in ("ipc", "dam", "seed", "steps"):
        if not is_whole(metadata.get(key, 0)):
            raise ValueError(f"{key} must be a whole number, got {_short(metadata[key])}")
    if not isinstance(metadata.get("recipe", {}), Mapping):
        raise ValueError(f"recipe must be a mapping, got {_short(metadata['recipe'])}")


def _no_folder(name: str) -> str | None:
    """Why a class cannot have a folder of its name; None: it can."""
    if name in ("", ".", "..") or any(character in name for character in "/\\\0"):
        return "it would mean another place"
    # Nor can lone surrogates be printed, which UTF-8 has no code for.
    if not name.isprintable():
        return "it has characters that are not printable"
    if len(name.encode()) > _LONGEST:
        return f"it has {len(name.encode())} bytes, the limit is {_LONGEST}"
    return None


def _short(value: Any) -> str:
    return textwrap.shorten(repr(value), 60, placeholder=" ...")
