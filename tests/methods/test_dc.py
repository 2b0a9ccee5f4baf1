"""DC: equal to the plain loop, to itself whatever the circumstances, and what it refuses."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from dam_lightning import DC
from dam_lightning.backbones import ConvNet
from dam_lightning.callbacks import LastCheckpoint
from dam_lightning.data import GroupedBatch, Split
from dam_lightning.functional import DSA, OPERATIONS, strategy_operations
from dam_lightning.methods import dc as package
from dam_lightning.methods.gradient_matching import GradientMatching
from dam_lightning.methods.inner_training import InnerTraining
from dam_lightning.methods.network_gradients import NetworkGradients
from dam_lightning.randomness import numpy_generator
from tests.reference import augmentation, convnet, dc
from tests.reference.dm import Augmentation, StepResult, domain_views
from tests.reference.evaluation import Augment
from tests.tiny import CLASS_SIZES, TinyData, tiny_trainer, two_processes

NUM_CLASSES = len(CLASS_SIZES)
SHAPE = (3, 8, 8)
NETWORK = {"width": 4, "depth": 2}
BATCH_NORM = {**NETWORK, "norm": "batchnorm"}
TOLERANCE = 1e-8
DAM = {"num_domains": 4, "init": "normal", "init_value": 0.1}


class SmallData(TinyData):
    """The middle of the tiny images."""

    def load_splits(self) -> Mapping[str, Split]:
        splits = super().load_splits()
        return {
            name: Split(split.images[..., 4:12, 4:12], split.labels, split.domains, split.paths)
            for name, split in splits.items()
        }


def small_data(folder: Path, domains: int = 0, **options: Any) -> SmallData:
    data = SmallData(cache_dir=str(folder / "cache"), **{"seed": 0, **options})
    data.prepare_data()
    data.setup()
    if domains:
        data.setup_domains(domains)
    return data


def make(cls: type[DC] = DC, **options: Any) -> DC:
    defaults: dict[str, Any] = {
        "ipc": 2,
        "backbone_args": NETWORK,
        "seed": 3,
        "outer_loop": 3,
        "inner_loop": 2,
        "lr_network": 0.3,
        "batch_train": 4,
    }
    return cls(**{**defaults, **options})


def built(**options: Any) -> DC:
    """Without a Trainer."""
    return make(num_classes=NUM_CLASSES, image_shape=SHAPE, **options)


def fit(module: DC, folder: Path, steps: int, ckpt_path: Any = None, **options: Any) -> DC:
    trainer = tiny_trainer(folder, max_steps=steps, **options)
    trainer.fit(module, datamodule=small_data(folder), ckpt_path=ckpt_path)
    return module


def masks(module: DC) -> Tensor:
    assert module.dam is not None
    return module.dam.logits.detach()


@pytest.fixture
def double() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


# The plain loop, on what the module draws.


def plain_network(
    module: DC, iteration: int, stream: str = "network", outputs: int | None = None
) -> convnet.ConvNet:
    options: dict[str, Any] = {**NETWORK, **module.backbone_args}
    norm = {"instancenorm": "instance", "batchnorm": "batch"}[options.get("norm", "instancenorm")]
    width, depth = options["width"], options["depth"]
    plain = convnet.ConvNet(3, outputs or NUM_CLASSES, width, depth, SHAPE[1:], norm)
    convnet.copy_parameters(module.fresh_network(iteration, stream, outputs), plain)
    return plain


def networks(module: DC, iteration: int) -> tuple[convnet.ConvNet, convnet.ConvNet | None]:
    first = plain_network(module, iteration)
    if module.dam is None:
        return first, None
    outputs = module.dam.num_domains if module.domain_outputs == "domains" else NUM_CLASSES
    return first, plain_network(module, iteration, "network/domain", outputs)


def valid(groups: Any, most: int | None = None) -> list[Tensor]:
    images = groups.images(range(len(groups.counts))).to(torch.get_default_dtype())
    return [group[:count][:most] for group, count in zip(images, groups.counts, strict=True)]


def operation(module: DC, generator: Any) -> str:
    assert module.augmentation is not None
    return OPERATIONS[int(generator.choice(strategy_operations(module.augmentation)))]


def shared(module: DC, branch: str, step: int, groups: int) -> list[Augmentation] | None:
    """Augmentation of the groups, the same for real and synthetic images."""
    if module.augmentation is None:
        return None
    generators = [
        numpy_generator(module.seed, f"augmentation/{branch}", step, group)
        for group in range(groups)
    ]
    return [
        (operation(module, generator), generator.random(3).tolist()) for generator in generators
    ]


def inner_draws(
    module: DC, branch: str, step: int, count: int
) -> tuple[list[Tensor], Augment | None]:
    """Orders and augmentation of the training that comes before ``step``."""
    orders, chosen = [], []
    for epoch in range(2):
        generator = numpy_generator(module.seed, f"inner/{branch}", step, epoch)
        orders.append(torch.from_numpy(generator.permutation(count)))
        if module.augmentation is not None:
            chosen.append(
                [
                    (operation(module, generator), generator.random((len(part), 3)).tolist())
                    for part in orders[-1].split(module.hparams["batch_train"])
                ]
            )

    def augment(images: Tensor, epoch: int, number: int) -> Tensor:
        return augmentation.apply_per_sample(images, *chosen[epoch][number])

    return orders, augment if chosen else None


def position(module: DC, data: SmallData, step: int) -> dc.Position:
    batch = data.grouped_batch(step)
    count = NUM_CLASSES * module.ipc
    orders, augment = inner_draws(module, "class", step + 1, count)
    drawn = dc.Position(
        valid(batch.classes),
        class_augmentation=shared(module, "class", step, NUM_CLASSES),
        class_orders=orders,
        class_augment=augment,
        class_statistics=valid(batch.classes, 16),
    )
    if module.dam is None:
        return drawn
    domains = module.dam.num_domains
    orders, augment = inner_draws(module, "domain", step + 1, domains * count)
    return drawn._replace(
        real_domain_batches=valid(batch.domains),
        domain_augmentation=shared(module, "domain", step, domains),
        domain_orders=orders,
        domain_augment=augment,
        domain_statistics=valid(batch.domains, 16),
    )


def plain_loop(
    module: DC, data: SmallData, steps: int, **options: Any
) -> tuple[list[StepResult], dc.DCLoopResult]:
    """From the module's images as they are: the steps, and what came of the last outer loop."""
    images = module.images.detach().clone()
    logits = None if module.dam is None else masks(module).clone()
    found: list[StepResult] = []
    buffers: tuple[Tensor | None, Tensor | None] = None, None
    for iteration, start in enumerate(range(0, steps, module.outer_loop)):
        ours = range(start, min(steps, start + module.outer_loop))
        result = dc.dc_loop(
            images,
            module.ipc,
            logits,
            0.1,
            0.1,
            *networks(module, iteration),
            [position(module, data, step) for step in ours],
            module.lr_images,
            0.3,
            lr_masks=module.lr_masks,
            batch_train=module.hparams["batch_train"],
            metric=module.metric,
            images_buffer=buffers[0],
            logits_buffer=buffers[1],
            **options,
        )
        found += result.steps
        images, logits, *rest, _ = result
        buffers = rest[0], rest[1]
    return found, result


