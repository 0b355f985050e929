"""Sample grids and training curves as PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import BinaryIO

from PIL import Image
from torch import Tensor

# A grid's longer side, in pixels, that small images are enlarged towards.
_GRID_PIXELS = 800
_GAP_PIXELS = 2
_GAP_COLOUR = 48


def image_grid(images: Tensor) -> Image.Image:
    """Lay images out in a grid, nearly square, each enlarged by the same whole number: pixels stay crisp.

    Args:
        images: float (N, C, H, W) in [-1, 1], C 1 or 3, N at least 1.

    Returns:
        An "L" or "RGB" image; places left over stay dark.
    """
    count, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    scale = max(1, _GRID_PIXELS // (columns * width))
    cell_height, cell_width = height * scale + _GAP_PIXELS, width * scale + _GAP_PIXELS
    mode = "L" if channels == 1 else "RGB"
    fill = _GAP_COLOUR if channels == 1 else (_GAP_COLOUR,) * 3
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
    """Draw the losses and D's answers over the steps, and write them as PNG.

    Args:
        file: open for writing.
        rows: as in metrics.jsonl; None where a value was not finite leaves a gap.
    """
    # Figure without pyplot: no global state, no window system.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    steps = [row["step"] for row in rows]
    figure = Figure(figsize=(9, 6.5), layout="constrained", dpi=120)
    losses, answers = figure.subplots(2, 1, sharex=True)
    panels = (
        (losses, "loss", (("d_loss", "D loss", "#2b6cb0"), ("g_loss", "G loss", "#c05621"))),
        (answers, "mean answer of D", (("d_real", "D(x)", "#2f855a"), ("d_fake", "D(G(z))", "#97266d"))),
    )
    for axes, label, lines in panels:
        for name, title, colour in lines:
            values = [math.nan if row[name] is None else row[name] for row in rows]
            # A line needs two points to be seen, and a few read better with their marks.
            marker = "o" if len(rows) < 30 else None
            axes.plot(steps, values, color=colour, linewidth=1.2, marker=marker, markersize=3, label=title)
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    # Probabilities, where the objective makes them of D's logits.
    drawn = [value for row in rows for name in ("d_real", "d_fake") if (value := row[name]) is not None]
    if all(0 <= value <= 1 for value in drawn):
        answers.axhline(0.5, color="0.6", linewidth=0.8, linestyle="--")
        answers.set_ylim(0, 1)
    answers.set_xlabel("step")
    answers.xaxis.set_major_locator(MaxNLocator(integer=True))
    # Through memory: matplotlib seeks, and a half-written figure would hide what went wrong with the disk.
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    file.write(buffer.getvalue())
