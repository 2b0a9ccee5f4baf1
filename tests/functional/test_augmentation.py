"""Differentiable Siamese augmentation against the plain loop, and what holds besides."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from dam_lightning.functional import (
    DSA,
    OPERATIONS,
    AugmentationParameters,
    augment,
    augmentation_parameters,
    strategy_operations,
)
from tests.reference import augmentation as reference

few = settings(max_examples=30, deadline=None, derandomize=True)
sizes = st.tuples(st.integers(2, 12), st.integers(2, 12))
uniform = st.floats(0, 1, exclude_max=True)

LAST = math.nextafter(1.0, 0.0)
SIZES = [(12, 12), (10, 16), (9, 7)]
UNIFORMS = [(0.0, 0.0, 0.0), (LAST, LAST, LAST), (0.0, LAST, 0.3), (0.31, 0.77, 0.62)]
UNIFORMS += [(0.87, 0.13, 0.05), (0.5, 0.5, 0.5), (0.64, 0.05, 0.9)]

PRECISIONS = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["64", "32"]
)
EACH_OPERATION = pytest.mark.parametrize("operation", OPERATIONS)
EACH_SIZE = pytest.mark.parametrize("size", SIZES, ids=str)


def select(parameters: AugmentationParameters, rows: object) -> AugmentationParameters:
    """The parameters of some groups."""
    return AugmentationParameters(*(t[rows] for t in parameters))


def pictures(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def parameters_for(
    names: Sequence[str], uniforms: Tensor, size: tuple[int, int]
) -> AugmentationParameters:
    numbers = torch.tensor([OPERATIONS.index(name) for name in names])
    return augmentation_parameters(numbers, uniforms, size)


def plain(images: Tensor, operation: str, uniforms: Sequence[float]) -> Tensor:
    """One operation on images (B, C, H, W) that share its parameters."""
    height, width = images.shape[-2:]
    if operation == "rotate" and height != width:
        # A rotation of pixels; the original's, of coordinates from -1 to 1, shears such images.
        angle = math.radians((uniforms[0] - 0.5) * 2 * reference.ROTATE_DEGREES)
        aspect = (height - 1) / (width - 1)
        sine, cosine = math.sin(angle), math.cos(angle)
        return reference.warp(images, [[cosine, -sine * aspect, 0], [sine / aspect, cosine, 0]])
    return reference.apply(images, operation, uniforms)


def assert_same_values_and_gradients(
    ours: Any, theirs: Any, images: Tensor, dtype: torch.dtype, tolerance: float
) -> None:
    towards = pictures(*images.shape, seed=99)
    results = []
    for as_type, function in ((torch.float64, theirs), (dtype, ours)):
        x = images.to(as_type, copy=True).requires_grad_()
        changed = function(x)
        (gradient,) = torch.autograd.grad((changed * towards.to(as_type)).sum(), x)
        assert changed.dtype == gradient.dtype == as_type
        results.append((changed.detach().double(), gradient.double()))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


# Against the plain loop.


@PRECISIONS
@EACH_SIZE
@EACH_OPERATION
def test_a_group_equals_the_plain_loop(
    operation: str, size: tuple[int, int], dtype: torch.dtype, tolerance: float
) -> None:
    images = pictures(2, 3, *size)
    for uniforms in UNIFORMS:
        drawn = torch.tensor([uniforms], dtype=torch.float64).to(dtype)
        drawn = drawn.clamp(max=1 - torch.finfo(dtype).eps / 2)  # below 1 in this type too
        parameters = parameters_for([operation], drawn, size)
        exact = drawn[0].tolist()
        assert_same_values_and_gradients(
            lambda x, p=parameters: augment(x.unsqueeze(0), p).squeeze(0),
            lambda x, u=exact: plain(x, operation, u),
            images,
            dtype,
            tolerance,
        )


@PRECISIONS
@EACH_SIZE
def test_groups_with_different_operations_equal_the_plain_loop(
    size: tuple[int, int], dtype: torch.dtype, tolerance: float
) -> None:
    names = [*OPERATIONS, *reversed(OPERATIONS)]
    images, uniforms = pictures(len(names), 2, 3, *size), draws(len(names)).to(dtype)
    parameters = parameters_for(names, uniforms, size)

    def theirs(x: Tensor) -> Tensor:
        groups = zip(x, names, uniforms.tolist(), strict=True)
        return torch.stack([plain(group, name, own) for group, name, own in groups])

    assert_same_values_and_gradients(
        lambda x: augment(x, parameters), theirs, images, dtype, tolerance
    )


@PRECISIONS
@EACH_OPERATION
def test_parameters_of_each_image_equal_the_plain_loop(
    operation: str, dtype: torch.dtype, tolerance: float
) -> None:
    size = (12, 12)
    images, uniforms = pictures(5, 3, *size), draws(5).to(dtype)

    def theirs(x: Tensor) -> Tensor:
        return reference.apply_per_sample(x, operation, uniforms.tolist())

    one_group = parameters_for([operation], uniforms.unsqueeze(0), size)
    ungrouped = parameters_for([operation] * 5, uniforms, size)
    assert_same_values_and_gradients(
        lambda x: augment(x.unsqueeze(0), one_group).squeeze(0), theirs, images, dtype, tolerance
    )
    assert_same_values_and_gradients(
        lambda x: augment(x, ungrouped), theirs, images, dtype, tolerance
    )


def test_images_of_groups_with_parameters_of_their_own() -> None:
    size = (9, 7)
    images, uniforms = pictures(6, 3, 2, *size), draws(6, 3)
    changed = augment(images, parameters_for(OPERATIONS, uniforms, size))
    for group, name in enumerate(OPERATIONS):
        for image in range(3):
            own = uniforms[group, image].tolist()
            expected = plain(images[group, image : image + 1], name, own)[0]
            torch.testing.assert_close(changed[group, image], expected, atol=1e-9, rtol=1e-9)


def test_groups_together_equal_groups_alone() -> None:
    size = (10, 8)
    images, uniforms = pictures(6, 4, 3, *size), draws(6)
    parameters = parameters_for(OPERATIONS, uniforms, size)
    together = augment(images, parameters)
    for group in range(6):
        alone = augment(images[group : group + 1], select(parameters, [group]))
        torch.testing.assert_close(together[group : group + 1], alone, atol=1e-14, rtol=1e-14)
    order = torch.tensor([4, 0, 5])
    selected = augment(images[order], select(parameters, order))
    torch.testing.assert_close(selected, together[order], atol=1e-14, rtol=1e-14)


def test_real_and_synthetic_images_get_the_same_transform() -> None:
    """Siamese: what a group's images become does not depend on how many there are."""
    images, uniforms = pictures(6, 5, 3, 12, 12), draws(6)
    parameters = parameters_for(OPERATIONS, uniforms, (12, 12))
    several, single = augment(images, parameters), augment(images[:, :1], parameters)
    torch.testing.assert_close(several[:, :1], single, atol=1e-14, rtol=1e-14)


