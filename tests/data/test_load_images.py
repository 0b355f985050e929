"""Sources, order, classes, channels."""

import os
import pathlib
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


def same(a: ImageData, b: ImageData) -> bool:
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


def test_class_folders(class_folder):
    data = load(class_folder)
    assert torch.equal(data.images, as_tensor(images_of(4)))
    assert data.images.dtype == torch.uint8
    assert data.images.is_contiguous()
    assert data.class_names == ("cat", "dog")
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert data.labels.dtype == torch.int64
    assert data.skipped == ()
    assert str(data) == f"4 images, 3x8x8, 2 classes, from {class_folder}"


def test_a_zip_gives_what_its_folder_gives(class_folder, tmp_path):
    data = load(zip_of(class_folder, tmp_path / "pets.zip"))
    assert same(data, load(str(class_folder)))


def test_equal_data_have_equal_fingerprints(class_folder, tmp_path):
    from_folder = load(class_folder)
    assert len(from_folder.fingerprint) == 16
    assert from_folder.fingerprint == load(zip_of(class_folder, tmp_path / "pets.zip")).fingerprint


def replace_an_image(root):
    (root / "cat" / "z.PNG").write_bytes(encode(picture(8, 8, seed=9)))


def rename_a_class(root):
    (root / "cat").rename(root / "car")


def move_an_image_to_another_class(root):
    # Still third in the order: only a label differs.
    (root / "dog" / "1.TIF").rename(root / "cat" / "zz.TIF")


@pytest.mark.parametrize("change", [replace_an_image, rename_a_class, move_an_image_to_another_class])
def test_the_fingerprint_sees_a_change(class_folder, change):
    before = load(class_folder).fingerprint
    change(class_folder)
    assert load(class_folder).fingerprint != before


def test_the_fingerprint_knows_the_shape_and_the_absence_of_labels():
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    data = [
        ImageData(images, None, (), (), ""),
        ImageData(images.view(1, 3, 4, 8), None, (), (), ""),
        ImageData(images, torch.zeros(2, dtype=torch.int64), (), (), ""),
    ]
    assert len({d.fingerprint for d in data}) == 3


@pytest.mark.parametrize("prefix", ["./", ""])
@pytest.mark.parametrize("separator", ["/", "\\"])
def test_zip_spellings_of_a_path(tmp_path, prefix, separator):
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


def test_classes_sort_by_path_component(tmp_path):
    # As text "a-b/1.png" sorts before "a/1.png".
    first, second = images_of(2)
    data = load(write_folder(tmp_path, {"a-b/1.png": encode(second), "a/1.png": encode(first)}))
    assert data.class_names == ("a", "a-b")
    assert torch.equal(data.images, as_tensor([first, second]))


@pytest.mark.parametrize("image_format", ["png", "bmp", "tiff", "ppm"])
def test_lossless_formats_agree(tmp_path, image_format):
    pictures = images_of(3)
    files = {f"{i}.{image_format}": encode(p, image_format.upper()) for i, p in enumerate(pictures)}
    assert torch.equal(load(write_folder(tmp_path / "folder", files)).images, as_tensor(pictures))
    assert torch.equal(load(write_zip(tmp_path / "a.zip", files)).images, as_tensor(pictures))


def test_jpeg_in_folder_and_zip_agree(tmp_path):
    files = {f"{i}.jpg": encode(p, "JPEG") for i, p in enumerate(images_of(3))}
    files["flat.jpeg"] = encode(np.full((8, 8, 3), 128, np.uint8), "JPEG")
    folder = load(write_folder(tmp_path / "folder", files))
    assert same(folder, load(write_zip(tmp_path / "a.zip", files)))
    assert (folder.images[-1] == 128).all()


