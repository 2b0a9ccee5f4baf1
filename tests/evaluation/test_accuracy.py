"""Counts, fractions and figures against plain loops."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from dam_lightning.backbones import build_backbone
from dam_lightning.evaluation import Accuracy, Evaluator, Figure, Recipe, Scores, evaluate
from dam_lightning.evaluation.answers import Answers
from dam_lightning.evaluation.table import _interval

SHAPES = [(3, 4, 3), (1, 4, 3), (3, 1, 3), (3, 4, 1), (1, 1, 1), (2, 7, 4)]


def answers(networks: int, classes: int, domains: int) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions, labels and domains; the last class is missing in the last domain."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (200,), generator=generator)
    where = torch.randint(domains, (200,), generator=generator)
    kept = (labels < classes - 1) | (where < domains - 1)
    if not kept.any():
        kept[:] = True
    labels, where = labels[kept], where[kept]
    predictions = torch.randint(classes + 1, (networks, len(labels)), generator=generator)
    return predictions, labels, where


def fraction(right: list[bool]) -> float:
    return sum(right) / len(right) if right else math.nan


def plain_scores(
    predictions: Tensor, labels: Tensor, where: Tensor, classes: int, domains: int
) -> tuple[list[float], list[list[float]], list[list[float]]]:
    overall, per_class, per_domain = [], [], []
    for own in predictions.tolist():
        tested = list(zip(own, labels.tolist(), where.tolist(), strict=True))
        overall.append(fraction([p == y for p, y, _ in tested]))
        per_class.append(
            [fraction([p == y for p, y, _ in tested if y == c]) for c in range(classes)]
        )
        per_domain.append(
            [fraction([p == y for p, y, d in tested if d == k]) for k in range(domains)]
        )
    return overall, per_class, per_domain


def counted(shape: tuple[int, int, int], batch: int = 200) -> Scores:
    accuracy = Accuracy(*shape)
    predictions, labels, where = answers(*shape)
    for start in range(0, len(labels), batch):
        chosen = slice(start, start + batch)
        accuracy.update(predictions[:, chosen], labels[chosen], where[chosen])
    return Scores.of(accuracy.compute())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("batch", [200, 17, 1])
def test_fractions_equal_the_plain_loop(shape: tuple[int, int, int], batch: int) -> None:
    scores = counted(shape, batch)
    expected = plain_scores(*answers(*shape), *shape[1:])
    for found, wanted in zip(
        (scores.overall, scores.per_class, scores.per_domain), expected, strict=True
    ):
        np.testing.assert_allclose(found.numpy(), np.array(wanted), rtol=1e-12)
    worst = [np.nanmin(row) for row in expected[2]]
    np.testing.assert_allclose(scores.worst_domain.numpy(), worst, rtol=1e-12)


def test_counts_are_exact_integers() -> None:
    accuracy = Accuracy(2, 3, 2)
    labels, where = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 0, 0, 1])
    accuracy.update(torch.tensor([[0, 1, 1, 2], [1, 1, 1, 0]]), labels, where)
    counts = accuracy.compute()
    assert counts.dtype == torch.int64
    assert counts.tolist() == [
        [[1, 0], [1, 0], [0, 1]],
        [[0, 0], [1, 0], [0, 0]],
        [[2, 0], [1, 0], [0, 1]],
    ]


def test_a_class_missing_in_a_domain_is_counted_where_it_is() -> None:
    accuracy = Accuracy(1, 2, 2)
    accuracy.update(torch.tensor([[0, 1, 0]]), torch.tensor([0, 1, 1]), torch.tensor([0, 0, 0]))
    scores = Scores.of(accuracy.compute())
    assert scores.per_class.tolist() == [[1.0, 0.5]]
    assert scores.per_domain[0, 0].item() == pytest.approx(2 / 3)
    assert math.isnan(scores.per_domain[0, 1])  # no test image
    assert scores.worst_domain.item() == pytest.approx(2 / 3)
    empty = Accuracy(1, 3, 1)
    empty.update(torch.tensor([[0]]), torch.tensor([0]), torch.tensor([0]))
    assert Scores.of(empty.compute()).per_class.isnan().tolist() == [[False, True, True]]


def test_the_worst_domain_is_each_networks_own() -> None:
    per_domain = torch.tensor([[0.2, 0.9], [0.8, 0.4]])
    scores = Scores(torch.zeros(2), torch.zeros(2, 1), per_domain)
    torch.testing.assert_close(scores.worst_domain, torch.tensor([0.2, 0.4]))


@pytest.mark.parametrize("count", [2, 3, 10, 50])
def test_a_figure_equals_scipy(count: int) -> None:
    accuracies = np.random.default_rng(count).uniform(0.3, 0.6, count)
    figure = Figure.of(torch.from_numpy(accuracies))
    percent = 100 * accuracies
    assert figure.mean == pytest.approx(percent.mean())
    assert figure.std == pytest.approx(percent.std())  # of the population
    low, high = stats.t.interval(0.95, count - 1, loc=percent.mean(), scale=stats.sem(percent))
    assert figure.mean - figure.interval == pytest.approx(low)
    assert figure.mean + figure.interval == pytest.approx(high)


def test_figures_of_few_networks() -> None:
    single = Figure.of(torch.tensor([0.5]))
    assert (single.mean, single.std) == (50, 0)
    assert math.isnan(single.interval)
    equal = Figure.of(torch.full((3,), 0.25))
    assert (equal.mean, equal.std, equal.interval) == (25, 0, 0)
    assert math.isnan(Figure.of(torch.tensor([0.5, math.nan])).mean)


def test_a_figure_prints_as_in_the_papers() -> None:
    assert str(Figure.of(torch.tensor([0.25, 0.35], dtype=torch.float64))) == "30.0 ± 5.0"


def always(answer: int, recipe: Recipe) -> nn.Module:
    """A network that says the same class for every image."""
    network = build_backbone(recipe.backbone, (3, 4, 4), 3, recipe.backbone_args)
    for parameter in network.requires_grad_(False).parameters():
        parameter.zero_()
    network.classifier.bias[answer] = 1
    return network


def test_an_evaluator_tests_every_network(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(backbone_args={"width": 4, "depth": 1})
    networks = [always(0, recipe), always(2, recipe)]
    evaluator = Evaluator(networks, 3, 2, torch.device("cpu"), recipe)
    original = Answers.__call__

    def without_gradients(self: Answers, images: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return original(self, images)

    monkeypatch.setattr(Answers, "__call__", without_gradients)
    for labels, domains in (([0, 0, 1], [0, 1, 0]), ([2], [1])):
        images = torch.zeros(len(labels), 3, 4, 4)
        evaluator.update(images, torch.tensor(labels), torch.tensor(domains))
    scores = evaluator.scores()
    assert scores.overall.tolist() == [0.5, 0.25]
    assert scores.per_class.tolist() == [[1, 0, 0], [0, 0, 1]]
    assert scores.per_domain.tolist() == [[0.5, 0.5], [0, 0.5]]
    assert scores.worst_domain.tolist() == [0.5, 0]


def test_the_whole_protocol_on_an_easy_task() -> None:
    labels = torch.arange(9) % 3
    images = torch.randn(9, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.1
    images[torch.arange(9), labels] += 2
    recipe = Recipe(
        backbone_args={"width": 8, "depth": 1, "norm": "none"},
        num_networks=3,
        epochs=15,
        lr=0.05,
        augmentation=None,
    )
    asked: list[int] = []

    def training_set(number: int) -> tuple[Tensor, Tensor]:
        asked.append(number)
        return images, labels

    batches = [(images[a:b], labels[a:b], torch.arange(a, b) % 2) for a, b in pairwise((0, 4, 9))]
    scores = evaluate(training_set, batches, 3, 2, recipe, seed=0)
    assert asked == [0, 1, 2]
    assert scores.overall.tolist() == [1, 1, 1]
    assert scores.per_domain.shape == (3, 2)
    assert scores.per_class.shape == (3, 3)
    again = evaluate(training_set, batches, 3, 2, recipe, seed=0)
    assert torch.equal(scores.per_class, again.per_class)


def test_an_interval_ends_where_accuracies_do() -> None:
    assert _interval(Figure.of(torch.tensor([0.98, 1.0]))) == "86.3 to 100.0"
    assert _interval(Figure.of(torch.tensor([0.0, 0.02]))) == "0.0 to 13.7"
    assert _interval(Figure.of(torch.tensor([0.49, 0.51]))) == "37.3 to 62.7"
    assert _interval(Figure.of(torch.tensor([0.5]))) == "-"
