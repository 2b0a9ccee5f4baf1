"""The picture of pseudo-domains: examples of each, true domains, and scores they were cut by."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from dam_lightning.callbacks.tiles import Page, Pixels, as_tiles, shortened, wrapped
from dam_lightning.data.agreement import DomainAgreement, domain_agreement

__all__ = ["cuts", "draw_scores", "examples", "pseudo_domain_picture"]

_EXAMPLES = 12
_SIDE = 72
_MOST_COLOURS = 20

_MARGIN = 10
_LABELS = 150
_BAR = 110
_STRIP = 5
_HISTOGRAM = 220
_TABLE_ROW = 18
_TABLE_COLUMN = 130


class _TrueDomains(NamedTuple):
    """The data's own domains, where there are several."""

    labels: npt.NDArray[np.int64]
    names: list[str]
    colours: list[tuple[float, float, float]]


def pseudo_domain_picture(
    images: Tensor,
    scores: Tensor | None,
    pseudo_domains: Tensor,
    domains: Tensor | None = None,
    domain_names: Sequence[str] = (),
    score_name: str = "low-frequency amplitude",
    description: str = "",
) -> Image.Image:
    """Real images of each pseudo-domain, how they agree with true domains, and their scores.

    The images of a row are those at evenly spaced ranks, from the lowest score of the pseudo-domain
    to the highest; without scores, evenly spaced in the order of the data. Where the data have
    several domains of their own (and not more than 20), each has a colour: in the strip below an
    image, in the bar beside a row, which shows how the pseudo-domain is made up, in the table,
    which counts that, and in the histogram.

    The histogram of the scores shows the cuts, or, where pseudo-domains are not cut by the scores,
    each of them by itself. Without scores there is none.

    Args:
        images: all training images, (N, C, H, W) uint8, on any device.
        scores: (N,), the low-frequency amplitudes or others; None where there are none.
        pseudo_domains: (N,) int64 in 0..D-1.
        domains: (N,) int64, the true domains; None where they are not known.
        domain_names: of the true domains.
        score_name: what the scores are.
        description: of the pseudo-domains, in a few words.

    Returns:
        RGB, about 1100 pixels wide.
    """
    # Of a single one there is nothing to tell apart.
    present = 0 if domains is None else len(set(domains.tolist()))
    known = present > 1 and 1 < len(domain_names) <= _MOST_COLOURS
    true = _true_domains(domains, domain_names) if domains is not None and known else None
    pseudo_domains = pseudo_domains.cpu()
    count = int(pseudo_domains.max()) + 1
    scores = None if scores is None else scores.detach().cpu()
    order = torch.arange(len(pseudo_domains)) if scores is None else scores
    chosen = [examples(order, pseudo_domains, number) for number in range(count)]
    tiles = [as_tiles(images[picks.to(images.device)].float() / 255, _SIDE) for picks in chosen]
    height, width = tiles[0].shape[1:3]
    step = width + 2
    bar_x = _LABELS + _EXAMPLES * step + 14
    page_width = bar_x + (_BAR if true else 0) + _MARGIN
    lines = wrapped(
        f"Real images of the {count} pseudo-domains{description and f' ({description})'}, "
        + (
            "evenly spaced in the order of the data"
            if scores is None
            else "at evenly spaced ranks from the lowest score to the highest; the score is the "
            + score_name
        ),
        page_width - 2 * _MARGIN,
    )
    legend = _legend_places(true, page_width) if true else []
    legend_y = 18 + 18 * len(lines) + 4
    top = legend_y + (legend[-1][1] + 38 if true else 12)
    row_height = max(height + (_STRIP if true else 0) + 8, 58)
    table_top = top + count * row_height + 14
    plot_top = table_top + 20 + (_TABLE_ROW * (count + 2) + 12 if true else 0)
    page = Page(page_width, plot_top + (0 if scores is None else _HISTOGRAM + 48))
    for number, line in enumerate(lines):
        page.text(_MARGIN, 18 + 18 * number, line)
    if true:
        page.text(_MARGIN, legend_y, "True domain:")
        for (x, y), name, colour in zip(legend, true.names, true.colours, strict=True):
            page.paste(_filled(12, 12, colour), x, legend_y + y - 6)
            page.text(x + 18, legend_y + y, name)
        page.text(bar_x, top - 12, "made up of")
    for number, (picks, row) in enumerate(zip(chosen, tiles, strict=True)):
        y = top + number * row_height
        members = pseudo_domains == number
        described = _described(
            number, int(members.sum()), None if scores is None else scores[members]
        )
        for index, text in enumerate(described):
            weight = "normal" if index else "bold"
            page.text(_MARGIN, y + 9 + 17 * index, text, fontweight=weight)
        for place, (pick, tile) in enumerate(zip(picks.tolist(), row, strict=True)):
            page.paste(tile, _LABELS + place * step, y)
            if true:
                strip = _filled(_STRIP, width, true.colours[true.labels[pick]])
                page.paste(strip, _LABELS + place * step, y + height)
        if true:
            page.paste(_composition(true, members.numpy(), height), bar_x, y)
    if true:
        labels = torch.from_numpy(true.labels)
        found = domain_agreement(pseudo_domains, labels, count, true.names)
        _draw_agreement(page, found, true.colours, table_top)
    if scores is not None:
        box = (_LABELS - 60, plot_top, page_width - _LABELS + 60 - 2 * _MARGIN, _HISTOGRAM)
        page.plot(box, lambda axes: draw_scores(axes, scores, pseudo_domains, true, score_name))
    return page.image()


