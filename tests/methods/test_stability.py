"""Steps that would spoil the images are left out, and a run of nothing else is stopped."""

from collections.abc import Collection
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dam_lightning import DC, DM, MTT, CondensedSet, Condenser, Digits
from dam_lightning.callbacks import LastCheckpoint
from dam_lightning.messages import REFUSALS
from dam_lightning.methods.stability import DivergenceError, StepGuard, guarded_sgd
from tests.tiny import (
    SMALL_NETWORK,
    LeaveTogether,
    TinyData,
    tiny_data,
    tiny_trainer,
    two_processes,
)

NAN, INF = float("nan"), float("inf")
NOT_FINITE = "the loss is not finite"
GRADIENT = "a gradient, or an update by it, is not finite"
TOO_HIGH = "the loss is above max_loss"
TOO_FAR = "images would go beyond max_value"
HELD = "a step size would fall to 0 or below"


class Bench:
    """Images within 10, masks and two step sizes above 0, with an optimiser and its guard."""

    def __init__(self, momentum: float = 0.9) -> None:
        self._generator = torch.Generator().manual_seed(3)
        self.images = nn.Parameter(self._draw(4, 5))
        self.masks = nn.Parameter(self._draw(3))
        self.sizes = [nn.Parameter(torch.tensor(0.1)) for _ in range(2)]
        self.groups: list[dict[str, Any]] = [
            {"params": [self.images], "lr": 0.3, "limit": 10.0},
            {"params": [self.masks], "lr": 0.7},
            {"params": self.sizes, "lr": 0.001, "positive": True},
        ]
        self.guard = StepGuard(max_loss=100.0)
        self.optimizer = guarded_sgd(self.groups, momentum)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [self.images, self.masks, *self.sizes]

    def _draw(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator)

    def draw(self) -> None:
        """Gradients that make a good step."""
        for parameter in self.parameters:
            parameter.grad = self._draw(*parameter.shape)

    def step(self, loss: float = 1.0) -> None:
        self.guard.inspect(self.optimizer, torch.tensor(loss))
        self.optimizer.step()

    def good(self, steps: int = 1) -> None:
        for _ in range(steps):
            self.draw()
            self.step()

    def state(self) -> list[Tensor]:
        """Parameters and momenta; those that are not there yet are zero."""
        momenta = [
            self.optimizer.state[p].get("momentum_buffer", torch.zeros_like(p))
            for p in self.parameters
        ]
        return [tensor.detach().clone() for tensor in (*self.parameters, *momenta)]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """To the last bit."""
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


def spoil(bench: Bench, what: str) -> float:
    """Change the gradients, and give the loss."""
    losses = {"loss nan": NAN, "loss inf": INF, "loss -inf": -INF, "loss high": 100.1}
    if what in losses:
        return losses[what]
    parameter, value = {
        "gradient nan": (bench.images, NAN),
        "gradient inf": (bench.images, -INF),
        "gradient of masks": (bench.masks, NAN),
        "gradient of a step size": (bench.sizes[1], INF),
        "update not finite": (bench.masks, 3e38),
        "too far": (bench.images, 80.0),
    }[what]
    assert parameter.grad is not None
    if what == "update not finite":
        bench.groups[1]["lr"] = bench.optimizer.param_groups[1]["lr"] = 1e3
    parameter.grad.view(-1)[-1] = value
    return 1.0


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("loss nan", NOT_FINITE),
        ("loss inf", NOT_FINITE),
        ("loss -inf", NOT_FINITE),
        ("loss high", TOO_HIGH),
        ("gradient nan", GRADIENT),
        ("gradient inf", GRADIENT),
        ("gradient of masks", GRADIENT),
        ("gradient of a step size", GRADIENT),
        ("update not finite", GRADIENT),
        ("too far", TOO_FAR),
    ],
)
def test_a_step_is_left_out_to_the_last_bit(
    what: str, reason: str, before: int, momentum: float
) -> None:
    """Parameters, momenta, and so the steps after it; also where it is the first."""
    bench, twin = Bench(momentum), Bench(momentum)
    bench.good(before)
    twin.good(before)
    state = bench.state()
    bench.draw()
    twin.draw()
    loss = spoil(bench, what)
    bench.step(loss)
    assert_same(bench.state(), state)
    assert bench.guard.left_out()[reason] == 1
    for group, other in zip(bench.optimizer.param_groups, twin.optimizer.param_groups, strict=True):
        group["lr"] = other["lr"]
    bench.good(2)
    twin.good(2)
    assert_same(bench.state(), twin.state())
    assert not torch.equal(bench.images, state[0])


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_without_a_guard_the_steps_are_those_of_sgd(momentum: float) -> None:
    bench, twin = Bench(momentum), Bench(momentum)
    plain = torch.optim.SGD(
        [{"params": group["params"], "lr": group["lr"]} for group in twin.groups],
        momentum=momentum,
        foreach=True,
    )
    for _ in range(5):
        bench.good()
        twin.draw()
        plain.step()
    assert bench.guard.left_out() == {}
    for ours, theirs in zip(bench.parameters, twin.parameters, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.9])
