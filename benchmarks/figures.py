"""Figures that follow from rows of the table: how long whole jobs take."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.rows import Row
from benchmarks.targets import EXPERTS_MINUTES, FIT_MINUTES, TRAINER_SHARE
from benchmarks.tasks import OURS

__all__ = ["figures"]

_EXPERTS, _EXPERT_EPOCHS = 100, 50
_FIT_STEPS = 20_000
"""Of DM, as published."""


def figures(document: Mapping[str, Any], rows: Sequence[Row]) -> Iterator[str]:
    """A sentence for each figure that the rows are there for, with the target where there is one.

    Args:
        document: that the rows are of.
        rows: of the table.
    """
    device = document["settings"]["device"]
    ours = {(row.case.name, row.task): row for row in rows if row.contender == OURS}
    trainer = document["trainer"]
    if trainer is not None:
        yield from _trainer(trainer, ours, device)
    for (case, task), row in ours.items():
        if task == "experts":
            yield _experts(row, row.case.name.startswith("cifar10_") and device == "cuda")
        evaluation = ours.get((case, "whole evaluation"))
        if task == "DM+DAM step" and evaluation is not None:
            minutes = (_FIT_STEPS * row.median + evaluation.median) / 60
            target = _limit(minutes, FIT_MINUTES, case.startswith("pacs_") and device == "cuda")
            yield (
                f"{case}: {_FIT_STEPS:,} steps of DM+DAM and the evaluation of "
                f"{row.case.networks} networks take {minutes:.1f} minutes{target}"
            )


def _trainer(
    trainer: Mapping[str, float], ours: Mapping[tuple[str, str], Row], device: str
) -> Iterator[str]:
    more = trainer["fit"] - trainer["bare"]
    yield (
        f"Trainer: {1000 * more:.2f} ms more than a bare step ({1000 * trainer['fit']:.2f} against "
        f"{1000 * trainer['bare']:.2f}, in both a network of width 4)"
    )
    for (case, task), row in ours.items():
        if task == "DM step" and case.startswith("cifar10_"):
            share = more / row.median
            limit = f"{100 * TRAINER_SHARE:g} %, {'met' if share <= TRAINER_SHARE else 'missed'}"
            target = f" (target: {limit})" if device == "cpu" else ""
            yield f"{case}: that is {100 * share:.1f} % of a DM step{target}"


def _experts(row: Row, has_target: bool) -> str:
    case = row.case
    batches = case.experts * case.expert_batches
    whole = _EXPERT_EPOCHS * -(-case.train_images // case.batch_real)

    def per_minute(seconds: float) -> float:
        return 60 / (seconds / batches * whole)

    reference = ""
    if row.ratio is not None:
        reference = f", the reference {per_minute(row.median * row.ratio):.3g}"
    minutes = _EXPERTS / per_minute(row.median)
    target = _limit(minutes, EXPERTS_MINUTES, has_target)
    return (
        f"{case.name}: {per_minute(row.median):.3g} experts of {_EXPERT_EPOCHS} epochs a "
        f"minute{reference}; {_EXPERTS} of them take {minutes:.3g} minutes{target}"
    )


def _limit(minutes: float, limit: float, has_target: bool) -> str:
    if not has_target:
        return ""
    return f" (target: {limit:g}, {'met' if minutes <= limit else 'missed'})"