@few
@given(st.integers(0, 5), st.tuples(uniform, uniform, uniform), sizes, st.integers(0, 99))
def test_any_draw_equals_the_plain_loop(
    number: int, uniforms: tuple[float, float, float], size: tuple[int, int], seed: int
) -> None:
    images = pictures(1, 2, *size, seed=seed)
    parameters = parameters_for(
        [OPERATIONS[number]], torch.tensor([uniforms], dtype=torch.float64), size
    )
    assert_same_values_and_gradients(
        lambda x: augment(x, parameters),
        lambda x: plain(x, OPERATIONS[number], uniforms),
        images,
        torch.float64,
        1e-9,
    )


# What must be exact.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@EACH_SIZE
def test_nothing_chosen_changes_nothing(size: tuple[int, int], dtype: torch.dtype) -> None:
    images = pictures(3, 2, 3, *size, dtype=dtype).requires_grad_()
    towards = pictures(3, 2, 3, *size, seed=1, dtype=dtype)
    unflipped = parameters_for(["flip"] * 3, torch.full((3, 3), 0.5, dtype=dtype), size)
    changed = augment(images, unflipped)
    (gradient,) = torch.autograd.grad(changed, images, towards)
    assert torch.equal(changed, images)
    assert torch.equal(gradient, towards)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@EACH_SIZE