def test_a_step_size_that_would_fall_too_far_stays(momentum: float) -> None:
    """It loses its momentum; everything else, the other step size too, moves on."""
    bench, twin = Bench(momentum), Bench(momentum)
    bench.good(3)
    twin.good(3)
    bench.draw()
    twin.draw()
    falling = bench.sizes[0]
    assert falling.grad is not None
    value = falling.detach().clone()
    falling.grad.fill_(300.0)
    if momentum:
        bench.optimizer.state[falling]["momentum_buffer"].fill_(0.37)
    bench.step()
    twin.step()
    ours, theirs = bench.state(), twin.state()
    assert torch.equal(ours.pop(2), value)
    assert float(ours.pop(5)) == 0
    del theirs[2], theirs[5]
    assert_same(ours, theirs)
    assert bench.guard.left_out() == {HELD: 1}
    # From there it goes on with the new gradient alone.
    bench.draw()
    expected = falling.detach() - 0.001 * falling.grad
    bench.step()
    torch.testing.assert_close(falling.detach(), expected, rtol=1e-6, atol=0)


def test_a_step_size_of_zero_is_none() -> None:
    size = nn.Parameter(torch.tensor(0.5))
    optimizer = guarded_sgd([{"params": [size], "lr": 0.25, "positive": True}], 0.5)
    guard = StepGuard(None)
    size.grad = torch.tensor(2.0)
    guard.inspect(optimizer, torch.tensor(1.0))
    optimizer.step()
    assert float(size.detach()) == 0.5
    assert guard.left_out() == {HELD: 1}


def test_a_step_size_keeps_its_momentum_where_the_step_is_left_out() -> None:
    bench = Bench()
    bench.good(3)
    bench.draw()
    assert bench.sizes[0].grad is not None
    bench.sizes[0].grad.fill_(300.0)
    state = bench.state()
    bench.step(NAN)
    assert_same(bench.state(), state)
    assert bench.guard.left_out() == {NOT_FINITE: 1, HELD: 1}


def test_no_max_loss() -> None:
    bench = Bench()
    bench.guard = StepGuard(max_loss=None)
    bench.draw()
    before = bench.images.detach().clone()
    bench.step(1e30)
    assert not torch.equal(before, bench.images)


def test_values_up_to_the_limits_are_allowed() -> None:
    bench = Bench(momentum=0.0)
    for parameter in bench.parameters:
        parameter.grad = torch.zeros_like(parameter)
    assert bench.images.grad is not None
    with torch.no_grad():
        bench.images.fill_(-10.0)
    bench.step(100.0)
    assert bench.guard.left_out() == {}
    bench.images.grad[0, 0] = 1e-4
    bench.step(100.0)
    assert bench.guard.left_out() == {TOO_FAR: 1}


def test_momentum_counts_in_what_would_be() -> None:
    """It alone carries images too far, and a step size below 0."""
    bench = Bench()
    bench.good()
    for parameter in bench.parameters:
        parameter.grad = torch.zeros_like(parameter)
    bench.optimizer.state[bench.images]["momentum_buffer"].fill_(100.0)
    bench.optimizer.state[bench.sizes[0]]["momentum_buffer"].fill_(1000.0)
    state = bench.state()
    bench.step()
    assert bench.guard.left_out() == {TOO_FAR: 1, HELD: 1}
    assert_same(bench.state(), state)


