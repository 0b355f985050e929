"""load_images: sources, order, classes and channels."""

import json
import os
import pathlib
import subprocess
import sys
import threading
import zipfile
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from data.image_bytes import encode, picture, write_folder, write_zip

from gan_fast.data import DataError, ImageData, load_images

CIFAR_ZIP = pathlib.Path(__file__).parents[3] / "shared" / "data" / "cifar10-train.zip"


def images_of(count, channels=3):
    return [picture(8, 8, channels, seed) for seed in range(count)]


def as_tensor(pictures):
    return torch.stack([torch.from_numpy(p).reshape(8, 8, -1).permute(2, 0, 1) for p in pictures])


def load(source, **options):
    return load_images(source, **{"image_size": 8, **options})


def is_equal(a: ImageData, b: ImageData) -> bool:
    labels = a.labels is b.labels is None or torch.equal(a.labels, b.labels)
    return torch.equal(a.images, b.images) and labels and a.class_names == b.class_names


@pytest.fixture
def class_folder(tmp_path):
    a, b, c, d = images_of(4)
    files = {
        "dog/2.png": encode(d),
        "dog/1.TIF": encode(c, "TIFF"),
        "cat/z.PNG": encode(b),
        "cat/x/deep/1.bmp": encode(a, "BMP"),
        "cat-flap/readme.txt": b"no image, so no class",
        "notes.txt": b"",
        ".hidden.png": b"junk",
        ".git/a.png": b"junk",
        "__MACOSX/cat/._1.png": b"junk",
    }
    (tmp_path / "pets" / "empty").mkdir(parents=True)
    return write_folder(tmp_path / "pets", files)


def zip_of(folder, path):
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return write_zip(path, dict(sorted(files.items(), reverse=True)))


def test_folders_become_classes(class_folder):
    data = load(class_folder)
    assert torch.equal(data.images, as_tensor(images_of(4)))
    assert data.images.dtype == torch.uint8
    assert data.images.is_contiguous()
    assert data.class_names == ("cat", "dog")
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert data.labels.dtype == torch.int64
    assert data.skipped == ()
    assert str(data) == f"4 images, 3x8x8, 2 classes, from {class_folder}"


def test_zip_gives_the_same_data_as_its_folder(class_folder, tmp_path):
    data = load(zip_of(class_folder, tmp_path / "pets.zip"))
    assert is_equal(data, load(str(class_folder)))


def test_equal_data_have_equal_fingerprints(class_folder, tmp_path):
    from_folder = load(class_folder)
    assert len(from_folder.fingerprint) == 16
    assert from_folder.fingerprint == load(zip_of(class_folder, tmp_path / "pets.zip")).fingerprint


def replace_an_image(root):
    (root / "cat" / "z.PNG").write_bytes(encode(picture(8, 8, seed=9)))


def rename_a_class(root):
    (root / "cat").rename(root / "car")


def move_an_image_to_another_class(root):
    # The image stays third in the order, so only its label changes.
    (root / "dog" / "1.TIF").rename(root / "cat" / "zz.TIF")


@pytest.mark.parametrize("change", [replace_an_image, rename_a_class, move_an_image_to_another_class])
def test_fingerprint_changes_with_the_data(class_folder, change):
    before = load(class_folder).fingerprint
    change(class_folder)
    assert load(class_folder).fingerprint != before


def test_fingerprint_depends_on_shape_and_labels():
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    data = [
        ImageData(images, None, (), (), ""),
        ImageData(images.view(1, 3, 4, 8), None, (), (), ""),
        ImageData(images, torch.zeros(2, dtype=torch.int64), (), (), ""),
    ]
    assert len({d.fingerprint for d in data}) == 3


RECORD = json.dumps({"config": {"data": "photos"}, "versions": {"gan_fast": "0.1"}}).encode()
RUN_FILES = {
    "config.json": RECORD,
    "curves.png": encode(picture(8, 8, seed=7)),
    "samples/step_000500.png": encode(picture(8, 8, seed=8)),
}


def with_run(files, folder):
    return files | {f"{folder}/{name}" if folder else name: data for name, data in RUN_FILES.items()}


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("folder", ["run", "cat/old/run", "cat-run", "", "r\u00fcn"])
def test_runs_in_the_source_are_left_out(tmp_path, folder, kind):
    first, second = images_of(2)
    files = with_run({"cat/1.png": encode(first), "dog/1.png": encode(second)}, folder)
    source = write_folder(tmp_path / "a", files) if kind == "folder" else write_zip(tmp_path / "a.zip", files)
    data = load(source)
    assert data.class_names == ("cat", "dog")
    assert torch.equal(data.images, as_tensor([first, second]))
    assert (folder or "the samples and curves of the gan_fast run in the source folder itself") in data.notes[0]


