"""Damaged bytes: an image is decoded, or a DataError names the file, without a hang."""

import zipfile

import numpy as np
import pytest
from data.image_bytes import encode, picture, write_folder, write_zip

from gan_fast.data import DataError, load_images

POSITIONS = 200
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
GOOD = encode(picture(8, 8))

pytestmark = [
    pytest.mark.usefixtures("end_the_run_on_a_hang"),
    # Pillow warns about many of these files.
    pytest.mark.filterwarnings("ignore"),
]


def positions(length):
    return np.unique(np.linspace(0, length - 1, POSITIONS).astype(int))


def truncated(data):
    return [data[:at] for at in positions(len(data))]


def flipped(data):
    rng = np.random.default_rng(0)
    variants = []
    for at in positions(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= int(rng.integers(1, 256))
        variants.append(bytes(damaged))
    return variants


def smooth_picture():
    ramp = np.linspace(0, 255, 40).astype(np.uint8)
    return np.stack([np.add.outer(ramp // 2, ramp[:36] // 2), picture(40, 36, 1), picture(40, 36, 1, 1) // 8], -1)


@pytest.mark.parametrize("damage", [truncated, flipped])
@pytest.mark.parametrize("image_format", FORMATS)
def test_damaged_image_is_decoded_or_reported(tmp_path, image_format, damage, record_property):
    variants = damage(encode(smooth_picture(), image_format))
    files = {f"{index:04}.png": data for index, data in enumerate(variants)}
    data = load_images(
        write_folder(tmp_path, files | {"good.png": GOOD}), image_size=8, bad_files="skip", max_skipped=len(files)
    )
    refused = {bad.name for bad in data.skipped}
    assert refused <= set(files)
    assert all(bad.reason for bad in data.skipped)
    assert len(data.images) == len(files) - len(refused) + 1
    assert len(variants) >= 0.95 * POSITIONS
    record_property("cases", len(variants))
    record_property("decoded", len(variants) - len(refused))


@pytest.mark.parametrize("damage", [truncated, flipped])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_zip_is_loaded_or_reported(tmp_path, compression, damage, record_property):
    source = write_zip(
        tmp_path / "a.zip", {f"c{i}/é{i}.png": encode(picture(8, 8, 3, i)) for i in range(3)}, compression
    )
    variants = damage(source.read_bytes())
    decoded, messages = 0, []
    for variant in variants:
        source.write_bytes(variant)
        try:
            assert load_images(source, image_size=8).images.shape[1:] == (3, 8, 8)
            decoded += 1
        except DataError as error:
            messages.append(str(error))
    assert all("a.zip" in message for message in messages)
    record_property("cases", len(variants))
    record_property("decoded", decoded)