def test_what_is_counted() -> None:
    """g: good; l: loss and gradient not finite; f: too far; h: a step size is held."""
    bench = Bench()
    expected = [(0, 0), (1, 1), (2, 2), (3, 3), (0, 3), (1, 3), (0, 3), (1, 3), (2, 3)]
    for kind, (in_a_row, longest) in zip("glfhghglh", expected, strict=True):
        bench.draw()
        loss = NAN if kind == "l" else 1.0
        if kind == "l":
            spoil(bench, "gradient nan")
        elif kind == "f":
            spoil(bench, "too far")
        elif kind == "h":
            assert bench.sizes[0].grad is not None
            bench.sizes[0].grad.fill_(1e3)
        bench.step(loss)
        assert (int(bench.guard.in_a_row), int(bench.guard.longest)) == (in_a_row, longest)
    assert bench.guard.left_out() == {NOT_FINITE: 2, GRADIENT: 2, TOO_FAR: 1, HELD: 3}
    # A held step size beside images that move is no reason to say that images would go too far.
    bench.guard.check(4, ["less"], "there")
    with pytest.raises(DivergenceError, match=r"in 3 steps in a row .*loss is not finite: 2 times"):
        bench.guard.check(3, ["less"], "there")
    bench.guard.reset()
    assert bench.guard.left_out() == {}
    bench.guard.check(1, ["less"], "there")


class NoReading(TorchDispatchMode):
    """Raises where the host reads a number from the device."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            raise AssertionError(f"the host would wait: {func}")
        return func(*args, **(kwargs or {}))


def test_the_host_waits_only_in_check() -> None:
    bench = Bench()
    bench.good()
    bench.draw()
    loss = torch.tensor(1.0)
    with NoReading():
        bench.guard.inspect(bench.optimizer, loss)
        with pytest.raises(AssertionError, match="the host would wait"):
            bench.guard.check(1, ["less"], "there")
    with NoReading(), pytest.raises(AssertionError, match="the host would wait"):
        bool(loss > 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_host_does_not_wait_for_a_gpu() -> None:
    images = nn.Parameter(torch.randn(5, device="cuda"))
    size = nn.Parameter(torch.tensor(0.1, device="cuda"))
    groups = [
        {"params": [images], "lr": 0.1, "limit": 10.0},
        {"params": [size], "lr": 0.1, "positive": True},
    ]
    guard, optimizer = StepGuard(100.0).cuda(), guarded_sgd(groups, 0.9)
    images.grad, size.grad = torch.ones_like(images), torch.ones_like(size)
    loss = torch.ones((), device="cuda")
    before = size.detach().clone()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            guard.inspect(optimizer, loss)
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(size, before)
    assert guard.left_out() == {HELD: 3}


# In runs.

METHODS: dict[type[Condenser], dict[str, Any]] = {
    DM: {},
    DC: {"outer_loop": 3, "inner_loop": 1},
    MTT: {
        "student_steps": 3,
        "expert_epochs": 1,
        "max_start_epoch": 2,
        "experts": {"count": 2, "batch_size": 8},
    },
}
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all runs find the same experts."""
    return tmp_path_factory.mktemp("cache")


def make(method: type[Condenser], **options: Any) -> Any:
    small = next(METHODS[base] for base in method.__mro__ if base in METHODS)
    return method(
        **{"ipc": 2, "dam": {}, "backbone_args": SMALL_NETWORK, "seed": 1, **small, **options}
    )


class Spoil(Callback):
    """Makes the loss, or the gradient of a parameter, NaN at some steps (of one process)."""

    def __init__(self, steps: Collection[int], where: str, rank: int | None = None) -> None:
        self._steps, self._where, self._rank = steps, where, rank

    def _now(self, trainer: Trainer) -> bool:
        return trainer.global_step in self._steps and self._rank in (None, trainer.global_rank)

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        if self._where == "loss" and self._now(trainer):
            loss.detach().fill_(NAN)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        if self._where != "loss" and self._now(trainer):
            gradient = pl_module.get_parameter(self._where).grad
            assert gradient is not None
            gradient.view(-1)[0] = NAN


