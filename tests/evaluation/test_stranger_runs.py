"""Looking at a stranger's run sends nothing of the environment away and writes nothing of it down."""

import shutil
from pathlib import Path

import pytest

from motionmae.data.remote import download
from tests.commands.functions import run
from tests.data.shard_server import serving

SECRET = "hf_0123456789abcdef"
URLS = ("${oc.env:HF_TOKEN,none}", "${HF_TOKEN}", "$HF_TOKEN", "$(printenv HF_TOKEN)", "%(HF_TOKEN)s", "{{HF_TOKEN}}")
NODE_PATHS = ("$HF_TOKEN", "${HF_TOKEN}/x", "FOLDER/$HF_TOKEN", "FOLDER/${oc.env:HF_TOKEN}")
CHANGES = [
    *({"shards": f"URL/{url}"} for url in URLS),
    *({"shards": "URL", "cache": path} for path in NODE_PATHS),
    *({"beton": path} for path in NODE_PATHS),
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_no_command_carries_the_value_of_a_variable(
    change: dict[str, str],
    trained_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "FIRST_DELAY", 0.01)
    folder = tmp_path / "stranger"
    shutil.copytree(trained_run, folder)
    config = (folder / "config.yaml").read_text().splitlines()
    with serving(trained_run.parents[1] / "shards") as server:
        for key, value in change.items():
            text = value.replace("URL", server.url).replace("FOLDER", str(tmp_path / "node"))
            config = [f"  {key}: '{text}'" if line.startswith(f"  {key}:") else line for line in config]
        (folder / "config.yaml").write_text("\n".join(config))
        for command, *options in (
            ("report",),
            ("reconstruct", "--out", str(tmp_path / "picture.png")),
            ("export", "--out", str(tmp_path / "export")),
            ("watch", "--once"),
            ("config show",),
        ):
            run(command, [str(folder), *options])
        requests = server.requests
    shown = capfd.readouterr()
    assert SECRET not in str(requests) + shown.out + shown.err
    assert "Traceback" not in shown.err
    for path in tmp_path.rglob("*"):
        assert SECRET not in str(path)
        assert not path.is_file() or SECRET.encode() not in path.read_bytes()
