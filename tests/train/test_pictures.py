"""Sample grids and plots of the training curves."""

import io

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from gan_fast.train.pictures import image_grid, write_curves


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (5, 3, 2), (64, 8, 8)])
def test_images_are_enlarged_and_placed_in_order(channels, count, columns, rows):
    images = torch.rand(count, channels, 4, 4) * 2 - 1
    grid = np.asarray(image_grid(images)).reshape(*np.asarray(image_grid(images)).shape[:2], channels)
    scale = 800 // (columns * 4)
    cell = 4 * scale + 2
    assert grid.shape == (rows * cell + 2, columns * cell + 2, channels)
    for index in range(count):
        row, column = divmod(index, columns)
        tile = grid[row * cell + 2 :, column * cell + 2 :][: 4 * scale, : 4 * scale]
        want = ((images[index] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        assert np.array_equal(tile, want.repeat(scale, 0).repeat(scale, 1))


def test_values_out_of_range_are_clipped():
    assert image_grid(torch.full((1, 1, 4, 4), 3.0)).getpixel((10, 10)) == 255


def test_large_images_are_not_shrunk():
    assert image_grid(torch.zeros(16, 3, 256, 256)).size == (4 * 258 + 2, 4 * 258 + 2)


@pytest.mark.parametrize("d_real", [0.6, 7.0])
def test_curves_with_missing_values_are_plotted(d_real):
    rows = [
        {"step": step, "d_loss": 1.0, "g_loss": None if step == 2 else 0.7, "d_real": d_real, "d_fake": 0.4}
        for step in range(1, 5)
    ]
    file = io.BytesIO()
    write_curves(file, rows)
    with Image.open(io.BytesIO(file.getvalue())) as picture:
        assert picture.format == "PNG"
        found = {color for _, color in picture.convert("RGB").getcolors(10**6)}
    # The plot has each of the four lines in its color.
    for color in ("2b6cb0", "c05621", "2f855a", "97266d"):
        assert tuple(bytes.fromhex(color)) in found


@pytest.mark.parametrize(
    ("steps", "want"),
    [
        ([1], [1]),
        ([1, 2, 3], [1, 2, 3]),
        ([50, 100, 150], [60, 80, 100, 120, 140]),
        (range(50, 4001, 50), list(range(0, 4001, 500))),
    ],
)
def test_steps_are_marked_by_round_integers(steps, want, monkeypatch):
    drawn = []
    save = Figure.savefig

    def spy(figure, file, **options):
        save(figure, file, **options)
        for axes in figure.axes:
            low, high = axes.get_xlim()
            drawn.append([tick for tick in axes.get_xticks() if low <= tick <= high])

    monkeypatch.setattr(Figure, "savefig", spy)
    rows = [{"step": step, "d_loss": 1.0, "g_loss": 0.7, "d_real": 0.6, "d_fake": 0.4} for step in steps]
    write_curves(io.BytesIO(), rows)
    assert drawn == [want] * 2