class Keep(Callback):
    """What parameters and momenta were before the first step and after each."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []

    def _keep(self, trainer: Trainer, module: LightningModule) -> None:
        state = {}
        for name, parameter in module.named_parameters():
            momentum = trainer.optimizers[0].state[parameter].get("momentum_buffer")
            state[name] = parameter.detach().clone()
            state[f"{name}, momentum"] = (
                torch.zeros_like(parameter) if momentum is None else momentum.clone()
            )
        self.states.append(state)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._keep(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._keep(trainer, pl_module)


def differing(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> set[str]:
    assert set(ours) == set(theirs)
    return {name for name in ours if not torch.equal(ours[name], theirs[name])}


def run(
    module: Any, folder: Path, cache: Path, *callbacks: Callback, steps: int = 5, **options: Any
) -> list[dict[str, Tensor]]:
    """Fit, and give the states."""
    keep = Keep()
    ckpt_path = options.pop("ckpt_path", None)
    options = {"log_every_n_steps": 2, **options}
    trainer = tiny_trainer(folder, max_steps=steps, callbacks=[keep, *callbacks], **options)
    trainer.fit(module, datamodule=tiny_data(cache), ckpt_path=ckpt_path)
    return keep.states


def without(method: type[Condenser], step: int) -> type[Condenser]:
    """The method without the update of a step."""

    class Without(method):  # type: ignore[valid-type, misc]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            return None if batch.step == step else loss

    return Without


@each_method
@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize("where", ["loss", "images", "dam.logits"])
def test_a_run_without_a_step(
    method: type[Condenser], step: int, where: str, tmp_path: Path, cache: Path
) -> None:
    """Nothing changes in it, and all that follows is as if it had not been."""
    module = make(method)
    states = run(module, tmp_path, cache, Spoil([step], where))
    assert differing(states[step], states[step + 1]) == set()
    expected = run(make(without(method, step)), tmp_path, cache)
    for after, (ours, theirs) in enumerate(zip(states, expected, strict=True)):
        assert differing(ours, theirs) == set(), f"after {after} steps"
    assert {"images", "dam.logits"} < differing(states[step + 1], states[step + 2])
    reason = NOT_FINITE if where == "loss" else GRADIENT
    assert module._guard.left_out() == {reason: 1}


@each_method
def test_a_run_with_plain_sgd(method: type[Condenser], tmp_path: Path, cache: Path) -> None:
    """The guard changes nothing where nothing is to be left out."""

    class Unguarded(method):  # type: ignore[valid-type, misc]
        def configure_optimizers(self) -> torch.optim.Optimizer:
            groups = [
                {key: group[key] for key in ("params", "lr")} for group in self.parameter_groups()
            ]
            return torch.optim.SGD(groups, momentum=self.momentum, foreach=True)

        def configure_gradient_clipping(self, *_: Any, **__: Any) -> None: ...

    guarded = make(method)
    ours = run(guarded, tmp_path, cache)[-1]
    theirs = run(make(Unguarded), tmp_path, cache)[-1]
    assert guarded._guard.left_out() == {}
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-5, msg=name)


@each_method
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_loss": 1e-9}, TOO_HIGH),
        ({"lr_images": 1e12, "lr_masks": 0.1}, TOO_FAR),
    ],
    ids=["max_loss", "max_value"],
)
def test_a_run_that_explodes(
    method: type[Condenser], options: dict[str, Any], reason: str, tmp_path: Path, cache: Path
) -> None:
    module = make(method, **options, max_skipped=4)
    with pytest.raises(DivergenceError, match=rf"in 4 steps .*{reason}: 4 times"):
        run(module, tmp_path, cache)
    condensed = CondensedSet.load(tmp_path / "condensed.safetensors")
    initial = make(method, num_classes=3, image_shape=(3, 16, 16)).images
    assert torch.equal(condensed.images, initial)


@each_method
@pytest.mark.parametrize(
    ("every", "steps", "stopped_at"), [(2, 12, 6), (3, 12, 6), (50, 7, 7)], ids=["2", "3", "end"]
)
def test_a_run_is_stopped_with_the_last_good_images(
    method: type[Condenser], every: int, steps: int, stopped_at: int, tmp_path: Path, cache: Path
) -> None:
    """Three steps in a row, the third, fourth and fifth, are too many, once they are looked at."""
    module, keep = make(method, max_skipped=3), Keep()
    callbacks = [keep, Spoil(range(2, 99), "loss")]
    trainer = tiny_trainer(tmp_path, max_steps=steps, callbacks=callbacks, log_every_n_steps=every)
    path = tmp_path / "condensed.safetensors"
    with pytest.raises(DivergenceError) as stop:
        trainer.fit(module, datamodule=tiny_data(cache))
    assert trainer.global_step == stopped_at
    message = str(stop.value)
    count = stopped_at - 2
    assert message.startswith(
        f"in {count} steps in a row something had to be left out or held "
        f"({NOT_FINITE}: {count} times). Try"
    )
    knobs = ["a smaller lr_images (now {lr_images})", "a smaller lr_masks (now {lr_masks})"]
    if method is DC:
        knobs += ["a smaller lr_network (now 0.01)", "a smaller inner_loop (now 1)"]
    if method is MTT:
        knobs += [
            "a smaller lr_step_size (now {lr_step_size})",
            "a smaller student_steps (now {student_steps})",
        ]
    listed = ", or ".join([*knobs, "init: real"]).format(**vars(module))
    assert message.endswith(f"Try {listed}. The last good images are in {path}")
    assert isinstance(stop.value, REFUSALS)
    condensed = CondensedSet.load(path)
    assert bool(condensed.images.isfinite().all())
    assert torch.equal(condensed.images, keep.states[2]["images"])
    assert not torch.equal(condensed.images, keep.states[0]["images"])
    if method is MTT:
        assert condensed.metadata["step_size"] == float(keep.states[2]["step_size"])


def test_fewer_steps_than_max_skipped_stop_nothing(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are told of in the end."""
    said: list[str] = []
    monkeypatch.setattr("dam_lightning.methods.base.rank_zero_info", said.append)
    spoiled = (0, 1, 3, 4)
    run(make(DM, max_skipped=3), tmp_path, cache, Spoil(spoiled, "images"), steps=6)
    assert f"Steps with something left out or held: {GRADIENT}: 4" in said