def test_flip_crop_and_cutout_only_move_or_erase(size: tuple[int, int], dtype: torch.dtype) -> None:
    """Colours and the pixels' places are exact, although the same call could change both."""
    images = pictures(2, 3, *size, dtype=dtype)
    for operation in ("flip", "crop", "cutout"):
        for uniforms in UNIFORMS[:1] + UNIFORMS[3:]:
            drawn = torch.tensor([uniforms], dtype=dtype)
            parameters = parameters_for([operation], drawn, size)
            x = images.clone().requires_grad_()
            y = images.clone().requires_grad_()
            changed = augment(x.unsqueeze(0), parameters).squeeze(0)
            expected = reference.apply(y, operation, drawn[0].tolist())
            assert torch.equal(changed, expected)
            (gradient,) = torch.autograd.grad(changed, x, images)
            (expected_gradient,) = torch.autograd.grad(expected, y, images)
            assert torch.equal(gradient, expected_gradient)


@EACH_SIZE
def test_flipping_twice_gives_the_image_back(size: tuple[int, int]) -> None:
    images = pictures(4, 3, *size, dtype=torch.float32)
    parameters = parameters_for(["flip"] * 4, torch.zeros(4, 3), size)
    flipped = augment(images, parameters)
    assert torch.equal(flipped, images.flip(-1))
    assert torch.equal(augment(flipped, parameters), images)


def test_warps_and_cutout_leave_colours_alone() -> None:
    """Where a picture is one colour, it keeps it to the last bit, or falls to zero."""
    images = torch.full((6, 1, 3, 16, 16), 0.7)
    images[:, :, 1] = -1.3
    parameters = parameters_for(OPERATIONS, draws(6).float(), (16, 16))
    for name in ("crop", "cutout", "flip"):
        changed = augment(images, parameters)[OPERATIONS.index(name), 0]
        kept = changed[0] != 0
        assert torch.equal(changed[:, kept], images[0, 0][:, kept])


# Gradients.


@EACH_OPERATION
def test_gradients_of_both_orders(operation: str) -> None:
    size = (5, 4)
    parameters = parameters_for([operation] * 2, draws(2, seed=3), size)
    images = pictures(2, 1, 3, *size).requires_grad_()

    def smooth(x: Tensor) -> Tensor:
        return torch.tanh(augment(x, parameters))

    assert gradcheck(lambda x: augment(x, parameters), (images,))
    assert gradcheck(smooth, (images,))
    assert gradgradcheck(smooth, (images,))


@few
@given(
    st.sampled_from(["crop", "flip", "scale", "rotate"]),
    st.tuples(uniform, uniform, uniform),
    sizes,
)
def test_the_backward_is_the_transpose(
    operation: str, uniforms: tuple[float, float, float], size: tuple[int, int]
) -> None:
    """<W x, y> = <x, W' y>, and the derivative of the backward is the forward again."""
    drawn = torch.tensor([uniforms], dtype=torch.float64)
    parameters = parameters_for([operation], drawn, size)
    x = pictures(1, 2, *size).requires_grad_()
    y = pictures(1, 2, *size, seed=1).requires_grad_()
    (transposed,) = torch.autograd.grad(augment(x, parameters), x, y, create_graph=True)
    forward = (augment(x, parameters) * y).sum().item()
    assert (x * transposed).sum().item() == pytest.approx(forward, rel=1e-9, abs=1e-9)
    (again,) = torch.autograd.grad(transposed, y, x)
    torch.testing.assert_close(again, augment(x, parameters), atol=1e-12, rtol=1e-12)