def stepped(module: DC, data: SmallData, steps: int) -> list[StepResult]:
    """Losses and gradients of the module's own steps, each followed by an update."""
    optimizer = module.configure_optimizers()
    found = []
    for step in range(steps):
        logged: dict[str, Tensor] = {}
        module.log = lambda name, value, logged=logged, **_: logged.update({name: value})  # type: ignore[method-assign]
        loss = module.training_step(data.grouped_batch(step), 0)
        optimizer.zero_grad()
        loss.backward()
        assert module.images.grad is not None
        grad_logits = None
        if module.dam is not None:
            assert module.dam.logits.grad is not None
            grad_logits = module.dam.logits.grad.clone()
            weighted = logged["loss_class"] + 0.1 * logged["loss_domain"]
            assert float(loss.detach()) == pytest.approx(float(weighted), rel=1e-12)
        found.append(
            StepResult(
                logged.get("loss_class", loss.detach()),
                logged.get("loss_domain", torch.zeros(())),
                module.images.grad.clone(),
                grad_logits,
            )
        )
        optimizer.step()
    return found


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    scale = float(theirs.abs().max())
    torch.testing.assert_close(ours.detach(), theirs, rtol=0, atol=TOLERANCE * scale)


def assert_steps_close(ours: Sequence[StepResult], theirs: Sequence[StepResult]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        for value, expected in zip(mine, other, strict=True):
            assert (value is None) == (expected is None)
            if value is not None and expected is not None:
                assert_close(value, expected)


# Parity.

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "plain-ipc1": {"ipc": 1},
    "plain-augmented": {"augmentation": DSA},
    "plain-cos": {"metric": "cos"},
    "dam": {"dam": DAM},
    "dam-ipc1": {"dam": DAM, "ipc": 1},
    "dam-mse": {"dam": DAM, "metric": "mse"},
    "dam-cos-augmented": {"dam": DAM, "metric": "cos", "augmentation": "color_scale_cutout"},
    "dam-augmented-ipc3": {"dam": DAM, "augmentation": DSA, "ipc": 3},
    "dam-classes": {"dam": {**DAM, "num_domains": 2}, "domain_outputs": "classes"},
}


WAYS = [(4, False), (4096, True)]
"""Budgets, and whether groups share their passes."""


@pytest.mark.parametrize(
    ("case", "max_images", "together"),
    [
        (case, *way)
        for case in CASES
        for way in (WAYS if case != "dam" else [*WAYS, (1, True), (13, True), (4096, False)])
    ],
)
@pytest.mark.usefixtures("double")
def test_two_steps_with_training_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, max_images: int, together: bool
) -> None:
    """Cut into single images, pieces of groups and pieces of several groups, or not at all."""
    monkeypatch.setattr(DC, "groups_together", together)
    module = built(max_images=max_images, lr_images=0.2, lr_masks=0.3, **CASES[case])
    data = small_data(tmp_path, 0 if module.dam is None else module.dam.num_domains)
    assert data.grouped_batch(0).classes.counts.tolist() == [4, 6, 6]
    theirs, end = plain_loop(module, data, 2)
    ours = stepped(module, data, 2)
    assert_steps_close(ours, theirs)
    assert_close(module.images, end.images)
    if end.logits is not None:
        assert_close(masks(module), end.logits)
    # What was compared is there, and the training changed it.
    assert all(float(step.grad_images.abs().max()) > 1e-6 for step in ours)
    untrained = built(inner_loop=0, lr_images=0.2, lr_masks=0.3, **CASES[case])
    second = stepped(untrained, data, 2)[1]
    assert abs(float(second.loss_class / ours[1].loss_class) - 1) > 1e-4
    if module.dam is not None:
        assert abs(float(second.loss_domain / ours[1].loss_domain) - 1) > 1e-4


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.usefixtures("double")
def test_two_compiled_steps_with_training_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    """Nothing is compiled again for the networks of the next outer loop."""
    monkeypatch.setattr("dam_lightning.compilation.rank_zero_warn", pytest.fail)
    monkeypatch.setattr(DC, "groups_together", together)
    module = built(
        dam=None if together else {**DAM, "num_domains": 2},
        compile=True,
        outer_loop=2,
        batch_train=6,
        lr_images=0.2,
        backbone_args={"width": 4, "depth": 1},
    )
    data = small_data(tmp_path, 2)
    theirs, end = plain_loop(module, data, 4)
    compiled: list[str] = []
    monkeypatch.setattr("dam_lightning.compilation.rank_zero_info", compiled.append)
    assert_steps_close(stepped(module, data, 4), theirs)
    assert_close(module.images, end.images)
    # Of real images, which the training has as many of, and the matching; for each network.
    assert len([line for line in compiled if line.startswith("Compiled ")]) == (
        3 if together else 4
    )