def test_advice_fits_the_arguments(tmp_path: Path, cache: Path) -> None:
    """No masks without DAM, and nobody is told to do what was done."""
    module = make(DM, dam=None, init="real", max_loss=1e-9, max_skipped=1)
    with pytest.raises(DivergenceError, match=r"Try a smaller lr_images \(now 1\.0\)\. The last"):
        run(module, tmp_path, cache)


def test_images_beyond_max_value_from_the_beginning(tmp_path: Path, cache: Path) -> None:
    """No step could be made, and that is not the step size's fault."""
    with pytest.raises(MisconfigurationException, match=r"values up to 3\..*max_value 2.5: raise"):
        run(make(DM, max_value=2.5), tmp_path, cache)


def test_a_step_size_of_a_run_that_would_fall_stays(tmp_path: Path, cache: Path) -> None:
    """The images are those of a run that does not learn it."""
    options = {"dam": None, "student_steps": 10}
    module = make(MTT, lr_step_size=0.1, **options)
    states = run(module, tmp_path, cache)
    assert module._guard.left_out() == {HELD: 5}
    expected = run(make(MTT, lr_step_size=0.0, **options), tmp_path, cache)
    for ours, theirs in zip(states, expected, strict=True):
        assert differing(ours, theirs) <= {"step_size, momentum"}
        assert float(ours["step_size, momentum"]) == 0
    assert not torch.equal(states[0]["images"], states[-1]["images"])


def test_digits_by_the_published_rate(tmp_path: Path) -> None:
    """From Gaussian noise, nothing is left out."""
    path = Path(__file__).parents[2] / "configs" / "digits" / "mtt_ipc1.yaml"
    given = yaml.safe_load(path.read_text())["model"]["init_args"]
    assert (given["lr_images"], given["lr_step_size"], given["student_steps"]) == (1e3, 1e-7, 50)
    small = {"backbone_args": {"width": 8}, "max_start_epoch": 2, "experts": {"count": 1}}
    module = MTT(**{**given, **small, "seed": 0})
    data = Digits(cache_dir=str(tmp_path / "cache"))
    trainer = tiny_trainer(tmp_path, max_steps=10)
    trainer.fit(module, datamodule=data)
    assert module.init == "noise"
    assert module._guard.left_out() == {}
    assert int(module._guard.longest) == 0
    assert trainer.global_step == 10


