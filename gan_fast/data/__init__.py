"""Training images: read once into a uint8 tensor, then served in exactly resumable batches."""

from gan_fast.data.errors import DataError
from gan_fast.data.images import ImageData, load_images
from gan_fast.data.loader import DeviceLoader

__all__ = ["DataError", "DeviceLoader", "ImageData", "load_images"]