def test_link_to_a_run_is_left_out(tmp_path):
    write_folder(tmp_path / "run", RUN_FILES)
    source = write_folder(tmp_path / "photos", {"a.png": encode(picture(8, 8))})
    (source / "latest").symlink_to(tmp_path / "run", target_is_directory=True)
    assert len(load(source).images) == 1


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"3", b"null", b"\xff", b"[" * 100_000),
        b'{"config": {"data": 1}}',
        b'{"config": 1, "versions": {"gan_fast": 1}}',
        b'{"config": {"data": 1}, "versions": []}',
        RECORD + b" " * 2**20,
    ],
    ids=range(11),
)
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_folder_with_another_config_json_is_not_left_out(tmp_path, content, kind):
    files = {"cat/1.png": encode(picture(8, 8)), "cat/config.json": content, "cat/samples/2.png": encode(picture(8, 8))}
    source = write_folder(tmp_path / "a", files) if kind == "folder" else write_zip(tmp_path / "a.zip", files)
    data = load(source)
    assert len(data.images) == 2
    assert data.notes == ()


def test_config_json_that_is_a_pipe_is_not_read(tmp_path):
    write_folder(tmp_path, {"cat/1.png": encode(picture(8, 8))})
    os.mkfifo(tmp_path / "cat" / "config.json")
    assert len(load(tmp_path).images) == 1


def test_error_names_the_runs_that_were_left_out(tmp_path):
    with pytest.raises(DataError, match=r"got none; left out x: the folder of a gan_fast run"):
        load(write_folder(tmp_path, with_run({}, "x")))


NAMES_PROGRAM = """
import json, os, sys
from gan_fast.data import load_images
data = load_images(os.fsdecode(bytes.fromhex(sys.argv[1])), image_size=8, bad_files="skip")
print(data)
for line in (*data.notes, *data.skipped):
    print(line)
print(json.dumps([data.class_names, data.labels.tolist(), data.fingerprint]))
"""


@pytest.mark.parametrize("stream", ["utf-8", "ascii"])
def test_names_that_are_not_utf_8_are_printable_and_ordered_by_bytes(tmp_path, stream):
    root = os.fsencode(tmp_path) + b"/photos-\xff"
    for name in (b"caf\xe9/1.png", b"caf\xe9/\xff.png", b"caf\xc3\xa9/1.png", b"a/\xe9-broken.png"):
        os.makedirs(os.path.dirname(root + b"/" + name), exist_ok=True)
        with open(root + b"/" + name, "wb") as file:
            file.write(b"" if b"broken" in name else encode(picture(8, 8, seed=len(name))))
    locale = {"utf-8": {"LC_ALL": "C.UTF-8"}, "ascii": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}}[stream]
    # Only the encoding of file names depends on the locale; standard output is strict UTF-8 in both.
    environment = {**os.environ, **locale, "PYTHONUTF8": "0", "PYTHONIOENCODING": "utf-8:strict"}
    command = [sys.executable, "-c", NAMES_PROGRAM, root.hex()]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    *lines, result = done.stdout.decode().splitlines()
    assert lines[0].endswith("/photos-\\xff, 1 file skipped")
    assert lines[1:] == ["a/\\xe9-broken.png: the file is empty"]
    class_names, labels, fingerprint = json.loads(result)
    assert class_names == ["a", "caf\u00e9", "caf\\xe9"]
    assert labels == [1, 2, 2]
    assert fingerprint == load(os.fsdecode(root), bad_files="skip").fingerprint


def test_control_characters_in_names_are_escaped(tmp_path):
    source = write_folder(tmp_path / "a\nb", {"x\x1b[2J/1.png": encode(picture(8, 8))})
    data = load(source)
    assert data.class_names == ("x\\x1b[2J",)
    assert str(data).isprintable()


def test_enlarged_images_are_reported_in_one_note(tmp_path):
    files = {"fine.png": picture(16, 16), "tiny.png": picture(3, 1), "small.png": picture(20, 15)}
    files = {name: encode(pixels) for name, pixels in files.items()}
    (note,) = load(write_folder(tmp_path, files), image_size=64).notes
    assert note == "2 images are enlarged more than 4 times to 64 pixels, the smallest 64 times: tiny.png of 1x3 pixels"