def _draw_agreement(
    page: Page, found: DomainAgreement, colours: Sequence[tuple[float, float, float]], top: int
) -> None:
    """How many images of each true domain a pseudo-domain has, and how far that is agreement."""
    page.text(
        _MARGIN,
        top + 6,
        f"Agreement with the true domains: ARI {found.ari:z.3f}, NMI {found.nmi:z.3f} "
        "(1: the same; 0: chance)",
        fontweight="bold",
    )
    column = min(_TABLE_COLUMN, (page.width - _LABELS - _MARGIN) // len(found.names))
    # Where names have no room, the colours of the legend must do.
    length = (column - 30) // 7
    for place, (name, colour) in enumerate(zip(found.names, colours, strict=True)):
        right = _LABELS + (place + 1) * column - 12
        y = top + 6 + _TABLE_ROW
        page.paste(_filled(12, 12, colour), right - 12, y - 6)
        if length >= 6:
            page.text(right - 18, y, shortened(name, length), ha="right")
        for number, count in enumerate(found.table[:, place].tolist()):
            page.text(right, y + (number + 1) * _TABLE_ROW, f"{count:,}", ha="right")
    for number in range(len(found.table)):
        page.text(_MARGIN, top + 6 + (number + 2) * _TABLE_ROW, f"pseudo-domain {number}")


def examples(scores: Tensor, pseudo_domains: Tensor, number: int) -> Tensor:
    """Image numbers of at most 12 members of a pseudo-domain, at evenly spaced ranks.

    Args:
        scores: (N,).
        pseudo_domains: (N,) int64.
        number: of the pseudo-domain.

    Returns:
        (E,) int64, by rising score; the first has the lowest of all members and the last the
        highest.
    """
    members = (pseudo_domains == number).nonzero().flatten()
    members = members[scores[members].argsort(stable=True)]
    ranks = torch.linspace(0, len(members) - 1, min(_EXAMPLES, len(members)), dtype=torch.float64)
    return members[ranks.round().long()]


def cuts(scores: Tensor, pseudo_domains: Tensor) -> list[float]:
    """Where pseudo-domains meet, in scores: halfway between neighbours.

    Args:
        scores: (N,).
        pseudo_domains: (N,) int64 in 0..D-1.

    Returns:
        D - 1 numbers, or none where a pseudo-domain is empty or reaches into another one, so that
        they are not cut by these scores.
    """
    groups = [scores[pseudo_domains == number] for number in range(int(pseudo_domains.max()) + 1)]
    if any(len(group) == 0 for group in groups):
        return []
    ends = [(float(low.max()), float(high.min())) for low, high in pairwise(groups)]
    return [(low + high) / 2 for low, high in ends] if all(a <= b for a, b in ends) else []


def draw_scores(
    axes: Any,
    scores: Tensor,
    pseudo_domains: Tensor,
    true: _TrueDomains | None,
    score_name: str = "low-frequency amplitude",
) -> None:
    """Draw the histogram of the scores, with the cuts as vertical lines.

    Where there are no cuts, each pseudo-domain has its own outline in place of the lines.

    Args:
        axes: `matplotlib.axes.Axes` to draw on; their horizontal scale becomes logarithmic where
            the scores are spread widely.
        scores: (N,).
        pseudo_domains: (N,) int64.
        true: stacks the histogram by true domain, where there are cuts.
        score_name: label of the horizontal axis.
    """
    places = cuts(scores, pseudo_domains)
    count = int(pseudo_domains.max()) + 1
    is_cut = bool(places) or count == 1
    low, high = float(scores.min()), float(scores.max())
    logarithmic = low > 0 and high > 4 * low
    if low == high:
        low, high = low - 0.5, high + 0.5
    spaced = np.geomspace if logarithmic else np.linspace
    edges = spaced(low, high, 81)
    if is_cut:
        _draw_stack(axes, scores.numpy(), edges, true)
    else:
        _draw_outlines(axes, scores.numpy(), edges, pseudo_domains.numpy(), count)
    for place in places:
        axes.axvline(place, color="black", linewidth=1.2)
    if logarithmic:
        axes.set_xscale("log")
        ticks = [t for t in _round_numbers(low, high) if low <= t <= high]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xticks([], minor=True)
    axes.set_xlim(low, high)
    axes.tick_params(labelsize=9)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel("images", fontsize=9)
    spread = "logarithmic scale; " if logarithmic else ""
    lines = "lines: cuts between pseudo-domains" if is_cut else "pseudo-domains overlap"
    axes.set_xlabel(f"{score_name} ({spread}{lines})", fontsize=9)
    if is_cut:
        _number_regions(axes, [low, *places, high], logarithmic)


def _draw_stack(
    axes: Any,
    scores: npt.NDArray[np.floating],
    edges: npt.NDArray[np.floating],
    true: _TrueDomains | None,
) -> None:
    """All images, by true domain one on top of the other."""
    groups = [(scores, (0.5, 0.5, 0.5))]
    if true:
        groups = [
            (scores[true.labels == number], colour) for number, colour in enumerate(true.colours)
        ]
    base = np.zeros(len(edges) - 1)
    for values, colour in groups:
        above = base + np.histogram(values, edges)[0]
        axes.stairs(above, edges, baseline=base, fill=True, color=colour)
        base = above


def _draw_outlines(
    axes: Any,
    scores: npt.NDArray[np.floating],
    edges: npt.NDArray[np.floating],
    pseudo_domains: npt.NDArray[np.int64],
    count: int,
) -> None:
    """Each pseudo-domain by itself, in colours that no true domain has."""
    from matplotlib import colormaps

    shades = colormaps["viridis"](np.linspace(0, 0.9, count))
    for number, shade in enumerate(shades):
        heights = np.histogram(scores[pseudo_domains == number], edges)[0]
        axes.stairs(heights, edges, color=shade, linewidth=1.6, label=str(number))
    axes.legend(
        title="pseudo-domain",
        fontsize=8,
        title_fontsize=8,
        ncols=-(-count // 8),
        loc="upper left",
        framealpha=0.7,
    )


def _number_regions(axes: Any, ends: list[float], logarithmic: bool) -> None:
    """Put the number of each pseudo-domain above its part of the histogram, where it fits."""
    scaled = np.log(ends) if logarithmic else np.array(ends)
    for number, (start, end) in enumerate(pairwise((scaled - scaled[0]) / np.ptp(scaled))):
        # The narrowest that two digits fit into without touching the next number.
        if end - start > 0.018:
            middle = (start + end) / 2
            axes.text(
                middle,
                1.02,
                str(number),
                transform=axes.transAxes,
                ha="center",
                va="bottom",
                fontsize=9,
                fontweight="bold",
            )


def _round_numbers(low: float, high: float) -> list[float]:
    """Round numbers around a range of positive ones, closer to each other in a short range."""
    steps = (1, 2, 3, 4, 5, 6, 8) if high < 10 * low else (1, 2, 5)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [step * 10.0**power for power in powers for step in steps]


def _described(number: int, count: int, scores: Tensor | None) -> list[str]:
    """The label of a row."""
    lines = [f"pseudo-domain {number}", f"{count:,} images"]
    if scores is not None and count:
        lines.append(f"scores {_figures(float(scores.min()))} to {_figures(float(scores.max()))}")
    return lines


def _figures(value: float) -> str:
    """Three significant figures, without an exponent where people write none."""
    return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"


def _true_domains(domains: Tensor, names: Sequence[str]) -> _TrueDomains:
    from matplotlib import colormaps

    palette = colormaps["tab10" if len(names) <= 10 else "tab20"]
    colours = [palette(number)[:3] for number in range(len(names))]
    return _TrueDomains(domains.cpu().numpy(), [shortened(n, 18) for n in names], colours)


def _legend_places(true: _TrueDomains, page_width: int) -> list[tuple[int, int]]:
    """Where the colours go: one below the other where they do not fit beside each other."""
    first = 110
    step = 34 + int(7.5 * max(len(name) for name in true.names))
    per_line = max(1, (page_width - first) // step)
    return [
        (first + number % per_line * step, number // per_line * 18)
        for number in range(len(true.names))
    ]


def _filled(height: int, width: int, colour: tuple[float, float, float]) -> Pixels:
    """A tile of one colour in [0, 1]."""
    tile: Pixels = np.empty((height, width, 3), np.uint8)
    tile[:] = np.round(np.array(colour) * 255)
    return tile


def _composition(true: _TrueDomains, members: npt.NDArray[np.bool_], height: int) -> Pixels:
    """A bar as wide as ``_BAR``, divided by the true domains of some images."""
    bar = _filled(height, _BAR, (1.0, 1.0, 1.0))
    sizes = np.bincount(true.labels[members], minlength=len(true.names))
    ends = np.round(sizes.cumsum() / max(1, sizes.sum()) * _BAR).astype(int)
    for start, end, colour in zip([0, *ends[:-1]], ends, true.colours, strict=True):
        bar[:, start:end] = np.round(np.array(colour) * 255)
    return bar
