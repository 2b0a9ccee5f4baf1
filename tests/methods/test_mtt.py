"""MTT equals the plain loop; what must give the same bits; what comes out, and what is refused."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from safetensors.torch import load_file
from torch import Tensor

import dam_lightning.evaluation.loop
from dam_lightning import MTT, CondensedSet, Evaluation
from dam_lightning.data import GroupedBatch
from dam_lightning.functional import DSA, OPERATIONS, strategy_operations
from dam_lightning.methods.expert_store import ExpertStore
from dam_lightning.randomness import numpy_generator
from tests.reference import convnet, dm, mtt
from tests.tiny import CLASS_SIZES, TinyData, tiny_data, tiny_trainer, two_processes

CLASSES = len(CLASS_SIZES)
DOMAINS = 3
NETWORK = {"width": 4, "depth": 2}
EXPERTS = {"count": 3, "lr": 0.05, "batch_size": 10}
MTTOptions = Mapping[str, Any]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and experts, for all tests that use the same."""
    return tmp_path_factory.mktemp("shared")


def make(cls: type[MTT] = MTT, **options: Any) -> MTT:
    defaults: dict[str, Any] = {
        "ipc": 2,
        "backbone_args": NETWORK,
        "seed": 3,
        "student_steps": 4,
        "expert_epochs": 2,
        "max_start_epoch": 3,
        "initial_step_size": 0.05,
        "lr_images": 30.0,
        "lr_step_size": 1e-4,
    }
    given = {**defaults, **options}
    return cls(experts={**EXPERTS, **given.pop("experts", {})}, **given)


def fit(
    module: MTT,
    folder: Path,
    cache: Path,
    steps: int = 3,
    ckpt_path: Any = None,
    data: Mapping[str, Any] | None = None,
    **options: Any,
) -> MTT:
    trainer = tiny_trainer(folder, max_steps=steps, **options)
    trainer.fit(module, datamodule=tiny_data(cache, **(data or {})), ckpt_path=ckpt_path)
    return module


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-9) -> None:
    assert float(theirs.abs().max()) > 0
    scale = max(1.0, float(theirs.abs().max()))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * scale)


# Parity.

Parameters = dict[str, Tensor]


class Record(Callback):
    """Parameters before each step, gradients, and losses."""

    def __init__(self) -> None:
        self.before: list[Parameters] = []
        self.gradients: list[Parameters] = []
        self.losses: list[dict[str, float]] = []

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        named = dict(pl_module.named_parameters())
        self.before.append({k: p.detach().clone() for k, p in named.items()})
        self.gradients.append({k: p.grad.clone() for k, p in named.items() if p.grad is not None})

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.losses.append({k: float(v) for k, v in trainer.callback_metrics.items()})


