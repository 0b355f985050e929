"""Training images: decode a folder or zip once into a uint8 tensor, and draw shuffled batches from it."""

from gan_fast.data.errors import DataError
from gan_fast.data.images import ImageData, load_images
from gan_fast.data.loader import DeviceLoader

__all__ = ["DataError", "DeviceLoader", "ImageData", "load_images"]
