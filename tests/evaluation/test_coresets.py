"""Real images at equal ipc, and all of them, as training sets."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from dam_lightning import Evaluation
from dam_lightning.data.sampling import RealImages
from dam_lightning.evaluation import Recipe, Selection, train_network
from dam_lightning.evaluation.coresets import CORESETS, coreset
from dam_lightning.functional.coresets import herding
from dam_lightning.randomness import torch_generator
from tests.evaluation.test_loop import Validated
from tests.tiny import SMALL_NETWORK, SMALL_RECIPE, TinyData, tiny_data, tiny_trainer

CPU = torch.device("cpu")
RECIPE = {**SMALL_RECIPE, "backbone_args": SMALL_NETWORK}
ways = pytest.mark.parametrize("method", CORESETS)


def chosen(data: TinyData, method: str, seed: int = 0, **selection: Any) -> Tensor:
    return coreset(data, method, 3, Selection(**selection), Recipe(**RECIPE), seed, CPU)


@ways
@pytest.mark.parametrize("features", ["trained", "untrained", "pixels"])
def test_every_class_has_its_own_images(tmp_path: Path, method: str, features: Any) -> None:
    data = tiny_data(tmp_path)
    options = {"features": features} | ({"epochs": 1} if features == "trained" else {})
    numbers = chosen(data, method, **options)
    assert data.train.labels[numbers].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert len(set(numbers.tolist())) == 9
    assert torch.equal(chosen(data, method, **options), numbers)


def test_ways_of_choosing_differ(tmp_path: Path) -> None:
    data = tiny_data(tmp_path)
    found = {method: set(chosen(data, method, features="pixels").tolist()) for method in CORESETS}
    assert len({frozenset(numbers) for numbers in found.values()}) == 3


def test_features_are_those_of_a_network_trained_on_all_images(tmp_path: Path) -> None:
    """With the whole training set, normalised, and by the recipe but for the epochs."""
    data = tiny_data(tmp_path)
    images, recipe = data.normalisation(data.train.images), Recipe(**{**RECIPE, "epochs": 3})
    network = train_network(
        images, data.train.labels, 3, recipe, seed=5, number=0, stream="selection"
    )
    expected = []
    for label in range(3):
        members = (data.train.labels == label).nonzero().flatten()
        with torch.no_grad():
            features = network.features(images[members])
        expected += members[herding(features.double(), 3)].tolist()
    assert chosen(data, "herding", seed=5, epochs=3).tolist() == expected


@ways
def test_all_networks_are_trained_on_the_same_coreset(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiny_data(tmp_path)
    numbers = chosen(data, method, features="untrained")
    asked: list[str] = []

    def counted(*arguments: Any) -> Tensor:
        asked.append(arguments[1])
        return coreset(*arguments)

    monkeypatch.setattr("dam_lightning.evaluation.module.coreset", counted)
    evaluation = Evaluation(
        method, ipc=3, recipe=RECIPE, seed=0, selection={"features": "untrained"}
    )
    (metrics,) = tiny_trainer(tmp_path).test(evaluation, datamodule=data, verbose=False)
    assert asked == [method]
    images, labels = data.normalisation(data.train.images[numbers]), data.train.labels[numbers]
    test, right = data.normalisation(data.test.images), []
    for number in range(2):
        network = train_network(images, labels, 3, evaluation.recipe, seed=0, number=number)
        with torch.no_grad():
            right.append((network(test).argmax(dim=1) == data.test.labels).double().mean())
    assert metrics["test/accuracy"] == pytest.approx(100 * float(sum(right)) / 2, abs=1e-4)


@ways
def test_tables_and_ledgers_name_the_baseline(
    tmp_path: Path, method: str, capsys: pytest.CaptureFixture
) -> None:
    ledger = tmp_path / "ledger.csv"
    evaluation = Evaluation(
        method,
        ipc=1,
        recipe={**RECIPE, "epochs": 1},
        seed=3,
        ledger=str(ledger),
        selection={"features": "pixels"},
    )
    tiny_trainer(tmp_path).test(evaluation, datamodule=tiny_data(tmp_path), verbose=False)
    assert method in capsys.readouterr().out
    row = ledger.read_text().splitlines()[1]
    assert row.startswith(f'TinyData,1,{method},0,3,0,"ConvNet(width=8, depth=2)",')


def test_networks_of_another_coreset_are_refused(tmp_path: Path) -> None:
    def of(method: str, **selection: Any) -> Evaluation:
        return Evaluation(method, ipc=1, recipe=RECIPE, seed=0, selection=selection or None)

    trainer = tiny_trainer(tmp_path, max_epochs=-1)
    fitted = of("herding", features="pixels")
    trainer.fit(fitted, datamodule=tiny_data(tmp_path))
    trainer.save_checkpoint(tmp_path / "networks.ckpt")
    for other in (of("k_center", features="pixels"), of("herding", epochs=1)):
        with pytest.raises(MisconfigurationException, match="1 images per class by herding"):
            trainer.test(
                other, datamodule=tiny_data(tmp_path), ckpt_path=tmp_path / "networks.ckpt"
            )


@pytest.mark.parametrize("method", ["random", *CORESETS])
def test_a_class_with_too_few_images(tmp_path: Path, method: str) -> None:
    evaluation = Evaluation(method, ipc=5, recipe=RECIPE)
    with pytest.raises(ValueError, match="class 'ant' has 4 training images, but 5"):
        tiny_trainer(tmp_path).test(evaluation, datamodule=tiny_data(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"condensed": "herding"}, "give ipc with condensed: random, herding, k_center, k_means"),
        ({"condensed": "k_means", "ipc": 0}, "ipc must be at least 1"),
        ({"condensed": "whole", "ipc": 1}, "give ipc with .* and only then"),
        ({"condensed": "whole", "selection": {}}, "give selection with condensed: herding"),
        ({"condensed": "random", "ipc": 1, "selection": {}}, "give selection with condensed"),
        ({"selection": {"features": "raw"}}, "features must be one of trained, untrained, pixels"),
        ({"selection": {"epochs": 0}}, "selection: epochs must be at least 1"),
        ({"selection": {"features": "pixels", "epochs": 2}}, "epochs are of features: trained"),
        ({"selection": {"feature": "pixels"}}, "selection: there is no feature"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    rest = {} if "condensed" in arguments else {"condensed": "herding", "ipc": 1}
    with pytest.raises(ValueError, match=message):
        Evaluation(**arguments, **rest)


def test_a_baseline_that_does_not_exist() -> None:
    with pytest.raises(FileNotFoundError, match="one of random, herding, k_center, k_means, whole"):
        Evaluation("hreding")


@pytest.mark.parametrize("zca", [False, True])
def test_real_images_are_normalised_when_asked_for(tmp_path: Path, zca: bool) -> None:
    data = tiny_data(tmp_path, zca=zca)
    images = RealImages(data)
    rows = torch.tensor([4, 0, 4])
    assert (len(images), images.shape) == (33, (33, 3, 16, 16))
    torch.testing.assert_close(images[rows], data.normalisation(data.train.images)[rows])


def test_training_on_the_whole_set_equals_training_on_a_copy(tmp_path: Path) -> None:
    data, recipe = tiny_data(tmp_path), Recipe(**{**RECIPE, "epochs": 3, "batch_size": 5})
    copy = data.normalisation(data.train.images)
    key = {"seed": 2, "number": 1}
    of_copy = train_network(copy, data.train.labels, 3, recipe, **key)
    gathered = train_network(RealImages(data), data.train.labels, 3, recipe, **key)
    for found, wanted in zip(gathered.parameters(), of_copy.parameters(), strict=True):
        assert torch.equal(found, wanted)


def test_no_more_than_a_batch_of_the_whole_set_is_normalised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, sizes = Validated(cache_dir=str(tmp_path / "cache")), []
    gather = RealImages.__getitem__

    def spied(images: RealImages, rows: Tensor) -> Tensor:
        sizes.append(len(rows))
        return gather(images, rows)

    monkeypatch.setattr(RealImages, "__getitem__", spied)
    evaluation = Evaluation("whole", recipe={**RECIPE, "batch_size": 10}, seed=0)
    (metrics,) = tiny_trainer(tmp_path).test(evaluation, datamodule=data, verbose=False)
    assert sizes == 4 * [10, 10, 10, 3]
    networks = [
        train_network(*evaluation.training_set(n), 3, evaluation.recipe, seed=0, number=n)
        for n in range(2)
    ]
    test = data.normalisation(data.test.images)
    with torch.no_grad():
        right = [(n(test).argmax(dim=1) == data.test.labels).double().mean() for n in networks]
    assert metrics["test/accuracy"] == pytest.approx(50 * float(sum(right)), abs=1e-4)
    assert evaluation.describe()["method"] == evaluation.label == "whole"
    assert evaluation.describe()["ipc"] == ""


def test_streams_of_networks_are_apart() -> None:
    """The network to choose by must not be one of those that judge."""
    images = torch.randn(6, 3, 16, 16, generator=torch_generator("cpu", 0, "s"))
    recipe, labels = Recipe(**{**RECIPE, "epochs": 1}), torch.arange(6) % 3
    first = train_network(images, labels, 3, recipe, seed=0, number=0)
    other = train_network(images, labels, 3, recipe, seed=0, number=0, stream="selection")
    weights = zip(first.parameters(), other.parameters(), strict=True)
    assert not any(torch.equal(a, b) for a, b in weights if a.ndim > 1)
