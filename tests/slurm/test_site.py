from pathlib import Path

import pytest

from motionmae.errors import UserError
from slurm.site import Site, load_site


def test_a_site_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(
        "launch: {partition: gpu, gpus_per_node: 4, comment: 'a: b'}\n"
        "sbatch: {mem: 400G}\nenvironment: {NCCL_IB_HCA: mlx5}"
    )
    site = load_site(file)
    assert site == Site(
        {"partition": "gpu", "gpus_per_node": 4, "comment": "a: b"}, {"mem": "400G"}, {"NCCL_IB_HCA": "mlx5"}
    )
    assert site.overrides() == ['launch.partition="gpu"', "launch.gpus_per_node=4", 'launch.comment="a: b"']


def test_without_a_site_file_nothing_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_site(None) == Site()
    (tmp_path / ".config/motionmae").mkdir(parents=True)
    (tmp_path / ".config/motionmae/site.yaml").write_text("launch: {account: vision}")
    assert load_site(None).launch == {"account": "vision"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("launch: {partitoin: gpu}", "unknown key launch.partitoin: did you mean partition?"),
        ("lunch: {}", "unknown section lunch: did you mean launch?"),
        ("launch: {nodes: many}", "launch.nodes: "),
        ("launch: {nodes: 0}", "launch.nodes=0 is not possible"),
        ("launch: 3", "launch must hold"),
        ("- a", "must hold sections"),
        ("launch: {", "is not readable YAML"),
        ("sbatch: {'mem; rm': 1}", "sbatch.mem; rm is no name"),
        ("environment: {A: [1]}", "environment.A must be a single value"),
    ],
)
def test_a_mistake_names_file_and_key(text: str, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        load_site(file)
    assert str(file) in str(caught.value)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
