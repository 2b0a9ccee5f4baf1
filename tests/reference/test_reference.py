"""The plain loops against torchvision, PyTorch and closed forms."""

import math

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from torch import Tensor

from . import augmentation, convnet, dm, evaluation, fourier


def pictures(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def bilinear(images: Tensor, theta: list[list[float]]) -> Tensor:
    """Affine sampling, corners aligned, from the definition."""
    _, _, height, width = images.shape
    out = torch.zeros_like(images)
    for i in range(height):
        for j in range(width):
            x, y = 2 * j / (width - 1) - 1, 2 * i / (height - 1) - 1
            column = (theta[0][0] * x + theta[0][1] * y + theta[0][2] + 1) / 2 * (width - 1)
            row = (theta[1][0] * x + theta[1][1] * y + theta[1][2] + 1) / 2 * (height - 1)
            for r in (math.floor(row), math.floor(row) + 1):
                for c in (math.floor(column), math.floor(column) + 1):
                    if 0 <= r < height and 0 <= c < width:
                        share = (1 - abs(row - r)) * (1 - abs(column - c))
                        out[:, :, i, j] += share * images[:, :, r, c]
    return out


def test_flip_and_crop_equal_torchvision() -> None:
    x = pictures(2, 3, 16, 24)
    assert torch.equal(augmentation.flip(x), TF.horizontal_flip(x))
    for row_shift, column_shift in [(0, 0), (2, -3), (-2, 3), (1, 1)]:
        moved = TF.crop(x, row_shift, column_shift, 16, 24)  # pads with 0 where it must
        assert torch.equal(augmentation.crop(x, row_shift, column_shift), moved)


def test_color_equals_torchvision_on_valid_colours() -> None:
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = x * 0.3 + 0.35  # far enough from 0 and 1 that torchvision clips nothing
    grey = x.mean(1, keepdim=True).expand_as(x)
    assert torch.allclose(augmentation.saturation(x, 0.0), grey)
    assert torch.allclose(augmentation.saturation(x, 1.0), x)
    # A grey image's mean is the same by either definition of grey.
    expected = TF.adjust_contrast(grey, 1.3)
    assert torch.allclose(augmentation.contrast(grey, 1.3), expected, atol=1e-3)
    assert torch.allclose(augmentation.brightness(x, 0.1) - x, torch.full_like(x, 0.1))


def test_rotate_equals_torchvision_on_squares() -> None:
    x = pictures(2, 3, 32, 32)
    for degrees in (-15.0, -4.0, 7.5, 14.0):
        expected = TF.rotate(x, degrees, interpolation=TF.InterpolationMode.BILINEAR)
        # torchvision builds its sampling grid in float32.
        assert torch.allclose(augmentation.rotate(x, degrees), expected, atol=1e-4)


@pytest.mark.parametrize("size", [(9, 9), (8, 12)])
def test_warps_equal_the_definition_of_bilinear_sampling(size: tuple[int, int]) -> None:
    x = pictures(1, 2, *size)
    theta = [[0.9, 0.0, 0.0], [0.0, 1.15, 0.0]]
    assert torch.allclose(augmentation.scale(x, 0.9, 1.15), bilinear(x, theta))
    a = math.radians(11.0)
    theta = [[math.cos(a), -math.sin(a), 0.0], [math.sin(a), math.cos(a), 0.0]]
    assert torch.allclose(augmentation.rotate(x, 11.0), bilinear(x, theta))


def test_cutout_and_the_extremes_of_the_uniforms() -> None:
    x = torch.ones(1, 1, 32, 32)
    assert augmentation.apply(x, "cutout", (0.0, 0.0, 0.0)).eq(0).sum() == 8 * 8
    assert augmentation.apply(x, "cutout", (0.5, 0.5, 0.0)).eq(0).sum() == 16 * 16
    last = math.nextafter(1.0, 0.0)
    assert augmentation.apply(x, "cutout", (last, last, 0.0)).eq(0).sum() == 8 * 8
    assert augmentation.apply(x, "crop", (0.0, 0.5, 0.0))[0, 0, :, 0].eq(0).sum() == 4
    assert augmentation.apply(x, "crop", (last, 0.5, 0.0))[0, 0, 31, 0] == 0
    y = pictures(1, 3, 32, 32)
    assert torch.equal(augmentation.apply(y, "flip", (0.5, 0.0, 0.0)), y)
    assert not torch.equal(augmentation.apply(y, "flip", (0.49, 0.0, 0.0)), y)
    assert torch.allclose(augmentation.apply(y, "rotate", (0.5, 0.0, 0.0)), y)
    assert torch.allclose(augmentation.apply(y, "color", (0.5, 0.5, 0.5)), y)


def test_per_sample_equals_each_image_alone() -> None:
    x = pictures(3, 3, 16, 16)
    u = [[0.1, 0.9, 0.3], [0.7, 0.2, 0.5], [0.4, 0.4, 0.9]]
    for operation in augmentation.OPERATIONS:
        together = augmentation.apply_per_sample(x, operation, u)
        for n in range(3):
            assert torch.equal(together[n], augmentation.apply(x[n : n + 1], operation, u[n])[0])


def test_views_sum_to_the_images() -> None:
    x, z = pictures(4, 3, 6, 6), pictures(4, 5, 3, 6, 6)
    views = torch.stack(dm.domain_views(x, z, 0.1))
    assert torch.allclose(views.sum(0), x)
    weights = torch.softmax(z / 0.1, dim=1)
    assert torch.allclose(views, (x.unsqueeze(1) * weights).transpose(0, 1))


def test_dm_gradient_has_the_closed_form_of_linear_features() -> None:
    x, real = pictures(4, 3, 4, 4), pictures(2, 7, 3, 4, 4)
    result = dm.dm_step(x, 2, None, 0.0, 0.1, lambda b: b, list(real))
    for c in range(2):
        difference = x[2 * c : 2 * c + 2].mean(0) - real[c].mean(0)
        # d |mean - target|^2 / d x_m = 2 (mean - target) / ipc
        assert torch.allclose(result.grad_images[2 * c], difference)
        assert torch.allclose(result.grad_images[2 * c + 1], difference)
    assert result.loss_domain == 0
    assert result.grad_logits is None


def test_dm_loop_equals_torch_sgd() -> None:
    images, logits = pictures(4, 3, 8, 8), pictures(4, 3, 3, 8, 8) * 0.05
    network = convnet.ConvNet(3, 2, width=4, depth=2, image_size=(8, 8)).double()
    steps = []
    for k in range(3):
        chosen: list[dm.Augmentation] = [
            (augmentation.OPERATIONS[(k + g) % 6], (0.2, 0.6, 0.7)) for g in range(3)
        ]
        steps.append(
            dm.StepInputs(
                network.embed,
                list(pictures(2, 5, 3, 8, 8) + k),
                list(pictures(3, 5, 3, 8, 8) - k),
                chosen[:2],
                chosen,
            )
        )
    result = dm.dm_loop(images, 2, logits, 0.1, 0.1, steps, lr_images=0.5, lr_masks=0.2)
    x, z = images.clone().requires_grad_(), logits.clone().requires_grad_()
    optimizer = torch.optim.SGD(
        [{"params": [x], "lr": 0.5}, {"params": [z], "lr": 0.2}], momentum=0.5
    )
    for inputs in steps:
        step = dm.dm_step(x, 2, z, 0.1, 0.1, *inputs)
        x.grad, z.grad = step.grad_images, step.grad_logits
        optimizer.step()
    assert torch.allclose(result.images, x, atol=1e-12)
    assert result.logits is not None
    assert torch.allclose(result.logits, z, atol=1e-12)
    assert not torch.equal(z, logits)


def test_dm_gradients_against_finite_differences() -> None:
    images, logits = pictures(2, 3, 4, 4), pictures(2, 2, 3, 4, 4) * 0.05
    real_c, real_d = list(pictures(2, 3, 3, 4, 4)), list(pictures(2, 4, 3, 4, 4) + 0.3)
    weights = pictures(48, 6)

    def features(batch: Tensor) -> Tensor:
        return torch.tanh(batch.flatten(1) @ weights)

    def total(x: Tensor, z: Tensor) -> float:
        r = dm.dm_step(x, 1, z, 0.3, 0.1, features, real_c, real_d)
        return float(r.loss_class + 0.3 * r.loss_domain)

    result = dm.dm_step(images, 1, logits, 0.3, 0.1, features, real_c, real_d)
    assert result.grad_logits is not None
    direction_x, direction_z, h = pictures(2, 3, 4, 4), pictures(2, 2, 3, 4, 4), 1e-6
    slope = total(images + h * direction_x, logits + h * direction_z)
    slope = (slope - total(images - h * direction_x, logits - h * direction_z)) / (2 * h)
    expected = (result.grad_images * direction_x).sum() + (result.grad_logits * direction_z).sum()
    assert math.isclose(slope, float(expected), rel_tol=1e-6)


@pytest.mark.parametrize(
    ("classes", "depth", "size", "count"),
    [
        (10, 3, 32, 320_010),
        (100, 3, 32, 504_420),
        (200, 4, 64, 857_160),
        (7, 4, 64, 461_703),
        (5, 4, 64, 457_605),
        (65, 4, 64, 580_545),
    ],
)
def test_convnet_parameter_counts(classes: int, depth: int, size: int, count: int) -> None:
    network = convnet.ConvNet(3, classes, 128, depth, (size, size))
    assert sum(p.numel() for p in network.parameters()) == count
    assert network.embed(torch.zeros(1, 3, size, size)).shape == (1, 2048)


def test_copied_networks_agree() -> None:
    first, second = (convnet.ConvNet(1, 3, 8, 2, (28, 28), norm="group") for _ in range(2))
    x = torch.randn(2, 1, 28, 28)
    assert not torch.allclose(first(x), second(x))
    convnet.copy_parameters(first, second)
    assert torch.equal(first(x), second(x))
    assert first.embed(x).shape == (2, 8 * 8 * 8)


def test_evaluation_schedule_and_result() -> None:
    """Epoch + 1 epochs; smaller step and fresh momentum after index Epoch // 2 + 1."""
    x, y = torch.randn(6, 3, 8, 8), torch.tensor([0, 0, 0, 1, 1, 1])
    network = convnet.ConvNet(3, 2, 8, 1, (8, 8))
    copied = convnet.ConvNet(3, 2, 8, 1, (8, 8))
    convnet.copy_parameters(network, copied)
    permutations = [torch.randperm(6) for _ in range(5)]
    seen: list[tuple[int, int, int]] = []

    def augment(batch: Tensor, epoch: int, number: int) -> Tensor:
        seen.append((epoch, number, len(batch)))
        return batch

    result = evaluation.evaluate_synset(network, x, y, x, y, 4, permutations, augment, batch_size=4)
    assert seen == [(e, n, size) for e in range(5) for n, size in ((0, 4), (1, 2))]
    assert len(result.train_losses) == 5
    assert 0 <= result.accuracy <= 1

    velocities = [torch.zeros_like(p) for p in copied.parameters()]
    for e in range(5):
        if e == 4:  # after index 3 = 4 // 2 + 1
            velocities = [torch.zeros_like(p) for p in copied.parameters()]
        for chosen in permutations[e].split(4):
            loss = torch.nn.functional.cross_entropy(copied(x[chosen]), y[chosen])
            gradients = torch.autograd.grad(loss, list(copied.parameters()))
            for p, v, g in zip(copied.parameters(), velocities, gradients, strict=True):
                v.mul_(0.9).add_(g + 5e-4 * p.data)
                p.data.sub_((0.01 if e <= 3 else 0.001) * v)
    for a, b in zip(network.parameters(), copied.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_amplitude_equals_torch_and_the_written_transform() -> None:
    image = np.random.default_rng(0).random((3, 20, 30))
    for ratio, half in [(0.01, 0), (0.1, 2), (0.3, 6)]:
        shifted = torch.fft.fftshift(torch.fft.fft2(torch.from_numpy(image)).abs(), dim=(1, 2))
        window = shifted[:, 10 - half : 11 + half, 15 - half : 16 + half]
        score = fourier.low_frequency_amplitude(image, ratio)
        assert math.isclose(score, float(window.mean()), rel_tol=1e-12)
    # The zero frequency alone is the sum of the pixels; that is brightness.
    score = fourier.low_frequency_amplitude(image, 0.01)
    assert math.isclose(score, image.sum() / 3, rel_tol=1e-12)
    # One frequency from the definition.
    rows, columns = np.arange(20)[:, None], np.arange(30)[None, :]
    wave = np.exp(-2j * np.pi * (1 * rows / 20 + 2 * columns / 30))
    assert np.isclose(np.fft.fft2(image[0])[1, 2], (image[0] * wave).sum())


def test_ranking_is_balanced_and_stable() -> None:
    assert fourier.rank_groups([3.0, 1.0, 2.0, 1.0], 2) == [1, 0, 1, 0]
    assert fourier.rank_groups([5.0, 5.0, 5.0, 5.0, 5.0], 2) == [0, 0, 0, 1, 1]
    sizes = np.bincount(fourier.rank_groups(list(np.random.default_rng(1).random(103)), 4))
    assert sizes.sum() == 103
    assert sizes.max() - sizes.min() <= 1
