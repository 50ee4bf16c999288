from pathlib import Path

import pytest

from motionmae.config import load_config
from motionmae.config.site import Site, load_site
from motionmae.errors import UserError


def test_a_site_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(
        "launch: {partition: gpu, gpus_per_node: 4, comment: 'a: b'}\n"
        "sbatch: {mem: 400G}\nenvironment: {NCCL_IB_HCA: mlx5}"
    )
    site = load_site(file)
    assert site == Site(
        launch={"partition": "gpu", "gpus_per_node": "4", "comment": "a: b"},
        sbatch={"mem": "400G"},
        environment={"NCCL_IB_HCA": "mlx5"},
        file=file,
    )


def test_the_command_line_wins_over_the_site_file_which_wins_over_the_config(tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text("launch: {partition: gpu, gpus_per_node: 4, nodes: 3}")
    config = tmp_path / "own.yaml"
    config.write_text("base: tiny_toy\nlaunch: {partition: cpu, time: 7, nodes: 2}")
    launch = load_config(str(config), ["launch.nodes=5"], load_site(file)).launch
    assert (launch.time, launch.partition, launch.gpus_per_node, launch.nodes) == (7, "gpu", 4, 5)


def test_without_a_site_file_nothing_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_site(None) == Site()
    (tmp_path / ".config/motionmae").mkdir(parents=True)
    (tmp_path / ".config/motionmae/site.yaml").write_text("launch: {account: vision}")
    assert load_site(None).launch == {"account": "vision"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("launch: {partitoin: gpu}", "did you mean launch.partition?"),
        ("lunch: {}", "unknown key lunch: did you mean launch?"),
        ("launch: {nodes: many}", "launch.nodes=many is not possible: it must be a whole number"),
        ("launch: {nodes: 0}", "launch.nodes=0 is not possible"),
        ("launch: 3", "launch=3 is not possible: it must be a section"),
        ("- a", "must map sections to keys"),
        ("launch: {", "is not readable YAML"),
        ("sbatch: {'mem; rm': 1}", "sbatch.mem; rm is not possible: write a long option of sbatch, such as mem"),
        ("environment: {A: [1]}", "environment.A=[1] is not possible: it must be a single value"),
        ("environment: {A-B: 1}", "environment.A-B is not possible: write a variable's name, such as NCCL_DEBUG"),
    ],
)
def test_a_mistake_names_file_and_key(text: str, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config("tiny_toy", site=load_site(file))
    assert str(file) in str(caught.value)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
