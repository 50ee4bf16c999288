"""Packages: each is pinned with a hash, and the bill of materials of the wheel lists them all. `make clean`."""

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = {
    canonicalize_name(name): (pinned, sha256)
    for name, pinned, sha256 in re.findall(r"^(\S+)==(\S+) --hash=sha256:([0-9a-f]{64})$", LOCK, re.MULTILINE)
}
HERE = f"Python {sys.version_info[0]}.{sys.version_info[1]} on {sys.platform} "


def test_every_line_of_the_lock_has_a_version_and_a_hash() -> None:
    lines = [line for line in LOCK.splitlines() if not line.startswith("#")]
    assert len(PINS) == len(lines) > 150


def test_the_lock_holds_what_the_project_asks_for_and_constraints_pin() -> None:
    asked = [*PROJECT["dependencies"], *(each for group in ("test", "remote", "ffcv", "viz") for each in _extra(group))]
    for text in asked:
        requirement = Requirement(text)
        if requirement.name != "motionmae":
            assert PINS[canonicalize_name(requirement.name)][0] in requirement.specifier, f"{text}: run make lock"
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            name, _, pinned = line.partition("==")
            assert PINS[canonicalize_name(name)][0] == pinned, f"{line}: run make lock"


def _extra(name: str) -> list[str]:
    return PROJECT["optional-dependencies"][name]


@pytest.mark.skipif(HERE not in LOCK, reason="the lock is for another Python or system")
def test_the_bill_of_materials_lists_every_package_of_the_wheel(tmp_path: Path) -> None:
    out = tmp_path / "bom.json"
    subprocess.run([sys.executable, ROOT / ".ci/sbom.py", out], check=True, capture_output=True, text=True)
    bom = json.loads(out.read_text())
    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.6")
    assert (bom["metadata"]["component"]["name"], bom["metadata"]["component"]["version"]) == ("motionmae", "0.1.0")
    parts = {canonicalize_name(part["name"]): part for part in bom["components"]}
    for text in PROJECT["dependencies"]:
        assert canonicalize_name(Requirement(text).name) in parts
    for name, part in parts.items():
        assert (part["version"], part["hashes"]) == (version(name), [{"alg": "SHA-256", "content": PINS[name][1]}])
        assert part["purl"] == f"pkg:pypi/{name}@{part['version'].replace('+', '%2B')}"
    assert not {"pytest", "moto", "ffcv"} & set(parts)  # only of the tests
    needs = {each["ref"]: each.get("dependsOn", []) for each in bom["dependencies"]}
    assert f"numpy=={version('numpy')}" in needs[f"torchvision=={version('torchvision')}"]


@pytest.mark.parametrize("ours", [True, False])
def test_clean_removes_only_an_environment_that_the_makefile_made(
    ours: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = tmp_path / "venvs/main"
    foreign = [theirs / "pyvenv.cfg", *(tmp_path / name for name in (".venv.bak/a", "data/demo/a", "runs/demo/a", "a"))]
    for path in [*foreign, tmp_path / ".venv/pyvenv.cfg", *([tmp_path / ".venv/.test"] if ours else [])]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine\n")
    monkeypatch.setenv("VENV", str(theirs))
    subprocess.run(["make", "--file", ROOT / "Makefile", "clean"], cwd=tmp_path, check=True, capture_output=True)
    assert all(path.read_text() == "mine\n" for path in foreign)
    assert (tmp_path / ".venv").exists() is not ours
    planned = subprocess.run(
        ["make", "--file", ROOT / "Makefile", "--dry-run", "clean", "system-packages"],
        cwd=tmp_path, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert str(theirs) not in planned.stdout
