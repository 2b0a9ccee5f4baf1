"""Handwritten digits in four styles: a small multi-domain data set that needs no download.

The 1,797 handwritten digits of 8 x 8 pixels that scikit-learn bundles (its ``load_digits``: the
test part of Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
Repository, 1998) are drawn at 32 x 32 pixels in colour as ink on paper, chalk on a board, a neon
sign and cross stitch on cloth. The styles are the domains. The split is made between handwritten
digits before anything is drawn: no digit is in both parts, in any style.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor

from dam_lightning.data.base import ResidentDataModule
from dam_lightning.data.resident import Split
from dam_lightning.randomness import numpy_generator

__all__ = ["STYLES", "Digits", "render_digits"]

_SIZE = 32
_FINE = 2 * _SIZE  # strokes are drawn at twice the size and averaged, so that edges are smooth
_TEST_SHARE = 0.2


class _Draws:
    """Uniform and normal draws for the N digits of one style, from one generator."""

    def __init__(self, seed: int, style: str, count: int) -> None:
        self._generator = numpy_generator(seed, f"digits/{style}")
        self._count = count

    def uniform(self, low: float, high: float) -> Tensor:
        """(N, 1, 1, 1) uniform in [low, high)."""
        draws = self._generator.random((self._count, 1, 1, 1), dtype=np.float32)
        return torch.from_numpy(draws) * (high - low) + low

    def choice(self, values: list[list[float]]) -> Tensor:
        """(N, V, 1, 1) one of the rows of ``values`` each."""
        rows = self._generator.integers(len(values), size=self._count)
        return torch.tensor(values)[torch.from_numpy(rows)][:, :, None, None]

    def noise(self, size: int) -> Tensor:
        """(N, 1, 32, 32) standard normal at ``size`` x ``size`` points, enlarged smoothly."""
        draws = self._generator.standard_normal((self._count, 1, size, size), dtype=np.float32)
        noise = torch.from_numpy(draws)
        if size == _SIZE:
            return noise
        return F.interpolate(noise, size=(_SIZE, _SIZE), mode="bilinear", align_corners=False)


def _field(digits: Tensor, draws: _Draws) -> Tensor:
    """(N, 1, 8, 8) coverage in [0, 1] -> (N, 1, 64, 64), smooth, a little moved, turned, zoomed."""
    angle = draws.uniform(-10, 10) * (math.pi / 180)
    # Sampling at coordinates above 1 shrinks: the box that strokes fill gets a margin around it.
    zoom_x, zoom_y = 1 / draws.uniform(0.75, 0.92), 1 / draws.uniform(0.75, 0.88)
    cos, sin = angle.cos(), angle.sin()
    centres = (torch.arange(_FINE) + 0.5) * (2 / _FINE) - 1
    x, y = centres.view(1, 1, 1, -1), centres.view(1, 1, -1, 1)
    source_x = zoom_x * (cos * x - sin * y) + draws.uniform(-0.12, 0.12)
    source_y = zoom_y * (sin * x + cos * y) + draws.uniform(-0.12, 0.12)
    grid = torch.stack([source_x, source_y], dim=-1).squeeze(1)
    return F.grid_sample(digits, grid, mode="bicubic", padding_mode="zeros", align_corners=False)


def _blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (N, 1, H, W), one axis after the other."""
    radius = math.ceil(2.5 * sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    images = F.conv2d(images, kernel.view(1, 1, 1, -1), padding=(0, radius))
    return F.conv2d(images, kernel.view(1, 1, -1, 1), padding=(radius, 0))


def _stroke(field: Tensor, level: Tensor) -> Tensor:
    """(N, 1, 32, 32) in [0, 1]: where the field is above ``level``, with smooth edges."""
    return F.avg_pool2d(torch.sigmoid((field - level) * 14), 2)


def _outline(field: Tensor, level: Tensor, width: float) -> Tensor:
    """(N, 1, 32, 32) in [0, 1]: the border of the stroke, ``width`` in pixels."""
    down = F.pad(field, (0, 0, 1, 1), mode="replicate")
    across = F.pad(field, (1, 1, 0, 0), mode="replicate")
    slope = torch.hypot(down[:, :, 2:] - down[:, :, :-2], across[..., 2:] - across[..., :-2])
    # Distance to the border, to first order. Differences over two fine pixels are slopes per pixel;
    # the small number keeps flat parts far from it.
    distance = (field - level) / (slope + 0.02)
    return F.avg_pool2d(torch.exp(-((distance / width) ** 2)), 2)


def _hue(hue: Tensor, saturation: Tensor | float, value: Tensor | float) -> Tensor:
    """(N, 3, 1, 1) colours of HSV coordinates in [0, 1] (hue periodic)."""
    shift = torch.tensor([5.0, 3.0, 1.0]).view(1, 3, 1, 1)
    k = (shift + hue * 6) % 6
    return value * (1 - saturation * torch.minimum(k, 4 - k).clamp(0, 1))


def _mix(back: Tensor, front: Tensor, share: Tensor) -> Tensor:
    return back + (front - back) * share


def _ramp(draws: _Draws) -> Tensor:
    """(N, 1, 32, 32) from 0 to 1 across the image in a direction of its own."""
    axis = torch.linspace(-1, 1, _SIZE)
    direction = draws.uniform(0, 2 * math.pi)
    ramp = direction.cos() * axis.view(1, 1, 1, -1) + direction.sin() * axis.view(1, 1, -1, 1)
    return ramp / (2 * math.sqrt(2)) + 0.5


def _ink(digits: Tensor, draws: _Draws) -> Tensor:
    """Dark ink on ruled paper."""
    stroke = _stroke(_field(digits, draws), draws.uniform(0.4, 0.52))
    paper = _hue(draws.uniform(0.09, 0.15), draws.uniform(0.04, 0.14), draws.uniform(0.93, 1.0))
    paper = paper + 0.012 * draws.noise(_SIZE)
    rows = torch.arange(_SIZE).view(1, 1, -1, 1)
    ruled = ((rows + draws.uniform(0, 8).floor()) % 8 == 0).float().expand(-1, 1, -1, _SIZE)
    paper = _mix(paper, torch.tensor([0.62, 0.74, 0.9]).view(1, 3, 1, 1), 0.6 * ruled)
    ink = _hue(draws.uniform(0.58, 0.72), draws.uniform(0.5, 0.95), draws.uniform(0.15, 0.45))
    uneven = (0.93 + 0.07 * draws.noise(12)).clamp(0.7, 1)
    return _mix(paper, ink, stroke * uneven)


def _chalk(digits: Tensor, draws: _Draws) -> Tensor:
    """Grainy chalk on a smudged board."""
    stroke = _stroke(_field(digits, draws), draws.uniform(0.46, 0.58))
    board = _hue(draws.uniform(0.36, 0.46), draws.uniform(0.3, 0.6), draws.uniform(0.1, 0.18))
    smudges = (0.02 * draws.noise(5)).abs() + 0.012 * draws.noise(_SIZE)
    chalks = [[0.88, 0.88, 0.84], [0.9, 0.82, 0.5], [0.9, 0.62, 0.66], [0.58, 0.77, 0.88]]
    grain = (0.6 + 0.2 * draws.noise(_SIZE)).clamp(0.15, 1)
    return _mix(board + smudges, draws.choice(chalks), stroke * grain)


def _neon(digits: Tensor, draws: _Draws) -> Tensor:
    """A glowing outline before an evening sky."""
    outline = _outline(_field(digits, draws), draws.uniform(0.36, 0.46), 1.0)
    hue = draws.uniform(0.66, 0.8)
    sky = _mix(
        _hue(hue, 0.85, draws.uniform(0.35, 0.5)),
        _hue(hue + draws.uniform(0.08, 0.2), 0.75, draws.uniform(0.6, 0.8)),
        _ramp(draws),
    )
    light = _hue(draws.uniform(0.1, 0.52), 0.9, 1.0)
    glow = _blur(outline, 2.0)
    picture = sky + light * (0.9 * glow)
    return _mix(picture, 0.45 * light + 0.55, outline.clamp(0, 1))


def _stitch(digits: Tensor, draws: _Draws) -> Tensor:
    """Cross stitch on linen, one stitch for every 2 x 2 pixels."""
    stroke = _stroke(_field(digits, draws), draws.uniform(0.36, 0.48))
    covered = (F.avg_pool2d(stroke, 2) > 0.45).float()
    covered = covered.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
    rows, columns = torch.arange(_SIZE).view(-1, 1), torch.arange(_SIZE).view(1, -1)
    weave = torch.where((rows + columns) % 2 == 0, 0.05, -0.05)
    linen = _hue(draws.uniform(0.07, 0.12), draws.uniform(0.16, 0.3), draws.uniform(0.8, 0.9))
    linen = linen + weave + 0.025 * draws.noise(_SIZE)
    thread = _hue(draws.uniform(0.52, 1.08), draws.uniform(0.75, 0.95), draws.uniform(0.45, 0.65))
    crossed = torch.where((rows + columns) % 2 == 0, 1.1, 0.75)
    return _mix(linen, thread * crossed, covered)


_STYLES: dict[str, Callable[[Tensor, _Draws], Tensor]] = {
    "ink": _ink,
    "chalk": _chalk,
    "neon": _neon,
    "stitch": _stitch,
}
STYLES = tuple(_STYLES)
"""The domains, in the order of their numbers."""


def render_digits(digits: NDArray[np.float64], style: str, seed: int = 0) -> NDArray[np.uint8]:
    """Draw handwritten digits in one style.

    Args:
        digits: (N, 8, 8) in 0 to 16, as scikit-learn's ``load_digits`` gives them.
        style: one of `STYLES`.
        seed: of colour, thickness, place and texture, which differ from image to image.

    Returns:
        (N, 3, 32, 32) uint8 images.
    """
    strokes = torch.from_numpy(digits.astype(np.float32) / 16).unsqueeze(1)
    images = _STYLES[style](strokes, _Draws(seed, style, len(digits)))
    pixels: NDArray[np.uint8] = (images.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return pixels


class Digits(ResidentDataModule):
    """Handwritten digits drawn as ink, chalk, neon and cross stitch; 32 x 32 RGB, no download.

    Every handwritten digit is drawn once in each of the four styles, which are the domains. Of each
    class a fifth of the handwritten digits is for testing: 1,438 x 4 training and 359 x 4 test
    images. ``paths`` name style, class and the number of the digit in scikit-learn's set, e.g.
    ``chalk/3/0123``.

    Arguments are those of `ResidentDataModule`.
    """

    class_names = tuple("0123456789")
    domain_names = STYLES

    def load_splits(self) -> Mapping[str, Split]:
        """Split the handwritten digits, then draw them; about a second."""
        source = load_digits()
        labels = torch.from_numpy(source.target.astype(np.int64))
        drawn = [torch.from_numpy(render_digits(source.images, style)) for style in STYLES]
        numbers = self._numbers(labels)
        return {name: _split(drawn, labels, numbers[name]) for name in ("train", "test")}

    def hold_out(self, train: Split) -> Tensor:
        """Choose handwritten digits, so that none is in both parts, in any style."""
        styles = len(set(train.domains.tolist()))
        once = train.subset(torch.arange(len(train) // styles))
        return super().hold_out(once).repeat(styles)

    def _numbers(self, labels: Tensor) -> dict[str, Tensor]:
        """The numbers of the training and the test digits, ascending."""
        test = torch.zeros(len(labels), dtype=torch.bool)
        for label in range(self.num_classes):
            members = (labels == label).nonzero().squeeze(1)
            generator = numpy_generator(self.split_seed, "digits/split", group=label)
            order = torch.from_numpy(generator.permutation(len(members)))
            test[members[order[: round(_TEST_SHARE * len(members))]]] = True
        return {"train": (~test).nonzero().squeeze(1), "test": test.nonzero().squeeze(1)}


def _split(drawn: list[Tensor], labels: Tensor, numbers: Tensor) -> Split:
    """The digits ``numbers`` in every style, style by style."""
    paths = [f"{style}/{labels[n]}/{n:04d}" for style in STYLES for n in numbers.tolist()]
    return Split(
        torch.cat([images[numbers] for images in drawn]),
        labels[numbers].repeat(len(drawn)),
        torch.arange(len(drawn)).repeat_interleave(len(numbers)),
        paths,
    )
