"""A student's loss and gradients equal the plain loop, whichever way and in whatever pieces."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from dam_lightning.backbones import build_backbone
from dam_lightning.flat_network import FlatNetwork
from dam_lightning.functional import DSA, OPERATIONS, strategy_operations
from dam_lightning.methods.student import InnerBatch, Student, StudentResult, inner_batches
from dam_lightning.randomness import numpy_generator
from tests.reference import convnet, mtt

SHAPE = (3, 8, 8)
POOL = 7
BATCH = 4
CLASSES = 3


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Case:
    """A pool of images, a stretch of a way and the draws of 30 steps."""

    def __init__(
        self,
        steps: int = 30,
        augmentation: str | None = DSA,
        batch: int = BATCH,
        pool: int = POOL,
        shape: tuple[int, int, int] = SHAPE,
        **network: Any,
    ) -> None:
        options = {"width": 4, "depth": 2, **network}
        self.shape = shape
        self.library = build_backbone("ConvNet", shape, CLASSES, options, seed=1).double()
        self.network = FlatNetwork(self.library)
        self.start = self.network.initial()
        self.target = self.start + 0.05 * some(len(self.start), seed=1)
        self.pool, self.labels = some(pool, *shape), torch.arange(pool) % CLASSES
        self.step_size = torch.tensor(0.07, dtype=torch.float64)
        self.operations = () if augmentation is None else strategy_operations(augmentation)
        self.steps = steps
        self.batch = batch

    def batches(self) -> list[InnerBatch]:
        return inner_batches(
            numpy_generator(5, "student"),
            len(self.pool),
            self.batch,
            self.steps,
            self.operations,
            self.pool,
        )

    def match(
        self, adjoint: bool, most: int = 100, compile: bool = False, **changed: Tensor
    ) -> StudentResult:
        """In pieces of at most ``most`` images."""
        given = {"pool": self.pool, "step_size": self.step_size, **changed}
        return Student(self.network, most, compile).match(
            labels=self.labels,
            batches=self.batches(),
            start=self.start,
            target=self.target,
            adjoint=adjoint,
            **given,
        )

    def drawn(self) -> tuple[list[Tensor], list[mtt.BatchAugmentation] | None]:
        """The draws as the reference takes them: first all orders, then step by step."""
        generator = numpy_generator(5, "student")
        per_order = -(-len(self.pool) // self.batch)
        orders = [
            torch.from_numpy(generator.permutation(len(self.pool)))
            for _ in range(-(-self.steps // per_order))
        ]
        batches = mtt.inner_batches(orders, self.batch, self.steps)
        if not self.operations:
            return batches, None
        augmentations = []
        for chosen in batches:
            operation = OPERATIONS[int(generator.choice(self.operations))]
            augmentations.append((operation, generator.random((len(chosen), 3)).tolist()))
        return batches, augmentations

    def expected(self) -> mtt.StudentResult:
        plain = convnet.ConvNet(self.shape[0], CLASSES, 4, 2, self.shape[1:]).double()
        convnet.copy_parameters(self.library, plain)
        batches, augmentations = self.drawn()
        return mtt.student_loss(
            self.start,
            self.target,
            self.pool,
            self.labels,
            batches,
            augmentations,
            self.step_size,
            plain,
        )


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-9) -> None:
    assert float(theirs.abs().max()) > 0
    scale = max(1.0, float(theirs.abs().max()))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * scale)


def assert_equal(result: StudentResult, expected: mtt.StudentResult) -> None:
    assert_close(result.loss, expected.loss)
    assert_close(result.images, expected.grad_images)
    assert_close(result.step_size, expected.grad_step_size)


@pytest.mark.parametrize("augmentation", [None, DSA], ids=["plain", "augmented"])
def test_thirty_steps_equal_the_plain_loop(augmentation: str | None) -> None:
    case = Case(augmentation=augmentation)
    expected = case.expected()
    for adjoint in (False, True):
        # Batches of 4 and 3 images, or in pieces of 2, 2, 2 and 1.
        for most in (100, 3):
            assert_equal(case.match(adjoint, most), expected)


@pytest.mark.parametrize("batch", [1, POOL, 50])
def test_batches_of_any_size(batch: int) -> None:
    case = Case(steps=4, batch=batch)
    expected = case.expected()
    for adjoint in (False, True):
        assert_equal(case.match(adjoint, most=2), expected)


@pytest.mark.parametrize(
    ("adjoint", "channels"), [(False, 3), (True, 1)], ids=["unroll", "adjoint of grey images"]
)
def test_compiled_it_equals_the_plain_loop(
    adjoint: bool, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it, and each function once: a batch has 6 images, in pieces of 3.

    Weights for a single channel lie alike in several memory formats, by different strides.
    """
    said: list[str] = []
    monkeypatch.setattr("dam_lightning.compilation.rank_zero_info", said.append)
    monkeypatch.setattr("dam_lightning.compilation.rank_zero_warn", said.append)
    case = Case(steps=3, batch=6, pool=6, shape=(channels, 8, 8))
    assert_equal(case.match(adjoint, most=3, compile=True), case.expected())
    told = [line.split(" in ")[0] for line in said if line.startswith("Compiled")]
    expected = ["Compiled the student's step", "Compiled the gradient through the student's step"]
    assert told == expected[: 1 + adjoint]
    assert not [line for line in said if "Without" in line]


