"""Means and their standard errors."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from dam_lightning.report.paper import Figure
from dam_lightning.report.rows import Row

__all__ = ["Estimate", "combined", "of_paper", "of_rows", "paired_gain", "paper_gain"]

_PAPER_NETWORKS = 10


@dataclass(frozen=True)
class Estimate:
    """A mean, in percent.

    Attributes:
        mean: of what was measured.
        spread: standard deviation: that of a population over networks with one seed, as the field
            prints it; that of a sample over the seeds' means with several.
        error: standard error of the mean.
    """

    mean: float
    spread: float | None
    error: float | None


def of_rows(rows: Sequence[Row]) -> Estimate:
    """One run with one or several seeds.

    Args:
        rows: one of each seed.
    """
    if len(rows) == 1:
        (row,) = rows
        known = row.networks > 1 and not math.isnan(row.deviation)
        spread = row.deviation if known else None
        return Estimate(row.accuracy, spread, _error(spread, row.networks - 1))
    means = [row.accuracy for row in rows]
    spread = statistics.stdev(means)
    return Estimate(statistics.fmean(means), spread, _error(spread, len(means)))


def of_paper(figure: Figure) -> Estimate:
    """What the paper prints, whose standard deviation is over ten networks."""
    spread = float(figure.std) if figure.std else None
    return Estimate(float(figure.accuracy), spread, _error(spread, _PAPER_NETWORKS - 1))


def paired_gain(base: Sequence[Row], dam: Sequence[Row]) -> Estimate | None:
    """What DAM adds, seed by seed; None where no seed was run both with and without it.

    With several seeds the standard error is that of the differences, with one that of the networks.
    """
    by_seed = {row.seed: row for row in base}
    pairs = [(by_seed[row.seed], row) for row in dam if row.seed in by_seed]
    if not pairs:
        return None
    differences = [ours.accuracy - theirs.accuracy for theirs, ours in pairs]
    if len(pairs) > 1:
        spread = statistics.stdev(differences)
        return Estimate(statistics.fmean(differences), spread, _error(spread, len(pairs)))
    without, with_dam = (of_rows([row]).error for row in pairs[0])
    return Estimate(differences[0], None, combined(without, with_dam))


def paper_gain(base: Figure, dam: Figure) -> Estimate:
    """What DAM adds in the paper."""
    without, with_dam = of_paper(base), of_paper(dam)
    error = combined(without.error, with_dam.error)
    return Estimate(with_dam.mean - without.mean, None, error)


def combined(first: float | None, second: float | None) -> float | None:
    """The standard error of a difference; None where one of the two is not known."""
    return None if first is None or second is None else math.hypot(first, second)


def _error(spread: float | None, count: int) -> float | None:
    """The count is one less for the deviation of a population."""
    return None if spread is None else spread / math.sqrt(count)