@EACH_OPERATION
def test_function_transforms(operation: str) -> None:
    size = (6, 5)
    images, towards = pictures(4, 2, 3, *size), pictures(2, 3, *size, seed=1)
    shared = parameters_for([operation] * 2, draws(2), size)
    own = parameters_for([operation] * 4, draws(4, 2), size)

    def loss(x: Tensor, p: AugmentationParameters) -> Tensor:
        return (torch.tanh(augment(x, p)) * towards).sum()

    for parameters, in_dim in ((shared, None), (own, 0)):
        together = torch.func.vmap(augment, in_dims=(0, in_dim))(images, parameters)
        slopes = torch.func.vmap(torch.func.grad(loss), in_dims=(0, in_dim))(images, parameters)
        for n in range(4):
            mine = shared if in_dim is None else select(own, n)
            torch.testing.assert_close(together[n], augment(images[n], mine))
            x = images[n].clone().requires_grad_()
            torch.testing.assert_close(slopes[n], *torch.autograd.grad(loss(x, mine), x))
    twice = torch.func.vmap(torch.func.grad(lambda x: torch.func.grad(loss)(x, shared).sum()))
    assert bool(twice(images).isfinite().all())


UNORDERED = (
    "scatter",
    "index_put",
    "index_add",
    "index_copy",
    "index_reduce",
    "put_",
    "embedding",
    "grid_sampler",
    "upsample",
    "gather_backward",
    "bincount",
    "cumsum",
)
"""Parts of the names of operations whose sums a GPU may add in any order."""


class Recorded(TorchDispatchMode):
    """The names of all operations, those of the backward passes too."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))

    @property
    def unordered(self) -> set[str]:
        return {name for name in self.names if any(part in name for part in UNORDERED)}


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def test_no_operation_adds_in_an_order_of_its_own() -> None:
    """So that a GPU's gradients, of the second order too, are the same in every run."""
    images = pictures(6, 2, 3, 8, 8, dtype=torch.float32).requires_grad_()
    parameters = parameters_for(OPERATIONS, draws(6).float(), (8, 8))
    with deterministic(), Recorded() as recorded:
        changed = torch.tanh(augment(images, parameters))
        (slope,) = torch.autograd.grad(changed.sum(), images, create_graph=True)
        slope.square().sum().backward()
    assert "aten.gather.default" in recorded.names
    assert recorded.unordered == set()


def test_the_recorder_sees_the_usual_ways_of_sampling() -> None:
    """Without this the test above could pass by looking away."""
    images = pictures(2, 3, 8, 8, dtype=torch.float32).requires_grad_()
    with Recorded() as recorded:
        reference.scale(images, 0.9, 1.1).sum().backward()
    assert recorded.unordered == {
        "aten.grid_sampler_2d.default",
        "aten.grid_sampler_2d_backward.default",
    }
    with Recorded() as recorded:
        images.gather(3, torch.zeros(2, 3, 8, 2, dtype=torch.int64)).sum().backward()
    assert any("scatter_add" in name for name in recorded.unordered)


# Parameters.


def test_operations_of_a_strategy() -> None:
    assert DSA == "color_crop_cutout_flip_scale_rotate"
    assert strategy_operations(DSA) == (0, 1, 2, 3, 4, 5)
    assert strategy_operations("rotate_color") == (5, 0)
    assert strategy_operations("flip") == (3,)


@pytest.mark.parametrize("strategy", ["", "color_", "color_blur", "Color", "color-crop", "none"])
def test_unknown_operations_are_refused(strategy: str) -> None:
    with pytest.raises(ValueError, match=r"is no operation; join some of color, crop"):
        strategy_operations(strategy)


