"""Networks side by side, in pieces and compiled: each is what it is alone."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dam_lightning import pieces, side_by_side
from dam_lightning.backbones import ConvNet, build_backbone
from dam_lightning.evaluation import Recipe, evaluator, train_network, training
from dam_lightning.evaluation.answers import Answers
from dam_lightning.evaluation.evaluator import Evaluator, train_networks
from dam_lightning.evaluation.training import training_compiles
from dam_lightning.functional import DSA, augmentation
from dam_lightning.side_by_side import Draws, Networks, networks_of, work
from tests.evaluation.plain_networks import REASONS, Looking, Small
from tests.no_sync import SyncCounter

CPU = torch.device("cpu")
SHAPE = (3, 8, 8)
IMAGES, CLASSES = 10, 3
NETWORK: dict[str, Any] = {"width": 8, "depth": 1}
SMALL: dict[str, Any] = {
    "backbone_args": NETWORK,
    "batch_size": 4,
    "epochs": 3,
    "precision": "float32",
}


@pytest.fixture
def _double() -> Iterator[None]:
    """Everything in double precision, so that only a real difference shows."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def _small_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three images are all that a processor's caches keep."""
    monkeypatch.setattr(pieces, "_PIXELS_IN_CACHE", 3 * SHAPE[1] * SHAPE[2])


def one_set(_: int = 0) -> tuple[Tensor, Tensor]:
    labels = torch.arange(IMAGES) % CLASSES
    images = torch.randn(IMAGES, *SHAPE, generator=torch.Generator().manual_seed(0))
    return images + labels.view(-1, 1, 1, 1), labels


def own_set(number: int) -> tuple[Tensor, Tensor]:
    images, labels = one_set()
    return images + number, labels.roll(number)


def smaller_set(number: int) -> tuple[Tensor, Tensor]:
    """Of a size of its own."""
    images, labels = one_set()
    return images[number:], labels[number:]


def vectors(networks: Sequence[nn.Module]) -> Tensor:
    return torch.stack(
        [nn.utils.parameters_to_vector(network.parameters()).detach() for network in networks]
    )


def trained(
    recipe: dict[str, Any], training_set: Any = one_set, max_images: int | None = None
) -> Tensor:
    whole = Recipe(num_networks=3, **recipe)
    return vectors(train_networks(training_set, CLASSES, whole, 7, max_images))


def alone(recipe: dict[str, Any], training_set: Any = one_set) -> Tensor:
    """One by one, as `test_training` compares it with the plain loop."""
    return vectors(
        [
            train_network(*training_set(number), CLASSES, Recipe(**recipe), seed=7, number=number)
            for number in range(3)
        ]
    )


def small_networks() -> Networks:
    return networks_of("ConvNet", NETWORK, SHAPE, CLASSES, CPU)


def fresh(count: int, **options: Any) -> list[nn.Module]:
    return [
        build_backbone("ConvNet", SHAPE, CLASSES, {**NETWORK, **options}, group=number).eval()
        for number in range(count)
    ]