@pytest.mark.parametrize("dam", [None, DAM], ids=["plain", "dam"])
@pytest.mark.parametrize("max_images", [4, 4096])
@pytest.mark.usefixtures("double")
def test_several_iterations_through_the_trainer(tmp_path: Path, dam: Any, max_images: int) -> None:
    """Each with networks of its own, and one momentum over all; the last is cut short."""
    module = built(dam=dam, max_images=max_images, lr_images=0.2, lr_masks=0.3)
    data = small_data(tmp_path, DAM["num_domains"])
    steps, end = plain_loop(module, data, 8)
    start = module.images.detach().clone()
    trainer = tiny_trainer(tmp_path, max_steps=8)
    trainer.fit(module, datamodule=data)
    assert float((module.images.detach() - start).abs().max()) > 0.1
    assert_close(module.images, end.images)
    assert float(trainer.callback_metrics["loss"]) == pytest.approx(
        float(steps[-1].loss_class + 0.1 * steps[-1].loss_domain), rel=1e-8
    )
    if end.logits is not None:
        assert_close(masks(module), end.logits)


@pytest.mark.parametrize("dam", [None, {**DAM, "num_domains": 2}], ids=["plain", "dam"])
@pytest.mark.parametrize("max_images", [4, 4096])
@pytest.mark.usefixtures("double")
def test_batch_normalisation_is_frozen_on_sixteen_images(
    tmp_path: Path, dam: Any, max_images: int
) -> None:
    """One class has fewer, one more; the statistics last over the outer loop."""
    module = built(dam=dam, max_images=max_images, backbone_args=BATCH_NORM, lr_images=0.2)
    data = small_data(tmp_path, 2, batch_real=18)
    batch = data.grouped_batch(0)
    assert batch.classes.counts.tolist() == [4, 9, 18]
    assert batch.domains is not None
    assert min(batch.domains.counts.tolist()) >= 16
    plain = networks(module, 0)
    positions = [position(module, data, step) for step in range(3)]
    end = dc.dc_loop(
        module.images.detach().clone(),
        2,
        None if dam is None else masks(module).clone(),
        0.1,
        0.1,
        *plain,
        positions,
        0.2,
        0.3,
        batch_train=4,
        freeze=True,
    )
    assert_steps_close(stepped(module, data, 3), end.steps)
    states = [module.network_state(2)]
    if dam is not None:
        states.append(module.domain_state(2, states[0]))
    for state, theirs in zip(states, plain, strict=False):
        assert isinstance(theirs, nn.Module)
        buffers = list(state.network.module.buffers())
        assert len(buffers) == 6
        for ours, other in zip(buffers, theirs.buffers(), strict=True):
            assert_close(ours.double(), other.double())
        assert not any(norm.training for norm in state.network.batch_norms)


def test_statistics_are_renewed_where_nothing_is_trained(tmp_path: Path) -> None:
    """The norms are in evaluation mode after an update; the next one must wake them."""
    module = built(dam=DAM, domain_training="none", backbone_args=BATCH_NORM)
    data = small_data(tmp_path, 4)
    statistics = []
    for steps in (1, 2):
        stepped(module, data, steps)
        network = module.domain_state(steps - 1, module.network_state(steps - 1)).network
        statistics.append([buffer.clone() for buffer in network.module.buffers()])
    for once, twice in zip(*statistics, strict=True):
        assert not torch.equal(once, twice)


@pytest.mark.parametrize("augmentation", [None, DSA], ids=["plain", "augmented"])
@pytest.mark.usefixtures("double")
def test_domain_network_trained_on_real_images(tmp_path: Path, augmentation: str | None) -> None:
    """All real images of the step with the numbers of their pseudo-domains, without padding."""
    module = built(dam=DAM, domain_training="real", augmentation=augmentation, lr_images=0.2)
    # 33 images in four pseudo-domains: one has more than the others.
    data = small_data(tmp_path, 4, batch_real=9)
    first, second = (position(module, data, step) for step in range(2))
    plain = networks(module, 0)
    before = masks(module).clone()
    expected = dc.dc_loop(
        module.images.detach().clone(), 2, before, 0.1, 0.1, *plain, [first], 0.2, 0.3
    )
    assert expected.logits is not None
    dc.inner_training(
        plain[0],
        expected.images,
        module.labels,
        first.class_orders,
        0.3,
        4,
        first.class_augment,
    )
    assert plain[1] is not None
    assert second.real_domain_batches is not None
    sizes = [len(real) for real in second.real_domain_batches]
    assert sizes == [8, 8, 8, 9] or sizes == [9, 8, 8, 8]
    orders, augment = inner_draws(module, "domain", 1, sum(sizes))
    labels = torch.arange(4).repeat_interleave(torch.tensor(sizes))
    real = torch.cat(second.real_domain_batches)
    dc.inner_training(plain[1], real, labels, orders, 0.3, 4, augment)
    last = dc.dc_step(
        expected.images, 2, expected.logits, 0.1, 0.1, *plain, *second[:4], module.metric
    )
    assert_steps_close(stepped(module, data, 2), [*expected.steps, last])


