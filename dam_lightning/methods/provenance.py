"""What a condensed set tells of the data it was made from."""

from typing import Any

from dam_lightning.condensed_set import as_json

__all__ = ["data_provenance", "unknown_data"]

_PRIVATE = ("root", "cache_dir")
"""Where somebody keeps the data is nobody's business, and says nothing of them."""


def data_provenance(data: Any) -> dict[str, Any]:
    """Names, normalisation, fingerprint and arguments of a data module, as plain values."""
    provenance: dict[str, Any] = as_json(
        {
            "dataset": type(data).__name__,
            "class_names": list(data.class_names),
            "mean": [float(value) for value in data.mean],
            "std": [float(value) for value in data.std],
            "fingerprint": getattr(data, "fingerprint", None),
            "data": {k: v for k, v in data.hparams.items() if k not in _PRIVATE},
        }
    )
    return provenance


def unknown_data(num_classes: int, channels: int) -> dict[str, Any]:
    """What stands in for it before any data were seen."""
    return {
        "dataset": None,
        "class_names": [str(number) for number in range(num_classes)],
        "mean": [0.0] * channels,
        "std": [1.0] * channels,
        "fingerprint": None,
        "data": None,
    }
