"""The product of condensation: one file with images, labels and everything needed to use them."""

import json
import os
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

__all__ = ["CondensedSet", "as_json"]

_REQUIRED = ("class_names", "mean", "std")


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

    Images are in normalised space, the space in which they were condensed: test images must be
    normalised with the same ``mean`` and ``std``, and the images themselves must not be normalised
    again. The file is safetensors with JSON in its header; nothing in it can be executed.

    Args:
        images: (M, C, H, W) float32, normalised.
        labels: (M,) int64, indices into ``class_names``.
        metadata: JSON values; ``class_names`` (list of str), ``mean`` and ``std`` (one float a
            channel) are required. A condensation adds ``method``, ``seed``, ``steps``, ``version``,
            ``config``, ``fingerprint`` (of the real data) and ``recipe`` (how it is to be
            evaluated).

    Attributes:
        images: as given.
        labels: as given.
        metadata: as given.
        class_names: names of the classes, by label.

    Raises:
        ValueError: if tensors and metadata do not fit each other.
    """

    def __init__(self, images: Tensor, labels: Tensor, metadata: Mapping[str, Any]) -> None:
        missing = [key for key in _REQUIRED if key not in metadata]
        if missing:
            raise ValueError(f"metadata lacks {', '.join(missing)}")
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
        if len(labels) == 0 or int(labels.min()) < 0 or int(labels.max()) >= len(self.class_names):
            raise ValueError(f"labels must lie in 0..{len(self.class_names) - 1} and not be empty")
        for key in ("mean", "std"):
            if len(metadata[key]) != images.shape[1]:
                raise ValueError(
                    f"{key} has {len(metadata[key])} values, the images "
                    f"have {images.shape[1]} channels"
                )

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
        mean, std = (
            torch.tensor(self.metadata[key], device=self.images.device).view(-1, 1, 1)
            for key in ("mean", "std")
        )
        return (self.images * std + mean).clamp(0, 1)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the set to one file, which appears there whole or not at all."""
        metadata = {key: json.dumps(value) for key, value in self.metadata.items()}
        images, labels = self.images.detach().cpu(), self.labels.cpu()
        with written_beside(path) as beside:
            save_file(
                {"images": images.contiguous(), "labels": labels.contiguous()}, beside, metadata
            )

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
                images, labels = file.get_tensor("images"), file.get_tensor("labels")
                metadata = {k: json.loads(v) for k, v in (file.metadata() or {}).items()}
            return cls(images, labels, metadata)
        except (SafetensorError, ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path} is not a condensed set, or is damaged ({error}); condense again, "
                "or give the condensed.safetensors of a run's folder"
            ) from error

    def to_image_folder(self, directory: str | os.PathLike[str]) -> None:
        """Export as PNG files ``directory/<class>/<number>.png``, for any image folder reader.

        Rounding to 8 bits and clipping lose a little: train on the set itself where the last tenth
        of a percent counts.

        Raises:
            ValueError: if a class name cannot be the name of a folder, or two classes share one.
            FileExistsError: if the folder of a class exists: its pictures would be mixed up with
                these.
        """
        for name in self.class_names:
            if name in ("", ".", "..") or any(c in name for c in "/\\\0"):
                raise ValueError(f"class name {name!r} cannot be the name of a folder")
            if self.class_names.count(name) > 1:
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