@pytest.mark.parametrize("metric", ["layerwise_cosine", "mse", "cos"])
@pytest.mark.parametrize(("activation", "max_images"), [("sigmoid", 4096), ("swish", 4)])
@pytest.mark.usefixtures("double")
def test_gradients_are_the_slopes(
    tmp_path: Path, metric: str, max_images: int, activation: str
) -> None:
    """From first principles: the loss differs by what the gradients say, along any direction."""
    module = built(
        dam=DAM,
        metric=metric,
        max_images=max_images,
        augmentation="color_scale_rotate",
        backbone_args={"width": 3, "depth": 1, "activation": activation},
    )
    assert_slopes(module, small_data(tmp_path, 4))


class Forgetful(ConvNet):
    """With dropout."""

    def features(self, images: Tensor) -> Tensor:
        return nn.functional.dropout(super().features(images), 0.3, self.training)


@pytest.mark.parametrize("max_images", [4, 4096])
@pytest.mark.usefixtures("double")
def test_gradients_with_dropout_are_the_slopes(tmp_path: Path, max_images: int) -> None:
    """Also where a piece is computed twice: with the same units left out."""
    module = built(
        backbone=f"{Forgetful.__module__}.{Forgetful.__qualname__}",
        backbone_args={"width": 3, "depth": 1, "activation": "sigmoid"},
        max_images=max_images,
    )
    assert_slopes(module, small_data(tmp_path))


def assert_slopes(module: DC, data: SmallData) -> None:
    """Central differences of the loss of step 0 along a few directions, for each parameter."""
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    batch = data.grouped_batch(0)
    module.training_step(batch, 0).backward()
    for parameter in module.parameters():
        assert parameter.grad is not None
        at = parameter.detach().clone()
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            direction = 1e-5 * torch.randn(at.shape, generator=generator)
            ends = []
            for end in (at + direction, at - direction):
                parameter.data.copy_(end)
                ends.append(module.training_step(batch, 0).detach())
            parameter.data.copy_(at)
            slope = float((parameter.grad * direction).sum())
            assert abs(slope) > 1e-10
            assert float(ends[0] - ends[1]) / 2 == pytest.approx(slope, rel=1e-5)


