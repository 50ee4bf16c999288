import json
from pathlib import Path

import pytest

from benchmarks.roofline import HOST_SECONDS, Operator, estimate, fused_bytes, main, trace_step
from motionmae.config import load_config
from motionmae.planning.flops import step_flops
from motionmae.planning.gpus import find_gpu

pytestmark = pytest.mark.slow
KERNELS = {"vitb_k400": 1309, "vitl_k400": 1957, "videomae_vitb_k400": 1008}
"""Kernels of a forward and backward pass. Lower a number when a change saves kernels; raise it only on purpose."""


@pytest.mark.parametrize("name", KERNELS)
def test_a_step_takes_no_more_kernels_than_recorded(name: str) -> None:
    found = len(trace_step(load_config(name), 2))
    assert 0.98 * KERNELS[name] <= found <= KERNELS[name], f"{name} takes {found} kernels: see KERNELS"


@pytest.mark.parametrize("changes", ["", "mask.decoder_ratio=0.5", "model.decoder=shared target.kind=frame"])
def test_traced_operations_are_those_of_the_formula(changes: str) -> None:
    config = load_config("vitb_k400", changes.split())
    operators = trace_step(config, 2)
    attention = sum(operator.flops for operator in operators if operator.kind == "attention")
    # attention's backward pass computes the scores anew: 7 products in place of 6, which MFU does not count
    work = sum(operator.flops for operator in operators) - attention / 7
    assert work == pytest.approx(2 * step_flops(config).model, rel=0.002)


def _operator(kind: str, reads: dict[int, int], writes: dict[int, int]) -> Operator:
    return Operator("", kind, 0, reads, writes)


def test_neighbours_are_fused_up_to_the_next_product() -> None:
    operators = [
        _operator("pointwise", {1: 10}, {2: 20}),
        _operator("pointwise", {2: 20, 3: 5}, {4: 20}),  # fused with the first: storage 2 is never written
        _operator("pointwise", {7: 3}, {8: 3}),  # not a neighbour
        _operator("product", {4: 20}, {5: 40}),
        _operator("pointwise", {5: 40, 4: 20}, {6: 40}),  # after a product
    ]
    assert fused_bytes(operators) == ((10 + 5 + 20) + (3 + 3) + (40 + 20 + 40), 3)


def test_what_a_later_operator_reads_is_written() -> None:
    operators = [
        _operator("pointwise", {1: 10}, {2: 20}),
        _operator("pointwise", {2: 20}, {3: 30}),
        _operator("product", {3: 30}, {4: 1}),
        _operator("product", {2: 20}, {5: 1}),
    ]
    assert fused_bytes(operators) == (10 + 20 + 30, 1)


def test_two_groups_that_a_third_operator_reads_become_one() -> None:
    operators = [
        _operator("pointwise", {1: 10}, {2: 20}),
        _operator("pointwise", {3: 10}, {4: 20}),
        _operator("pointwise", {2: 20, 4: 20}, {5: 7}),
    ]
    assert fused_bytes(operators) == (10 + 10 + 7, 1)


def test_the_slower_of_device_and_host_is_the_step() -> None:
    config, gpu = load_config("vitb_k400"), find_gpu("a100-80")
    product = Operator("mm", "product", int(0.7 * 312e12), {}, {})  # a second
    copy = Operator("add", "pointwise", 0, {1: int(0.8 * 2039e9)}, {})  # a second
    times = estimate(config, 1, gpu, [product, copy])
    assert (times.products, times.pointwise) == pytest.approx((1, 1))
    assert times.seconds(compiled=False) == pytest.approx(2 + times.optimizer)
    assert times.mfu(compiled=False) == pytest.approx(step_flops(config).model / (2 + times.optimizer) / 312e12)
    small = [Operator("add", "pointwise", 0, {}, {})] * 100_000
    assert estimate(config, 1, gpu, small).seconds(compiled=False) == pytest.approx(100_000 * HOST_SECONDS)


def test_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    figures = tmp_path / "roofline.json"
    arguments = ["--config", "vitb_k400", "--micro-batch", "2", "--gpu", "h100-80", "--json", str(figures)]
    monkeypatch.setattr("sys.argv", ["roofline", *arguments, "model.depth=2"])
    main()
    assert "estimated, not measured" in capsys.readouterr().out
    assert json.loads(figures.read_text())["h100-80"]["clips"] == 2
