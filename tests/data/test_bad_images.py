"""Bad files, sources and arguments: each error names the file and the reason."""

import os
import re
import struct
import threading
import tracemalloc
import zipfile

import numpy as np
import pytest
from data.image_bytes import encode, patch_zip, picture, png, tiff, write_folder, write_zip

from gan_fast.data import DataError, load_images
from gan_fast.data.errors import quoted
from gan_fast.data.files import MAX_FILE_BYTES

GOOD = encode(picture(8, 8))
NOISE_PNG = encode(picture(64, 64))
NOISE_JPEG = encode(picture(64, 64), "JPEG")


def gif_with_a_huge_frame():
    """Return a GIF with a screen of 8x8 and a frame of 65535x65535 pixels."""
    data = bytearray(encode(picture(8, 8, 1), "GIF"))
    frame = data.rindex(b",\0\0\0\0\10\0\10\0")
    data[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
    return bytes(data)


BAD_CONTENT = {
    "zero bytes": (b"", "the file is empty"),
    "text": (b"hello, this is no image", "not an image"),
    "html error page": (b"<!DOCTYPE html><title>404</title>", "not an image"),
    "png signature only": (b"\x89PNG\r\n\x1a\n", "not an image"),
    "png truncated": (NOISE_PNG[: len(NOISE_PNG) // 2], "truncated"),
    "jpeg truncated": (NOISE_JPEG[: len(NOISE_JPEG) // 2], "truncated"),
    "gif truncated": (encode(picture(64, 64), "GIF")[:-2000], "truncated"),
    "bmp truncated": (encode(picture(64, 64), "BMP")[:-2000], "truncated"),
    "ppm truncated": (encode(picture(64, 64), "PPM")[:-2000], "truncated"),
    "tiff truncated": (encode(picture(64, 64), "TIFF")[:-9000], "truncated"),
    "webp truncated": (encode(picture(64, 64), "WEBP")[:-2000], "cannot be decoded: could not create decoder"),
    "width 0": (png(0, 5), "of size 0"),
    "height 0": (png(5, 0), "of size 0"),
    "bomb that Pillow only warns of": (png(9_500, 9_500), "decompression bomb"),
    "bomb above Pillow's own limit": (png(2**31 - 1, 2**31 - 1), "decompression bomb"),
    "bomb one pixel wide": (png(1, 2**31 - 1), "decompression bomb"),
    "bomb in a gif frame": (gif_with_a_huge_frame(), "decompression bomb"),
    "12-bit tiff": (tiff(np.zeros((2, 2), np.uint16), bits=12), "12-bit or white-is-zero"),
    "white-is-zero 16-bit tiff": (tiff(np.zeros((2, 2), np.uint16), photometric=0), "12-bit or white-is-zero"),
    "negative pixels": (tiff(np.full((2, 2), -1, np.int16)), "0..65535, got -1..-1"),
    "pixels above 16 bits": (tiff(np.full((2, 2), 70_000, np.int32)), "0..65535, got 70000..70000"),
    "float pixels above 1": (tiff(np.full((2, 2), 255, np.float32)), "[0, 1], got 255.0..255.0"),
    "nan pixels": (tiff(np.full((2, 2), np.nan, np.float32)), "[0, 1], got nan..nan"),
    "float pixels below 0": (tiff(np.full((2, 2), -0.5, np.float32)), "[0, 1], got -0.5..-0.5"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n", "not an image"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
}


def load(source, **options):
    return load_images(source, **{"image_size": 8, **options})


def assert_bad_file_is_reported(source, name, reason):
    """Assert that a bad file raises by default, is skipped on request, and raises if max_skipped is 0.

    Name and reason must be given each time.
    """
    with pytest.raises(DataError, match="load_images: expected source") as error:
        load(source)
    assert quoted(name) in str(error.value)
    assert reason in str(error.value)

    data = load(source, bad_files="skip")
    assert len(data.images) == 1
    assert [bad.name for bad in data.skipped] == [name]
    assert reason in data.skipped[0].reason

    with pytest.raises(DataError, match="at most max_skipped=0 files that cannot be used, got 1") as error:
        load(source, bad_files="skip", max_skipped=0)
    assert quoted(name) in str(error.value)
    assert reason in str(error.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", BAD_CONTENT)
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_bad_content_is_reported(tmp_path, kind, case):
    data, reason = BAD_CONTENT[case]
    files = {"c/bad.png": data, "c/good.png": GOOD}
    source = write_folder(tmp_path, files) if kind == "folder" else write_zip(tmp_path / "a.zip", files)
    assert_bad_file_is_reported(source, "c/bad.png", reason)


def dangling_link(path):
    path.symlink_to("nowhere")


def looping_link(path):
    path.symlink_to(path.name)


def link_to_device(path):
    path.symlink_to("/dev/zero")


def huge_file(path):
    path.touch()
    os.truncate(path, MAX_FILE_BYTES + 1)


BAD_ENTRIES = {
    "dangling link": (dangling_link, "cannot be read: no such file"),
    "link to itself": (looping_link, "cannot be read: too many levels"),
    "named pipe": (os.mkfifo, "not a regular file"),
    "endless device": (link_to_device, "not a regular file"),
    "huge file": (huge_file, f"above the limit of {MAX_FILE_BYTES}"),
}


@pytest.mark.parametrize("case", BAD_ENTRIES)
def test_bad_folder_entry_is_reported(tmp_path, case):
    make, reason = BAD_ENTRIES[case]
    write_folder(tmp_path, {"c/good.png": GOOD})
    make(tmp_path / "c" / "bad.png")
    assert_bad_file_is_reported(tmp_path, "c/bad.png", reason)


@pytest.fixture
def as_ordinary_user(tmp_path, monkeypatch):
    """Drop root's rights, as root may read everything. Only root may enter /tmp/pytest-of-root: use relative paths."""
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    load(write_folder(tmp_path / "warm-up", {"a.png": GOOD}))  # imports Pillow's plugins, which only root may read
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


@pytest.mark.parametrize(
    ("locked", "reason"),
    [("c/bad.png", "cannot be read: permission denied"), ("closed", "folder cannot be read: permission denied")],
)
def test_unreadable_file_or_folder_is_reported(tmp_path, request, locked, reason):
    write_folder(tmp_path / "photos", {"c/good.png": GOOD, "c/bad.png": GOOD, "closed/a.png": GOOD})
    (tmp_path / "photos" / locked).chmod(0)
    other = {"c/bad.png": "closed/a.png", "closed": "c/bad.png"}[locked]
    (tmp_path / "photos" / other).unlink()
    request.getfixturevalue("as_ordinary_user")
    assert_bad_file_is_reported("photos", locked, reason)


@pytest.mark.parametrize(
    "name", ["../bad.png", "/etc/bad.png", "c/../../bad.png", "C:\\bad.png", "\\\\host\\bad.png", "..\\bad.png", "../x"]
)
def test_zip_path_out_of_the_archive_is_reported(tmp_path, name):
    assert_bad_file_is_reported(
        write_zip(tmp_path / "a.zip", {name: GOOD, "c/good.png": GOOD}), name, "leads out of the archive"
    )


def encrypted(path):
    return patch_zip(path, (6, b"\1"), (8, b"\1"))


def declares_4_gb(path):
    return patch_zip(path, (22, b"\xf0\xff\xff\xff"), (24, b"\xf0\xff\xff\xff"))


def declares_less_than_it_holds(path):
    return patch_zip(path, (22, struct.pack("<I", 100)), (24, struct.pack("<I", 100)))


def wrong_crc(path):
    return patch_zip(path, (14, b"\1\2\3\4"), (16, b"\1\2\3\4"))


def unknown_method(path):
    return patch_zip(path, (8, b"\x63"), (10, b"\x63"))


def other_name_inside(path):
    return patch_zip(path, (30, b"X"), (0, b"PK"))


def later_zip_version(path):
    return patch_zip(path, (4, b"\x14"), (6, b"\x63\x00"))


BAD_ZIP_ENTRIES = {
    "encrypted": (encrypted, "encrypted"),
    "wrong crc": (wrong_crc, "Bad CRC-32"),
    "bomb by its declaration": (declares_4_gb, "above the limit"),
    "bomb that lies about its size": (declares_less_than_it_holds, "Bad CRC-32"),
    "unknown compression": (unknown_method, "compression method 99"),
    "header and directory disagree": (other_name_inside, "differ"),
}


@pytest.mark.parametrize("case", BAD_ZIP_ENTRIES)
def test_bad_zip_entry_is_reported(tmp_path, case):
    damage, reason = BAD_ZIP_ENTRIES[case]
    bad = damage(write_zip(tmp_path / "bad.zip", {"c/bad.png": NOISE_PNG}))
    with pytest.raises(DataError) as error:
        load(bad)
    assert "'c/bad.png'" in str(error.value)
    assert reason in str(error.value)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_compression_without_a_size_limit_is_refused(tmp_path, method):
    source = write_zip(tmp_path / "a.zip", {"c/bad.png": GOOD}, method)
    with pytest.raises(DataError, match=f"compression method {method} is not supported"):
        load(source)


def test_bomb_that_declares_a_small_size_is_not_unpacked(tmp_path):
    # 64 MiB of zeros, declared as 100 bytes.
    source = declares_less_than_it_holds(write_zip(tmp_path / "a.zip", {"bad.png": bytes(64 * 2**20)}))
    tracemalloc.start()
    with pytest.raises(DataError, match="Bad CRC-32"):
        load(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**20


def text_file(path):
    path.write_text("no zip")


def truncated_zip(path):
    write_zip(path, {"a.png": GOOD})
    os.truncate(path, path.stat().st_size // 2)


def garbled_directory(path):
    patch_zip(write_zip(path, {"a.png": GOOD}), (0, b"PK"), (0, b"XX"))


def zip_without_images(path):
    write_zip(path, {"readme.txt": b"", "__MACOSX/a.png": b"", "a/": b""})


def folder_without_images(path):
    write_folder(path, {"readme.txt": b"", ".a.png": GOOD})


BAD_SOURCES = {
    "mnist": (None, 'expected source to be "digits", an image folder or a .zip file, got'),
    "missing.zip": (None, 'expected source to be "digits", an image folder or a .zip file, got'),
    "pipe.zip": (os.mkfifo, 'expected source to be "digits", an image folder or a .zip file, got'),
    "text.zip": (text_file, "to be a folder or an undamaged zip file, got: File is not a zip file"),
    "image.png": (
        lambda path: path.write_bytes(GOOD),
        "to be a folder or an undamaged zip file, got: File is not a zip file",
    ),
    "truncated.zip": (truncated_zip, "to be a folder or an undamaged zip file, got: File is not a zip file"),
    "garbled.zip": (
        garbled_directory,
        "to be a folder or an undamaged zip file, got: Bad magic number for central directory",
    ),
    "empty.zip": (
        lambda path: path.touch(),
        "to be a folder or an undamaged zip file, got: File is not a zip file",
    ),
    "later.zip": (
        lambda path: later_zip_version(write_zip(path, {"a.png": GOOD})),
        "to be a folder or an undamaged zip file, got: zip file version 9.9",
    ),
    "no-images.zip": (zip_without_images, "to hold at least one image (.png .jpg .jpeg"),
    "no-images": (folder_without_images, "to hold at least one image (.png .jpg .jpeg"),
    "empty": (os.mkdir, "to hold at least one image (.png .jpg .jpeg"),
}


@pytest.mark.parametrize("name", BAD_SOURCES)
def test_bad_source_is_reported(tmp_path, name):
    make, message = BAD_SOURCES[name]
    if make:
        make(tmp_path / name)
    with pytest.raises(DataError, match=re.escape(message)) as error:
        load(tmp_path / name)
    assert quoted(str(tmp_path / name)) in str(error.value)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "Digits", "", "nul\0byte"])
def test_unknown_source_error_lists_the_kinds_of_sources(name):
    with pytest.raises(DataError, match=r'"digits", an image folder or a \.zip file') as error:
        load(name)
    assert quoted(name) in str(error.value)


BAD_ARGUMENTS = [
    ({"image_size": 0}, ValueError, "load_images: expected image_size at least 1, got 0"),
    ({"image_size": 8.0}, TypeError, "load_images: expected image_size type int, got float"),
    ({"image_size": True}, TypeError, "load_images: expected image_size type int, got bool"),
    ({"channels": 2}, ValueError, "load_images: expected channels to be 1 (gray), 3 (RGB) or None, got 2"),
    ({"channels": "3"}, ValueError, "load_images: expected channels to be 1 (gray), 3 (RGB) or None, got '3'"),
    ({"bad_files": "ignore"}, ValueError, 'load_images: expected bad_files to be "raise" or "skip", got \'ignore\''),
    ({"max_skipped": -1}, ValueError, "load_images: expected max_skipped at least 0, got -1"),
    ({"source": None}, TypeError, "load_images: expected source type str or os.PathLike, got NoneType"),
    ({"source": b"digits"}, TypeError, "load_images: expected source type str or os.PathLike, got bytes"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_ARGUMENTS)
def test_bad_argument_is_refused(arguments, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        load(**{"source": "digits", **arguments})


def test_first_bad_file_in_path_order_is_raised(tmp_path):
    source = write_folder(tmp_path, {f"{i:03}.png": GOOD if i < 40 else b"" for i in range(80)})
    for _ in range(5):
        with pytest.raises(DataError, match=r"040\.png"):
            load(source)


@pytest.mark.parametrize(("max_skipped", "good"), [(5, 1), (100, 1), (5, 0)])
def test_bad_files_up_to_max_skipped_are_skipped(tmp_path, max_skipped, good):
    files = {f"bad{i}.png": b"" for i in range(5)} | {f"good{i}.png": GOOD for i in range(good)}
    source = write_folder(tmp_path, files)
    if good:
        data = load(source, bad_files="skip", max_skipped=max_skipped)
        assert [bad.name for bad in data.skipped] == [f"bad{i}.png" for i in range(5)]
    else:
        with pytest.raises(
            DataError, match=r"got only 5 files that cannot be used: 'bad0.png': the file is empty; .*; and 2 more"
        ):
            load(source, bad_files="skip", max_skipped=max_skipped)


def test_more_bad_files_than_max_skipped_raise(tmp_path):
    source = write_folder(tmp_path, {f"bad{i}.png": b"" for i in range(9)} | {"good.png": GOOD})
    with pytest.raises(DataError) as error:
        load(source, bad_files="skip", max_skipped=4)
    assert str(error.value) == (
        f"load_images: expected source {str(source)!r} to hold at most max_skipped=4 files that cannot be "
        "used, got 5 and stopped: "
        "'bad0.png': the file is empty; 'bad1.png': the file is empty; 'bad2.png': the file is empty; and 2 more"
    )


def test_no_thread_is_left_after_an_error(tmp_path):
    before = threading.active_count()
    with pytest.raises(DataError):
        load(write_folder(tmp_path, {"a.png": b"", "b.png": GOOD}))
    assert threading.active_count() == before
