"""Bytes, operations and the least time of every kernel of a DCGAN-64 step on a GPU.

    python -m benchmarks.roofline [--batch 128] [--tflops 989] [--bandwidth 4800]

Nothing is measured here. A kernel takes at least its operations divided by the chip's rate, and at least its bytes
divided by the bandwidth, each tensor read and written once, in bfloat16. The defaults are from an H200's data sheet;
measured rates give better bounds (there a copy reaches about 4300 GB/s, a matrix product 770 to 798 TFLOP/s).
"""

from __future__ import annotations

import argparse
import dataclasses

from benchmarks import table

HALF = 2  # bytes of a bfloat16
# Products of bfloat16 matrices on an H200.
NOMINAL_TFLOPS = 989.0


@dataclasses.dataclass(frozen=True)
class Layer:
    """A 4x4 convolution, plain or transposed."""

    name: str
    c_in: int
    c_out: int
    in_size: int
    out_size: int
    norm: bool
    leaky_relu: bool = False  # as a separate op, without a norm

    def values(self, batch: int) -> tuple[int, int, int]:
        """Return the numbers of elements of input, output and weight."""
        return (
            batch * self.c_in * self.in_size**2,
            batch * self.c_out * self.out_size**2,
            self.c_in * self.c_out * 16,
        )

    def flop(self, batch: int) -> int:
        # Every position of the smaller map uses all sixteen taps.
        return 2 * batch * min(self.in_size, self.out_size) ** 2 * self.c_in * self.c_out * 16


LAYERS = (
    Layer("G1", 100, 512, 1, 4, True),
    Layer("G2", 512, 256, 4, 8, True),
    Layer("G3", 256, 128, 8, 16, True),
    Layer("G4", 128, 64, 16, 32, True),
    Layer("G5", 64, 3, 32, 64, False),
    Layer("D1", 3, 64, 64, 32, False, leaky_relu=True),
    Layer("D2", 64, 128, 32, 16, True),
    Layer("D3", 128, 256, 16, 8, True),
    Layer("D4", 256, 512, 8, 4, True),
    Layer("D5", 512, 1, 4, 1, False),
)


@dataclasses.dataclass(frozen=True)
class Kernel:
    layer: str
    name: str
    flop: int
    bytes: int

    def compute_us(self, tflops: float) -> float:
        return self.flop / tflops / 1e6

    def memory_us(self, bandwidth_gbs: float) -> float:
        return self.bytes / bandwidth_gbs / 1e3


def kernels(batch: int) -> list[Kernel]:
    """Return the kernels of a forward and backward pass of each layer; elementwise operations are not counted."""
    found = []
    for layer in LAYERS:
        x, y, weight = layer.values(batch)
        flop = layer.flop(batch)
        convolution = HALF * (x + y + weight)
        found += [
            Kernel(layer.name, "convolution", flop, convolution),
            Kernel(layer.name, "gradient of input", flop, convolution),
            Kernel(layer.name, "gradient of weight", flop, convolution),
        ]
        if layer.norm:
            found += [
                Kernel(layer.name, "statistics (none in an epilogue)", 0, HALF * y),
                Kernel(layer.name, "normalize and activate", 0, HALF * 2 * y),
                Kernel(layer.name, "norm's backward sums", 0, HALF * 2 * y),
                Kernel(layer.name, "norm's backward", 0, HALF * 3 * y),
                Kernel(layer.name, "norm's double sums (penalty)", 0, HALF * 3 * y),
                Kernel(layer.name, "norm's double backward (penalty)", 0, HALF * 5 * y),
            ]
        if layer.leaky_relu:
            found += [
                Kernel(layer.name, "leaky_relu and its signs", 0, HALF * 2 * y + y // 8),
                Kernel(layer.name, "leaky_relu's backward", 0, HALF * 2 * y + y // 8),
            ]
    return found


def step_flop(batch: int) -> int:
    """Return the operations of an iteration: G forward and backward; D three times each, its weights' gradients twice.

    Unused gradients are left out: those of the latents, and those of the images in D's update.
    """
    g = sum(layer.flop(batch) for layer in LAYERS if layer.name.startswith("G"))
    d = sum(layer.flop(batch) for layer in LAYERS if layer.name.startswith("D"))
    first = {layer.name: layer.flop(batch) for layer in LAYERS}
    return 3 * g - first["G1"] + 8 * d - 2 * first["D1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument(
        "--tflops", type=float, default=NOMINAL_TFLOPS, help="products of bfloat16 matrices, 1e12 operations/s"
    )
    parser.add_argument("--bandwidth", type=float, default=4800.0, help="memory bandwidth, GB/s")
    arguments = parser.parse_args()
    rows = [("layer", "kernel", "GFLOP", "MB", "us compute", "us memory", "bound by")]
    total = 0.0
    for k in kernels(arguments.batch):
        compute, memory = k.compute_us(arguments.tflops), k.memory_us(arguments.bandwidth)
        total += max(compute, memory)
        rows.append(
            (k.layer, k.name, f"{k.flop / 1e9:.2f}", f"{k.bytes / 1e6:.1f}", f"{compute:.1f}", f"{memory:.1f}",
             "compute" if compute > memory else "memory")
        )  # fmt: skip
    print("\n".join(table.markdown(rows)))
    print(f"\nAll kernels one after the other: {total:.0f} us at batch {arguments.batch}.")


if __name__ == "__main__":
    main()