@few
@given(
    st.lists(st.tuples(st.integers(0, 5), uniform, uniform, uniform), min_size=1, max_size=8),
    st.tuples(st.integers(2, 70), st.integers(2, 70)),
)
def test_parameters_lie_in_their_ranges(
    drawn: list[tuple[int, float, float, float]], size: tuple[int, int]
) -> None:
    names = [OPERATIONS[operation] for operation, *_ in drawn]
    uniforms = torch.tensor([u for _, *u in drawn], dtype=torch.float64)
    parameters = parameters_for(names, uniforms, size)
    assert [tuple(p.shape) for p in parameters] == [
        (len(drawn), 3),
        (len(drawn), 2, 3),
        (len(drawn), 4),
    ]
    for name, color, warp, cutout in zip(names, *parameters, strict=True):
        if name == "color":
            low, high = torch.tensor([[-0.5, 0, 0.5], [0.5, 2, 1.5]], dtype=torch.float64)
            assert bool(((color >= low) & (color <= high)).all())
        else:
            assert color.tolist() == [0, 1, 1]
        if name == "crop":
            assert warp[:, :2].equal(torch.eye(2, dtype=torch.float64))
            for shift, side in zip(warp[:, 2].tolist(), reversed(size), strict=True):
                assert shift == round(shift)
                assert abs(shift) <= int(side / 8 + 0.5)
        else:
            assert warp[:, 2].tolist() == [0, 0]
        if name in ("color", "cutout"):
            assert warp[:, :2].equal(torch.eye(2, dtype=torch.float64))
        if name == "cutout":
            top, bottom, left, right = cutout.tolist()
            assert 0 <= top <= bottom < size[0]
            assert 0 <= left <= right < size[1]
            assert bottom - top < size[0] / 2 + 1
            assert right - left < size[1] / 2 + 1
        else:
            assert cutout[1] < cutout[0]


def test_crop_reaches_every_shift_alike() -> None:
    """32 pixels move by -4 to 4, in each direction on its own."""
    steps = torch.arange(0, 9, dtype=torch.float64) / 9 + 1e-6
    uniforms = torch.cartesian_prod(steps, steps, torch.zeros(1, dtype=torch.float64))
    parameters = parameters_for(["crop"] * 81, uniforms, (32, 32))
    shifts = {(x, y) for x, y in parameters.warp[:, :, 2].tolist()}
    assert shifts == {(x, y) for x in range(-4, 5) for y in range(-4, 5)}
    # The first number moves up and down, as in the original.
    assert parameters_for(["crop"], uniforms[:1], (32, 64)).warp[0, :, 2].tolist() == [-8, -4]


def test_draws_keep_their_type_and_their_leading_dimensions() -> None:
    for dtype in (torch.float32, torch.float64):
        parameters = parameters_for(["color", "crop"], draws(2, 5).to(dtype), (8, 8))
        assert [p.dtype for p in parameters] == [dtype] * 3
        assert [tuple(p.shape) for p in parameters] == [(2, 5, 3), (2, 5, 2, 3), (2, 5, 4)]
        assert parameters.on(torch.zeros(())).warp.dtype == torch.float32
        assert parameters.on(torch.zeros((), device="meta")).color.device.type == "meta"


def test_parameters_are_cast_to_the_images_type() -> None:
    images, parameters = pictures(6, 3, 8, 8), parameters_for(OPERATIONS, draws(6).float(), (8, 8))
    changed = augment(images, parameters)
    assert changed.dtype == torch.float64
    assert torch.equal(changed, augment(images, parameters.on(images)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.uint8])
def test_coarse_types_are_refused(dtype: torch.dtype) -> None:
    parameters = parameters_for(["rotate"], draws(1), (8, 8))
    with pytest.raises(ValueError, match="float32 or float64, got"):
        augment(torch.zeros(1, 3, 8, 8, dtype=dtype), parameters)


@pytest.mark.parametrize(
    ("images", "leading"),
    [
        ((3, 3, 8, 8), (2,)),
        ((1, 2, 3, 8, 8), (2,)),
        ((2, 3, 8, 8), (2, 3)),
        ((2, 3, 3, 8, 8), (2, 4)),
        ((3, 8, 8), (1,)),
    ],
)
def test_parameters_must_fit_the_images(images: tuple[int, ...], leading: tuple[int, ...]) -> None:
    parameters = parameters_for(["flip"] * leading[0], draws(*leading), (8, 8))
    with pytest.raises(ValueError, match="do not fit images of shape"):
        augment(torch.zeros(images), parameters)
