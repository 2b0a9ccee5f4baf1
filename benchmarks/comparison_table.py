"""Comparisons as Markdown: a table for each question."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks.comparison_questions import Question
from dam_lightning.evaluation.accuracy import Figure

__all__ = ["Found", "paired_difference", "table", "verdict"]

Found = Mapping[int, Mapping[str, Any]]
"""Results of a variant by seed, as `benchmarks.comparison_run.run` gives them."""


def paired_difference(variant: Mapping[int, float], base: Mapping[int, float]) -> Figure | None:
    """Variant minus base, seed by seed, over the seeds that both have.

    Args:
        variant: accuracy in percent by seed.
        base: likewise.

    Returns:
        The mean and the half width of its 95 % interval (Student's t over the seeds; NaN for one
        seed), in percent; None where they share no seed.
    """
    seeds = [seed for seed in variant if seed in base]
    if not seeds:
        return None
    differences = torch.tensor([variant[seed] - base[seed] for seed in seeds], dtype=torch.float64)
    return Figure.of(differences / 100)


def verdict(difference: Figure | None) -> str:
    """What the interval says, and no more."""
    if difference is None or math.isnan(difference.interval):
        return "no interval"
    if abs(difference.mean) <= difference.interval:
        return "interval includes 0: no difference seen"
    return "above" if difference.mean > 0 else "below"


def table(question: Question, base: Found, others: Sequence[Found]) -> str:
    """A heading and a row for each variant, the base first.

    Args:
        question: that is answered.
        base: what the base came to.
        others: what the other variants came to, in the question's order.
    """
    lines = [
        f"## {question.name}: {question.text}",
        "",
        "| variant | accuracy | worst domain | difference from the base | seeds | |",
        "|---|---:|---:|---:|---|---|",
        _row(f"{question.base.name} (base)", base, "", ""),
    ]
    for variant, found in zip(question.others, others, strict=True):
        difference = paired_difference(_means(found), _means(base))
        lines.append(_row(variant.name, found, _text(difference), verdict(difference)))
    return "\n".join(lines)


def _row(name: str, found: Found, difference: str, said: str) -> str:
    seeds = " ".join(map(str, sorted(found))) or "none"
    cells = [name, _mean(found), _mean(found, "worst_domain"), difference, seeds, said]
    return f"| {' | '.join(cells)} |"


def _means(found: Found, figure: str = "accuracy") -> dict[int, float]:
    """Mean over a seed's networks."""
    return {seed: sum(of[figure]) / len(of[figure]) for seed, of in found.items()}


def _mean(found: Found, figure: str = "accuracy") -> str:
    means = _means(found, figure).values()
    return f"{sum(means) / len(means):.1f}" if means else "-"


def _text(difference: Figure | None) -> str:
    if difference is None:
        return "-"
    spread = "" if math.isnan(difference.interval) else f" ± {difference.interval:.2f}"
    return f"{difference.mean:+.2f}{spread}"
