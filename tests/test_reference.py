"""The reference: it builds without warnings, all references resolve, no name is missing."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import prunelab as pl

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built reference."""
    out = tmp_path_factory.mktemp("docs")
    command = [sys.executable, "-m", "sphinx", "-nW", "--keep-going", "-q", ".docs", str(out)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return out


def test_every_public_name_is_on_a_page(pages: Path) -> None:
    listed = zlib.decompress((pages / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    known = {line.split()[0] for line in listed.splitlines()}
    missing = [name for name in pl.__all__ if f"prunelab.{name}" not in known]
    assert missing == [], "add them to a page in .docs"


def test_names_in_docstrings_lead_to_their_pages(pages: Path) -> None:
    text = (pages / "session.html").read_text(encoding="utf-8")
    assert 'href="errors.html#prunelab.WrongState"' in text
    assert 'href="network.html#prunelab.WidthPlan"' in text
