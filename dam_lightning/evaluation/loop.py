"""The protocol inside Lightning's validation and test loops."""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lightning import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from dam_lightning.checkpoint_io import CheckedCheckpointIO
from dam_lightning.data.sampling import RealImages
from dam_lightning.evaluation.accuracy import Figure, Scores
from dam_lightning.evaluation.evaluator import Evaluator, train_networks
from dam_lightning.evaluation.ledger import append_row, describe_machine, open_ledger
from dam_lightning.evaluation.recipe import Recipe
from dam_lightning.evaluation.table import print_scores
from dam_lightning.files import is_rehearsal

__all__ = ["EvaluatingModule"]


class _Tested(NamedTuple):
    """Networks of one recipe in a test."""

    name: str
    recipe: Recipe
    evaluator: Evaluator
    seconds: float
    """Of the training."""


class _Result(NamedTuple):
    """What one recipe came to."""

    name: str
    recipe: Recipe
    scores: Scores
    seconds: float
    """Of the training and the test."""


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
    _tested: Sequence[_Tested] = ()
    _test_started: float

    @property
    @abstractmethod
    def recipe(self) -> Recipe:
        """The protocol's settings."""

    @property
    def recipes(self) -> Mapping[str, Recipe]:
        """The protocols to run; where there are several, by the names that figures get.

        A single one has the empty name.
        """
        return {"": self.recipe}

    @abstractmethod
    def training_set(self, number: int) -> tuple[Tensor | RealImages, Tensor]:
        """What network ``number`` is trained on, as `train_network` takes it: images and labels."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """The ledger's columns ipc, method, dam, seed and steps."""

    def evaluated_networks(self, recipe: Recipe) -> Sequence[nn.Module]:
        """The networks to test, trained now; several processes train some of them each."""
        return train_networks(
            self.training_set,
            self._data.num_classes,
            recipe,
            self.seed,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )

    @property
    def label(self) -> str:
        """Name for tables, e.g. ``DM+DAM``."""
        described = self.describe()
        return f"{described['method']}{'+DAM' if described['dam'] else ''}"

    @property
    def _data(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def _begin(self, num_batches: float) -> None:
        tested = []
        for name, recipe in self.recipes.items():
            if self.trainer.state.fn != TrainerFn.FITTING:
                what = f"{recipe.num_networks} networks {name}".rstrip()
                rank_zero_info(f"Training {what} for {recipe.epochs} epochs")
            start = time.perf_counter()
            evaluator = Evaluator(
                self.evaluated_networks(recipe),
                self._data.num_classes,
                len(self._data.domain_names),
                self.device,
                recipe,
                num_batches,
            )
            tested.append(_Tested(name, recipe, evaluator, time.perf_counter() - start))
        self._tested = tested
        self._test_started = time.perf_counter()

    def _end(self, stage: str) -> list[_Result]:
        """Log everything, and hand back the scores of every recipe."""
        testing = time.perf_counter() - self._test_started
        results = [
            _Result(each.name, each.recipe, each.evaluator.scores(), each.seconds + testing)
            for each in self._tested
        ]
        self._tested = ()
        for result in results:
            for figure, value in self._figures(result.scores).items():
                shown = (stage, figure) == ("val", "accuracy")
                name = "/".join(filter(None, (stage, result.name, figure)))
                self.log(name, value, prog_bar=shown, sync_dist=True)
        return results

    def _figures(self, scores: Scores) -> dict[str, float]:
        """What is logged, in percent; nothing of domains and classes without test images."""
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
                figure = Figure.of(column)
                if figure.is_known:
                    figures[f"{kind}/{name}"] = figure.mean
        return figures

    def _print(self, results: list[_Result], part: str) -> None:
        described, recipe = self.describe(), next(iter(self.recipes.values()))
        per_class = f", {described['ipc']} per class" if described["ipc"] else ""
        count = "1 network" if recipe.num_networks == 1 else f"{recipe.num_networks} networks"
        title = (
            f"{type(self._data).__name__}, {part} images{per_class}, {count} of {recipe.epochs} "
            "epochs"
        )
        domain_names = self._data.domain_names
        named = {result.name: result.scores for result in results}
        if "" in named:
            print_scores({self.label: named[""]}, domain_names, title)
        else:
            print_scores(named, domain_names, f"{title}, trained on {self.label}", "network")

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
            self._begin(sum(self.trainer.num_val_batches))

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> None:
        """Test all networks on a batch of images, labels and domains."""
        for each in self._tested:
            each.evaluator.update(*batch)

    def on_validation_epoch_end(self) -> None:
        """Log the accuracies as ``val/...``; print the table, unless this is part of a fit."""
        if self._tested:
            results = self._end("val")
            if self.trainer.state.fn == "validate" and self.trainer.is_global_zero:
                self._print(results, "validation")

    def on_test_start(self) -> None:
        """Train the networks."""
        self._begin(sum(self.trainer.num_test_batches))

    def test_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> None:
        """Test all networks on a batch of images, labels and domains."""
        for each in self._tested:
            each.evaluator.update(*batch)

    def on_test_epoch_end(self) -> None:
        """Log the accuracies as ``test/...``, print the table, and write the ledger's rows."""
        results = self._end("test")
        if not self.trainer.is_global_zero:
            return
        self._print(results, "test")
        if self.ledger is not None and not is_rehearsal(self.trainer):
            for result in results:
                append_row(self.ledger, self._row(result))

    def _row(self, result: _Result) -> dict[str, object]:
        overall = Figure.of(result.scores.overall)
        return {
            **self.describe(),
            **describe_machine(self.device),
            "dataset": type(self._data).__name__,
            "backbone": result.recipe.network,
            "accuracy": f"{overall.mean:.2f}",
            "deviation": f"{overall.std:.2f}",
            "interval": f"{overall.interval:.2f}",
            "worst_domain": f"{Figure.of(result.scores.worst_domain).mean:.2f}",
            "networks": len(result.scores.overall),
            "precision": result.recipe.precision_on(self.device),
            "seconds": f"{result.seconds:.1f}",
        }