def test_too_few_files_are_refused_before_decoding(tmp_path, monkeypatch):
    source = write_folder(tmp_path, {f"{i}.png": encode(picture(8, 8)) for i in range(3)})
    assert len(load(source, min_images=3).images) == 3
    monkeypatch.setattr("gan_fast.data.images.decode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(DataError, match=r"at least 4 images, which a batch needs, got 3; .* batch_size to at most 3"):
        load(source, min_images=4)


def test_too_few_images_after_skipping_are_refused(tmp_path):
    source = write_folder(tmp_path, {"0.png": encode(picture(8, 8)), "1.png": b""})
    with pytest.raises(DataError, match="at least 2 images, which a batch needs, got 1"):
        load(source, min_images=2, bad_files="skip")


@pytest.mark.parametrize(("channels", "needed"), [(None, 3 * 2 * 64), (3, 3 * 2 * 64), (1, 2 * 64)])
def test_images_that_do_not_fit_into_memory_are_refused_before_decoding(tmp_path, monkeypatch, channels, needed):
    source = write_folder(tmp_path, {f"{i}.png": encode(picture(8, 8)) for i in range(2)})
    monkeypatch.setattr("gan_fast.data.images.available_bytes", lambda: needed)
    assert len(load(source, channels=channels).images) == 2
    monkeypatch.setattr("gan_fast.data.images.available_bytes", lambda: needed - 1)
    monkeypatch.setattr("gan_fast.data.images.decode", lambda *_: pytest.fail("decoded"))
    message = rf"got 2 images at image_size 8, which need {needed} bytes, while .* lower image_size"
    with pytest.raises(DataError, match=message):
        load(source, channels=channels)


@pytest.mark.parametrize("prefix", ["./", ""])
@pytest.mark.parametrize("separator", ["/", "\\"])
def test_zip_paths_may_have_backslashes_and_a_dot(tmp_path, prefix, separator):
    first, second = images_of(2)
    files = {f"{prefix}cat{separator}1.png": encode(first), f"{prefix}dog{separator}1.png": encode(second)}
    data = load(write_zip(tmp_path / "a.zip", files))
    assert data.class_names == ("cat", "dog")
    assert torch.equal(data.images, as_tensor([first, second]))


def test_nothing_is_written_beside_a_zip(tmp_path):
    archive = write_zip(tmp_path / "a.zip", {"cat/1.png": encode(picture(8, 8))})
    load(archive)
    assert list(tmp_path.iterdir()) == [archive]


def test_images_directly_in_the_folder_have_no_classes(tmp_path):
    first, second = images_of(2)
    data = load(write_folder(tmp_path, {"a.png": encode(first), "more/b.png": encode(second)}))
    assert torch.equal(data.images, as_tensor([first, second]))
    assert data.labels is None
    assert data.class_names == ()
    assert "no classes" in str(data)


def test_classes_are_sorted_by_path_component(tmp_path):
    # As text, "a-b/1.png" would come before "a/1.png".
    first, second = images_of(2)
    data = load(write_folder(tmp_path, {"a-b/1.png": encode(second), "a/1.png": encode(first)}))
    assert data.class_names == ("a", "a-b")
    assert torch.equal(data.images, as_tensor([first, second]))


@pytest.mark.parametrize("image_format", ["png", "bmp", "tiff", "ppm"])
def test_lossless_formats_are_exact_in_folder_and_zip(tmp_path, image_format):
    pictures = images_of(3)
    files = {f"{i}.{image_format}": encode(p, image_format.upper()) for i, p in enumerate(pictures)}
    assert torch.equal(load(write_folder(tmp_path / "folder", files)).images, as_tensor(pictures))
    assert torch.equal(load(write_zip(tmp_path / "a.zip", files)).images, as_tensor(pictures))


def test_jpeg_is_equal_in_folder_and_zip(tmp_path):
    files = {f"{i}.jpg": encode(p, "JPEG") for i, p in enumerate(images_of(3))}
    files["flat.jpeg"] = encode(np.full((8, 8, 3), 128, np.uint8), "JPEG")
    folder = load(write_folder(tmp_path / "folder", files))
    assert is_equal(folder, load(write_zip(tmp_path / "a.zip", files)))
    assert (folder.images[-1] == 128).all()


def test_links_are_followed_without_loops(tmp_path):
    first, second = images_of(2)
    root = write_folder(tmp_path / "root", {"cat/1.png": encode(first)})
    elsewhere = write_folder(tmp_path / "elsewhere", {"1.png": encode(second)})
    (root / "cat" / "loop").symlink_to(root, target_is_directory=True)
    for other_name in ("a-cat", "z-cat"):
        (root / other_name).symlink_to(root / "cat", target_is_directory=True)
    (root / "dog").symlink_to(elsewhere, target_is_directory=True)
    (root / "itself").symlink_to(root / "itself")
    data = load(root)
    assert data.class_names == ("cat", "dog")
    assert torch.equal(data.images, as_tensor([first, second]))


@pytest.mark.parametrize(
    ("stored", "channels", "expected"),
    [((1, 1), None, 1), ((1, 3), None, 3), ((3, 3), None, 3), ((1, 3), 1, 1), ((1, 1), 3, 3)],
)
def test_channels_are_detected_or_converted(tmp_path, stored, channels, expected):
    files = {f"{i}.png": encode(picture(8, 8, count)) for i, count in enumerate(stored)}
    images = load(write_folder(tmp_path, files), channels=channels).images
    assert images.shape == (2, expected, 8, 8)
    assert images.is_contiguous()


def test_gray_image_stored_as_rgb_has_one_channel(tmp_path):
    gray = picture(8, 8, 1)
    images = load(write_folder(tmp_path, {"a.png": encode(np.stack([gray] * 3, -1))})).images
    assert torch.equal(images, torch.from_numpy(gray)[None, None])


def test_files_in_several_chunks_keep_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr("gan_fast.data.images._CHUNK_FILES", 4)
    pictures = images_of(11)
    files = {f"{i:02}.png": encode(p) for i, p in enumerate(pictures)}
    files["05-bad.png"] = b"no"
    data = load(write_folder(tmp_path, files), bad_files="skip")
    assert torch.equal(data.images, as_tensor(pictures))
    assert [bad.name for bad in data.skipped] == ["05-bad.png"]
    assert str(data).endswith("1 file skipped")


def test_loading_in_several_threads_gives_equal_data(class_folder):
    results = []
    threads = [threading.Thread(target=lambda: results.append(load(class_folder))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(is_equal(results[0], result) for result in results)


def test_class_keeps_its_index_if_its_files_are_skipped(tmp_path):
    files = {"a/1.png": b"bad", "b/1.png": encode(picture(8, 8))}
    data = load(write_folder(tmp_path, files), bad_files="skip")
    assert data.class_names == ("a", "b")
    assert data.labels.tolist() == [1]


@pytest.mark.parametrize("progress", [False, True])
def test_progress_bar_is_shown_on_request(class_folder, capsys, progress):
    load(class_folder, progress=progress)
    assert ("4/4" in capsys.readouterr().err) is progress


def test_summary_of_one_image_is_singular(tmp_path):
    data = load(write_folder(tmp_path, {"only/1.png": encode(picture(8, 8))}))
    assert str(data).startswith("1 image, 3x8x8, 1 class, from ")


@pytest.mark.skipif(find_spec("sklearn") is None, reason='needs scikit-learn: pip install "gan_fast[digits]"')
class TestDigits:
    def test_unscaled_digits_are_exact(self):
        from sklearn.datasets import load_digits

        data = load("digits")
        bundle = load_digits()
        assert torch.equal(data.images[:, 0], torch.from_numpy(np.rint(bundle.images * 255 / 16)).to(torch.uint8))
        assert data.labels.tolist() == bundle.target.tolist()
        assert data.class_names == tuple("0123456789")
        assert str(data) == "1797 images, 1x8x8, 10 classes, from digits"

    @pytest.mark.parametrize(("image_size", "channels"), [(16, None), (4, 1), (32, 3)])
    def test_scaled_digits_are_clamped(self, image_size, channels):
        images = load("digits", image_size=image_size, channels=channels).images
        assert images.shape == (1797, channels or 1, image_size, image_size)
        assert images.dtype == torch.uint8
        assert images.is_contiguous()
        # Without the clamp, overshoot would wrap around to white specks on black and raise the mean.
        assert abs(images.float().mean() - load("digits").images.float().mean()) < 3

    def test_error_without_scikit_learn_names_the_remedy(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "sklearn", None)
        with pytest.raises(DataError, match=r'pip install "gan_fast\[digits\]"'):
            load("digits")

    def test_folder_named_digits_is_loaded_by_its_path(self, tmp_path, monkeypatch):
        write_folder(tmp_path / "digits", {"a.png": encode(picture(8, 8))})
        monkeypatch.chdir(tmp_path)
        assert len(load(os.path.join(".", "digits")).images) == 1


@pytest.mark.skipif(not CIFAR_ZIP.is_file(), reason=f"needs {CIFAR_ZIP}")
def test_cifar_10_is_loaded(tmp_path):
    with zipfile.ZipFile(CIFAR_ZIP) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()[::250]}
    data = load(write_zip(tmp_path / "cifar.zip", entries, zipfile.ZIP_STORED), image_size=32)
    assert str(data) == f"200 images, 3x32x32, 10 classes, from {tmp_path / 'cifar.zip'}"
    assert data.class_names == (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    )
    assert data.labels.bincount().tolist() == [20] * 10
    assert 100 < data.images.float().mean() < 140  # CIFAR-10's mean is 120.7
    assert is_equal(data, load(write_folder(tmp_path / "folder", entries), image_size=32))
