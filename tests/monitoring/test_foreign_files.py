"""Foreign files beside the snapshots and the target files of monitoring."""

import json
import os
from pathlib import Path

import pytest

from monitoring.exporter import Settings, publish, withdraw
from monitoring.rank_snapshots import clear, node_folder
from tests.foreign_files import contents, sow, sown
from tests.monitoring.runs import config_of


def test_monitoring_deletes_only_its_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = node_folder(f"tiny-{12 * 'a'}")
    places = [folder, *(folder.with_name(name) for name in (f"old-{12 * 'b'}", "my notes", "backup-2020", "tiny-abc"))]
    for place in places:
        place.mkdir(exist_ok=True)
        (place / "3.json").write_text("{}")
        (place / "notes").mkdir()
    sow(folder.parent)
    before = sown(folder.parent)
    ours = folder.with_name(f"old-{12 * 'c'}")  # of another job, and with nothing else
    ours.mkdir()
    (ours / "3.json").write_text("{}")
    for place in [*places[1:], ours]:
        os.utime(place, (0, 0))
    clear(folder)
    assert sown(folder.parent) == before
    assert sorted(path.parent.name for path in folder.parent.rglob("3.json")) == sorted(
        place.name for place in places[1:]
    )


def test_a_target_file_of_another_origin_stays(tmp_path: Path):
    config = config_of(tmp_path / "runs")
    settings = [
        Settings(run=run, output_dir=tmp_path, node=node, nodes=2, snapshots=tmp_path, monitoring=config.monitoring)
        for run, node in (("demo", 0), ("demo", 1), ("demo-9", 0))
    ]
    for one in settings:
        publish(one, "host:1")
    sd = settings[0].discovery
    mine = json.dumps([{"targets": ["my-host:9100"], "labels": {"job": "mine"}}])
    label = settings[0].label
    for name in ("-7.json", "-07.json", "-².json", "-x-5.json"):
        (sd / f"{label}{name}").write_text(mine)
    (sd / f"{label}-6.json").symlink_to(sd / f"{label}-7.json")
    before = contents(sd)
    publish(settings[0], "host:1")
    assert contents(sd) == before
    settings[1].target_file.write_text(mine)
    with pytest.raises(FileExistsError, match="was not written by this run"):
        publish(settings[1], "host:2")
    withdraw(settings[1], "host:2")
    assert settings[1].target_file.read_text() == mine
