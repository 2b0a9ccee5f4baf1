"""What pictures show: the right pixels in the right places, for every shape of data."""

import colorsys
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from dam_lightning.callbacks import tiles
from dam_lightning.callbacks.drawing import condensed_picture, mask_picture, view_picture
from dam_lightning.callbacks.drawing_domains import (
    cuts,
    draw_scores,
    examples,
    pseudo_domain_picture,
)
from dam_lightning.callbacks.tiles import Page, as_tiles
from dam_lightning.functional import rank_groups


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def condensed(ipc: int, num_classes: int, size: int = 8, channels: int = 3) -> tuple[Tensor, ...]:
    """Image i of class c has the value (10 c + i) / 1000 everywhere."""
    labels = torch.arange(num_classes).repeat_interleave(ipc)
    values = (10 * labels + torch.arange(ipc).repeat(num_classes)) / 1000
    return values.view(-1, 1, 1, 1).expand(-1, channels, size, size).contiguous(), labels


def found(picture: Image.Image, tile: np.ndarray) -> list[tuple[int, int]]:
    """The (row, column) of every place where a picture shows a tile, pixel by pixel."""
    whole, part = (
        np.asarray(image).astype(np.int64) @ (1, 256, 65536) for image in (picture, tile)
    )
    (height, width), (down, right) = part.shape, whole.shape
    rows, columns = np.nonzero(whole[: down - height + 1, : right - width + 1] == part[0, 0])
    # Few places agree in a handful of pixels; only those are compared as a whole.
    for y in np.linspace(0, height - 1, 9).astype(int):
        for x in np.linspace(0, width - 1, 9).astype(int):
            fits = whole[rows + y, columns + x] == part[y, x]
            rows, columns = rows[fits], columns[fits]
    return [
        (row, column)
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
        if np.array_equal(whole[row : row + height, column : column + width], part)
    ]


# The condensed set.


@pytest.mark.parametrize(("height", "width"), [(64, 2), (2, 64), (40, 40)])
def test_images_are_enlarged_by_their_longer_side(height: int, width: int) -> None:
    picture = condensed_picture(torch.zeros(2, 3, height, width), torch.tensor([0, 1]))
    zoom = 128 // max(height, width)
    assert picture.size == (zoom * (2 * (width + 2) + 2), zoom * (height + 4))


def test_a_picture_has_a_column_for_each_class() -> None:
    picture = condensed_picture(*condensed(ipc=3, num_classes=4, size=128))
    pixels = np.asarray(picture.convert("L"))
    assert pixels.shape == (3 * 130 + 2, 4 * 130 + 2)
    for row in range(3):
        for column in range(4):
            value = pixels[row * 130 + 60, column * 130 + 60]
            assert value == pytest.approx(255 * (10 * column + row) / 1000, abs=1)
    assert pixels[0, 0] == 255


@pytest.mark.parametrize(
    ("ipc", "num_classes", "channels"), [(50, 100, 3), (1, 2, 1), (2, 10, 3), (1, 3, 2), (1, 3, 4)]
)
def test_pictures_of_other_shapes(ipc: int, num_classes: int, channels: int) -> None:
    """Large sets are shown in part; small images are enlarged."""
    picture = condensed_picture(*condensed(ipc, num_classes, 8, channels))
    zoom = 16 if num_classes <= 20 else 1
    assert picture.mode == "RGB"
    assert picture.width == zoom * (min(num_classes, 50) * 10 + 2)
    assert picture.height == zoom * (min(ipc, 10) * 10 + 2)


@pytest.mark.parametrize(("num_classes", "side"), [(10, 128), (20, 64), (40, 32)])
def test_large_images_are_averaged_down(num_classes: int, side: int) -> None:
    picture = condensed_picture(*condensed(1, num_classes, 256))
    assert picture.size == (num_classes * (side + 2) + 2, side + 4)


def test_classes_with_fewer_images_leave_places_empty() -> None:
    images, labels = condensed(ipc=2, num_classes=2, size=128)
    pixels = np.asarray(condensed_picture(images[:3], labels[:3]).convert("L"))
    assert pixels[190, 60] < 10
    assert pixels[190, 190] == 255


# Tiles and pages.


