"""Continued pre-training: what is loaded, what is said, and that a resume does not load again."""

from pathlib import Path

import pytest
import torch
from transformers import VideoMAEConfig, VideoMAEForPreTraining

from motionmae.config import Config
from motionmae.errors import UserError
from motionmae.models.motionmae import build_motionmae
from motionmae.runs.checkpoint_store import CheckpointStore
from motionmae.runs.directory import RunFolder
from motionmae.runs.events import read_rows
from motionmae.training.initial_weights import InitialWeights, load_initial_weights
from tests.training.launch import run_ranks
from tests.training.run_workers import run_all
from tests.training.shards import make_shards, tiny_run


def settings(tmp_path: Path, **changes: object) -> Config:
    return tiny_run(tmp_path / "shards", tmp_path / "runs").updated(changes)


def test_hugging_face_weights_load_with_their_decoder_and_the_time_head_stays_random(tmp_path: Path):
    config = settings(tmp_path, **{"target.motion_source": "difference"})
    size = config.model.dimensions
    theirs = VideoMAEForPreTraining(
        VideoMAEConfig(
            image_size=32, patch_size=8, num_frames=4, tubelet_size=2, hidden_size=32, num_hidden_layers=2,
            num_attention_heads=2, intermediate_size=128, decoder_hidden_size=size.decoder_width,
            decoder_num_hidden_layers=1, decoder_num_attention_heads=2, decoder_intermediate_size=128,
            use_mean_pooling=False,
        )
    )  # fmt: skip
    theirs.save_pretrained(tmp_path / "hf")
    model = build_motionmae(config)
    time_head = {name: value.clone() for name, value in model.decoders["time"].state_dict().items()}
    record = load_initial_weights(model, str(tmp_path / "hf"), config)
    assert record.loaded == ("encoder", "decoders.space")
    assert record.random == ("decoders.time",)
    assert record.unused == ()
    weight = theirs.videomae.encoder.layer[1].intermediate.dense.weight
    assert torch.equal(model.encoder.blocks.get_submodule("1").mlp.fc1.weight, weight)
    assert torch.equal(model.decoders["space"].get_submodule("heads.space").weight, theirs.decoder.head.weight)
    assert all(torch.equal(value, time_head[name]) for name, value in model.decoders["time"].state_dict().items())
    assert "encoder and decoders.space from" in record.describe()
    assert "random: decoders.time" in record.describe()

    only = config.updated({"pretrain.init_decoders": False})
    record = load_initial_weights(build_motionmae(only), str(tmp_path / "hf"), only)
    assert (record.loaded, record.unused) == (("encoder",), ("decoders.space",))
    with pytest.raises(
        UserError, match=r"trained with model\.pos_embed=sinusoidal, not separate: set model\.pos_embed"
    ):
        load_initial_weights(model, str(tmp_path / "hf"), config.updated({"model.pos_embed": "separate"}))
    other = config.updated({"model.width": 48})
    wider = build_motionmae(other)
    with pytest.raises(UserError, match="holds weights of a different model"):
        load_initial_weights(wider, str(tmp_path / "hf"), other)


@pytest.mark.long
def test_a_run_continues_from_a_run_and_a_resume_does_not_load_again(tmp_path: Path):
    make_shards(tmp_path / "shards")
    first = settings(tmp_path, **{"optim.epochs": 2})
    second = settings(tmp_path, name="second", **{"pretrain.init": str(first.run_folder), "optim.epochs": 2})
    assert run_ranks(1, run_all, [first, second])[0] == ["FINISHED"] * 2
    source = CheckpointStore(RunFolder(first.run_folder).checkpoints).complete()[-1]
    events = list(read_rows(RunFolder(second.run_folder).events))
    (init,) = (row for row in events if row["kind"] == "init")
    assert init["path"] == str(source.folder)
    assert init["loaded"] == ["encoder", "decoders.space", "decoders.time"]
    state = CheckpointStore(RunFolder(second.run_folder).checkpoints).complete()[-1].state()
    assert state["task"]["initial_weights"]["fingerprint"] == init["fingerprint"]
    rows = {name: list(read_rows(RunFolder(config.run_folder).metrics)) for name, config in
            {"first": first, "second": second}.items()}  # fmt: skip
    assert rows["second"][0]["loss"] < rows["first"][0]["loss"]

    (tmp_path / "runs/tiny").rename(tmp_path / "runs/moved")  # a resume needs the weights no more
    for step in (5, 6):
        folder = RunFolder(second.run_folder).checkpoints / f"step-{step:08d}"
        if folder.exists():
            folder.rename(tmp_path / folder.name)
    assert run_ranks(1, run_all, [second])[0] == ["FINISHED"]
    again = CheckpointStore(RunFolder(second.run_folder).checkpoints).complete()[-1].state()
    assert again["task"] == state["task"]


def save(path: Path, config: Config, without: str = "nothing", **more: torch.Tensor) -> Path:
    state = build_motionmae(config).state_dict()
    torch.save({"model": {name: value for name, value in state.items() if not name.startswith(without)} | more}, path)
    return path


def test_an_encoder_without_its_last_norm_keeps_ours_and_other_parts_are_not_used(tmp_path: Path):
    """As a classifier's encoder is: its new norm comes after the pooling."""
    config = settings(tmp_path)
    path = save(tmp_path / "x.pth", config.updated({"seed": 5}), "encoder.norm.", **{"head.weight": torch.ones(3, 32)})
    model = build_motionmae(config)
    with torch.no_grad():
        model.get_parameter("encoder.norm.weight").fill_(7.0)
    record = load_initial_weights(model, str(path), config)
    assert record == InitialWeights(
        str(path), record.fingerprint, ("encoder", "decoders.space", "decoders.time"), (), ("head",)
    )
    assert model.get_parameter("encoder.norm.weight").tolist() == [7.0] * 32
    expected = torch.load(path)["model"]
    found = model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items() if name != "head.weight")
    assert record.describe() == (
        f"initial weights: encoder and decoders.space and decoders.time from {path}; not used: head"
    )
    row = record.as_row()
    assert (row["path"], row["loaded"][0], row["random"], row["unused"]) == (str(path), "encoder", [], ["head"])


def test_decoders_of_another_size_stay_random(tmp_path: Path):
    config = settings(tmp_path)
    path = save(tmp_path / "x.pth", config.updated({"model.decoder_width": 48, "seed": 5}))
    model = build_motionmae(config)
    record = load_initial_weights(model, str(path), config)
    both = ("decoders.space", "decoders.time")
    assert (record.loaded, record.random, record.unused) == (("encoder",), both, both)
    fresh = build_motionmae(config).decoders.state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in model.decoders.state_dict().items())
    assert record.describe().endswith(
        "; random: decoders.space, decoders.time; not used: decoders.space, decoders.time"
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            '{"config": {"model": {"pos_embed": "separate"}}}',
            "was trained with model.pos_embed=separate, not sinusoidal",
        ),
        ('{"config": {"model": {}}}', ""),  # of a version that knew no others
        ("{}", ""),
        ("{", r"motionmae\.json cannot be read \(.*give other weights as pretrain.init"),
    ],
)
def test_the_positions_of_exported_weights_are_in_the_file_beside_them(content: str, said: str, tmp_path: Path):
    config = settings(tmp_path)
    path = save(tmp_path / "x.pth", config)
    (tmp_path / "motionmae.json").write_text(content)
    if said:
        with pytest.raises(UserError, match=said):
            load_initial_weights(build_motionmae(config), str(path), config)
    else:
        assert load_initial_weights(build_motionmae(config), str(path), config).loaded[0] == "encoder"
