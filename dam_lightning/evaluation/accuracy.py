"""Accuracy of several networks at once, by class and by domain."""

import math
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor
from torchmetrics import Metric

__all__ = ["Accuracy", "Figure", "Scores"]


@dataclass(frozen=True)
class Figure:
    """One accuracy in percent over several networks.

    Attributes:
        mean: over the networks.
        std: population standard deviation, which the field's tables print after the sign.
        interval: half the width of the 95 % confidence interval of the mean (Student's t); NaN for
            a single network, which tells nothing about the spread.
    """

    mean: float
    std: float
    interval: float

    @classmethod
    def of(cls, accuracies: Tensor) -> "Figure":
        """Summarise fractions in [0, 1], (K,), one for each network; NaN stays NaN."""
        percent = 100 * accuracies.double()
        count = len(percent)
        interval = math.nan
        if count > 1:
            quantile = float(stats.t.ppf(0.975, count - 1))
            interval = quantile * float(percent.std()) / math.sqrt(count)
        return cls(float(percent.mean()), float(percent.std(correction=0)), interval)

    @property
    def is_known(self) -> bool:
        """Whether there were images to count."""
        return not math.isnan(self.mean)

    def __str__(self) -> str:
        # One network tells nothing about the spread.
        spread = "" if math.isnan(self.interval) else f" ± {self.std:.1f}"
        return f"{self.mean:.1f}{spread}"


@dataclass(frozen=True)
class Scores:
    """What the protocol found: fractions in [0, 1] for K networks.

    Attributes:
        overall: (K,) over all test images.
        per_class: (K, C).
        per_domain: (K, D); NaN for a domain without test images.
    """

    overall: Tensor
    per_class: Tensor
    per_domain: Tensor

    @classmethod
    def of(cls, counts: Tensor) -> "Scores":
        """From what `Accuracy` computes."""
        correct, total = counts[:-1].double(), counts[-1].double()
        return cls(
            overall=correct.sum(dim=(1, 2)) / total.sum(),
            per_class=correct.sum(dim=2) / total.sum(dim=1),
            per_domain=correct.sum(dim=1) / total.sum(dim=0),
        )

    @property
    def worst_domain(self) -> Tensor:
        """(K,) each network's accuracy on the domain it does worst on."""
        return self.per_domain.nan_to_num(nan=math.inf).min(dim=1).values


class Accuracy(Metric):
    """Counts of correct predictions by class and domain, for K networks.

    Args:
        num_networks: K.
        num_classes: C.
        num_domains: D.
    """

    full_state_update = False
    correct: Tensor
    total: Tensor

    def __init__(self, num_networks: int, num_classes: int, num_domains: int) -> None:
        super().__init__()
        shape = (num_networks, num_classes, num_domains)
        self.add_state("correct", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(shape[1:], dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, labels: Tensor, domains: Tensor) -> None:
        """Count predictions (K, N) int64 against labels (N,) of images from domains (N,)."""
        num_networks, num_classes, num_domains = self.correct.shape
        cell = labels * num_domains + domains
        cells = num_classes * num_domains
        seen = torch.zeros(cells, dtype=torch.int64, device=cell.device)
        hits = seen.new_zeros(num_networks, cells)
        seen.index_add_(0, cell, torch.ones_like(cell))
        hits.index_add_(1, cell, (predictions == labels).long())
        self.total += seen.view_as(self.total)
        self.correct += hits.view_as(self.correct)

    def compute(self) -> Tensor:
        """The counts so far over all processes, for `Scores.of`: (K + 1, C, D), the last the total.

        One tensor, because torchmetrics takes results apart and squeezes them.
        """
        return torch.cat([self.correct, self.total.unsqueeze(0)])