def test_small_images_are_enlarged_by_whole_pixels() -> None:
    images = torch.rand(2, 3, 5, 7, generator=generator())
    made = as_tiles(images, 30)
    assert made.shape == (2, 20, 28, 3)
    expected = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    for y, x in ((0, 0), (19, 27), (7, 8), (4, 3)):
        assert np.array_equal(made[:, y, x], expected[:, y // 4, x // 4])


def test_large_images_are_averaged_into_a_tile() -> None:
    images = torch.rand(1, 1, 40, 80, generator=generator())
    made = as_tiles(images, 20)
    assert made.shape == (1, 10, 20, 3)
    mean = float(images[0, 0, :4, :4].mean())
    assert int(made[0, 0, 0, 0]) == pytest.approx(255 * mean, abs=0.6)


def test_two_channels_show_the_first() -> None:
    images = torch.rand(1, 2, 4, 4, generator=generator())
    grey = as_tiles(images[:, :1], 4)
    assert np.array_equal(as_tiles(images, 4), grey)
    assert np.array_equal(grey[..., 0], grey[..., 2])


def test_a_page_ignores_the_settings_of_its_reader() -> None:
    """And leaves them as they are."""

    def page() -> np.ndarray:
        made = Page(200, 50)
        made.text(10, 20, "price: 3$ or $4")
        return np.asarray(made.image())

    plain = page()
    assert plain.shape == (50, 200, 3)
    assert plain.min() < 100
    with matplotlib.rc_context({"figure.facecolor": "red", "font.size": 30, "text.color": "blue"}):
        assert np.array_equal(page(), plain)
        assert matplotlib.rcParams["text.color"] == "blue"


@pytest.mark.parametrize("width", [199, 200, 333, 570, 1001, 1157])
def test_a_page_has_the_size_asked_for(width: int) -> None:
    assert Page(width, width + 3).image().size == (width, width + 3)


# Masks and views.


def test_every_row_begins_with_its_image() -> None:
    images = torch.rand(4, 3, 8, 8, generator=generator())
    weights = torch.full((4, 3, 3, 8, 8), 1 / 3)
    names = ["ant", "bee", "cow", "dog"]
    masks = mask_picture(images, weights, names)
    views = view_picture((images - 0.5) / 0.25, weights, lambda x: x * 0.25 + 0.5, names)
    in_masks = [found(masks, tile) for tile in as_tiles(images, 128)]
    assert all(len(places) == 1 for places in in_masks)
    rows, columns = zip(*(places[0] for places in in_masks), strict=True)
    assert len(set(columns)) == 1
    assert all(below - above == 132 for above, below in pairwise(rows))
    # Views of uniform masks are the images themselves: in the first column and in three more.
    for number, tile in enumerate(as_tiles((images - 0.5) / 0.25 * 0.25 + 0.5, 128)):
        places = found(views, tile)
        assert len(places) == 4
        assert {row for row, _ in places} == {found(views, tile)[0][0]}
        assert places[0][0] == rows[number]


def test_uniform_masks_show_one_colour_which_is_that_of_the_bar() -> None:
    """Over an even grey, like which the bar is blended."""
    images = torch.full((2, 3, 8, 8), 128 / 255)
    picture = mask_picture(images, torch.full((2, 4, 1, 8, 8), 1 / 4), ["a", "b"])
    viridis = np.array(matplotlib.colormaps["viridis"](round(255 / 4))[:3])
    colour = np.round(255 * (0.8 * viridis + 0.2 * 128 / 255)).astype(np.uint8)
    tile = np.broadcast_to(colour, (128, 128, 3))
    assert len(found(picture, tile)) == 8
    bar = np.asarray(picture)[:, picture.width - 120 : picture.width - 96].astype(int)
    assert np.abs(bar - colour.astype(int)).max(-1).min() <= 2


def test_masks_are_means_over_channels_on_one_scale() -> None:
    """The same share has the same colour in every picture, whatever else it shows."""
    images = torch.full((1, 3, 8, 8), 0.5)
    weights = torch.zeros(1, 2, 3, 8, 8)
    weights[0, 0, 0], weights[0, 0, 1], weights[0, 0, 2] = 0.2, 0.5, 0.8
    weights[0, 1] = 1 - weights[0, 0]
    mixed = mask_picture(images, weights, ["a"])
    uniform = mask_picture(images, torch.full_like(weights, 0.5), ["a"])
    assert np.array_equal(np.asarray(mixed), np.asarray(uniform))


def test_masks_are_where_they_belong() -> None:
    """Pseudo-domain 1 owns the left half of the second image."""
    images = torch.full((2, 3, 8, 8), 0.5)
    weights = torch.full((2, 2, 3, 8, 8), 0.5)
    weights[1, :, :, :, :4] = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    pixels = np.asarray(mask_picture(images, weights, ["a", "b"])).astype(int)
    uniform = np.asarray(mask_picture(images, torch.full_like(weights, 0.5), ["a", "b"]))
    ys, xs = np.nonzero((pixels != uniform).any(-1))
    rectangles = [
        (ys[xs < xs.mean()], xs[xs < xs.mean()]),
        (ys[xs > xs.mean()], xs[xs > xs.mean()]),
    ]
    hues = []
    for y, x in rectangles:
        assert (np.ptp(y) + 1, np.ptp(x) + 1) == (128, 64)
        red, green, blue = pixels[y.min(), x.min()] / 255
        hues.append(colorsys.rgb_to_hls(red, green, blue))
    assert rectangles[1][1].min() - rectangles[0][1].min() == 132
    # No share is dark, the whole is bright.
    assert hues[0][1] < 0.4 < hues[1][1]
    # The second row.
    assert rectangles[0][0].min() > np.asarray(uniform).shape[0] / 2


def test_masks_are_blended_over_the_image() -> None:
    weights = torch.full((1, 2, 3, 8, 8), 0.5)
    images = torch.zeros(1, 3, 8, 8)
    images[..., 4:] = 1
    pixels = np.asarray(mask_picture(images, weights, ["a"]).convert("L")).astype(int)
    plain = np.asarray(mask_picture(torch.zeros_like(images), weights, ["a"]).convert("L"))
    lighter = pixels - plain
    assert (lighter == 51).sum() == 2 * 128 * 64
    assert (lighter == 255).sum() == 128 * 64


def test_a_view_is_the_image_times_its_mask() -> None:
    """D times as strong, around the mean colour, and clipped."""
    images = torch.randn(2, 3, 8, 8, generator=generator())
    logits = torch.randn(2, 3, 3, 8, 8, generator=generator(1))
    weights = logits.softmax(1)
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    shift, scale = (torch.tensor(value).view(3, 1, 1) for value in (mean, std))
    picture = view_picture(images, weights, lambda x: x * scale + shift, ["a", "b"])
    columns: list[int] = []
    for number in range(3):
        expected = images * weights[:, number] * 3 * scale + shift
        places = [found(picture, tile) for tile in as_tiles(expected.clamp(0, 1), 128)]
        assert [len(place) for place in places] == [1, 1]
        assert places[0][0][1] == places[1][0][1]
        columns.append(places[0][0][1])
    assert columns == sorted(columns)
    empty = view_picture(images, torch.zeros_like(weights), lambda x: x * scale + shift, ["a", "b"])
    plain = np.round(255 * np.array(mean)).astype(np.uint8)
    assert len(found(empty, np.broadcast_to(plain, (128, 128, 3)))) == 6


@pytest.mark.parametrize(
    ("rows", "domains", "channels", "mask_channels", "size", "side"),
    [
        (1, 1, 1, 1, 1, 128),
        (2, 2, 2, 2, 8, 128),
        (10, 8, 3, 1, 32, 96),
        (3, 16, 4, 4, 8, 64),
        (1, 2, 3, 3, 224, 128),
    ],
)
def test_masks_and_views_of_other_shapes(
    rows: int, domains: int, channels: int, mask_channels: int, size: int, side: int
) -> None:
    images = torch.randn(rows, channels, size, size, generator=generator())
    weights = torch.full((rows, domains, mask_channels, size, size), 1 / domains)
    names = ["$x^$", "_", "a name that is longer than anybody would wish to read", ""] * 3
    pixels = (images + 0.5).clamp(0, 1)
    for picture in (
        mask_picture(pixels, weights, names[:rows]),
        view_picture(images, weights, lambda x: x + 0.5, names[:rows]),
    ):
        assert picture.mode == "RGB"
        assert picture.width < 1500
        assert found(picture, as_tiles(pixels[:1], side)[0])


# Pseudo-domains.


def scored(count: int = 60, size: int = 8, channels: int = 3) -> tuple[Tensor, Tensor]:
    """Random images, and scores in another order than theirs."""
    images = torch.randint(0, 256, (count, channels, size, size), generator=generator()).byte()
    scores = torch.randperm(count, generator=generator()).double() + 3
    return images, scores


def test_examples_are_evenly_spaced_over_the_ranks() -> None:
    _, scores = scored(count=92)
    labels = rank_groups(scores, 4)
    for number in range(4):
        picked = scores[examples(scores, labels, number)]
        assert picked.tolist() == [3 + 23 * number + 2 * place for place in range(12)]
    few = examples(scores[:6], rank_groups(scores[:6], 2), 1)
    assert scores[few].tolist() == scores[:6].sort().values[3:].tolist()


@pytest.mark.parametrize("num_groups", [1, 2, 5])
@pytest.mark.parametrize("spread", ["narrow", "wide", "zeros"])
def test_the_cuts_drawn_are_those_of_rank_groups(num_groups: int, spread: str) -> None:
    scores = torch.rand(200, generator=generator(), dtype=torch.float64) + 5
    if spread == "wide":
        scores = (scores * 3).exp()
    if spread == "zeros":
        scores[:3] = 0
    labels = rank_groups(scores, num_groups)
    axes = Figure().add_subplot()
    draw_scores(axes, scores, labels, None)
    drawn = sorted(float(line.get_xdata()[0]) for line in axes.lines)
    assert len(drawn) == num_groups - 1
    assert drawn == cuts(scores, labels)
    assert torch.equal(torch.bucketize(scores, torch.tensor(drawn, dtype=torch.float64)), labels)
    assert axes.get_xscale() == ("log" if spread == "wide" else "linear")
    assert [text.get_text() for text in axes.texts] == [str(n) for n in range(num_groups)]
    # All images are in the histogram.
    (steps,) = axes.patches
    assert steps.get_data().values.sum() == 200


def test_labels_that_scores_do_not_explain_have_no_cuts() -> None:
    scores = torch.arange(6.0)
    assert cuts(scores, torch.tensor([0, 1, 0, 1, 2, 2])) == []
    assert cuts(scores, torch.tensor([0, 0, 0, 2, 2, 2])) == []
    assert cuts(torch.ones(4), torch.tensor([0, 0, 1, 1])) == [1.0]


def test_the_histogram_is_stacked_by_true_domain() -> None:
    images, scores = scored()
    stacks: list[Any] = []
    original = tiles.Page.plot

    def spy(page: Page, box: Any, draw: Any) -> None:
        def and_keep(axes: Any) -> None:
            draw(axes)
            stacks.extend(patch.get_data() for patch in axes.patches)

        original(page, box, and_keep)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles.Page, "plot", spy)
        domains = (scores > 20).long()
        pseudo_domain_picture(images, scores, rank_groups(scores, 3), domains, ["low", "high"])
    (low, edges, bottom), (high, _, base) = stacks
    assert np.array_equal(base, low)
    assert not np.any(bottom)
    below = edges[1:] < 20.5
    counts = np.histogram(scores.numpy(), edges)[0]
    assert np.array_equal(low[below], counts[below])
    assert np.array_equal(high, counts)


def test_a_row_shows_the_images_of_its_pseudo_domain() -> None:
    images, scores = scored()
    labels = rank_groups(scores, 3)
    picture = pseudo_domain_picture(images, scores, labels)
    rows = []
    for number in range(3):
        picks = examples(scores, labels, number)
        places = [found(picture, tile) for tile in as_tiles(images[picks] / 255, 72)]
        assert all(len(place) == 1 for place in places)
        assert len({place[0][0] for place in places}) == 1
        columns = [place[0][1] for place in places]
        assert columns == sorted(columns)
        rows.append(places[0][0][0])
    assert rows == sorted(rows)


def test_the_colours_of_true_domains_are_below_images_and_beside_rows() -> None:
    images, scores = scored()
    labels = rank_groups(scores, 2)
    domains = (torch.arange(60) % 3 == 0).long()
    picture = pseudo_domain_picture(images, scores, labels, domains, ["photo", "sketch"])
    pixels = np.asarray(picture)
    palette = [np.round(255 * np.array(c)) for c in matplotlib.colormaps["tab10"].colors[:2]]
    for number in range(2):
        picks = examples(scores, labels, number)
        for pick, tile in zip(picks, as_tiles(images[picks] / 255, 72), strict=True):
            ((row, column),) = found(picture, tile)
            below = pixels[row + 72 : row + 77, column : column + 72]
            assert (below == palette[int(domains[pick])]).all()
        bar = pixels[row + 30, column + 73 :]
        widths = [int((bar == colour).all(-1).sum()) for colour in palette]
        share = float(domains[labels == number].double().mean())
        assert sum(widths) == 110
        assert widths[1] == pytest.approx(110 * share, abs=1)


@pytest.mark.parametrize(
    ("count", "num_groups", "num_domains", "channels", "size"),
    [(1, 1, 1, 3, 8), (5, 5, 2, 1, 8), (30, 3, 30, 2, 8), (40, 8, 15, 4, 32), (12, 2, 2, 3, 200)],
)
def test_pseudo_domains_of_other_shapes(
    count: int, num_groups: int, num_domains: int, channels: int, size: int
) -> None:
    images, scores = scored(count, size, channels)
    labels = rank_groups(scores, num_groups)
    names = ["_hidden", "$x^$", *(f"domain {number} of many" for number in range(28))]
    domains = torch.arange(count) % num_domains
    picture = pseudo_domain_picture(images, scores, labels, domains, names[:num_domains])
    assert picture.width < 1300
    first = examples(scores, labels, 0)[:1]
    assert found(picture, as_tiles(images[first] / 255, 72)[0])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0.0, 4.0])
