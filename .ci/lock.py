"""Write requirements.lock: the exact files that the tests install, by sha256, for the running Python and Linux.

Usage: python .ci/lock.py    # after a change of pyproject.toml or constraints.txt; needs the package index
"""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
_HEAD = """\
# The files of the tests' packages, written by .ci/lock.py for Python {python} on {machine}. `make test` installs these
# and no others there: pip compares each file with its sha256.
"""


def lock_lines(report: dict) -> list[str]:
    """Return a requirement with its hash for every package of pip's installation report, except this project."""
    lines = []
    for item in report["install"]:
        hashes = item["download_info"].get("archive_info", {}).get("hashes")
        if hashes:
            lines.append(f"{item['metadata']['name']}=={item['metadata']['version']} --hash=sha256:{hashes['sha256']}")
    return sorted(lines, key=str.lower)


def main() -> int:
    """Resolve the packages of the extra `test` without installing them, and write the file."""
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = ["install", "--quiet", "--dry-run", "--ignore-installed", "--report", str(report)]
        command += ["--constraint", "constraints.txt", "--editable", ".[test]"]
        subprocess.run([sys.executable, "-m", "pip", *command], cwd=ROOT, check=True)
        found = json.loads(report.read_text())
    machine = found["environment"]
    head = _HEAD.format(
        python=machine["python_version"], machine=f"{machine['sys_platform']} {machine['platform_machine']}"
    )
    LOCK.write_text(head + "\n".join(lock_lines(found)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
