"""The documentation site builds without a warning, and every page is reachable."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

from tests.docs.code_blocks import ROOT


def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    first = (tmp_path / "site" / "index.html").read_text()
    assert "masked autoencoder" in first
    hosts = {"fonts.googleapis.com", "unpkg.com", "cdnjs"}
    assert not any(host in first for host in hosts), "the site must not load files of other servers"


def test_every_page_is_in_the_navigation() -> None:
    navigation = yaml.safe_dump(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    pages = [page.relative_to(ROOT / "docs") for page in (ROOT / "docs").rglob("*.md")]
    assert [str(page) for page in pages if str(page) not in navigation] == []
