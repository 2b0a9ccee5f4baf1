"""What was asked for of two CPU cores and of one H100; see the targets in ``README.md``."""

from typing import Literal, NamedTuple

from benchmarks.tasks import OURS

__all__ = ["EXPERTS_MINUTES", "FIT_MINUTES", "TRAINER_SHARE", "Target", "target_of"]

TRAINER_SHARE = 0.03
"""Of a step of DM on CIFAR-10, at most what a Trainer may add to it, on a CPU."""

EXPERTS_MINUTES = 10.0
"""For 100 experts of CIFAR-10 and 50 epochs each, on an H100."""

FIT_MINUTES = 10.0
"""For DM+DAM on PACS, all steps and the evaluation, on an H100."""


class Target(NamedTuple):
    """A limit for a row of the table.

    Attributes:
        kind: of what: the seconds at most, or the ratio to the reference at least.
        limit: the number.
    """

    kind: Literal["ratio", "seconds"]
    limit: float

    def is_met(self, seconds: float, ratio: float | None) -> bool:
        """Whether a row meets it."""
        if self.kind == "seconds":
            return seconds <= self.limit
        return ratio is not None and ratio >= self.limit

    def __str__(self) -> str:
        if self.kind == "ratio":
            return f"{self.limit:g}x"
        return f"{self.limit:g} s" if self.limit >= 1 else f"{1000 * self.limit:g} ms"


_H100 = {
    ("cifar10_ipc10", "DM step"): 0.005,
    ("cifar10_ipc10", "DM+DAM step"): 0.008,
    ("cifar10_ipc10", "DC iteration"): 0.4,
    ("cifar10_ipc10", "MTT step"): 0.1,
    ("cifar10_ipc10", "MTT+DAM step"): 0.18,
    ("cifar10_ipc10", "whole evaluation"): 15.0,
    ("pacs_ipc10", "DM step"): 0.015,
    ("pacs_ipc10", "DM+DAM step"): 0.025,
    ("pacs_ipc10", "MTT+DAM step"): 0.4,
    ("pacs_ipc10", "whole evaluation"): 15.0,
}


def target_of(
    device: str, case: str, ipc: int, task: str, contender: str, precision: str
) -> Target | None:
    """The target of a row, or None.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        case: its name.
        ipc: its images per class.
        task: its name.
        contender: its name.
        precision: of the contender's forward passes.
    """
    if device == "cuda":
        limit = _H100.get((case, task)) if contender == OURS else None
        return None if limit is None else Target("seconds", limit)
    if task in ("DM step", "DM+DAM step"):
        if contender == OURS and precision == "bfloat16":
            return Target("ratio", 4.0)
        return Target("ratio", 1.0)
    if contender != OURS:
        return None
    if task in ("DC step", "DC+DAM step"):
        return Target("ratio", 1.4)
    if task in ("MTT step", "MTT+DAM step") and ipc == 1:
        return Target("ratio", 1.5)
    if task in ("evaluation", "evaluation without DSA"):
        return Target("ratio", 2.0)
    return None