@dataclass
class Expected:
    """What the reference needs to know of a module's settings."""

    cache: Path
    steps: int = 4
    units: int = 1
    batch_syn: int = 6
    batch_syn_domain: int = 6
    strategy: str | None = DSA
    augment_views: bool = True
    shared: bool = False
    own_start: bool = False
    weight: float = 0.01
    dam: bool = True

    def _branch(self, branch: str, step: int, unit: int, size: Tensor | None) -> mtt.Branch:
        """What a student does, all draws made from their keys."""
        outputs, pool, batch = CLASSES, 6, self.batch_syn
        if branch == "domain":
            outputs, pool, batch = DOMAINS, 6 * DOMAINS, self.batch_syn_domain
        starts = "domain" if branch == "domain" and self.own_start else "class"
        expert = int(numpy_generator(3, f"expert/{branch}", step, unit).integers(3))
        start = int(numpy_generator(3, f"start/{starts}", step, unit).integers(3))
        (file,) = self.cache.glob(f"cache/experts/*-{branch}-*/expert_000{expert}.safetensors")
        way = load_file(file)["trajectory"].double()
        generator = numpy_generator(3, f"student/{branch}", step, unit)
        orders = [
            torch.from_numpy(generator.permutation(pool))
            for _ in range(-(-self.steps // -(-pool // batch)))
        ]
        batches = mtt.inner_batches(orders, batch, self.steps)
        drawn: list[mtt.BatchAugmentation] | None = None
        if self.strategy is not None and (branch == "class" or self.augment_views):
            drawn = []
            for chosen in batches:
                name = OPERATIONS[int(generator.choice(strategy_operations(self.strategy)))]
                drawn.append((name, generator.random((len(chosen), 3)).tolist()))
        network = convnet.ConvNet(3, outputs, 4, 2, (16, 16)).double()
        return mtt.Branch(network, way[start], way[start + 2], batches, drawn, size)

    def step(self, step: int, at: Parameters) -> tuple[Parameters, float, float]:
        """Gradients and both losses: the means over the passages."""
        size_domain = None if self.shared else at.get("step_size_domain")
        results = [
            mtt.mtt_step(
                at["images"],
                torch.arange(CLASSES).repeat_interleave(2),
                at["dam.logits"] if self.dam else None,
                self.weight,
                0.1,
                self._branch("class", step, unit, at["step_size"]),
                self._branch("domain", step, unit, size_domain) if self.dam else None,
            )
            for unit in range(self.units)
        ]
        gradients = {
            name: torch.stack(found).mean(dim=0)
            for name, found in (
                ("images", [result.grad_images for result in results]),
                ("dam.logits", [r.grad_logits for r in results if r.grad_logits is not None]),
                ("step_size", [result.grad_step_size for result in results]),
                (
                    "step_size_domain",
                    [
                        r.grad_step_size_domain
                        for r in results
                        if r.grad_step_size_domain is not None
                    ],
                ),
            )
            if found
        }
        class_, domain = (
            float(np.mean([float(loss) for loss in losses]))
            for losses in zip(*(result[:2] for result in results), strict=True)
        )
        return gradients, class_, domain


DAM = {"num_domains": DOMAINS, "init": "normal"}
CASES: dict[str, tuple[MTTOptions, MTTOptions]] = {
    "dam": ({"dam": DAM}, {}),
    "no dam": ({"dam": None, "batch_syn": 4}, {"dam": False, "batch_syn": 4}),
    "two passages": (
        {"dam": None, "experts_per_step": 2, "max_images": 2},
        {"dam": False, "units": 2},
    ),
    "shared": ({"dam": DAM, "domain_step_size": "shared"}, {"shared": True}),
    "own start, batches": (
        {"dam": {**DAM, "weight": 0.3}, "domain_start": "own", "batch_syn": 4, "max_images": 3},
        {"own_start": True, "weight": 0.3, "batch_syn": 4},
    ),
    "shared, two passages, unrolled": (
        {
            "dam": DAM,
            "domain_step_size": "shared",
            "experts_per_step": 2,
            "batch_syn_domain": 7,
            "adjoint": False,
        },
        {"shared": True, "units": 2, "batch_syn_domain": 7},
    ),
    "plain": ({"dam": DAM, "augmentation": None}, {"strategy": None}),
    "plain views": ({"dam": DAM, "augment_views": False}, {"augment_views": False}),
    "30 steps": (
        {
            "dam": DAM,
            "student_steps": 30,
            "batch_syn": 5,
            "augmentation": "color_cutout_flip",
            "initial_step_size": 0.005,
            "lr_step_size": 1e-6,
        },
        {"steps": 30, "batch_syn": 5, "strategy": "color_cutout_flip"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_steps_equal_the_plain_loop(tmp_path: Path, name: str) -> None:
    """Losses, all gradients and the optimiser, by the Trainer in float64.

    Experts have a folder of each test's own, because the augmentation is theirs too.
    """
    options, settings = CASES[name]
    module, expected = make(**options), Expected(tmp_path, **settings)
    rates = {"images": 30.0, "dam.logits": 30.0}
    rates |= dict.fromkeys(("step_size", "step_size_domain"), options.get("lr_step_size", 1e-4))
    record = Record()
    fit(module, tmp_path, tmp_path, precision="64-true", callbacks=[record])
    current, momenta = record.before[0], dict.fromkeys(rates)
    start = current
    for step, (before, ours) in enumerate(zip(record.before, record.gradients, strict=True)):
        theirs, loss_class, loss_domain = expected.step(step, before)
        assert ours.keys() == theirs.keys() == before.keys()
        for parameter, gradient in theirs.items():
            assert_close(ours[parameter], gradient)
        total = loss_class + expected.weight * loss_domain
        assert record.losses[step]["loss"] == pytest.approx(total, rel=1e-9)
        if module.dam is not None:
            assert record.losses[step]["loss_class"] == pytest.approx(loss_class, rel=1e-9)
            assert record.losses[step]["loss_domain"] == pytest.approx(loss_domain, rel=1e-9)
        # The reference's own way, which our parameters never enter.
        gradients, _, _ = expected.step(step, current)
        updated: Parameters = {}
        for parameter, value in current.items():
            updated[parameter], momenta[parameter] = dm.sgd_momentum(
                value, gradients[parameter], momenta[parameter], rates[parameter], 0.5
            )
        current = updated
    assert step == 2
    for parameter, value in dict(module.named_parameters()).items():
        assert not torch.equal(current[parameter], start[parameter])
        assert_close(value.detach(), current[parameter], 1e-8)


def by_hand(cache: Path, tmp_path: Path, **options: Any) -> tuple[MTT, GroupedBatch]:
    """A module that was set up, in float64 and without a Trainer, and a batch of step 1."""
    module = fit(make(**options), tmp_path, cache, 1, precision="64-true")
    data = tiny_data(cache)
    data.setup_domains(DOMAINS)
    module.trainer = None
    return module, data.grouped_batch(1)


@pytest.mark.filterwarnings("ignore:.*self.log.*")
@pytest.mark.parametrize("shared", [False, True])
def test_gradients_are_the_slopes(tmp_path: Path, shared: bool) -> None:
    """Finite differences of the whole loss, on a network without kinks."""
    module, batch = by_hand(
        tmp_path,
        tmp_path,
        dam={**DAM, "weight": 0.5, "temperature": 1.0},
        backbone_args={**NETWORK, "activation": "sigmoid"},
        domain_step_size="shared" if shared else "separate",
        initial_step_size=0.3,
        batch_syn=4,
        max_images=2,
        student_steps=3,
    )
    module.zero_grad()
    module.training_step(batch, 0).backward()
    module.adjoint = False
    parameters = dict(module.named_parameters())
    names = {"images", "dam.logits", "step_size"} | (set() if shared else {"step_size_domain"})
    assert parameters.keys() == names
    generator = numpy_generator(0, "entries")
    for parameter in parameters.values():
        assert parameter.grad is not None
        gradient = parameter.grad.clone()

        def loss(value: Tensor, parameter: Any = parameter) -> float:
            kept = parameter.detach().clone()
            with torch.no_grad():
                parameter.copy_(value)
            found = float(module.training_step(batch, 0).detach())
            with torch.no_grad():
                parameter.copy_(kept)
            return found

        scale = float(gradient.abs().max())
        assert scale > 0
        # The entry that matters most, and some others.
        entries = [np.unravel_index(int(gradient.abs().argmax()), gradient.shape)]
        if gradient.ndim:
            entries += [tuple(generator.integers(gradient.shape)) for _ in range(2)]
        for entry in entries:
            at = tuple(int(index) for index in entry)
            slope = mtt.central_difference(loss, parameter.detach(), at, 1e-5)
            assert slope == pytest.approx(float(gradient[at]), rel=1e-5, abs=1e-5 * scale)


@pytest.mark.filterwarnings("ignore:.*self.log.*")
def test_each_branch_touches_its_own(tmp_path: Path, cache: Path) -> None:
    """The class loss neither masks nor the domain's step size, and the other way round."""
    module, batch = by_hand(cache, tmp_path, dam=DAM)
    by_class = module.images.view(CLASSES, 2, 3, 16, 16)
    module.zero_grad()
    module.grouping_loss("class", batch, by_class, module.network_state(1)).backward()
    assert {k for k, p in module.named_parameters() if p.grad is not None} == {
        "images",
        "step_size",
    }
    module.zero_grad()
    assert module.dam is not None
    views, state = module.dam(module.images), module.domain_state(1, module.network_state(1))
    module.grouping_loss("domain", batch, views, state).backward()
    assert {k for k, p in module.named_parameters() if p.grad is not None} == {
        "images",
        "dam.logits",
        "step_size_domain",
    }


def test_adjoint_and_unroll_take_the_same_steps(tmp_path: Path, cache: Path) -> None:
    ways = [
        fit(make(dam=DAM, adjoint=adjoint), tmp_path, cache, 4, precision="64-true")
        for adjoint in (False, True)
    ]
    for name, value in ways[0].state_dict().items():
        torch.testing.assert_close(ways[1].state_dict()[name], value, rtol=0, atol=1e-9)


def test_starts_and_experts_are_all_met(tmp_path: Path, cache: Path) -> None:
    """Those of the two branches are drawn apart; the start is the same unless asked otherwise."""
    same, _ = by_hand(cache, tmp_path, dam=DAM)
    own, _ = by_hand(cache, tmp_path, dam=DAM, domain_start="own", experts_per_step=2)
    of_class = [same.network_state(step)[0] for step in range(60)]
    of_domain = [same.domain_state(step, None)[0] for step in range(60)]
    assert {passage.expert for passage in of_class} == {0, 1, 2}
    assert {passage.start for passage in of_class} == {0, 1, 2}
    assert [p.start for p in of_class] == [p.start for p in of_domain]
    assert [p.expert for p in of_class] != [p.expert for p in of_domain]
    pairs = [(own.network_state(step), own.domain_state(step, None)) for step in range(60)]
    assert any(a[0].start != b[0].start for a, b in pairs)
    assert any(a[0] != a[1] for a, _ in pairs)
    # Adding a passage does not change the first.
    assert [a[0] for a, _ in pairs] == of_class


# What must give the same bits.


class WithoutDomainBranch(MTT):
    """A subclass that keeps the masks and leaves their loss out."""

    def training_step(self, batch: GroupedBatch, batch_idx: int) -> torch.Tensor:
        state = self.network_state(batch.step)
        by_class = self.images.view(-1, self.ipc, *self.images.shape[1:])
        return self.grouping_loss("class", batch, by_class, state) + 0 * (
            self.dam.logits.sum() if self.dam is not None else 0
        )


def test_no_dam_weight_zero_and_no_domain_branch_are_the_same_bits(
    tmp_path: Path, cache: Path
) -> None:
    plain = fit(make(dam=None), tmp_path, cache, 5)
    weight_zero = fit(make(dam={"weight": 0.0}), tmp_path, cache, 5)
    subclass = fit(make(WithoutDomainBranch, dam=DAM), tmp_path, cache, 5)
    with_dam = fit(make(dam=DAM), tmp_path, cache, 5)
    for other in (weight_zero, subclass):
        assert torch.equal(plain.images, other.images)
        assert torch.equal(plain.step_size, other.step_size)
    assert not torch.equal(plain.images, with_dam.images)
    assert not torch.equal(plain.step_size, torch.tensor(0.05))
    assert weight_zero.dam is not None
    assert bool((weight_zero.dam.logits == 0.01).all())


def assert_same(ours: MTT, theirs: MTT) -> None:
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name


@pytest.mark.parametrize("dam", [None, DAM], ids=["plain", "dam"])
@pytest.mark.parametrize("stop", [3, 4])
def test_a_resumed_fit_equals_an_unbroken_one(
    tmp_path: Path, cache: Path, dam: Any, stop: int
) -> None:
    """Epochs have 4 steps: stops in the middle of the first, and at its end."""
    unbroken = fit(make(dam=dam), tmp_path, cache, 2 * stop)
    begun = fit(make(dam=dam), tmp_path, cache, stop)
    begun.trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed = fit(make(dam=dam), tmp_path, cache, 2 * stop, ckpt_path=tmp_path / "half.ckpt")
    assert resumed.global_step == 2 * stop
    assert_same(unbroken, resumed)
    assert not torch.equal(begun.images, resumed.images)
    assert not torch.equal(begun.step_size, resumed.step_size)


def test_a_step_size_that_is_changed_on_resuming_wins(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begun = fit(make(dam=DAM), tmp_path, cache, 2)
    begun.trainer.save_checkpoint(tmp_path / "half.ckpt")
    with caplog.at_level("INFO"):
        still = fit(
            make(dam=DAM, lr_step_size=0.0), tmp_path, cache, 4, ckpt_path=tmp_path / "half.ckpt"
        )
    rates = [group["lr"] for group in still.trainer.optimizers[0].param_groups]
    assert rates == [30.0, 30.0, 0.0]
    assert torch.equal(still.step_size, begun.step_size)
    assert not torch.equal(still.images, begun.images)
    told = [message for message in caplog.messages if "differ from the checkpoint's" in message]
    assert told == ["Arguments that differ from the checkpoint's: lr_step_size=0.0 (was 0.0001)"]


def test_a_loaded_module_is_the_same_and_condenses_to_the_same_set(
    tmp_path: Path, cache: Path
) -> None:
    module = fit(make(dam=DAM), tmp_path, cache)
    module.trainer.save_checkpoint(tmp_path / "x.ckpt")
    loaded = MTT.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    assert isinstance(loaded, MTT)
    assert_same(module, loaded)
    ours, theirs = module.condensed_set(), loaded.condensed_set()
    assert torch.equal(ours.images, theirs.images)
    for key in ("step_size", "recipe", "seed", "steps", "fingerprint"):
        assert ours.metadata[key] == theirs.metadata[key]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"domain_step_size": "shared"},
            "domain_step_size: shared here, separate in the checkpoint",
        ),
        ({"dam": None}, "dam.num_domains: None here, 3 in the checkpoint"),
        ({"ipc": 1}, "ipc: 1 here, 2 in the checkpoint"),
    ],
)
def test_a_checkpoint_that_does_not_fit(
    tmp_path: Path, cache: Path, options: dict[str, Any], message: str
) -> None:
    fit(make(dam=DAM), tmp_path, cache, 1).trainer.save_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(MisconfigurationException, match=message):
        fit(make(**{"dam": DAM, **options}), tmp_path, cache, ckpt_path=tmp_path / "x.ckpt")


def test_pieces_change_rounding_only(tmp_path: Path, cache: Path) -> None:
    small = fit(make(dam=DAM, max_images=4), tmp_path, cache)
    large = fit(make(dam=DAM, max_images=1000), tmp_path, cache)
    for name, value in small.state_dict().items():
        torch.testing.assert_close(large.state_dict()[name], value, rtol=0, atol=1e-5)


def test_experts_do_not_depend_on_the_precision_of_the_run(tmp_path: Path, cache: Path) -> None:
    fit(make(), tmp_path, cache, 1)
    fit(make(), tmp_path, tmp_path, 1, precision="64-true")
    fit(make(), tmp_path / "half", tmp_path / "half", 1, precision="bf16-mixed")
    for number in range(3):
        name = f"cache/experts/*-class-*/expert_000{number}.safetensors"
        files = [list(folder.glob(name)) for folder in (cache, tmp_path, tmp_path / "half")]
        (known, *others) = [load_file(path)["trajectory"] for (path,) in files]
        for other in others:
            assert torch.equal(other, known)


# Several processes.


class Traced(MTT):
    """Leaves a line for every expert that a process trains; importable where it is spawned."""

    def setup(self, stage: str) -> None:
        original, trace = ExpertStore.save, Path(self.trainer.default_root_dir) / "trace"
        rank = self.trainer.global_rank

        def save(store: ExpertStore, number: int, trajectory: Tensor) -> None:
            trace.mkdir(exist_ok=True)
            with (trace / str(rank)).open("a") as file:
                file.write(f"{store.path(number).relative_to(store.folder.parent)}\n")
            original(store, number, trajectory)

        def epochs(store: ExpertStore, number: int) -> int | None:
            # The second process is late: by now the first would have trained some.
            if self._late_by:
                time.sleep(self._late_by)
                self._late_by = 0.0
            return look(store, number)

        look, self._late_by = ExpertStore.epochs, 3.0 * rank
        with patch.object(ExpertStore, "save", save), patch.object(ExpertStore, "epochs", epochs):
            super().setup(stage)


def on_one_and_on_two(
    tmp_path: Path, precision: Any, steps: int, copied: bool, **options: Any
) -> tuple[MTT, MTT]:
    """The same fit by one process and by two, in ``alone`` and in ``shared``."""
    modules, losses = (make(Traced, **options), make(Traced, **options)), []
    for module, name, kind in zip(
        modules, ("alone", "shared"), (tiny_trainer, two_processes), strict=True
    ):
        if copied and name == "shared":
            shutil.copytree(tmp_path / "alone" / "cache", tmp_path / "shared" / "cache")
        (tmp_path / name).mkdir(exist_ok=True)
        trainer = kind(tmp_path / name, max_steps=steps, precision=precision)
        data = TinyData(cache_dir=str(tmp_path / name / "cache"), seed=0)
        trainer.fit(module, datamodule=data)
        losses.append(float(trainer.callback_metrics["loss"]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    return modules


def test_two_processes_share_the_experts_too(tmp_path: Path) -> None:
    """Each is trained by one of them, once, even if one comes late; the same up to float32."""
    given: dict[str, Any] = {"dam": DAM, "experts_per_step": 3}
    alone, shared = on_one_and_on_two(tmp_path, "32-true", 2, False, **given)
    one, two = (
        {path.name: path.read_text().split() for path in (tmp_path / name / "trace").iterdir()}
        for name in ("alone", "shared")
    )
    assert len(one["0"]) == 6
    assert [len(two[rank]) for rank in ("0", "1")] == [4, 2]
    assert sorted(two["0"] + two["1"]) == sorted(one["0"])
    for name in one["0"]:
        ours, theirs = (
            load_file(tmp_path / folder / "cache" / "experts" / name)["trajectory"]
            for folder in ("alone", "shared")
        )
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(shared.state_dict()[name], value, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"dam": DAM, "experts_per_step": 2}, {"dam": None}],
    ids=["shares", "more processes than passages"],
)
def test_two_processes_equal_one(tmp_path: Path, options: dict[str, Any]) -> None:
    alone, shared = on_one_and_on_two(tmp_path, "64-true", 5, True, **options)
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(shared.state_dict()[name], value, rtol=0, atol=1e-9)


# What comes out.


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({"dam": None}, set()),
        ({"dam": DAM}, {"dam.logits", "step_size_domain"}),
        ({"dam": DAM, "domain_step_size": "shared"}, {"dam.logits"}),
        ({"dam": {"weight": 0.0}}, {"dam.logits", "step_size_domain"}),
    ],
)
def test_what_is_learned_and_kept(options: dict[str, Any], more: set[str]) -> None:
    module = make(num_classes=3, image_shape=(3, 16, 16), **options)
    assert set(module.state_dict()) == {"images", "labels", "step_size"} | more
    assert float(module.step_size.detach()) == pytest.approx(0.05)
    groups = module.parameter_groups()
    assert groups[-1]["lr"] == 1e-4
    assert len(groups[-1]["params"]) == (2 if "step_size_domain" in more else 1)
    fixed = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    assert fixed == (more if options["dam"] == {"weight": 0.0} else set())


