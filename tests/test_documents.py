"""What documents show is what happens."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"


def test_drop_in_prints_the_report_that_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    text = (DOCS / "drop-in.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(code, "drop-in.md", "exec"), {"__name__": "drop_in"})
    shown = re.search(r"```\n\n((?:    .*\n)+)", text)
    assert shown is not None
    assert capsys.readouterr().out == re.sub(r"^    ", "", shown.group(1), flags=re.MULTILINE)
