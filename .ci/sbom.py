"""Write the software bill of materials of the wheel (CycloneDX JSON): the packages that it needs, without extras.

Usage: python .ci/sbom.py OUT.json    # names and licences from this environment, hashes from requirements.lock
"""

import re
import sys
from importlib.metadata import Distribution, distribution
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCK = Path(__file__).resolve().parents[1] / "requirements.lock"
_LINE = re.compile(r"(?P<name>[^=#\s]+)==(?P<version>\S+) --hash=sha256:(?P<sha256>[0-9a-f]{64})")


def locked() -> dict[str, tuple[str, str]]:
    """Return version and sha256 of every package in requirements.lock."""
    matches = map(_LINE.fullmatch, LOCK.read_text().splitlines())
    return {canonicalize_name(found["name"]): (found["version"], found["sha256"]) for found in matches if found}


def needed(name: str, extras: frozenset[str] = frozenset()) -> dict[str, list[str]]:
    """Return the names of the packages that ``name`` needs, directly or through others; each with its own needs."""
    needs: dict[str, list[str]] = {}
    waiting, seen = [(canonicalize_name(name), extras)], set()
    while waiting:
        package, wanted = waiting.pop()
        if (package, wanted) in seen:
            continue
        seen.add((package, wanted))
        direct = needs.setdefault(package, [])
        for text in distribution(package).requires or []:
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in (wanted or {""})):
                direct.append(canonicalize_name(requirement.name))
                waiting.append((direct[-1], frozenset(requirement.extras)))
    return needs


def _licence(found: Distribution) -> str:
    fields = found.metadata
    named = fields.get("License-Expression") or fields.get("License") or ""
    classified = [each.rpartition(" :: ")[2] for each in fields.get_all("Classifier", []) if each.startswith("License")]
    return named if named and len(named) < 80 and "\n" not in named else " AND ".join(classified)


def bill_of_materials(name: str = "motionmae") -> Bom:
    """Return the bill of materials of the installed package ``name``. Raises SystemExit without a hash."""
    hashes, needs, licences = locked(), needed(name), LicenseFactory()
    components = {}
    for package in needs:
        found = distribution(package)
        is_root = package == canonicalize_name(name)
        licence = _licence(found)
        if not is_root and hashes.get(package, ("", ""))[0] != found.version:
            raise SystemExit(f"{package}=={found.version} is not in {LOCK.name}: run make lock, then make test")
        components[package] = Component(
            name=found.metadata["Name"],
            version=found.version,
            type=ComponentType.APPLICATION if is_root else ComponentType.LIBRARY,
            bom_ref=f"{package}=={found.version}",
            purl=PackageURL("pypi", name=package, version=found.version),
            licenses=[licences.make_from_string(licence)] if licence else [],
            hashes=[] if is_root else [HashType(alg=HashAlgorithm.SHA_256, content=hashes[package][1])],
        )
    root = components.pop(canonicalize_name(name))
    bom = Bom(components=components.values())
    bom.metadata.component = root
    for package, direct in needs.items():
        bom.register_dependency(components.get(package, root), [components[each] for each in set(direct) - {name}])
    return bom


def main(argv: list[str]) -> int:
    """Write the file."""
    (out,) = argv
    bom = bill_of_materials()
    Path(out).write_text(JsonV1Dot6(bom).output_as_string(indent=1) + "\n")
    print(f"wrote {out}: {len(bom.components)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
