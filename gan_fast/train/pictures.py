"""Sample grids and training curves as PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import BinaryIO

from PIL import Image
from torch import Tensor

# Small images are enlarged until a grid is about this wide.
_GRID_PIXELS = 800
_GAP_PIXELS = 2
_GAP_GRAY = 48


def image_grid(images: Tensor) -> Image.Image:
    """Arrange images in a nearly square grid, all enlarged by the same integer factor.

    Args:
        images: float (N, C, H, W) in [-1, 1], with C 1 or 3 and N at least 1; values outside are clipped.

    Returns:
        An image of mode "L" or "RGB"; unused cells are dark gray.
    """
    count, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    scale = max(1, _GRID_PIXELS // (columns * width))
    cell_height, cell_width = height * scale + _GAP_PIXELS, width * scale + _GAP_PIXELS
    mode = "L" if channels == 1 else "RGB"
    fill = _GAP_GRAY if channels == 1 else (_GAP_GRAY,) * 3
    grid = Image.new(mode, (columns * cell_width + _GAP_PIXELS, rows * cell_height + _GAP_PIXELS), fill)
    pixels = images.detach().float().add(1).mul(127.5).round().clamp(0, 255).byte().cpu()
    for index, image in enumerate(pixels):
        tile = Image.fromarray(image[0].numpy() if channels == 1 else image.permute(1, 2, 0).numpy())
        tile = tile.resize((width * scale, height * scale), Image.Resampling.NEAREST)
        row, column = divmod(index, columns)
        grid.paste(tile, (column * cell_width + _GAP_PIXELS, row * cell_height + _GAP_PIXELS))
    return grid


def write_grid(file: BinaryIO, images: Tensor) -> None:
    """Write :func:`image_grid` as PNG."""
    image_grid(images).save(file, "PNG")


def write_curves(file: BinaryIO, rows: Sequence[Mapping[str, float | None]]) -> None:
    """Plot the losses and D's mean outputs over the steps, and write the plot as PNG.

    Args:
        file: open for writing.
        rows: the rows of metrics.jsonl; None, the value of a metric that is not finite, leaves a gap.
    """
    # Figure is used without pyplot, which would keep global state and may need a window system.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    steps = [row["step"] for row in rows]
    figure = Figure(figsize=(9, 6.5), layout="constrained", dpi=120)
    losses, outputs = figure.subplots(2, 1, sharex=True)
    panels = (
        (losses, "loss", (("d_loss", "D loss", "#2b6cb0"), ("g_loss", "G loss", "#c05621"))),
        (outputs, "mean output of D", (("d_real", "D(x)", "#2f855a"), ("d_fake", "D(G(z))", "#97266d"))),
    )
    for axes, label, lines in panels:
        for name, title, color in lines:
            values = [math.nan if row[name] is None else row[name] for row in rows]
            # A single point needs a marker to be visible, and few points are easier to read with markers.
            marker = "o" if len(rows) < 30 else None
            axes.plot(steps, values, color=color, linewidth=1.2, marker=marker, markersize=3, label=title)
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    # Values that all lie between 0 and 1 are taken for probabilities, others for logits.
    drawn = [value for row in rows for name in ("d_real", "d_fake") if (value := row[name]) is not None]
    if all(0 <= value <= 1 for value in drawn):
        outputs.axhline(0.5, color="0.6", linewidth=0.8, linestyle="--")
        outputs.set_ylim(0, 1)
    outputs.set_xlabel("step")
    outputs.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    # Plot into memory first, because matplotlib seeks in the file and hides disk errors.
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    file.write(buffer.getvalue())
