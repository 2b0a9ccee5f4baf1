"""The protocol inside Lightning's validation and test loops."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from lightning import LightningModule
from torch import Tensor, nn

from dam_lightning.checkpoint_io import CheckedCheckpointIO
from dam_lightning.evaluation.accuracy import Figure, Scores
from dam_lightning.evaluation.evaluator import Evaluator, train_networks
from dam_lightning.evaluation.ledger import append_row, describe_machine, open_ledger
from dam_lightning.evaluation.recipe import Recipe
from dam_lightning.evaluation.table import print_scores

__all__ = ["EvaluatingModule"]


class EvaluatingModule(LightningModule, ABC):
    """A module whose ``validate`` and ``test`` train fresh networks and test them on real images.

    Validation uses the data module's validation images, where it has some, and so can choose a
    model; test images are used by ``test`` and for nothing else.

    Attributes:
        seed: key of all draws.
        ledger: CSV file to which ``test`` appends a row, or None.
    """

    seed: int
    ledger: str | None
    _evaluator: Evaluator | None = None
    _started: float

    @property
    @abstractmethod
    def recipe(self) -> Recipe:
        """The protocol's settings."""

    @abstractmethod
    def training_set(self, number: int) -> tuple[Tensor, Tensor]:
        """What network ``number`` is trained on: normalised images (N, C, H, W) and labels (N,)."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """The ledger's columns ipc, method, dam, seed and steps."""

    def evaluated_networks(self) -> Sequence[nn.Module]:
        """The networks to test, trained now."""
        return train_networks(self.training_set, self._data.num_classes, self.recipe, self.seed)

    @property
    def label(self) -> str:
        """Name for tables, e.g. ``DM+DAM``."""
        described = self.describe()
        return f"{described['method']}{'+DAM' if described['dam'] else ''}"

    @property
    def _data(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def _begin(self) -> None:
        self._started = time.perf_counter()
        self._evaluator = Evaluator(
            self.evaluated_networks(),
            self._data.num_classes,
            len(self._data.domain_names),
            self.device,
        )

    def _end(self, stage: str) -> Scores:
        """Log everything, and hand back the scores."""
        assert self._evaluator is not None
        scores = self._evaluator.scores()
        self._evaluator = None
        overall = Figure.of(scores.overall)
        figures = {
            "accuracy": overall.mean,
            "accuracy_std": overall.std,
            "accuracy_interval": overall.interval,
            "worst_domain": Figure.of(scores.worst_domain).mean,
        }
        for kind, names, columns in (
            ("domain", self._data.domain_names, scores.per_domain),
            ("class", self._data.class_names, scores.per_class),
        ):
            for name, column in zip(names, columns.unbind(dim=1), strict=True):
                figures[f"{kind}/{name}"] = Figure.of(column).mean
        for name, value in figures.items():
            shown = (stage, name) == ("val", "accuracy")
            self.log(f"{stage}/{name}", value, prog_bar=shown, sync_dist=True)
        return scores

    def _print(self, scores: Scores, part: str) -> None:
        title = f"{type(self._data).__name__}, {part} images"
        print_scores({self.label: scores}, self._data.domain_names, title)

    # Lightning's hooks.

    def setup(self, stage: str) -> None:
        """Look at the ledger, which must not fail when all is done; refuse damaged checkpoints."""
        strategy = self.trainer.strategy
        strategy.checkpoint_io = CheckedCheckpointIO.around(strategy.checkpoint_io)
        if stage == "test" and self.ledger is not None and self.trainer.is_global_zero:
            open_ledger(self.ledger)

    def on_validation_start(self) -> None:
        """Train the networks; not for the sanity check, which would train them for nothing."""
        if not self.trainer.sanity_checking:
            self._begin()

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> None:
        """Test all networks on a batch of images, labels and domains."""
        if self._evaluator is not None:
            self._evaluator.update(*batch)

    def on_validation_epoch_end(self) -> None:
        """Log the accuracies as ``val/...``; print the table, unless this is part of a fit."""
        if self._evaluator is not None:
            scores = self._end("val")
            if self.trainer.state.fn == "validate" and self.trainer.is_global_zero:
                self._print(scores, "validation")

    def on_test_start(self) -> None:
        """Train the networks."""
        self._begin()

    def test_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> None:
        """Test all networks on a batch of images, labels and domains."""
        assert self._evaluator is not None
        self._evaluator.update(*batch)

    def on_test_epoch_end(self) -> None:
        """Log the accuracies as ``test/...``, print the table, and write the ledger's row."""
        scores = self._end("test")
        seconds = time.perf_counter() - self._started
        if not self.trainer.is_global_zero:
            return
        self._print(scores, "test")
        if self.ledger is not None:
            overall = Figure.of(scores.overall)
            row = {
                **self.describe(),
                **describe_machine(self.device),
                "dataset": type(self._data).__name__,
                "accuracy": f"{overall.mean:.2f}",
                "deviation": f"{overall.std:.2f}",
                "interval": f"{overall.interval:.2f}",
                "worst_domain": f"{Figure.of(scores.worst_domain).mean:.2f}",
                "networks": len(scores.overall),
                "seconds": f"{seconds:.1f}",
            }
            append_row(self.ledger, row)
