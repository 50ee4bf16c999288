"""Facts about weights that come without a run: exports, folders of transformers and released files."""

from collections.abc import Sequence
from dataclasses import dataclass

from motionmae.config import Config


@dataclass(frozen=True)
class ModelFacts:
    """Section of a report about one model."""

    title: str
    rows: list[tuple[str, str]]
    class_names: Sequence[str]
    config: Config


def describe_model(name: str, step: int | str | None = None) -> ModelFacts:
    """Load the weights at ``name`` and describe them. Raises UserError."""
    from motionmae.evaluation.load_model import Finetuned, Pretrained, load_model  # imports torch
    from motionmae.evaluation.model_card import find_figures
    from motionmae.evaluation.weights_source import find_weights
    from motionmae.planning.flops import forward_gflops

    loaded = load_model(find_weights(name, step))
    config, source, clip = loaded.config, loaded.source, loaded.config.clip
    names = loaded.class_names if isinstance(loaded, Finetuned) else ()
    kinds = "classifier" if names else "encoder and decoders" if isinstance(loaded, Pretrained) else "encoder"
    size = config.model.dimensions
    rows = [
        ("weights", f"{source.kind.value} {source.path}"),
        ("model", f"{kinds}: {size.depth} blocks, width {size.width}, {size.heads} heads"),
        ("parameters", f"{sum(weight.numel() for weight in loaded.model.parameters()) / 1e6:.1f} M"),
        ("clip", f"{clip.frames} frames of {clip.size} x {clip.size} pixels, {clip.stride} video frames apart"),
        ("cubes", f"{clip.cubes} of {clip.cube_frames} x {clip.cube_size} x {clip.cube_size} pixels"),
    ]
    if names:
        rows.append(("a view", f"{forward_gflops(config, len(names)):.4g} GFLOPs"))
        rows.append(("classes", str(len(names))))
    rows += [("step", f"{loaded.step:,}")] if loaded.step is not None else []
    rows += [("code", loaded.commit)] if loaded.commit else []
    for one in find_figures(source.results, loaded.step):
        read = f"{one.videos - one.missing} of {one.videos} videos of {one.shards}"
        rows.append((f"test, {one.views} views", f"top-1 {one.top1:.2f} %, top-5 {one.top5:.2f} % on {read}"))
    return ModelFacts(source.name, rows, names, config)
