"""Exported weights, read by transformers, by timm and by MotionMAE."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import motionmae.models.timm_models  # noqa: F401 - registers
from motionmae.__main__ import main
from motionmae.checkpointing.load_weights import load_state
from motionmae.config import Config, FinetuneConfig, load_config
from motionmae.errors import UserError
from motionmae.evaluation.export import as_videomae, recorded_commit, transformers_config
from motionmae.evaluation.load_model import load_finetuned, load_pretrained
from motionmae.evaluation.model_card import Exported, model_card
from motionmae.models.classifier import build_classifier
from motionmae.models.vit import PIXEL_MEAN, PIXEL_STD
from motionmae.runs.events import read_rows
from motionmae.runs.git_revision import git_revision
from tests.models.tiny import noise_clips
from tests.training.launch import run_ranks
from tests.training.run_workers import run_all
from tests.training.shards import make_shards, tiny_run

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Config]:
    """A finished pre-training run, one of fine-tuning from it, and the config of the latter."""
    folder = tmp_path_factory.mktemp("runs")
    shards = make_shards(folder / "train", classes=3)
    first = tiny_run(shards, folder, optim={"epochs": 2})
    tuning = FinetuneConfig(init=str(folder / "tiny"), mixup=0, cutmix=0)
    second = first.updated({"name": "tuned", "task": "finetune", "finetune": tuning})
    assert run_ranks(1, run_all, [first, second])[0] == ["FINISHED"] * 2
    return folder / "tiny", folder / "tuned", second


def export(run: Path, kind: str, out: Path) -> Path:
    assert main(["export", str(run), "--format", kind, "--out", str(out)]) == 0
    return out


def pixels_of(clips: torch.Tensor) -> torch.Tensor:
    return ((clips / 255 - torch.tensor(PIXEL_MEAN)) / torch.tensor(PIXEL_STD)).permute(0, 1, 4, 2, 3)


def test_transformers_loads_the_folder_and_gives_the_same_logits(runs: tuple[Path, Path, Config], tmp_path: Path):
    _, tuned, config = runs
    folder = export(tuned, "hf", tmp_path / "hf")
    theirs, said = transformers.VideoMAEForVideoClassification.from_pretrained(folder, output_loading_info=True)
    assert not said["missing_keys"]
    assert not said["unexpected_keys"]
    assert theirs.config.id2label == {0: "bar0", 1: "bar1", 2: "bar2"}
    clips = noise_clips(config)
    with torch.no_grad():
        ours = load_finetuned(tuned).model(clips)
        torch.testing.assert_close(theirs.eval()(pixels_of(clips)).logits, ours, atol=1e-4, rtol=1e-4)
    processor = transformers.VideoMAEImageProcessor.from_pretrained(folder)
    prepared = processor([frame.permute(2, 0, 1) for frame in clips[0]], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(prepared, pixels_of(clips[:1]), atol=1e-5, rtol=1e-5)


def test_transformers_rebuilds_frames_as_the_space_head_does(runs: tuple[Path, Path, Config], tmp_path: Path):
    pretrained, _, _ = runs
    folder = export(pretrained, "hf", tmp_path / "hf")
    theirs, said = transformers.VideoMAEForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert not said["missing_keys"]
    assert "time head" in (folder / "README.md").read_text()
    ours = load_pretrained(pretrained)
    clips, seeds = noise_clips(ours.config), torch.arange(4)
    mask = ours.model.draw_masks(seeds).masked
    masked = torch.zeros(4, ours.config.clip.cubes, dtype=torch.bool).scatter(1, mask, True)
    theirs.decoder.norm.eps = 1e-6  # VideoMAE's own, which this implementation leaves at torch's 1e-5
    with torch.no_grad():
        expected = theirs.eval()(pixels_of(clips), bool_masked_pos=masked).loss
        assert ours.model(clips, seeds).space.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("kind", ["safetensors", "hf"])
def test_export_and_import_are_the_same_bit_for_bit(kind: str, runs: tuple[Path, Path, Config], tmp_path: Path):
    for run in runs[:2]:
        state = load_state(run).state
        back = load_state(export(run, kind, tmp_path / f"{run.name}_{kind}")).state
        exported = {name for name in state if kind == "safetensors" or not name.startswith("decoders.time.")}
        assert back.keys() == exported
        assert all(torch.equal(value, state[name]) for name, value in back.items())


def test_timm_makes_and_fills_the_models(tmp_path: Path):
    model = timm.create_model("motionmae_vit_tiny_patch16_224", num_classes=7)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    again = timm.create_model(
        "motionmae_vit_tiny_patch16_224", num_classes=7, checkpoint_path=str(tmp_path / "model.safetensors")
    )
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    assert len(timm.list_models("motionmae_vit_*_patch16_224")) == 5
    base = sum(p.numel() for p in timm.create_model("motionmae_vit_base_patch16_224").parameters())
    assert base == pytest.approx(87e6, rel=0.01)  # the paper's count
    features = timm.create_model("motionmae_vit_tiny_patch16_224", num_classes=0)
    assert features(torch.zeros(1, 16, 224, 224, 3, dtype=torch.uint8)).shape == (1, 192)


def test_the_card_and_the_json_say_what_it_is(runs: tuple[Path, Path, Config], tmp_path: Path):
    _, tuned, config = runs
    [code] = {row["code"] for row in read_rows(tuned / "events.jsonl") if row["kind"] == "start"}
    assert code == git_revision()  # the run was not submitted
    folder = export(tuned, "safetensors", tmp_path / "out")
    card, facts = (folder / "README.md").read_text(), json.loads((folder / "motionmae.json").read_text())
    for word in ("tuned", f"code: {code}", config.data.shards, "step 6", "classifier of 3 classes", "width: 32"):
        assert word in card, word
    assert (facts["class_names"], facts["config"]["name"], facts["commit"]) == (
        ["bar0", "bar1", "bar2"], "tuned", code,
    )  # fmt: skip
    assert "head.weight" in load_file(folder / "model.safetensors")
    assert recorded_commit(tmp_path) == f"not recorded by the run, exported by {code}"


def test_the_card_has_the_accuracy_that_test_measured(runs: tuple[Path, Path, Config], tmp_path: Path):
    _, tuned, config = runs
    words = ["test", str(tuned), "--shards", config.data.shards, "--clips", "2", "--crops", "3"]
    assert main([*words, "--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    card = (export(tuned, "hf", tmp_path / "out") / "README.md").read_text()
    row = f"| 18 | 0 | 2 x 3 | {figures['top1']:.2f} % | {figures['top5']:.2f} % |"
    assert row in card
    assert "license: apache-2.0" in card
    assert "whose licence applies as well" in card  # it was fine-tuned from another run


def test_the_card_of_a_stranger_s_run_is_plain_text():
    card = model_card(Exported({}, Config(), 1, (), "a\x1b[31m\n# <script> [x](http://h)"), "safetensors")
    assert r"- code: a\\x1b\[31m\\n# \<script\> \[x\](http://h)" in card.splitlines()
    assert "\x1b" not in card


def test_a_tiny_config_makes_a_model_that_transformers_loads(tmp_path: Path):
    config = load_config("finetune_tiny_videomae")
    model = build_classifier(config, 2).eval()
    exported = as_videomae(Exported(model.state_dict(), config, 1, ("a", "b"), ""))
    (tmp_path / "config.json").write_text(json.dumps(transformers_config(exported)))
    save_file(exported.state, tmp_path / "model.safetensors", {"format": "pt"})
    theirs = transformers.VideoMAEForVideoClassification.from_pretrained(tmp_path).eval()
    clips = noise_clips(config, 2)
    with torch.no_grad():
        torch.testing.assert_close(theirs(pixels_of(clips)).logits, model(clips), atol=1e-4, rtol=1e-4)


def test_what_is_no_videomae_is_refused(runs: tuple[Path, Path, Config]):
    state, config = load_pretrained(runs[0]).model.state_dict(), load_pretrained(runs[0]).config
    for section, changes, said in (
        ("target", {"kind": "motion"}, "target.kind=motion differs from VideoMAE"),
        ("target", {"normalize": False, "frame_std": 0.2}, "target.frame_std=0.2 differs from VideoMAE"),
        ("model", {"decoder": "shared"}, "target.kind=both differs from VideoMAE"),
        ("model", {"pos_embed": "learnable"}, "model.pos_embed=learnable differs from VideoMAE"),
    ):
        other = config.updated({section: changes})
        with pytest.raises(UserError, match=said):
            as_videomae(Exported(state, other, 1, (), ""))


def test_a_place_that_takes_no_files_is_refused(
    runs: tuple[Path, Path, Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        assert main(["export", str(runs[0]), "--out", str(out)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: --out {out} cannot be written")
        assert error.count("\n") == 1