def test_links_are_followed_and_loops_end(tmp_path):
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
    ("stored", "asked", "got"),
    [((1, 1), None, 1), ((1, 3), None, 3), ((3, 3), None, 3), ((1, 3), 1, 1), ((1, 1), 3, 3)],
)
def test_channels(tmp_path, stored, asked, got):
    files = {f"{i}.png": encode(picture(8, 8, channels)) for i, channels in enumerate(stored)}
    images = load(write_folder(tmp_path, files), channels=asked).images
    assert images.shape == (2, got, 8, 8)
    assert images.is_contiguous()


def test_grey_stored_as_colour_is_grey(tmp_path):
    grey = picture(8, 8, 1)
    images = load(write_folder(tmp_path, {"a.png": encode(np.stack([grey] * 3, -1))})).images
    assert torch.equal(images, torch.from_numpy(grey)[None, None])


def test_more_files_than_one_chunk_keep_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr("gan_fast.data.images._CHUNK_FILES", 4)
    pictures = images_of(11)
    files = {f"{i:02}.png": encode(p) for i, p in enumerate(pictures)}
    files["05-bad.png"] = b"no"
    data = load(write_folder(tmp_path, files), bad_files="skip")
    assert torch.equal(data.images, as_tensor(pictures))
    assert [bad.name for bad in data.skipped] == ["05-bad.png"]
    assert str(data).endswith("1 file skipped")


def test_loads_on_several_threads_agree(class_folder):
    results = []
    threads = [threading.Thread(target=lambda: results.append(load(class_folder))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(same(results[0], result) for result in results)


def test_a_class_keeps_its_index_when_its_files_are_skipped(tmp_path):
    files = {"a/1.png": b"bad", "b/1.png": encode(picture(8, 8))}
    data = load(write_folder(tmp_path, files), bad_files="skip")
    assert data.class_names == ("a", "b")
    assert data.labels.tolist() == [1]


@pytest.mark.parametrize("progress", [False, True])
def test_progress_bar(class_folder, capsys, progress):
    load(class_folder, progress=progress)
    assert ("4/4" in capsys.readouterr().err) is progress


def test_one_image_reads_as_singular(tmp_path):
    data = load(write_folder(tmp_path, {"only/1.png": encode(picture(8, 8))}))
    assert str(data).startswith("1 image, 3x8x8, 1 class, from ")


@pytest.mark.skipif(find_spec("sklearn") is None, reason='needs scikit-learn: pip install "gan_fast[digits]"')
class TestDigits:
    def test_native_size_is_exact(self):
        from sklearn.datasets import load_digits

        data = load("digits")
        bundle = load_digits()
        assert torch.equal(data.images[:, 0], torch.from_numpy(np.rint(bundle.images * 255 / 16)).to(torch.uint8))
        assert data.labels.tolist() == bundle.target.tolist()
        assert data.class_names == tuple("0123456789")
        assert str(data) == "1797 images, 1x8x8, 10 classes, from digits"

    @pytest.mark.parametrize(("image_size", "channels"), [(16, None), (4, 1), (32, 3)])
    def test_scaled(self, image_size, channels):
        images = load("digits", image_size=image_size, channels=channels).images
        assert images.shape == (1797, channels or 1, image_size, image_size)
        assert images.dtype == torch.uint8
        assert images.is_contiguous()
        # Overshoot that wrapped around instead of being clamped would put white specks on black and raise the mean.
        assert abs(images.float().mean() - load("digits").images.float().mean()) < 3

    def test_absence_of_scikit_learn_names_the_remedy(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "sklearn", None)
        with pytest.raises(DataError, match=r'pip install "gan_fast\[digits\]"'):
            load("digits")

    def test_a_folder_of_that_name_is_reached_by_its_path(self, tmp_path, monkeypatch):
        write_folder(tmp_path / "digits", {"a.png": encode(picture(8, 8))})
        monkeypatch.chdir(tmp_path)
        assert len(load(os.path.join(".", "digits")).images) == 1


@pytest.mark.skipif(not CIFAR_ZIP.is_file(), reason=f"needs {CIFAR_ZIP}")
def test_real_cifar(tmp_path):
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
    assert same(data, load(write_folder(tmp_path / "folder", entries), image_size=32))