# After it.


@each_method
def test_going_on_after_a_divergence(method: type[Condenser], tmp_path: Path, cache: Path) -> None:
    """With a lower step size, from the checkpoint of an epoch in which steps were left out."""
    wild = make(method, lr_images=1e12, lr_masks=0.1, max_skipped=6)
    with pytest.raises(DivergenceError):
        run(wild, tmp_path, cache, LastCheckpoint(), steps=20)
    assert (tmp_path / "last.ckpt").exists()
    tame = make(method, lr_masks=0.1)
    states = run(tame, tmp_path, cache, steps=9, ckpt_path=tmp_path / "last.ckpt")
    assert tame._guard.left_out() == {}
    assert torch.equal(states[0]["images"], wild.images)
    assert len(states) == 6
    assert bool(states[-1]["images"].isfinite().all())
    assert not torch.equal(states[0]["images"], states[-1]["images"])


def test_no_checkpoint_where_there_was_no_epoch(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(DivergenceError):
        run(make(DM, max_loss=1e-9, max_skipped=2), tmp_path, cache, LastCheckpoint())
    assert not (tmp_path / "last.ckpt").exists()


def test_fitting_the_same_module_again(tmp_path: Path, cache: Path) -> None:
    """What was counted in the run that failed is forgotten."""
    module = make(DM, lr_images=1e12, max_skipped=2)
    with pytest.raises(DivergenceError):
        run(module, tmp_path, cache)
    module.lr_images = 1.0
    run(module, tmp_path, cache)
    assert module._guard.left_out() == {}


# Beside other options.


@each_method
@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16-mixed"},
        {"precision": "64-true"},
        {"gradient_clip_val": 0.1},
        {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"},
        {"gradient_clip_val": 0.1, "precision": "bf16-mixed"},
    ],
    ids=["bf16", "float64", "clipped", "clipped by value", "clipped bf16"],
)
def test_trainer_options(
    method: type[Condenser], options: dict[str, Any], tmp_path: Path, cache: Path
) -> None:
    module = make(method)
    states = run(module, tmp_path, cache, Spoil([0, 2], "images"), steps=4, **options)
    assert differing(states[0], states[1]) == differing(states[2], states[3]) == set()
    assert module._guard.left_out() == {GRADIENT: 2}
    expected = torch.float64 if options.get("precision") == "64-true" else torch.float32
    assert {tensor.dtype for tensor in states[-1].values()} == {expected}
    for step in (1, 3):
        changed = differing(states[step], states[step + 1])
        assert {"images", "images, momentum", "dam.logits"} <= changed


def test_clipped_gradients_are_those_that_are_judged(tmp_path: Path, cache: Path) -> None:
    module = make(DM, lr_images=1e12, lr_masks=1.0, momentum=0.0)
    states = run(module, tmp_path, cache, gradient_clip_val=1e-12, steps=3)
    assert module._guard.left_out() == {}
    moved = states[1]["images"] - states[0]["images"]
    assert 0.1 < float(moved.norm()) <= 1.001


def test_a_held_step_size_is_not_moved_by_clipping(tmp_path: Path, cache: Path) -> None:
    module = make(MTT, dam=None, lr_step_size=1.0, momentum=0.9)
    states = run(module, tmp_path, cache, gradient_clip_val=0.1)
    assert set(module._guard.left_out()) == {HELD}
    held = 0
    for before, after in pairwise(states):
        assert float(after["step_size"]) > 0
        if float(after["step_size, momentum"]) == 0:
            held += 1
            assert torch.equal(before["step_size"], after["step_size"])
    assert held