# Training.


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("training_set", [one_set, own_set, smaller_set])
@pytest.mark.parametrize("strategy", [None, DSA], ids=["plain", "augmented"])
def test_side_by_side_equals_one_by_one(training_set: Any, strategy: str | None) -> None:
    """All together, and in a block of two and one of one; the last batches are smaller."""
    recipe = {**SMALL, "augmentation": strategy, "weight_decay": 0.1}
    expected = alone(recipe, training_set)
    for most in (8, 100):
        found = trained(recipe, training_set, most)
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
    assert not torch.allclose(expected[0], expected[1], atol=1e-2)


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("piece", [2, 3, 4])
def test_a_gradient_does_not_depend_on_the_pieces(together: int, piece: int) -> None:
    """Of 5 images, whose last piece is filled up by images that do not count."""
    networks = small_networks()
    generator = torch.Generator().manual_seed(1)
    start = torch.stack([vectors([network])[0] for network in fresh(together)])
    images = torch.randn(together, 5, *SHAPE, generator=generator)
    labels = torch.randint(CLASSES, (together, 5), generator=generator)
    draws = Draws(torch.arange(together), torch.rand(together, 5, 3, generator=generator))
    whole, loss = networks.gradients(start, images, labels, draws, piece=5, compile=False)
    found, value = networks.gradients(start, images, labels, draws, piece=piece, compile=False)
    assert found.shape == (together, networks.flat.size)
    assert value.shape == (together,)
    torch.testing.assert_close(found, whole, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(value, loss, atol=1e-12, rtol=1e-9)


@pytest.mark.usefixtures("_small_cache")
def test_pieces_fit_the_caches_and_are_of_one_size() -> None:
    networks = small_networks()
    assert [networks.piece(1, size, None) for size in (2, 3, 4, 6, 256)] == [2, 3, 2, 3, 3]
    # A budget for several is shared by them.
    assert networks.piece(4, 6, 8) == 2
    assert networks.together(4, None) == 1
    assert [networks.together(4, most) for most in (3, 7, 8, 12)] == [1, 1, 2, 3]


@pytest.mark.parametrize("together", [False, True])
def test_compiled_and_in_pieces_equals_eager(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, together: bool
) -> None:
    """Training and test; the whole protocol is compiled once, however often it is run."""
    monkeypatch.setattr(side_by_side, "_latest", None)
    recipe = {**SMALL, "batch_size": 5}
    most = 100 if together else None
    expected = trained(recipe)
    if not together:
        monkeypatch.setattr(pieces, "_PIXELS_IN_CACHE", 3 * SHAPE[1] * SHAPE[2])
    with caplog.at_level("INFO"):
        found = [trained({**recipe, "compile": True}, max_images=most) for _ in range(2)]
    torch.testing.assert_close(found[0], expected, atol=1e-4, rtol=1e-3)
    assert torch.equal(*found)
    assert not [message for message in caplog.messages if "Without compilation" in message]
    assert len([m for m in caplog.messages if m.startswith("Compiled the training")]) == 1


@pytest.mark.parametrize("norm", ["instancenorm", "batchnorm"])
def test_bfloat16_is_float32_but_for_rounding(monkeypatch: pytest.MonkeyPatch, norm: str) -> None:
    """In training, side by side or by itself; the test is in float32 either way."""
    recipe = {**SMALL, "backbone_args": {**NETWORK, "norm": norm}}
    start = vectors(fresh(1, norm=norm))
    exact, rounded = (trained({**recipe, "precision": p}) for p in ("float32", "bfloat16"))
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).norm() < 0.1 * (exact - start).norm()
    images, labels = one_set()
    dtypes, original = [], nn.Linear.forward

    def recording(layer: nn.Linear, inputs: Tensor) -> Tensor:
        outputs = original(layer, inputs)
        dtypes.append(outputs.dtype)
        return outputs

    for precision in ("float32", "bfloat16"):
        whole = Recipe(**{**recipe, "precision": precision})
        judge = Evaluator(fresh(2, norm=norm), CLASSES, 1, CPU, whole)
        monkeypatch.setattr(nn.Linear, "forward", recording)
        judge.update(images, labels, torch.zeros_like(labels))
        monkeypatch.undo()
        assert set(dtypes) == {torch.float32}
        dtypes.clear()


def test_networks_are_the_same_ones_until_others_are_asked_for() -> None:
    first = small_networks()
    assert small_networks() is first
    for other in (
        networks_of("ConvNet", {**NETWORK, "width": 4}, SHAPE, CLASSES, CPU),
        networks_of("ConvNet", NETWORK, (1, 8, 8), CLASSES, CPU),
        networks_of("ConvNet", NETWORK, SHAPE, 4, CPU),
        networks_of("AlexNet", {}, (3, 32, 32), CLASSES, CPU),
    ):
        assert other is not first
    assert small_networks() is not first


def test_a_class_that_was_defined_anew_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"{__name__}.Mine"
    found = []
    for each in (type("Mine", (ConvNet,), {}) for _ in range(2)):
        monkeypatch.setitem(globals(), "Mine", each)
        found.append(networks_of(name, NETWORK, SHAPE, CLASSES, CPU))
        assert type(found[-1].flat.module) is each
        assert networks_of(name, NETWORK, SHAPE, CLASSES, CPU) is found[-1]
    assert found[0] is not found[1]


