"""Advice from the figures of the checks: micro-batch, compiling, and decoding processes."""

import math
from collections.abc import Iterator, Sequence

from pydantic import ValidationError

from motionmae.config import load_config
from motionmae.gpu_checks.check import CheckResult, Figures
from motionmae.planning.gpus import USABLE
from motionmae.planning.measured_speed import MeasuredSpeed
from motionmae.planning.memory import largest_micro_batch

_CONFIGS = {"vit_b": "vitb_k400", "vit_l": "vitl_k400", "vit_h": "vith_k400"}
_WORTH = 1.03  # compiling is advised from this ratio of speeds


def speeds_of(results: Sequence[CheckResult]) -> list[MeasuredSpeed]:
    """Return the measured speeds with an MFU."""
    speeds = []
    for result in results:
        figures = result.figures
        if figures.get("mfu") and figures.get("model") in _CONFIGS:
            chosen = {key: figures[key] for key in MeasuredSpeed.model_fields}
            try:
                speeds.append(MeasuredSpeed.model_validate(chosen, strict=False))
            except ValidationError:  # a clock that jumped gives an MFU above 1
                continue
    return speeds


def advise(results: Sequence[CheckResult]) -> list[str]:
    """Return sentences of advice; none without measurements."""
    eager = {_model(result): result.figures for result in results if _is_speed(result, compiled=False)}
    compiled = {_model(result): result.figures for result in results if _is_speed(result, compiled=True)}
    loader = next((result.figures for result in results if "clips_per_core" in result.figures), {})
    return [
        *_micro_batches(eager),
        *_compiling(eager, compiled),
        *_workers({**eager, **_faster(eager, compiled)}, loader),
    ]


def _micro_batches(eager: dict[str, Figures]) -> Iterator[str]:
    for model, figures in eager.items():
        if model not in _CONFIGS or "gpu_gb" not in figures:
            continue
        config = load_config(_CONFIGS[model], ["launch.gpus_per_node=1", "model.activation_checkpointing=none"])
        off = max(figures["used_gb"] / figures["planned_gb"], 1.0)  # of the plan, if it says too little
        largest = largest_micro_batch(config, 1, USABLE * figures["gpu_gb"] * 1e9 / off)
        configured = config.engine.micro_batch_size
        fits = "fits" if largest >= configured else "does NOT fit"
        yield (
            f"{model}: engine.micro_batch_size={configured} {fits} without activation checkpointing; the largest "
            f"that fits into {figures['gpu_gb']:.0f} GB is {largest}"
        )


def _compiling(eager: dict[str, Figures], compiled: dict[str, Figures]) -> Iterator[str]:
    for model in filter(compiled.__contains__, eager):
        ratio = compiled[model]["clips_per_second"] / eager[model]["clips_per_second"]
        verdict = "set engine.compile=true" if ratio >= _WORTH else "leave engine.compile=false"
        first = f"and the first one takes {compiled[model]['first_step_s']:.0f} s"
        yield f"{model}: {verdict}; compiled steps run at {ratio:.2f} times the speed, {first}"


def _faster(eager: dict[str, Figures], compiled: dict[str, Figures]) -> dict[str, Figures]:
    faster = {}
    for model, figures in compiled.items():
        if figures["clips_per_second"] > eager.get(model, figures)["clips_per_second"]:
            faster[model] = figures
    return faster


def _workers(speeds: dict[str, Figures], loader: Figures) -> Iterator[str]:
    """Advise on decoding processes, from the cost of a clip of the loader check, which has the models' clip size."""
    for model, figures in speeds.items():
        if model in _CONFIGS and loader:
            needed = math.ceil(figures["clips_per_second"] / loader["clips_per_core"])
            yield (
                f"{model}: data.workers={needed} decode the {figures['clips_per_second']:.0f} clips/s of this GPU "
                f"({loader['clips_per_core']:.0f} clips/s a core), and launch.cpus_per_task={needed + 2}"
            )


def _model(result: CheckResult) -> str:
    return str(result.figures.get("model"))


def _is_speed(result: CheckResult, compiled: bool) -> bool:
    return "clips_per_second" in result.figures and result.figures.get("compiled") is compiled
