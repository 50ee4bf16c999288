from pathlib import Path

import pytest

from motionmae.config import Config, absolute_paths

PATHS = ("output_dir", "data.shards", "data.cache", "data.beton", "test.shards", "finetune.init")
PATHS += ("pretrain.init", "validation.shards", "validation.knn_train", "validation.knn_test")
PATHS += ("monitoring.tls_certificate", "monitoring.tls_key", "monitoring.discovery")


def read(config: Config, key: str) -> str:
    section, _, name = key.rpartition(".")
    return getattr(getattr(config, section) if section else config, name)


def test_a_source_of_a_mixture_becomes_absolute_unless_it_is_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    mixture = [{"path": "some/where", "weight": 2}, {"path": "s3://a/b", "weight": 1}]
    sources = absolute_paths(Config().updated({"data.shards": mixture})).data.sources
    assert [(one.path, one.weight) for one in sources] == [(str(tmp_path / "some/where"), 2), ("s3://a/b", 1)]


def test_every_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    config = absolute_paths(Config().updated(dict.fromkeys(PATHS, "some/where")))
    assert {read(config, key) for key in PATHS} == {str(tmp_path / "some/where")}
    assert config == absolute_paths(config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.shards", ""),
        ("data.shards", "s3://bucket/k400"),
        ("test.shards", "https://host/k400"),
        ("data.cache", "$TMPDIR/cache"),
        ("data.beton", "$TMPDIR/k400.beton"),
        ("finetune.init", "scratch"),
        ("log.wandb_project", "some/where"),
    ],
)
def test_what_is_no_relative_path_stays(key: str, value: str):
    assert read(absolute_paths(Config().updated({key: value})), key) == value