def spied_recipe(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Step sizes that networks were trained with for a test."""
    rates: list[float] = []
    original = dam_lightning.evaluation.loop.train_networks

    def train_networks(*arguments: Any, **options: Any) -> Any:
        rates.append(arguments[2].lr)
        return original(*arguments, **options)

    monkeypatch.setattr(dam_lightning.evaluation.loop, "train_networks", train_networks)
    return rates


@pytest.mark.parametrize("given", [None, 0.02])
def test_networks_are_trained_with_the_learned_step_size(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, given: float | None
) -> None:
    """In the method's own test and in that of the file, unless the recipe has another."""
    recipe = {"num_networks": 1, "epochs": 1} | ({} if given is None else {"lr": given})
    module = fit(make(recipe=recipe), tmp_path, cache)
    learned = float(module.step_size.detach())
    assert learned != pytest.approx(0.05, abs=1e-6)
    rates = spied_recipe(monkeypatch)
    condensed = CondensedSet.load(tmp_path / "condensed.safetensors")
    assert condensed.metadata["step_size"] == learned
    assert condensed.metadata["recipe"]["lr"] == (given or learned)
    trainer, data = tiny_trainer(tmp_path), tiny_data(cache)
    trainer.test(module, datamodule=data, verbose=False)
    evaluation = Evaluation(str(tmp_path / "condensed.safetensors"))
    trainer.test(evaluation, datamodule=data, verbose=False)
    assert rates == [given or learned] * 2


def test_whitened_images(tmp_path: Path) -> None:
    """The set holds the whitening, and its pixels are images; checkpoints insist on it."""
    options: dict[str, Any] = {"init": "real", "lr_images": 1e-9, "recipe": {"epochs": 1}}
    zca = {"zca": True}
    module = fit(make(**options), tmp_path, tmp_path, 2, data=zca)
    module.trainer.save_checkpoint(tmp_path / "x.ckpt")
    data = tiny_data(tmp_path, zca=True)
    real = data.train.images.float() / 255
    sets = [
        CondensedSet.load(tmp_path / "condensed.safetensors"),
        CondensedSet.load(tmp_path / "x.safetensors"),
        MTT.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True).condensed_set(),
    ]
    assert data.whitening is not None
    for condensed in sets:
        assert condensed.whitening is not None
        assert torch.equal(condensed.whitening.matrix, data.whitening.matrix)
        assert torch.equal(condensed.images, module.images.detach())
        distances = (condensed.pixels().unsqueeze(1) - real).abs().amax(dim=(2, 3, 4))
        nearest = distances.min(dim=1)
        assert float(nearest.values.max()) < 1e-3
        assert torch.equal(data.train.labels[nearest.indices], condensed.labels)
    resumed = fit(make(**options), tmp_path, tmp_path, 4, tmp_path / "x.ckpt", data=zca)
    assert resumed.global_step == 4
    match = "the data have zca False, those of the checkpoint True; give --data.zca true"
    with pytest.raises(MisconfigurationException, match=match):
        fit(make(**options), tmp_path, tmp_path, 4, tmp_path / "x.ckpt")


