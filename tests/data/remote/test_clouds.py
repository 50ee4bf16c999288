"""Shards in Google Cloud Storage and Azure Blob Storage, against the emulators of both services."""

import hashlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from motionmae.config import DataConfig
from motionmae.data.open_shards import load_manifest, open_reader
from motionmae.data.remote import download
from motionmae.data.remote.download import UnreachableError
from motionmae.data.shards.errors import CorruptSample, Reason
from motionmae.errors import UserError
from tests.data.made_shards import make_shards

ROOT = Path(__file__).resolve().parents[3]
AZURITE = ROOT / ".venv/azurite/node_modules/.bin/azurite-blob"
COUNTS = (3, 2, 4)
FIRST = "toy-000000.tar"
ACCOUNT, KEY = "motionmae", "c2VjcmV0"  # base64 of "secret"


pytestmark = pytest.mark.usefixtures("short_delays")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_shards(tmp_path / "toy", COUNTS, frames=8)
    return tmp_path / "toy"


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    return DataConfig(cache=str(tmp_path / "cache"), remote_retries=2, remote_timeout=2)


def kept(data: DataConfig, pattern: str) -> list[Path]:
    return sorted(Path(data.cache).glob(pattern))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class GoogleEmulator:
    """Bucket `clips` of gcp-storage-emulator."""

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        import requests

        self._http = requests.Session()
        self._http.post(f"{self.endpoint}/storage/v1/b?project=p", json={"name": "clips"}).raise_for_status()

    def put(self, name: str, content: bytes) -> None:
        url = f"{self.endpoint}/upload/storage/v1/b/clips/o?uploadType=media&name={quote(name, safe='')}"
        self._http.post(url, data=content).raise_for_status()

    def remove(self, name: str) -> None:
        self._http.delete(f"{self.endpoint}/storage/v1/b/clips/o/{quote(name, safe='')}").raise_for_status()


class AzureEmulator:
    """Container `clips` of Azurite."""

    def __init__(self, connection: str) -> None:
        from azure.storage.blob import BlobServiceClient

        self._container = BlobServiceClient.from_connection_string(connection).get_container_client("clips")
        if self._container.exists():
            for blob in self._container.list_blob_names():
                self._container.delete_blob(blob)
        else:
            self._container.create_container()

    def put(self, name: str, content: bytes) -> None:
        self._container.upload_blob(name, content, overwrite=True)

    def remove(self, name: str) -> None:
        self._container.delete_blob(name)


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch) -> Iterator[GoogleEmulator]:
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    pytest.importorskip("gcsfs")
    port = free_port()
    running = emulator.create_server("127.0.0.1", port, in_memory=True)
    running.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    yield GoogleEmulator(port)
    running.stop()


@pytest.fixture(scope="module")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Connection string of an Azurite that this module's tests share."""
    program = os.environ.get("AZURITE_BLOB") or shutil.which("azurite-blob") or str(AZURITE)
    if not Path(program).exists():
        pytest.skip("Azurite is not installed: npm install --prefix .venv/azurite azurite@3.37.0")
    port, place = free_port(), tmp_path_factory.mktemp("azurite")
    options = ["--blobPort", str(port), "--location", str(place), "--skipApiVersionCheck", "--disableTelemetry"]
    environment = {**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"}
    running = subprocess.Popen([program, *options], env=environment, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while running.poll() is None and time.monotonic() < end:
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                break
        time.sleep(0.1)
    connection = f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};"
    yield f"{connection}BlobEndpoint=http://127.0.0.1:{port}/{ACCOUNT};"
    running.terminate()
    running.wait()


@pytest.fixture
def azure(azurite: str, monkeypatch: pytest.MonkeyPatch) -> AzureEmulator:
    pytest.importorskip("adlfs")
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", azurite)
    return AzureEmulator(azurite)


@pytest.fixture(params=["gs", "az"])
def store(request: pytest.FixtureRequest, folder: Path, data: DataConfig) -> tuple[Any, DataConfig]:
    """The shards in a bucket, and the data section that reads them."""
    emulator = request.getfixturevalue({"gs": "google", "az": "azure"}[request.param])
    for path in folder.iterdir():
        emulator.put(f"toy/{path.name}", path.read_bytes())
    return emulator, DataConfig(**{**vars(data), "shards": f"{request.param}://clips/toy", "remote_timeout": 10})


def test_samples_are_those_of_the_folder(folder: Path, store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(download, "_RANGE_BYTES", 4096)
    data = store[1]
    remote, local = open_reader(data.shards, data=data), open_reader(folder)
    for sample in range(sum(COUNTS)):
        assert remote.read_meta(sample) == local.read_meta(sample)
        assert remote.read_frames(sample, [5]) == local.read_frames(sample, [5])
    found = {hashlib.sha256(path.read_bytes()).hexdigest() for path in kept(data, "*.tar")}
    assert found == {shard.sha256 for shard in local.manifest.shards}


def test_missing_truncated_and_changed(folder: Path, store):
    bucket, data = store
    bucket.remove("toy/toy-000001.tar")
    bucket.put("toy/toy-000000.tar", (folder / FIRST).read_bytes()[:3000])
    changed = bytearray((folder / "toy-000002.tar").read_bytes())
    changed[5000] ^= 1
    bucket.put("toy/toy-000002.tar", bytes(changed))
    reader = open_reader(data.shards, data=data)
    reasons = []
    for sample in (0, 3, 5):
        with pytest.raises(CorruptSample) as caught:
            reader.read_meta(sample)
        reasons.append(caught.value.reason)
    assert reasons == [Reason.TRUNCATED_SHARD, Reason.MISSING_SHARD, Reason.REPLACED_SHARD]


def test_no_bucket(store):
    data = store[1]
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        load_manifest(f"{data.shards.partition('://')[0]}://nothing/toy", data)


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_no_server(scheme: str, data: DataConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    pytest.importorskip({"gs": "gcsfs", "az": "adlfs"}[scheme])
    endpoint = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", endpoint)
    secret = f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={endpoint}/{ACCOUNT};"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", secret)
    began = time.monotonic()
    with pytest.raises(UnreachableError, match=rf"{scheme}://clips/toy/manifest\.json could not be read in 3 tries"):
        load_manifest(f"{scheme}://clips/toy", data)
    assert time.monotonic() - began < 30  # retries of the packages themselves would take longer
    assert KEY not in caplog.text


def test_wrong_credentials(azure: AzureEmulator, data: DataConfig, monkeypatch: pytest.MonkeyPatch):
    connection = os.environ["AZURE_STORAGE_CONNECTION_STRING"]
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection.replace(KEY, "b3RoZXI="))
    with pytest.raises(UserError, match=r"no access to az://clips/toy/manifest\.json") as refused:
        load_manifest("az://clips/toy", data)
    assert "b3RoZXI=" not in str(refused.value)


@pytest.mark.parametrize("connection", [None, "AccountName=x;AccountKey=c2VjcmV0;nonsense"])
def test_no_account(connection: str | None, data: DataConfig, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("adlfs")
    for name in list(os.environ):
        if name.startswith("AZURE_"):
            monkeypatch.delenv(name)
    if connection:
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection)
    with pytest.raises(UserError, match="set AZURE_STORAGE_ACCOUNT_NAME") as refused:
        load_manifest("az://clips/toy", data)
    assert "c2VjcmV0" not in f"{refused.value}{refused.value.__cause__}"
