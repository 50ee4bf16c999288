from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.memory import LiveTensors, measure_cases
from motionmae.config import Config, load_config
from motionmae.engine import deepspeed_engine
from motionmae.models import vit
from motionmae.models.classifier import build_classifier
from motionmae.models.motionmae import MotionMAE, build_motionmae
from motionmae.planning import memory
from motionmae.planning.flops import count_parameters
from motionmae.planning.memory import (
    largest_micro_batch,
    predict_checkpoint_memory,
    predict_memory,
    saved_bytes,
    transient_bytes,
)
from tests.training.launch import run_ranks

SMALL = ["model.depth=3", "clip.size=36", "optim.global_batch_size=32"]


def _clips(config: Config, number: int) -> torch.Tensor:
    clip = config.clip
    return torch.zeros(number, clip.frames, clip.size, clip.size, 3, dtype=torch.uint8)


def _bytes_saved_by_autograd(config: Config, clips: int) -> int:
    model: torch.nn.Module = build_motionmae(config) if config.task == "pretrain" else build_classifier(config, 6)
    lasting = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}
    alive = []  # no address is reused while its storage is alive

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        alive.append(storage)
        if storage.data_ptr() not in lasting:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=config.engine.precision == "bf16"),
    ):
        model(_clips(config, clips), *([torch.arange(clips)] if config.task == "pretrain" else []))
    return sum(saved.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", ["none", "full", "every_n"])
@pytest.mark.parametrize(
    "variant",
    [
        "model.decoder=divided",
        "model.decoder=shared",
        "target.kind=frame",
        "clip.cube_size=9 mask.decoder_ratio=0.5",
        "task=finetune",
    ],
)
def test_saved_bytes_equal_those_of_autograd(precision: str, checkpointing: str, variant: str) -> None:
    changes = [f"engine.precision={precision}", f"model.activation_checkpointing={checkpointing}", *variant.split()]
    config = load_config("demo", [*SMALL, *changes])
    # per clip, as a difference: 16-bit copies of weights do not grow with the batch and are counted elsewhere
    saved = (_bytes_saved_by_autograd(config, 4) - _bytes_saved_by_autograd(config, 2)) / 2
    assert saved_bytes(config).total == pytest.approx(saved, rel=0.01)


def _measure_with_small_messages(config: Config) -> list[dict[str, Any]]:
    """Use small message buffers: normal ones would be most of a small model's memory."""
    deepspeed_engine.BUCKET = memory.BUCKET = 500_000
    return measure_cases(config, range(4), ("none", "full"))


@pytest.mark.long
@pytest.mark.parametrize(
    ("ranks", "changes"),
    [
        (1, "engine.precision=bf16 engine.micro_batch_size=16"),
        (2, "engine.precision=fp32 engine.micro_batch_size=16"),
        (2, "engine.precision=bf16 engine.micro_batch_size=2"),  # messages decide on the peak
    ],
)
def test_peaks_are_what_deepspeed_reaches(ranks: int, changes: str) -> None:
    """Every stage, measured by the code of benchmarks/memory.py."""
    model = ["model.depth=6", "model.width=192", "optim.global_batch_size=16"]
    config = load_config("demo", [*model, *changes.split()])
    rows, *_ = run_ranks(ranks, _measure_with_small_messages, config)
    for row in rows:
        measured, predicted = row["measured"], row["predicted"]
        case = (row["stage"], row["mode"])
        assert predicted["peak"] == pytest.approx(measured["peak"], rel=0.1), case
        assert predicted["parameters"] == pytest.approx(measured["parameters"], rel=0.05), case
        assert predicted["optimizer"] == pytest.approx(measured["optimizer"], rel=0.05), case


@pytest.mark.long
@pytest.mark.parametrize(("name", "mode", "clips"), [("vitl_k400", "none", 16), ("vith_k400", "full", 64)])
def test_large_models_agree_with_fake_tensors(
    name: str, mode: str, clips: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fake tensors run the real model without memory and arithmetic, which no test machine has for these models.

    Both cases reach their peak at the loss, where DeepSpeed holds no more than torch.
    """
    batch = [
        f"optim.global_batch_size={clips}",
        f"engine.micro_batch_size={clips}",
        f"model.activation_checkpointing={mode}",
    ]
    config = load_config(name, ["engine.zero_stage=0", "engine.precision=bf16", *batch])
    monkeypatch.setattr(vit, "attend", scaled_dot_product_attention)  # as on a GPU
    with torch.device("meta"):
        model = MotionMAE(config)
    with FakeTensorMode(allow_non_fake_inputs=True), LiveTensors() as live:
        model = model.to_empty(device="cpu")
        state = live.now
        pixels, seeds = _clips(config, clips), torch.arange(clips)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(pixels, seeds).total
        activations = live.now - state - pixels.nbytes
        loss.backward()
    predicted = predict_memory(config, 1)
    assert predicted.activations == pytest.approx(activations, rel=0.1)
    # this step has no moments of AdamW yet, and no next micro-batch on its way to a GPU
    assert predicted.peak - predicted.optimizer == pytest.approx(live.peak + pixels.nbytes, rel=0.1)


def test_messages_have_a_second_buffer_during_the_backward_pass() -> None:
    def buffers(*changes: str) -> int:
        tables = predict_memory(load_config("vitl_k400"), 1).buffers  # one rank sends nothing
        return predict_memory(load_config("vitl_k400", list(changes)), 32).buffers - tables

    one = 4 * 50_000_000
    assert buffers("engine.overlap_comm=false") == one
    assert buffers() == 2 * one
    assert buffers("engine.reduce_dtype=bf16") == 4 * one  # and as many for biases and norms, in fp32
    assert buffers("engine.reduce_dtype=bf16", "engine.precision=fp32") == 2 * one


def test_zero_partitions_state_over_the_ranks() -> None:
    def states(ranks: int) -> list[tuple[int, int, int]]:
        found = (predict_memory(load_config("demo", [f"engine.zero_stage={stage}"]), ranks) for stage in range(4))
        return [(held.parameters, held.gradients, held.optimizer) for held in found]

    two, eight = states(2), states(8)
    assert eight[0] == two[0]
    assert [round(a / b) for a, b in zip(two[1], eight[1], strict=True)] == [1, 4, 4]
    assert [round(a / b) for a, b in zip(two[2], eight[2], strict=True)] == [1, 4, 4]
    assert [round(a / b) for a, b in zip(two[3], eight[3], strict=True)] == [4, 4, 4]
    assert states(1) == [states(1)[0]] * 4  # one rank partitions nothing


def test_the_largest_micro_batch_is_the_last_that_fits() -> None:
    config = load_config("vitl_k400")
    largest = largest_micro_batch(config, 32, 36e9)
    assert predict_memory(config, 32, largest).peak <= 36e9 < predict_memory(config, 32, largest + 1).peak
    recomputing = config.updated({"model.activation_checkpointing": "full"})
    assert largest_micro_batch(recomputing, 32, 36e9) > 2 * largest
    assert largest_micro_batch(config, 32, 1e9) == 0


def test_earlier_micro_batches_leave_gradients() -> None:
    once, twice = (
        predict_memory(load_config("vitl_k400", [f"optim.global_batch_size={b}"]), 32).peak for b in (512, 1024)
    )
    assert once < twice <= once + 4 * 332e6


@pytest.fixture
def small_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "BUCKET", 1000)


P = 710_016 + 646_656  # parameters of the encoder and of the decoders, as test_flops counts them in the model
CLIP = 8 * 36 * 36 * 3  # bytes of a clip's pixels
QUERIES, CUBES, VALUES, BLOCKS = 24, 36, 864, 2  # two decoders, each of which predicts 864 values of 24 cubes
LOSS = 2 * 4 * QUERIES * (VALUES + VALUES)  # predictions and targets of both heads in float32
FORWARD = CUBES * VALUES + 2 * 4 * QUERIES * VALUES  # patches as bytes, and two temporaries of the larger loss
ENCODER, DECODERS = 349_824, 832_992  # saved bytes; the sum is held against autograd above


def _small(*changes: str) -> Config:
    return load_config("demo", [*SMALL, "engine.precision=fp32", *changes])


def test_the_bytes_of_a_clip_by_hand() -> None:
    saved = saved_bytes(_small())
    assert (saved.encoder, saved.decoders, saved.loss) == (ENCODER, DECODERS, LOSS)
    assert saved.total == ENCODER + DECODERS + LOSS
    transient = transient_bytes(_small())
    assert (transient.forward, transient.backward, transient.encoder_backward) == (FORWARD, 4 * QUERIES * VALUES, 0)
    half = transient_bytes(_small("engine.precision=bf16"))  # and the predictions before their cast
    assert half.forward == FORWARD + 2 * QUERIES * 2 * VALUES
    frames = transient_bytes(_small("task=finetune", "model.activation_checkpointing=full"))
    block = 36 * (128 * 4 + 3 * 128 * 4 + 8) + 36 * (128 * 4 + 11 * 128 * 4 + 8) + 4 * 36 * 4
    assert (frames.forward, frames.backward, frames.encoder_backward) == (CUBES * VALUES, block, block)
    plain = transient_bytes(_small("task=finetune"))
    assert (plain.forward, plain.backward, plain.encoder_backward) == (CUBES * VALUES, 0, 0)


def test_a_recomputed_block_is_held_once_more() -> None:
    """Of a decoder: 36 tokens of width 96 with 3 heads; of the encoder: 12 tokens of width 128 with 4 heads."""
    found = transient_bytes(_small("model.activation_checkpointing=full"))
    decoder = 36 * (96 * 4 + 3 * 96 * 4 + 8) + 36 * (96 * 4 + 11 * 96 * 4 + 8) + 3 * 36 * 4
    encoder = 12 * (128 * 4 + 3 * 128 * 4 + 8) + 12 * (128 * 4 + 11 * 128 * 4 + 8) + 4 * 12 * 4
    assert found.backward == max(4 * QUERIES * VALUES, decoder - LOSS)
    assert found.encoder_backward == encoder


@pytest.mark.parametrize(
    ("ranks", "changes", "lasting", "moment"),
    [
        # one rank: parameters and two moments, no gradients yet; the loss of 32 clips
        (1, "engine.micro_batch_size=32", 12 * P, 32 * (ENCODER + DECODERS + LOSS + FORWARD)),
        (1, "engine.micro_batch_size=32 optim.ema_decay=0.9", 16 * P, 32 * (ENCODER + DECODERS + LOSS + FORWARD)),
        # earlier micro-batches have left gradients
        (1, "engine.micro_batch_size=16", 12 * P, 16 * (ENCODER + DECODERS + LOSS + FORWARD) + 4 * P),
        # one clip: the gradients
        (1, "engine.micro_batch_size=1 optim.global_batch_size=1", 12 * P, 4 * P),
        # two ranks: and the messages of all of them
        (2, "engine.zero_stage=0 engine.micro_batch_size=1 optim.global_batch_size=2", 12 * P, 8 * P),
        # a copy of the parameters and two moments, on half of them; gradients with the own share of their sum
        (2, "engine.micro_batch_size=1 optim.global_batch_size=2 engine.overlap_comm=false", 10 * P, 6 * P),
        # the same with earlier gradients, whole until stage 2
        (2, "engine.micro_batch_size=32 optim.global_batch_size=128 engine.overlap_comm=false", 10 * P,
         32 * (ENCODER + DECODERS + LOSS + FORWARD) + 4 * P),
        (2, "engine.micro_batch_size=32 optim.global_batch_size=128 engine.zero_stage=2", 10 * P,
         32 * (ENCODER + DECODERS + LOSS + FORWARD) + 2 * P),
        # stage 3: everything in halves with a message, but the gathered parameters; no earlier gradients
        (2, "engine.micro_batch_size=32 optim.global_batch_size=128 engine.zero_stage=3", 2 * P + 6 * P + 2 * P + 4000,
         32 * (ENCODER + DECODERS + LOSS + FORWARD) + 4 * P),
        # the optimiser's temporaries: two copies of its share of the gradients, one at stage 3 (below the gathered)
        (2, "engine.zero_stage=2 engine.micro_batch_size=1 optim.global_batch_size=2", 10 * P, 4 * P),
    ],
)  # fmt: skip
def test_the_peak_by_hand(small_messages: None, ranks: int, changes: str, lasting: int, moment: int) -> None:
    config = _small(*changes.split())
    clips = config.engine.micro_batch_size
    assert predict_memory(config, ranks).peak == lasting + clips * CLIP + moment


def test_the_next_micro_batch_is_on_its_way_to_a_gpu() -> None:
    cpu, gpu = (_small(f"launch.gpus_per_node={gpus}", "engine.micro_batch_size=32") for gpus in (0, 1))
    assert predict_memory(gpu, 1).peak - predict_memory(cpu, 1).peak == 32 * CLIP


def test_a_frozen_encoder_has_no_gradients_and_no_moments() -> None:
    frozen = predict_memory(_small("task=finetune", "finetune.mode=linear", "finetune.init=run"), 1)
    encoder = 4 * 710_016
    assert (frozen.parameters, frozen.gradients, frozen.optimizer, frozen.activations) == (encoder, 0, 0, 0)
    trained = predict_memory(_small("task=finetune"), 1)
    assert (trained.parameters, trained.gradients, trained.optimizer) == (encoder, encoder, 2 * encoder)


def test_micro_batch_and_repeated_clips_multiply_the_activations() -> None:
    one = ENCODER + DECODERS + LOSS
    assert predict_memory(_small("engine.micro_batch_size=3", "optim.global_batch_size=3"), 1).activations == 3 * one
    assert predict_memory(_small(), 1, 5).activations == 5 * one
    assert predict_memory(_small("data.repeated_sampling=2"), 1, 5).activations == 10 * one


def test_copies_of_the_weights_in_16_bits_are_saved_once() -> None:
    half = _small("engine.precision=bf16", "model.depth=4")
    size = count_parameters(half)
    for mode, share in (("none", 1), ("full", 0)):
        config = half.updated({"model.activation_checkpointing": mode})
        copies = predict_memory(config, 1).activations - 4 * saved_bytes(config).total
        assert copies == share * 2 * size.encoder + share * 2 * size.decoders
    assert predict_memory(half.updated({"engine.zero_stage": 3}), 2).activations == 4 * saved_bytes(half).total


def test_fixed_position_tables_are_buffers() -> None:
    """36 positions of width 128 for the encoder, and of 96 for each of two decoders."""
    fixed = predict_memory(_small("model.pos_embed=sinusoidal"), 1)
    assert fixed.buffers == 4 * 36 * (128 + 2 * 96)
    assert predict_memory(_small("model.pos_embed=sinusoidal", "task=finetune"), 1).buffers == 4 * 36 * 128
    assert predict_memory(_small(), 1).buffers == 0  # learnable


def test_messages_by_hand(small_messages: None) -> None:
    """Buckets of 1000 numbers. At stage 0 DeepSpeed sends up to 500 million numbers at once, here all of them."""

    def buffers(*changes: str) -> int:
        return predict_memory(_small("launch.gpus_per_node=1", *changes), 2).buffers

    assert buffers("engine.zero_stage=0") == 4 * P
    assert buffers("engine.zero_stage=3") == 4000
    assert buffers("engine.zero_stage=3", "engine.precision=bf16", "engine.reduce_dtype=bf16") == 6000
    assert buffers("engine.zero_stage=3", "engine.precision=bf16") == 4000
    assert buffers("engine.zero_stage=2") == 8000
    huge = load_config("vith_k400", ["engine.zero_stage=0"])
    assert predict_memory(huge, 32).buffers - predict_memory(huge, 1).buffers == 4 * 500_000_000


@pytest.mark.parametrize(
    ("precision", "gpus", "size"), [("fp32", 8, 4), ("auto", 0, 4), ("auto", 8, 2), ("bf16", 0, 2)]
)
def test_the_bytes_of_a_value(precision: str, gpus: int, size: int) -> None:
    config = _small(f"engine.precision={precision}", f"launch.gpus_per_node={gpus}")
    assert memory.compute_bytes(config) == size


@pytest.mark.parametrize(
    ("changes", "once", "staging", "copies"),
    [
        ("launch.nodes=1 checkpoint.memory_every_steps=0", 12 * P, 12 * P, 0),
        ("launch.nodes=1 checkpoint.memory_every_steps=10", 12 * P, 24 * P, 24 * P),  # old and new, of its own ranks
        ("launch.nodes=2 checkpoint.memory_every_steps=10", 6 * P, 12 * P, 24 * P),  # and of another node's
        ("launch.nodes=2 checkpoint.memory_every_steps=10 optim.ema_decay=0.9", 8 * P, 16 * P, 32 * P),
        ("launch.nodes=1 task=finetune finetune.mode=linear finetune.init=run", 0, 0, 0),
    ],
)
def test_host_memory_of_checkpoints_by_hand(changes: str, once: int, staging: int, copies: int) -> None:
    found = predict_checkpoint_memory(_small(*changes.split()))
    assert (found.staging_once, found.staging, found.copies) == (once, staging, copies)


def test_the_last_micro_batch_that_fits_is_exact() -> None:
    config = _small("optim.global_batch_size=1024")
    for videos in (1, 2, 3, 7):
        peak = predict_memory(config, 1, videos).peak
        assert largest_micro_batch(config, 1, peak) == videos
        assert largest_micro_batch(config, 1, peak - 1) == videos - 1