def test_a_step_size_stays_above_zero(tmp_path: Path, cache: Path) -> None:
    """An update that would take it below is left out for it, and only for it."""
    record = Record()
    module = fit(make(dam=DAM, lr_step_size=1e3), tmp_path, cache, 2, callbacks=[record])
    first, second = record.before
    for name in ("step_size", "step_size_domain"):
        assert float(first[name] - 1e3 * record.gradients[0][name]) < 0
        assert float(first[name]) == float(second[name]) > 0
    assert not torch.equal(first["images"], second["images"])
    assert not torch.equal(first["dam.logits"], second["dam.logits"])
    assert float(module.step_size.detach()) > 0


# Bad input.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"student_steps": 0}, "student_steps must be at least 1, got 0"),
        ({"expert_epochs": 0}, "expert_epochs must be at least 1, got 0"),
        ({"max_start_epoch": 0}, "max_start_epoch must be at least 1, got 0"),
        ({"batch_syn": 0}, "batch_syn must be at least 1, got 0"),
        ({"batch_syn_domain": 0}, "batch_syn_domain must be at least 1, got 0"),
        ({"experts_per_step": 0}, "experts_per_step must be at least 1, got 0"),
        ({"initial_step_size": 0.0}, "initial_step_size must be above 0, got 0"),
        ({"initial_step_size": float("nan")}, "initial_step_size must be above 0, got nan"),
        ({"lr_step_size": -1.0}, "lr_step_size must be 0 or above, got -1"),
        ({"domain_start": "other"}, "domain_start must be one of same, own, got 'other'"),
        ({"domain_step_size": "x"}, "domain_step_size must be one of separate, shared, got 'x'"),
        ({"experts": {"count": 0}}, r"experts\.count must be at least 1, got 0"),
        ({"domain_experts": {"count": 0}}, r"domain_experts\.count must be at least 1, got 0"),
        (
            {"experts": {"epochs": 3}},
            r"experts\.epochs is 3, but max_start_epoch 3 and expert_epochs 2 read 4: raise it",
        ),
        (
            {"domain_experts": {"epochs": 3}},
            r"domain_experts\.epochs is 3, but max_start_epoch 3 and expert_epochs 2 read 4",
        ),
        ({"experts": {"lr": 0.0}}, "experts: lr must be above 0, got 0"),
        ({"domain_experts": {"batch_size": 0}}, "experts: batch_size must be at least 1, got 0"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_just_enough_epochs_are_enough() -> None:
    make(experts={"epochs": 4})


def test_domain_experts_differ_where_they_are_told_to(tmp_path: Path) -> None:
    fit(make(dam=DAM, domain_experts={"lr": 0.02, "epochs": 5, "count": 2}), tmp_path, tmp_path, 1)
    found = {}
    for path in (tmp_path / "cache" / "experts").glob("*/*.safetensors"):
        found[path.parent.name.split("-")[1], path.stem[-1]] = len(load_file(path)["trajectory"])
    assert found == {
        ("class", "0"): 5,
        ("class", "1"): 5,
        ("class", "2"): 5,
        ("domain", "0"): 6,
        ("domain", "1"): 6,
    }


@pytest.mark.parametrize("options", [{"experts": {"cuont": 5}}, {"domain_experts": {"epoch": 5}}])
def test_misspelt_options_of_experts(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"there is no (cuont|epoch); there are folder, count"):
        MTT(**options)


def test_the_weight_may_change_on_resuming(tmp_path: Path, cache: Path) -> None:
    for before, after in ((0.0, 0.01), (0.01, 0.0)):
        begun = fit(make(dam={"weight": before}), tmp_path, cache)
        begun.trainer.save_checkpoint(tmp_path / "a.ckpt")
        resumed = make(dam={"weight": after})
        assert fit(resumed, tmp_path, cache, 5, tmp_path / "a.ckpt").global_step == 5