def budgets(module: DC, data: SmallData, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Most images in one gradient during a step, and in one gradient of a gradient."""
    sizes: dict[str, int] = {"first": 0, "second": 0}

    def counting(kind: str, original: Any) -> Any:
        def call(self: Any, parts: Any, *arguments: Any) -> Any:
            images = arguments[0].images if kind == "first" else arguments[1]
            sizes[kind] = max(sizes[kind], images.shape[0] * images.shape[1])
            return original(self, parts, *arguments)

        return call

    for cls, name, kind in (
        (NetworkGradients, "__call__", "first"),
        (GradientMatching, "_matched", "second"),
        (GradientMatching, "_along", "second"),
    ):
        monkeypatch.setattr(cls, name, counting(kind, getattr(cls, name)))
    stepped(module, data, 1)
    return sizes["first"], sizes["second"]


@pytest.mark.parametrize("together", [False, True])
def test_activations_stay_within_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    """Groups of 6 real images, of 4 images and 12 views, whose graph is twice as large."""
    data = small_data(tmp_path, 4)
    monkeypatch.setattr(DC, "groups_together", together)
    # Pieces of one size: 6 images are two of three, not of five and one.
    expected = {5: (3, 2), 13: (12, 6), 40: (18, 18)} if together else {5: (3, 2), 13: (6, 6)}
    for max_images, sizes in expected.items():
        with monkeypatch.context() as patch:
            module = built(ipc=4, dam=DAM, max_images=max_images)
            assert budgets(module, data, patch) == sizes


# The same bits.


class WithoutDomainBranch(DC):
    """A subclass that keeps the masks and leaves their loss out."""

    def grouping_loss(self, branch: Any, batch: Any, synthetic: Tensor, state: Any) -> Tensor:
        if branch == "domain":
            return 0 * synthetic.sum()
        return super().grouping_loss(branch, batch, synthetic, state)


def test_no_dam_weight_zero_and_no_domain_branch_are_the_same_bits(tmp_path: Path) -> None:
    plain = fit(make(dam=None), tmp_path, 5)
    weight_zero = fit(make(dam={"weight": 0.0}), tmp_path, 5)
    subclass = fit(make(WithoutDomainBranch, dam={}), tmp_path, 5)
    with_dam = fit(make(dam={}), tmp_path, 5)
    assert torch.equal(plain.images, weight_zero.images)
    assert torch.equal(plain.images, subclass.images)
    assert not torch.equal(plain.images, with_dam.images)
    assert bool((masks(weight_zero) == 0.01).all())
    assert not bool((masks(with_dam) == 0.01).all())


RESUMED: dict[str, dict[str, Any]] = {
    "plain": {},
    "dam": {"dam": {"num_domains": 4}},
    "dam-batchnorm": {"dam": {"num_domains": 3}, "backbone_args": BATCH_NORM},
    "dam-augmented": {"dam": {"num_domains": 3}, "augmentation": DSA, "max_images": 5},
}


@pytest.mark.parametrize("case", RESUMED)
def test_a_resumed_fit_equals_an_unbroken_one(tmp_path: Path, case: str) -> None:
    """Stops at the start, in the middle and at the end of an outer loop of four updates."""
    options = {"outer_loop": 4, **RESUMED[case]}
    unbroken = fit(make(**options), tmp_path, 10)
    seen = []
    for stop in (6, 8) if options.get("augmentation") else (5, 6, 7, 8):
        folder = tmp_path / f"{stop}"
        begun = fit(make(**options), folder, stop, callbacks=[LastCheckpoint()])
        resumed = fit(make(**options), folder, 10, ckpt_path=folder / "last.ckpt")
        assert resumed.global_step == 10
        assert torch.equal(unbroken.images, resumed.images)
        assert not torch.equal(begun.images, resumed.images)
        if unbroken.dam is not None:
            assert torch.equal(masks(unbroken), masks(resumed))
        seen.append(begun.images)
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("case", ["dam", "dam-batchnorm"])
def test_a_fit_that_goes_on_in_the_same_trainer(tmp_path: Path, case: str) -> None:
    """In the middle of an outer loop, with a test between; it begins with a new optimiser."""
    recipe = {"num_networks": 1, "epochs": 1}
    options = {"outer_loop": 4, "recipe": recipe, "momentum": 0.0, **RESUMED[case]}
    unbroken = fit(make(**options), tmp_path, 7)
    module, data = make(**options), small_data(tmp_path)
    trainer = tiny_trainer(tmp_path, max_steps=2)
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    trainer.fit_loop.epoch_loop.max_steps = 7
    trainer.fit(module, datamodule=data)
    assert trainer.global_step == 7
    assert torch.equal(unbroken.images, module.images)
    assert torch.equal(masks(unbroken), masks(module))


def test_a_run_that_ends_between_two_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of that moment has both as they were before the step."""
    unbroken = fit(make(outer_loop=4, **RESUMED["dam"]), tmp_path, 6)
    fit(make(outer_loop=4, **RESUMED["dam"]), tmp_path, 2, callbacks=[LastCheckpoint()])
    original, module = DC._trained, make(outer_loop=4, **RESUMED["dam"])

    def ends(self: DC, branch: Any, *arguments: Any) -> Any:
        if branch == "domain":
            raise KeyboardInterrupt
        return original(self, branch, *arguments)

    trainer = tiny_trainer(tmp_path, max_steps=6)
    with monkeypatch.context() as patch:
        patch.setattr(DC, "_trained", ends)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            trainer.fit(module, datamodule=small_data(tmp_path), ckpt_path=tmp_path / "last.ckpt")
        trainer.save_checkpoint(tmp_path / "ended.ckpt")
    resumed = fit(
        make(outer_loop=4, **RESUMED["dam"]), tmp_path, 6, ckpt_path=tmp_path / "ended.ckpt"
    )
    assert torch.equal(unbroken.images, resumed.images)


def test_a_resumed_fit_keeps_its_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for the training between updates."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "11")
    unbroken = fit(make(seed=None), tmp_path, 5)
    fit(make(seed=None), tmp_path, 2).trainer.save_checkpoint(tmp_path / "half.ckpt")
    monkeypatch.setenv("PL_GLOBAL_SEED", "12")
    resumed = fit(make(seed=None), tmp_path, 5, ckpt_path=tmp_path / "half.ckpt")
    assert torch.equal(unbroken.images, resumed.images)


def test_a_checkpoint_that_was_only_passed_on(tmp_path: Path) -> None:
    """Loading and saving again keeps the networks, with no step between."""
    unbroken = fit(make(), tmp_path, 6)
    fit(make(), tmp_path, 2).trainer.save_checkpoint(tmp_path / "a.ckpt")
    finished = fit(make(), tmp_path, 2, ckpt_path=tmp_path / "a.ckpt")
    finished.trainer.save_checkpoint(tmp_path / "b.ckpt")
    first, second = (saved(tmp_path / name)["networks"]["class"] for name in ("a.ckpt", "b.ckpt"))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    resumed = fit(make(), tmp_path, 6, ckpt_path=tmp_path / "b.ckpt")
    assert torch.equal(unbroken.images, resumed.images)
    # A module that was fitted before has networks of its own, which are not the file's.
    used = fit(make(seed=9), tmp_path, 5)
    trainer = tiny_trainer(tmp_path, max_steps=2)
    trainer.fit(used, datamodule=small_data(tmp_path), ckpt_path=tmp_path / "a.ckpt")
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    assert torch.equal(saved(tmp_path / "c.ckpt")["networks"]["class"][0], first[0])


def saved(path: Path) -> dict[str, Any]:
    condenser: dict[str, Any] = torch.load(path, weights_only=True)["condenser"]
    return condenser


@pytest.mark.parametrize("norm", ["instancenorm", "batchnorm"])
def test_what_a_checkpoint_holds(tmp_path: Path, norm: str) -> None:
    """Plain tensors of the networks' sizes, and only in the middle of an outer loop."""
    args = {**NETWORK, "norm": norm}
    with_networks = []
    for steps in range(1, 5):
        module = fit(make(dam={"num_domains": 4}, backbone_args=args), tmp_path, steps)
        module.trainer.save_checkpoint(tmp_path / "x.ckpt")
        held = saved(tmp_path / "x.ckpt").get("networks")
        with_networks.append(held is not None)
        if held is None:
            continue
        assert held["step"] == steps - 1
        assert set(held) == {"step", "class", "domain"}
        for branch, outputs in (("class", NUM_CLASSES), ("domain", 4)):
            fresh = module.fresh_network(0, "any", outputs)
            vector, *buffers = held[branch]
            assert vector.shape == (sum(p.numel() for p in fresh.parameters()),)
            assert [b.shape for b in buffers] == [b.shape for b in fresh.buffers()]
            assert all(type(tensor) is Tensor for tensor in held[branch])
            assert not any(tensor.requires_grad for tensor in held[branch])
            # The vector alone, not the memory it is a part of.
            assert vector.untyped_storage().nbytes() == 4 * len(vector)
    assert with_networks == [True, True, False, True]


def test_checkpoints_that_lack_networks(tmp_path: Path) -> None:
    fit(make(), tmp_path, 2).trainer.save_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(MisconfigurationException, match=r"dam.num_domains: 4 here, None in"):
        fit(make(dam={}), tmp_path, 4, ckpt_path=tmp_path / "x.ckpt")
    checkpoint = torch.load(tmp_path / "x.ckpt", weights_only=True)
    del checkpoint["condenser"]["networks"]
    torch.save(checkpoint, tmp_path / "y.ckpt")
    with pytest.raises(MisconfigurationException, match="step 2 goes on with the networks of the"):
        fit(make(), tmp_path, 4, ckpt_path=tmp_path / "y.ckpt")
    # Nor do those of another run take their place, where a module was fitted before.
    used = fit(make(seed=9), tmp_path, 2)
    with pytest.raises(MisconfigurationException, match="step 2 goes on with the networks of the"):
        fit(used, tmp_path, 4, ckpt_path=tmp_path / "y.ckpt")


def test_options_that_change_the_networks_wait_for_the_next(tmp_path: Path) -> None:
    """In the middle of an outer loop they are refused, at its end they take effect."""
    wide = {"num_domains": 2}
    for before, after, message in (
        ({"dam": {**wide, "weight": 0.0}}, {"dam": wide}, "made with dam.weight 0.*until step 3"),
        (
            {"dam": wide},
            {"dam": wide, "domain_outputs": "classes"},
            "another domain_outputs.*until step 3",
        ),
    ):
        for steps in (2, 3):
            fit(make(**before), tmp_path, steps).trainer.save_checkpoint(tmp_path / f"{steps}.ckpt")
        with pytest.raises(MisconfigurationException, match=message):
            fit(make(**after), tmp_path, 5, ckpt_path=tmp_path / "2.ckpt")
        assert fit(make(**after), tmp_path, 5, ckpt_path=tmp_path / "3.ckpt").global_step == 5


# Several processes.


class Straying(DC):
    """The second process would train other networks."""

    def _trained(self, branch: Any, inner: Any, batch: GroupedBatch) -> Any:
        if self.global_rank:
            inner = replace(inner, vector=inner.vector + 0.01)
        return super()._trained(branch, inner, batch)


PROCESSES: dict[str, tuple[type[DC], dict[str, Any], int, str, float]] = {
    "three": (DC, {"dam": {"num_domains": 3}, "augmentation": DSA}, 4, "64-true", 1e-9),
    "four": (
        Straying,
        {"dam": {"num_domains": 4}, "backbone_args": BATCH_NORM},
        8,
        "64-true",
        1e-9,
    ),
}


@pytest.mark.parametrize("case", PROCESSES)
def test_two_processes_equal_one(tmp_path: Path, case: str) -> None:
    """Three classes and three or four domains over two ranks, with one training for both."""
    cls, options, steps, precision, tolerance = PROCESSES[case]
    arguments = {"max_steps": steps, "precision": precision}
    alone, both = make(cls, **options), make(cls, **options)
    tiny_trainer(tmp_path, **arguments).fit(alone, datamodule=small_data(tmp_path))
    strategy = {"strategy": "ddp_spawn"} if case == "three" else {}
    trainer = two_processes(tmp_path, **arguments, **strategy)
    trainer.fit(both, datamodule=small_data(tmp_path))
    close = {"rtol": 0, "atol": tolerance, "check_dtype": False}
    torch.testing.assert_close(both.images, alone.images, **close)
    torch.testing.assert_close(masks(both), masks(alone), **close)
    loss = float(trainer.callback_metrics["loss"])
    assert loss == pytest.approx(float(alone.trainer.callback_metrics["loss"]), rel=1e-5)


# Options.


class Recorder(InnerTraining):
    """Notes what is trained, and on what, and trains nothing."""

    made: tuple[Any, ...]
    calls: list[tuple[tuple[Any, ...], Tensor, Tensor, str, int]]

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.made = arguments

    def train(
        self,
        gradients: NetworkGradients,
        vector: Tensor,
        images: Tensor,
        labels: Tensor,
        stream: str,
        step: int,
        *_: Any,
    ) -> Tensor:
        self.calls.append((self.made, images.clone(), labels, stream, step))
        return vector


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(Recorder, "calls", calls, raising=False)
    monkeypatch.setattr(package, "InnerTraining", Recorder)
    return calls


@pytest.mark.parametrize(
    ("ipc", "outer", "inner"),
    [(10, 10, 50), (20, 20, 25), (30, 30, 20), (40, 40, 15), (50, 50, 10)],
)
def test_published_loops(
    tmp_path: Path, recorded: list[Any], ipc: int, outer: int, inner: int
) -> None:
    module = DC(ipc=ipc, backbone_args=NETWORK, num_classes=NUM_CLASSES, image_shape=SHAPE)
    assert module.outer_loop == outer
    stepped(module, small_data(tmp_path), 2)
    ((made, *_),) = recorded
    assert made[:4] == (inner, 0.01, 256, ())
    assert DC(ipc=ipc, outer_loop=2).outer_loop == 2


def test_one_image_per_class_trains_no_network(tmp_path: Path, recorded: list[Any]) -> None:
    """The published loops of ipc 1 are one and one: each update has networks of its own."""
    module = DC(dam={}, backbone_args=NETWORK, num_classes=NUM_CLASSES, image_shape=SHAPE, seed=0)
    stepped(module, small_data(tmp_path, 4), 3)
    assert module.outer_loop == 1
    assert not recorded
    fresh = module.fresh_network(2)
    vector = torch.cat([parameter.flatten() for parameter in fresh.parameters()])
    assert torch.equal(module.network_state(2).vector, vector)


def test_other_numbers_of_images_need_loops() -> None:
    with pytest.raises(ValueError, match=r"no published loops for ipc 7: give outer_loop and inn"):
        DC(ipc=7)
    with pytest.raises(ValueError, match=r"for ipc 7.*ipc 10: 10 and 50"):
        DC(ipc=7, outer_loop=3)
    with pytest.raises(ValueError, match="no published loops for ipc 7"):
        DC(ipc=7, inner_loop=3)
    assert DC(ipc=7, outer_loop=3, inner_loop=0).outer_loop == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outer_loop": 0, "inner_loop": 1}, "outer_loop must be at least 1.*got 0 and 1"),
        ({"outer_loop": 1, "inner_loop": -1}, "inner_loop 0 or more, got 1 and -1"),
        ({"lr_network": 0.0}, "lr_network must be above 0, got 0.0"),
        ({"lr_network": float("nan")}, "lr_network must be above 0, got nan"),
        ({"batch_train": 0}, "batch_train must be at least 1, got 0"),
        ({"metric": "l2"}, "metric must be one of layerwise_cosine, mse, cos, got 'l2'"),
        ({"domain_outputs": "one"}, "domain_outputs must be one of domains, classes, got 'one'"),
        ({"domain_training": None}, "domain_training must be one of synthetic, real, none, got"),
        ({"lr_images": 0}, "lr_images must be above 0"),
        ({"augmentation": "blur"}, "'blur' is no operation"),
        ({"recipe": {"epoch": 5}}, "there is no epoch"),
        ({"dam": {"weight": -1}}, "weight must be 0 or above"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DC(**options)


def test_classes_that_are_fewer_than_domains(tmp_path: Path) -> None:
    options: dict[str, Any] = {"domain_outputs": "classes", "dam": {"num_domains": 4}}
    with pytest.raises(MisconfigurationException, match="num_domains 4; use domains"):
        fit(make(**options), tmp_path, 1)
    fit(make(domain_outputs="classes", dam={"num_domains": 3}), tmp_path, 1)


@pytest.mark.parametrize(("domain_outputs", "outputs"), [("domains", 2), ("classes", 3)])
def test_outputs_of_the_domain_network(tmp_path: Path, domain_outputs: str, outputs: int) -> None:
    module = built(dam={"num_domains": 2}, domain_outputs=domain_outputs)
    stepped(module, small_data(tmp_path, 2), 1)
    first = module.network_state(0)
    second = module.domain_state(0, first)
    images = torch.zeros(1, *SHAPE)
    assert first.network.scores(first.network.split(first.vector), images).shape == (1, 3)
    scores = second.network.scores(second.network.split(second.vector), images)
    assert scores.shape == (1, outputs)
    convolution = second.network.split(second.vector)[0]
    assert not torch.equal(convolution, first.network.split(first.vector)[0])


@pytest.mark.parametrize("domain_training", ["synthetic", "real", "none"])
def test_what_the_networks_are_trained_on(
    tmp_path: Path, recorded: list[Any], domain_training: str
) -> None:
    module = built(dam=DAM, domain_training=domain_training, augmentation=DSA, inner_loop=7)
    data = small_data(tmp_path, 4, batch_real=9)
    stepped(module, data, 1)
    images, views = module.images.detach().clone(), domain_views(module.images, masks(module), 0.1)
    module.training_step(data.grouped_batch(1), 0)
    assert [(made, stream, step) for made, *_, stream, step in recorded] == [
        ((7, 0.3, 4, tuple(range(6)), 3), f"inner/{branch}", 1)
        for branch in ("class", "domain")[: 1 if domain_training == "none" else 2]
    ]
    _, trained, labels, *_ = recorded[0]
    assert torch.equal(trained, images)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    if domain_training == "none":
        return
    _, trained, labels, *_ = recorded[1]
    if domain_training == "synthetic":
        assert torch.allclose(trained, torch.cat(views))
        assert labels.tolist() == [d for d in range(4) for _ in range(6)]
    else:
        real = valid(data.grouped_batch(1).domains)
        assert torch.equal(trained, torch.cat(real))
        assert labels.tolist() == [d for d in range(4) for _ in range(len(real[d]))]


@pytest.mark.parametrize("domain_training", ["synthetic", "real", "none"])
def test_whether_the_domain_network_changes(tmp_path: Path, domain_training: str) -> None:
    module = built(dam=DAM, domain_training=domain_training)
    data = small_data(tmp_path, 4)
    vectors: dict[str, list[Tensor]] = {"class": [], "domain": []}
    for step in range(2):
        module.log = lambda *_, **__: None  # type: ignore[method-assign]
        module.training_step(data.grouped_batch(step), 0)
        state = module.network_state(step)
        vectors["class"].append(state.vector)
        vectors["domain"].append(module.domain_state(step, state).vector)
    assert not torch.equal(*vectors["class"])
    assert torch.equal(*vectors["domain"]) == (domain_training == "none")


def test_evaluation_augments_where_the_condensation_does_not() -> None:
    assert DC().augmentation is None
    assert DC().recipe.augmentation == DSA
    assert DC(augmentation="color_crop").recipe.augmentation == "color_crop"
    assert DC(recipe={"epochs": 3}).recipe.augmentation == DSA
    assert DC(recipe={"epochs": 3}).recipe.epochs == 3
    assert DC(augmentation="crop", recipe={"augmentation": None}).recipe.augmentation is None


def test_arguments_are_in_the_checkpoint(tmp_path: Path) -> None:
    given = {
        "ipc": 2,
        "dam": {"num_domains": 3},
        "outer_loop": 3,
        "inner_loop": 1,
        "lr_network": 0.2,
        "batch_train": 5,
        "metric": "cos",
        "domain_outputs": "classes",
        "domain_training": "real",
        "recipe": {"epochs": 3},
        "augmentation": "color_flip",
        "lr_images": 0.05,
        "max_images": 9,
    }
    module = fit(make(**given), tmp_path, 2)
    module.trainer.save_checkpoint(tmp_path / "x.ckpt")
    loaded = DC.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    for name, value in given.items():
        assert loaded.hparams[name] == value
    for name in ("outer_loop", "metric", "domain_outputs", "domain_training", "lr_images"):
        assert getattr(loaded, name) == given[name]
    assert loaded.recipe == module.recipe
    assert torch.equal(loaded.images, module.images)
    assert torch.equal(masks(loaded), masks(module))
    assert set(DC().hparams) == set(module.hparams) | {"num_classes", "image_shape"}


# In Lightning.


@pytest.mark.parametrize("options", [{}, {"dam": {}}], ids=["plain", "dam"])
def test_networks_are_no_part_of_the_module(tmp_path: Path, options: dict[str, Any]) -> None:
    module = fit(make(**options), tmp_path, 2)
    names = {"images", "dam.logits"} if options else {"images"}
    assert set(module.state_dict()) == names | {"labels"}
    assert {name for name, _ in module.named_parameters()} == names
    assert not any(isinstance(part, ConvNet) for part in module.modules())


def test_bf16(tmp_path: Path) -> None:
    """The same computation, without kinks where rounding would tip over; float32 is kept."""
    args = {**NETWORK, "activation": "swish"}
    options: dict[str, Any] = {
        "dam": {"num_domains": 4},
        "backbone_args": args,
        "max_images": 9,
        # The networks are kept.
        "outer_loop": 4,
    }
    exact = fit(make(**options), tmp_path, 3)
    rounded = fit(make(**options), tmp_path, 3, precision="bf16-mixed")
    start = fit(make(**options, lr_images=1e-12), tmp_path, 1)
    assert rounded.images.dtype == torch.float32
    rounded.trainer.save_checkpoint(tmp_path / "rounded.ckpt")
    assert saved(tmp_path / "rounded.ckpt")["networks"]["class"][0].dtype == torch.float32
    for ours, theirs, from_here in zip(
        rounded.parameters(), exact.parameters(), start.parameters(), strict=True
    ):
        assert 0 < (ours - theirs).norm() < 0.05 * (theirs - from_here).norm()


def test_the_set_is_evaluated(tmp_path: Path) -> None:
    module = make(dam={}, recipe={"num_networks": 1, "epochs": 2})
    fit(module, tmp_path, 2)
    results = module.trainer.test(module, datamodule=small_data(tmp_path), verbose=False)
    assert 0 <= results[0]["test/accuracy"] <= 100
    assert module.condensed_set().metadata["method"] == "DC"


def test_another_outer_loop_only_where_both_begin_anew(tmp_path: Path) -> None:
    for steps, refused in ((4, True), (6, False)):
        fit(make(), tmp_path, steps).trainer.save_checkpoint(tmp_path / "a.ckpt")
        other = make(outer_loop=2)
        if refused:
            with pytest.raises(MisconfigurationException, match=r"outer_loop is 2, .* with 3"):
                fit(other, tmp_path, 8, tmp_path / "a.ckpt")
        else:
            assert fit(other, tmp_path, 8, tmp_path / "a.ckpt").global_step == 8


def test_masks_without_weight_need_no_outputs(tmp_path: Path) -> None:
    dam: Any = {"num_domains": 4, "weight": 0.0}
    assert fit(make(dam=dam, domain_outputs="classes"), tmp_path, 1).global_step == 1


def test_what_to_lower_when_it_diverges() -> None:
    assert set(make().knobs()) == {"lr_images", "lr_network", "inner_loop"}
    assert set(make(outer_loop=1).knobs()) == {"lr_images"}


def test_dropout_in_the_inner_training_draws_by_key(tmp_path: Path) -> None:
    name = f"{__name__}.Forgetful"
    images = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        images.append(fit(make(backbone=name), tmp_path, 3).images)
    assert torch.equal(*images)
