"""The documents are short, their links resolve, and their examples run and print what they show."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image

from gan_fast import cli

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(path for folder in (".", "docs", "docs/decisions") for path in (ROOT / folder).glob("*.md"))
# docs/decisions records what was true on its date.
CURRENT = [path for path in DOCUMENTS if path.parent.name != "decisions"]

BANNED = re.compile(r"(?<![a-z])(ours|nobody|somebody|whoever|house|room|twins?)(?![a-z])", re.IGNORECASE)
# A key in results that were measured before December 2026; benchmarks/table.py still reads them.
OLD_KEY = "ours_speedup"


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _with_code(document: Path) -> bool:
    return "```python\n" in document.read_text()


@pytest.fixture(scope="module")
def folder_with_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that has what the documents load: images in photos, and the run runs/photos, both small."""
    folder = tmp_path_factory.mktemp("documents")
    (folder / "photos").mkdir()
    for index in range(8):
        Image.new("RGB", (16, 16), (30 * index, 0, 0)).save(folder / "photos" / f"{index}.png")
    options = ["--image-size", "16", "--width", "2", "--batch-size", "4", "--steps", "1", "--threads", "1"]
    threads = torch.get_num_threads()
    cli.main(["train", "--data", str(folder / "photos"), "--out", str(folder / "runs" / "photos"), *options])
    torch.set_num_threads(threads)
    return folder


@pytest.mark.parametrize("document", filter(_with_code, CURRENT), ids=_name)
def test_examples_run_and_print_what_the_document_shows(
    document: Path, folder_with_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder_with_run)
    capsys.readouterr()
    # The indented block right behind an example that prints is its output; a document may leave it out.
    for code, shown in re.findall(r"```python\n(.*?)```\n(?:\n((?:    [^\n]*\n)+))?", document.read_text(), re.DOTALL):
        torch.manual_seed(0)
        exec(compile(code, _name(document), "exec"), {"__name__": "example"})
        printed = capsys.readouterr().out
        if printed and shown:
            assert printed == re.sub(r"^    ", "", shown, flags=re.MULTILINE)


def _anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a document."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    anchors: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE):
        heading = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number = sum(a == anchor or re.fullmatch(rf"{re.escape(anchor)}-\d+", a) is not None for a in anchors)
        anchors.add(f"{anchor}-{number}" if anchor in anchors else anchor)
    return anchors


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_links_resolve(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if re.match(r"\w+:", link):
            continue  # another site
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), f"{_name(document)} links to {link}"
        assert not anchor or anchor in _anchors(target), f"{_name(document)} links to the missing heading {link}"


@pytest.mark.parametrize("document", CURRENT, ids=_name)
def test_named_files_exist(document: Path) -> None:
    for name in re.findall(r"`((?:csrc|gan_fast|tests|benchmarks|docs|examples)/[\w./-]+)`", document.read_text()):
        assert (ROOT / name).exists(), f"{_name(document)} names {name}"


def test_readme_fits_one_screen() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 100
    assert [line for line in lines if len(line) > 120] == []


def test_no_file_uses_a_banned_word() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("needs a git checkout")
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path == Path(__file__) or not path.is_file():
            continue
        try:
            lines = path.read_text().replace(OLD_KEY, "").splitlines()
        except UnicodeDecodeError:
            continue  # a picture
        found += [f"{name}:{number}: {m[0]}" for number, line in enumerate(lines, 1) for m in BANNED.finditer(line)]
    assert not found, "\n".join(found)
