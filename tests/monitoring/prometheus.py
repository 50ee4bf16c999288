"""A real Prometheus for tests: the shipped configuration with shorter times, asked through its HTTP API."""

import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.training.launch import free_port

SHIPPED = Path(__file__).resolve().parents[2] / "monitoring/prometheus"
needs_prometheus = pytest.mark.skipif(shutil.which("prometheus") is None, reason="apt-get install prometheus")


def write_configuration(folder: Path, discovery: Path, rules: Callable[[str], str] = lambda text: text) -> Path:
    """The shipped files, with targets in ``discovery``, a scrape a second, and rules changed by ``rules``."""
    folder.mkdir()
    text = (SHIPPED / "prometheus.yml").read_text()
    text = re.sub(r"(scrape|evaluation|refresh)_interval: 15s", r"\1_interval: 1s", text)
    text = text.replace("runs/.sd", str(discovery))
    (folder / "prometheus.yml").write_text(text)
    for name in ("recording.yml", "alerts.yml"):
        (folder / name).write_text(rules((SHIPPED / name).read_text()))
    return folder / "prometheus.yml"


class Prometheus:
    """A server; use as a context manager. ``prefix`` starts it elsewhere, e.g. in the network of a lab's head."""

    def __init__(self, configuration: Path, prefix: Sequence[str] = ()) -> None:
        self._prefix = list(prefix)
        self._port = free_port()
        command = ["prometheus", f"--config.file={configuration}", f"--web.listen-address=127.0.0.1:{self._port}"]
        self.log = configuration.with_name("log")
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [*prefix, *command, f"--storage.tsdb.path={configuration.with_name('data')}"], stdout=log, stderr=log
            )

    def __enter__(self) -> "Prometheus":
        end = time.monotonic() + 60
        while True:
            try:
                self._get("/-/ready")
                return self
            except (OSError, subprocess.CalledProcessError):
                assert time.monotonic() < end, self.log.read_text()
                time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """An instant query's samples: {"metric": labels, "value": [time, text]}."""
        answer = json.loads(self._get("/api/v1/query?" + urllib.parse.urlencode({"query": expression})))
        assert answer["status"] == "success", answer
        return answer["data"]["result"]

    def value(self, expression: str) -> float | None:
        """The value of the only sample; None if there is none."""
        samples = self.query(expression)
        assert len(samples) < 2, samples
        return float(samples[0]["value"][1]) if samples else None

    def alerts(self) -> dict[str, dict[str, Any]]:
        """The alerts that fire, by name."""
        found = json.loads(self._get("/api/v1/alerts"))["data"]["alerts"]
        return {alert["labels"]["alertname"]: alert for alert in found if alert["state"] == "firing"}

    def _get(self, path: str) -> str:
        url = f"http://127.0.0.1:{self._port}{path}"
        if self._prefix:
            done = subprocess.run([*self._prefix, "curl", "-sfg", url], capture_output=True, text=True, check=True)
            return done.stdout
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.read().decode()