SECOND_DERIVATIVES: dict[str, tuple[str, dict[str, Any], tuple[int, int, int]]] = {
    "instancenorm": ("ConvNet", {"width": 4, "depth": 2}, SHAPE),
    "groupnorm, maxpool": (
        "ConvNet",
        {"width": 4, "depth": 1, "norm": "groupnorm", "pooling": "maxpool"},
        SHAPE,
    ),
    "layernorm, swish": (
        "ConvNet",
        {"width": 4, "depth": 1, "norm": "layernorm", "activation": "swish"},
        SHAPE,
    ),
    "none, sigmoid": (
        "ConvNet",
        {"width": 4, "depth": 1, "norm": "none", "activation": "sigmoid", "pooling": "none"},
        SHAPE,
    ),
    "AlexNet": ("AlexNet", {}, (3, 32, 32)),
    "VGG11": ("VGG11", {}, (3, 32, 32)),
    "ResNet18": ("ResNet18", {}, (3, 16, 16)),
    "ViTTiny": ("ViTTiny", {}, (3, 16, 16)),
}


@pytest.mark.parametrize("name", SECOND_DERIVATIVES)
def test_slopes_forwards_are_slopes(name: str) -> None:
    """Of every network that is differentiated so: whichever `FlatNetwork.batched` allows."""
    backbone, options, shape = SECOND_DERIVATIVES[name]
    network = FlatNetwork(build_backbone(backbone, shape, CLASSES, options, seed=1).double())
    assert network.batched
    student = Student(network, 100, compile=False)
    images, weights = some(2, *shape), some(2, seed=1)
    parts = network.split(network.initial())
    direction = network.split(some(network.size, seed=2))
    given = parts, images, torch.tensor([0, 2]), weights, None, direction
    backwards = student.slopes(*given)
    forwards = student.slopes_forwards(*given)
    assert_close(network.joined(forwards[0]), network.joined(backwards[0]))
    for ours, theirs in zip(forwards[1:], backwards[1:], strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("adjoint", [False, True], ids=["unroll", "adjoint"])
def test_gradients_are_the_slopes(adjoint: bool) -> None:
    """Finite differences on a network without kinks, by every pixel and by the step size."""
    case = Case(steps=5, activation="sigmoid")
    result = case.match(adjoint, most=3)

    def of_pool(pool: Tensor) -> float:
        return float(case.match(adjoint=False, pool=pool).loss)

    def of_step_size(step_size: Tensor) -> float:
        return float(case.match(adjoint=False, step_size=step_size).loss)

    slope: Callable[..., float] = mtt.central_difference
    generator = numpy_generator(0, "pixels")
    for image in range(POOL):
        at = (image, *(int(generator.integers(size)) for size in SHAPE))
        assert slope(of_pool, case.pool, at, 1e-5) == pytest.approx(
            float(result.images[at]), rel=1e-5, abs=1e-9
        )
    assert slope(of_step_size, case.step_size, (), 1e-6) == pytest.approx(
        float(result.step_size), rel=1e-6
    )


@pytest.mark.parametrize("adjoint", [False, True], ids=["unroll", "adjoint"])
def test_arguments_stay_as_they_are(adjoint: bool) -> None:
    """And their own graph, as that of the masked views, takes no part."""
    case = Case(steps=2)
    leaf = case.pool.clone().requires_grad_()
    pool, step_size = leaf * 1, case.step_size.clone().requires_grad_()
    result = case.match(adjoint, pool=pool, step_size=step_size)
    assert not any(tensor.requires_grad for tensor in result)
    assert leaf.grad is None
    assert step_size.grad is None
    assert torch.equal(leaf.detach(), case.pool)
    assert torch.equal(result.images, case.match(adjoint).images)


class Memory(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make, while they are alive.

    What was there before, and views of it, does not count.
    """

    def __init__(self, *before: Any) -> None:
        super().__init__()
        self.most = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self._before = {
            StorageWeakRef(leaf.untyped_storage()).cdata
            for leaf in torch.utils._pytree.tree_leaves(before)
            if isinstance(leaf, Tensor)
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)
                if reference.cdata not in self._before:
                    self._alive[reference.cdata] = (reference, storage.nbytes())
        self._alive = {k: pair for k, pair in self._alive.items() if not pair[0].expired()}
        self.most = max(self.most, sum(size for _, size in self._alive.values()))
        return made


def most_memory(steps: int, adjoint: bool, most: int = 100) -> int:
    case = Case(steps, batch=POOL)
    batches = case.batches()
    student = Student(case.network, most, compile=False)
    given = case.pool, case.labels, batches, case.step_size, case.start, case.target
    with Memory(given) as memory:
        student.match(*given, adjoint=adjoint)
    return memory.most


def test_the_adjoint_keeps_nothing_of_a_step_but_the_parameters() -> None:
    parameters = Case().start.nbytes
    growth = most_memory(6, adjoint=True) - most_memory(2, adjoint=True)
    assert growth == 4 * parameters
    # The count can fail: the graph of a step is many times as large.
    growth = most_memory(6, adjoint=False) - most_memory(2, adjoint=False)
    assert growth > 4 * 20 * parameters


def test_the_adjoint_keeps_a_piece_at_a_time() -> None:
    """Activations of one image at a time take a seventh of those of all; weights, no less."""
    whole, single = most_memory(2, adjoint=True), most_memory(2, adjoint=True, most=1)
    assert single < whole / 2


def test_batches_go_through_the_pool_in_new_orders() -> None:
    case = Case(steps=6)
    batches = [batch.indices.tolist() for batch in case.batches()]
    assert [len(batch) for batch in batches] == [4, 3, 4, 3, 4, 3]
    orders = [batches[i] + batches[i + 1] for i in (0, 2, 4)]
    assert all(sorted(order) == list(range(POOL)) for order in orders)
    assert orders[0] != orders[1] != orders[2]


def test_a_batch_has_one_operation_with_parameters_for_each_image() -> None:
    case = Case(steps=40, augmentation="crop_scale")
    seen = set()
    for batch in case.batches():
        assert batch.augmentation is not None
        color, warp, _ = batch.augmentation
        assert color.dtype == warp.dtype == torch.float64
        assert len(warp) == len(batch.indices)
        shifts, scales = warp[:, :, 2], warp[:, (0, 1), (0, 1)]
        operation = "scale" if bool((scales != 1).any()) else "crop"
        if operation == "scale":
            assert bool((shifts == 0).all())
            assert len(scales[:, 0].unique()) == len(batch.indices)
        seen.add(operation)
    assert seen == {"crop", "scale"}