@each_method
def test_frozen_masks_and_no_momentum(method: type[Condenser], tmp_path: Path, cache: Path) -> None:
    module = make(method, dam={"weight": 0.0}, momentum=0.0)
    states = run(module, tmp_path, cache, Spoil([0, 2], "images"))
    assert differing(states[0], states[1]) == differing(states[2], states[3]) == set()
    assert "images" in differing(states[1], states[2])
    assert "dam.logits" not in differing(states[0], states[-1])
    assert module._guard.left_out() == {GRADIENT: 2}


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"dam": {"weight": 0.0}}, {}),
        ({"momentum": 0.0}, {"momentum": 0.9}),
        ({"momentum": 0.9}, {"momentum": 0.0}),
        ({}, {}),
    ],
    ids=["masks that were frozen", "new momentum", "no momentum any more", "the same"],
)
def test_the_first_step_after_resuming(
    first: dict[str, Any], then: dict[str, Any], tmp_path: Path, cache: Path
) -> None:
    """Also where the optimiser's saved state lacks what is needed now."""
    run(make(DM, **first), tmp_path, cache, LastCheckpoint(), steps=2)
    module, reference = make(DM, **then), make(without(DM, 2), **then)
    path = tmp_path / "last.ckpt"
    states = run(module, tmp_path, cache, Spoil([2], "loss"), ckpt_path=path)
    assert differing(states[0], states[1]) == set()
    # The class counts in checkpoints; not for longer, because the command line finds DM by name.
    name, type(reference).__qualname__ = type(reference).__qualname__, "DM"
    try:
        expected = run(reference, tmp_path, cache, ckpt_path=path)
    finally:
        type(reference).__qualname__ = name
    assert differing(states[-1], expected[-1]) == set()
    assert all(bool(tensor.isfinite().all()) for tensor in states[-1].values())


# On several processes.


class OneSpoils(Callback):
    """Makes the loss, and with it all gradients, of one process NaN at a step."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = type(pl_module).training_step

        def spoiled(batch: Any, batch_idx: int) -> Tensor:
            loss = step(pl_module, batch, batch_idx)  # type: ignore[arg-type]
            return loss * NAN if (batch.step, trainer.global_rank) == (1, 1) else loss

        pl_module.training_step = spoiled  # type: ignore[method-assign]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del pl_module.training_step


class Agree(Callback):
    """Fails unless all processes have the same finite images, and left out one step each."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        images = pl_module.get_parameter("images").detach()
        gathered = [torch.empty_like(images) for _ in range(trainer.world_size)]
        torch.distributed.all_gather(gathered, images)
        assert all(torch.equal(images, other) for other in gathered)
        assert bool(images.isfinite().all())
        counts = pl_module.get_buffer("_guard.counts")
        assert int(counts[0]) == 1


@pytest.mark.parametrize(
    ("method", "spoils"),
    [(DM, Spoil([1], "loss", rank=0)), (MTT, OneSpoils())],
    ids=["loss of DM", "gradient of MTT"],
)
def test_processes_decide_alike(
    method: type[Condenser], spoils: Callback, tmp_path: Path, cache: Path
) -> None:
    """One process' share of the loss is not finite; the images are those without that step."""
    options = {"experts_per_step": 2} if method is MTT else {}
    shared, alone = make(method, **options), make(without(method, 1), **options)
    trainer = two_processes(tmp_path, max_steps=4, callbacks=[spoils, Agree(), LeaveTogether()])
    trainer.fit(shared, datamodule=TinyData(cache_dir=str(cache / "cache")))
    expected = run(alone, tmp_path, cache, steps=4)[-1]["images"]
    torch.testing.assert_close(shared.images.detach(), expected, rtol=1e-4, atol=1e-4)


def test_processes_are_stopped_alike(tmp_path: Path, cache: Path) -> None:
    """The set is on disk, whichever process ends first."""
    module = make(DM, max_skipped=2)
    trainer = two_processes(
        tmp_path, max_steps=8, log_every_n_steps=1, callbacks=[Spoil(range(1, 9), "loss", rank=1)]
    )
    with pytest.raises(Exception, match="in 2 steps in a row something had to be left out or held"):
        trainer.fit(module, datamodule=TinyData(cache_dir=str(cache / "cache")))
    images = CondensedSet.load(tmp_path / "condensed.safetensors").images
    assert bool(images.isfinite().all())
    assert not list(tmp_path.glob(".condensed*"))