def test_networks_that_share_steps_are_worth_compiling_for_those() -> None:
    recipe, images = Recipe(epochs=100), torch.zeros(10, 3, 32, 32, device="meta")
    assert not training_compiles(images, recipe, 10)
    assert training_compiles(images, Recipe(epochs=1000), 10)


# What cannot be computed side by side.


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("reason", REASONS, ids=lambda reason: reason.__name__)
def test_networks_that_only_go_one_by_one_are_trained_as_they_are(reason: type[Small]) -> None:
    """By a plain loop, also where side by side is asked for; their buffers go with them."""
    recipe = Recipe(
        backbone=f"{reason.__module__}.{reason.__name__}",
        num_networks=2,
        epochs=2,
        batch_size=4,
        augmentation=None,
        lr=0.1,
    )
    networks = networks_of(recipe.backbone, {}, SHAPE, CLASSES, CPU)
    assert not networks.is_plain
    assert networks.together(4, 100) == 1
    found = train_networks(one_set, CLASSES, recipe, 7, 100)
    for number, network in enumerate(found):
        expected = train_network(*one_set(), CLASSES, recipe, seed=7, number=number)
        state = network.state_dict()
        for name, tensor in expected.state_dict().items():
            assert torch.equal(state[name], tensor), name
        start = build_backbone(
            recipe.backbone, SHAPE, CLASSES, seed=7, stream="evaluation/network", group=number
        )
        moved = {
            name for name, tensor in start.state_dict().items() if (tensor != state[name]).any()
        }
        kept = {"hidden.weight", "hidden.bias"} if reason.__name__ == "Frozen" else set()
        assert moved == set(state) - kept
        assert not network.training


def test_what_can_be_computed_side_by_side() -> None:
    assert networks_of(f"{Small.__module__}.Small", {}, SHAPE, CLASSES, CPU).can_be_batched
    for norm in ("instancenorm", "groupnorm", "layernorm", "none"):
        assert networks_of("ConvNet", {**NETWORK, "norm": norm}, SHAPE, CLASSES, CPU).can_be_batched
    tiny = {"patch_size": 4, "width": 8, "depth": 1, "heads": 2, "mlp_width": 8}
    assert networks_of("ViTTiny", tiny, SHAPE, CLASSES, CPU).can_be_batched


def test_networks_that_cannot_be_batched_are_trained_one_after_another() -> None:
    name = f"{Looking.__module__}.{Looking.__name__}"
    networks = networks_of(name, {}, SHAPE, CLASSES, CPU)
    assert networks.is_plain
    assert not networks.can_be_batched
    recipe = {"backbone": name, "epochs": 2, "batch_size": 4}
    assert torch.equal(trained(recipe, max_images=100), alone(recipe))


def test_where_compilation_is_impossible_it_goes_on() -> None:
    recipe = {"backbone": f"{Looking.__module__}.{Looking.__name__}", "epochs": 2}
    with pytest.warns(UserWarning, match="Without compilation of the training, which is slower"):
        found = trained({**recipe, "compile": True})
    torch.testing.assert_close(found, alone(recipe))