def test_equal_scores_can_be_drawn(value: float) -> None:
    scores = torch.full((6,), value)
    axes = Figure().add_subplot()
    draw_scores(axes, scores, rank_groups(scores, 2), None)
    (counts, edges, _) = axes.patches[0].get_data()
    assert edges[-1] - edges[0] == pytest.approx(1)
    assert counts.sum() == 6
    assert [float(line.get_xdata()[0]) for line in axes.lines] == [value]


def drawn(images: Tensor, *arguments: Any) -> tuple[list[str], list[Any], Image.Image]:
    """Texts, axes, and the picture."""
    texts: list[str] = []
    plots: list[Any] = []
    text, plot = tiles.Page.text, tiles.Page.plot

    def keep_text(page: Page, x: float, y: float, content: str, **options: Any) -> None:
        texts.append(content)
        text(page, x, y, content, **options)

    def keep_plot(page: Page, box: Any, draw: Any) -> None:
        plot(page, box, lambda axes: (draw(axes), plots.append(axes)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles.Page, "text", keep_text)
        patch.setattr(tiles.Page, "plot", keep_plot)
        made = pseudo_domain_picture(images, *arguments)
    return texts, plots, made


def test_agreement_with_true_domains_is_written_down() -> None:
    images, scores = scored()
    labels = rank_groups(scores, 2)
    texts, _, _ = drawn(images, scores, labels, labels, ["dark", "light"])
    assert any("ARI 1.000, NMI 1.000" in text for text in texts)
    domains = torch.arange(60) % 3
    texts, _, made = drawn(images, scores, labels, domains, ["a", "b", "c"])
    assert any("ARI 0." in text or "ARI -0." in text for text in texts)
    for number in range(2):
        for domain in range(3):
            assert str(int(((labels == number) & (domains == domain)).sum())) in texts
    alone = pseudo_domain_picture(images, scores, labels)
    assert made.height > alone.height
    assert not any("ARI" in text for text in drawn(images, scores, labels)[0])


def test_without_scores_rows_follow_the_order_of_the_data() -> None:
    images, _ = scored()
    labels = torch.arange(60) % 2
    texts, plots, made = drawn(images, None, labels, labels, ["even", "odd"], "", "true domains")
    assert not plots
    assert not [text for text in texts if text.startswith("scores ")]
    title = " ".join(texts)
    assert "2 pseudo-domains (true domains), evenly spaced in the order of the data" in title
    for number in range(2):
        columns = [
            found(made, tile)[0][1]
            for tile in as_tiles(images[examples(torch.arange(60), labels, number)] / 255, 72)
        ]
        assert columns == sorted(columns)
        assert len(columns) == 12


def test_pseudo_domains_that_overlap_have_an_outline_each() -> None:
    images, scores = scored()
    labels = torch.arange(60) % 3
    texts, (axes,), _ = drawn(images, scores, labels, None, (), "brightness", "k-means of it")
    assert "the score is the brightness" in " ".join(texts)
    assert axes.get_xlabel().startswith("brightness (")
    assert "pseudo-domains overlap" in axes.get_xlabel()
    assert not axes.lines
    outlines = [patch for patch in axes.patches if patch.get_label() in ("0", "1", "2")]
    for number, outline in enumerate(outlines):
        values, edges, _ = outline.get_data()
        assert np.array_equal(values, np.histogram(scores[labels == number].numpy(), edges)[0])
    assert len(outlines) == 3
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["0", "1", "2"]


def test_pictures_are_the_same_every_time() -> None:
    images, scores = scored()
    made = [
        np.asarray(pseudo_domain_picture(images, scores, rank_groups(scores, 3))) for _ in range(2)
    ]
    assert np.array_equal(*made)