def test_too_little_memory_for_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, original, tried = trained(SMALL, max_images=100), training.train_block, []

    def scarce(*arguments: Any, **options: Any) -> Any:
        tried.append(len(arguments[1]))
        if tried[-1] > 1:
            raise torch.OutOfMemoryError("too little")
        return original(*arguments, **options)

    monkeypatch.setattr(evaluator, "train_block", scarce)
    with pytest.warns(UserWarning, match="too small for 3 networks side by side"):
        found = trained(SMALL, max_images=100)
    # It is tried once.
    assert tried == [3, 1, 1, 1]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_a_block_says_who_was_trained(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        trained(SMALL, max_images=8)
    said = [message.partition(" (")[0] for message in caplog.messages]
    assert said == ["Trained networks 1 to 2 of 3", "Trained network 3 of 3"]


def test_what_cannot_be_compiled_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    recipe = {**SMALL, "backbone_args": {**NETWORK, "norm": "batchnorm"}}
    for compile, expected in ((True, 1), (None, 0)):
        caplog.clear()
        with caplog.at_level("INFO"):
            trained({**recipe, "compile": compile})
        told = [message for message in caplog.messages if message.startswith("Not compiled: ")]
        assert len(told) == expected


# The host.


@pytest.mark.parametrize("most", [None, 100], ids=["alone", "together"])
def test_the_host_never_waits_in_training(
    monkeypatch: pytest.MonkeyPatch, most: int | None
) -> None:
    # Looks at parameters only where they are on the host.
    monkeypatch.setattr(augmentation, "_is_needed", lambda *_: True)
    counter, original, calls = SyncCounter(), training._train_together, []

    def counted(*arguments: Any) -> None:
        calls.append(len(arguments[1]))
        with counter:
            original(*arguments)

    monkeypatch.setattr(training, "_train_together", counted)
    trained(SMALL, own_set, most)
    assert calls == ([1, 1, 1] if most is None else [3])
    assert not counter.counts


def test_the_host_never_waits_in_a_test() -> None:
    judge = Evaluator(fresh(2), CLASSES, 1, CPU, Recipe(**SMALL))
    images, labels = one_set()
    judge.update(images, labels, torch.zeros_like(labels))
    with SyncCounter() as counter:
        judge.update(images, labels, torch.zeros_like(labels))
    assert not counter.counts


# The test.


@pytest.mark.usefixtures("_small_cache")
@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("norm", ["instancenorm", "batchnorm"])
def test_answers_are_those_of_each_network(
    monkeypatch: pytest.MonkeyPatch, together: int, norm: str
) -> None:
    """Of 5 networks on batches of 10, 4 and 1 images; buffers are each network's own."""
    monkeypatch.setattr(Networks, "together", lambda *_: together)
    modules = fresh(5, norm=norm)
    for number, module in enumerate(modules):
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.add_(number)
    networks = networks_of("ConvNet", {**NETWORK, "norm": norm}, SHAPE, CLASSES, CPU)
    found = Answers(networks, modules, 10, compile=False)
    images, _ = one_set()
    with torch.no_grad():
        for batch in (images, images[:4], images[9:]):
            expected = torch.stack([module(batch).argmax(dim=1) for module in modules])
            assert torch.equal(found(batch), expected)


@pytest.mark.usefixtures("_small_cache")
def test_compiled_answers_under_inference_mode(caplog: pytest.LogCaptureFixture) -> None:
    """As inside Lightning's test loop; batches of any size are one compilation."""
    modules, (images, labels) = fresh(3), one_set()
    domains = torch.zeros_like(labels)
    judges = [
        Evaluator(modules, CLASSES, 1, CPU, recipe)
        for recipe in (Recipe(compile=True, **SMALL), Recipe(**SMALL))
    ]
    with torch.inference_mode(), caplog.at_level("INFO"):
        for judge in judges:
            for part in (slice(0, 7), slice(7, 10)):
                # Made in inference mode.
                judge.update(images[part].clone(), labels[part].clone(), domains[part].clone())
    with torch.no_grad():
        right = torch.stack([module(images).argmax(1) for module in modules]) == labels
    expected = torch.stack([right[:, labels == c].double().mean(1) for c in range(CLASSES)], 1)
    for judge in judges:
        torch.testing.assert_close(judge.scores().per_class, expected, atol=0, rtol=1e-9)
    assert 0 < float(expected.mean()) < 1
    assert len([m for m in caplog.messages if m.startswith("Compiled the test")]) == 1


def test_compiling_pays_by_what_there_is_to_compute() -> None:
    """On a CPU it counts pieces of 32 images of 32x32, elsewhere steps."""
    accelerator = torch.device("cuda")
    assert work(CPU, (3, 32, 32), 640, 64) == 20
    assert work(CPU, (3, 64, 64), 640, 64) == 80
    assert work(accelerator, (3, 32, 32), 640, 64) == 64
    images = torch.zeros(10, 3, 32, 32)
    assert training.training_compiles(images, Recipe(), 10)
    assert not training.training_compiles(images, Recipe(epochs=50), 10)
    assert training.training_compiles(images, Recipe(epochs=1, compile=True), 1)
    assert not training.training_compiles(images, Recipe(compile=False), 10)
    # Digits, as small as they are.
    assert not training.training_compiles(torch.zeros(10, 1, 8, 8), Recipe(), 10)
