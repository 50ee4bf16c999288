"""Model card of an export: what the model is, its licence, its measured accuracy, its classes, and code that runs."""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from motionmae.config import Config, flat
from motionmae.config.trees import nest, to_yaml
from motionmae.json_text import InvalidJsonError, JsonModel, load_json
from motionmae.models.convert import CLASSIFIER, ENCODER, PRETRAINING
from motionmae.text import printable


class TestFigures(JsonModel, extra="ignore"):
    """Figures of a `report.json` that `motionmae test` wrote."""

    __test__ = False  # pytest takes it for a test otherwise

    step: int | None
    top1: float
    top5: float
    videos: int
    missing: int
    views: str
    shards: str


@dataclass(frozen=True)
class Exported:
    """Weights and metadata of an exported model."""

    state: dict[str, Tensor]
    config: Config
    step: int | None
    class_names: tuple[str, ...]
    commit: str
    note: str = ""  # note for the model card about omitted weights
    license: str = "apache-2.0"  # SPDX identifier in lower case, as model cards have it
    figures: tuple[TestFigures, ...] = ()

    @property
    def videomae(self) -> str:
        """Class of transformers that corresponds to the model."""
        if self.class_names:
            return CLASSIFIER
        names = self.state
        has_decoder = any(name.startswith(("decoder.", "decoders.")) for name in names) or not names
        return PRETRAINING if has_decoder else ENCODER


def find_figures(results: Path, step: int | None) -> tuple[TestFigures, ...]:
    """Return the figures of all tests of ``step`` below the folder ``results``; unreadable files are skipped."""
    found = []
    for path in sorted((results / "test").glob("*/report.json")):
        try:
            figures = load_json(path, TestFigures)
        except (InvalidJsonError, OSError):
            continue
        if figures.step == step:
            found.append(figures)
    return tuple(found)


def model_card(exported: Exported, kind: str, name: str = "FOLDER") -> str:
    """Return README.md of an export of ``kind`` (safetensors or hf), whose folder is called ``name``."""
    config = exported.config
    classes = len(exported.class_names)
    model = f"classifier of {classes} classes" if classes else "pre-trained encoder"
    trained = "" if exported.step is None else f"step {exported.step} of "
    shards = config.data.location.replace("`", "'") or "not recorded"
    lines = [
        _front_matter(exported, kind),
        f"# {plain(config.name or name)}: {model} (MotionMAE, {config.model.size})",
        exported.note,
        f"- {trained}the run `{config.name}` (task {config.task}, seed {config.seed})\n"
        f"- data: `{shards}`\n"
        f"- code: {plain(exported.commit) or 'not recorded'}\n"
        f"- input: {config.clip.frames} frames of {config.clip.size} x {config.clip.size} pixels, {_spacing(config)}, "
        f"normalised by ImageNet's mean and standard deviation",
        f"## Licence\n\n{_licence(exported)}",
        f"## Accuracy\n\n{_accuracy(exported)}" if classes else "",
        f"## Use\n\n{_snippet(exported, kind, name)}",
        f"## Classes\n\n{_classes(exported.class_names)}" if classes else "",
        f"## Settings\n\nThese differ from the defaults; `motionmae.json` has all.\n\n```yaml\n{_changed(config)}```",
    ]
    return "\n\n".join(filter(None, lines)) + "\n"


def plain(text: str) -> str:
    """Return a text that may come from a stranger's run as one line of Markdown without links, tags and cells."""
    return re.sub(r"[][`<>\\|]", lambda found: f"\\{found[0]}", printable(text))


def _front_matter(exported: Exported, kind: str) -> str:
    task = "pipeline_tag: video-classification\n" if exported.class_names else ""
    library = "transformers" if kind == "hf" else "motionmae"
    tags = "[video, masked-autoencoder, videomae, motionmae]"
    return f"---\nlicense: {exported.license}\nlibrary_name: {library}\n{task}tags: {tags}\n---"


def _licence(exported: Exported) -> str:
    config = exported.config
    init = config.finetune.init if config.task == "finetune" else config.pretrain.init
    text = f"`{exported.license}`. The licence of the videos that the model was trained on may limit its use further."
    return text if init == "scratch" else f"{text} It was trained from `{plain(init)}`, whose licence applies as well."


def _accuracy(exported: Exported) -> str:
    if not exported.figures:
        return "Not measured before the export. `motionmae test FOLDER --shards SHARDS` measures it."
    rows = [
        f"| `{plain(one.shards)}` | {one.videos} | {one.missing} | {one.views} | {one.top1:.2f} % | {one.top5:.2f} % |"
        for one in exported.figures
    ]
    table = "\n".join(
        ["| test shards | videos | not read | clips x crops | top-1 | top-5 |", "|---|---|---|---|---|---|"]
    )
    protocol = (
        f"The prediction for a video is the mean of the softmax outputs of its clips x crops views "
        f"(`data.sampling={exported.config.data.sampling}`, {_spacing(exported.config)}, short side "
        f"{exported.config.clip.size} pixels). Videos that could not be read do not count."
    )
    return "\n".join([table, *rows]) + f"\n\n{protocol}"


def _spacing(config: Config) -> str:
    if config.data.sampling == "segments":
        return f"one from each of {config.clip.frames} equal parts of the video"
    return f"with a stride of {config.clip.stride} video frames"


def _classes(names: Sequence[str]) -> str:
    listed = "\n".join(f"{number}. {plain(name)}" for number, name in enumerate(names))
    return listed if len(names) <= 30 else f"<details><summary>{len(names)} classes</summary>\n\n{listed}\n\n</details>"


def _changed(config: Config) -> str:
    values, defaults = flat(config.model_dump(mode="json")), flat(Config().model_dump(mode="json"))
    tree: dict[str, object] = {}
    for key, value in values.items():
        section = key.partition(".")[0]
        described = section in ("clip", "model", "mask", "target", "finetune", "data", "optim", "test", "seed", "task")
        if described and value != defaults.get(key):
            inner = nest(key, value)
            first = next(iter(inner))
            old = tree.get(first)
            tree[first] = {**old, **inner[first]} if isinstance(old, dict) else inner[first]
    return to_yaml(tree) if tree else "{}\n"


def _snippet(exported: Exported, kind: str, name: str) -> str:
    """Return Python code that runs in the folder above the export, with a video `clip.mp4`."""
    if kind == "hf":
        return f"```python\n{_transformers_code(exported, name)}```"
    load = f"import motionmae\n\nmodel = motionmae.load({_quoted(name)})\n"
    if exported.class_names:
        use = 'for label, score in model.predict("clip.mp4").top(3):\n    print(f"{score:.3f} {label}")\n'
    elif exported.videomae == PRETRAINING:
        use = 'print(model.features("clip.mp4").shape)\nmodel.reconstruct("clip.mp4").save("reconstruction.png")\n'
    else:
        use = 'print(model.features("clip.mp4").shape)\n'
    finetune = f"```sh\nmotionmae finetune --config NAME finetune.init={shlex.quote(printable(name))}\n```"
    return f"```python\n{load}{use}```\n\n{finetune}"


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False) if name.isprintable() else json.dumps(name)


def _transformers_code(exported: Exported, name: str) -> str:
    clip, model = exported.config.clip, exported.videomae
    if model == CLASSIFIER:
        end = """\
    scores = model(**inputs).logits[0].softmax(0)
for number in scores.argsort(descending=True)[:3].tolist():
    print(f"{scores[number]:.3f} {model.config.id2label[number]}")
"""
    elif model == PRETRAINING:
        end = "    tokens = model.videomae(**inputs).last_hidden_state\nprint(tokens.mean(1).shape)\n"
    else:
        end = "    tokens = model(**inputs).last_hidden_state\nprint(tokens.mean(1).shape)\n"
    if exported.config.data.sampling == "segments":
        clip_code = (
            f"\nclip = [frames[int((part + 0.5) * len(frames) / {clip.frames})] for part in range({clip.frames})]"
        )
    else:
        clip_code = f"""[::{clip.stride}]
start = max(0, len(frames) - {clip.frames}) // 2
clip = [frames[min(start + number, len(frames) - 1)] for number in range({clip.frames})]"""
    return f"""\
import av
import torch
from transformers import {model}, VideoMAEImageProcessor

model = {model}.from_pretrained({_quoted(name)}).eval()
processor = VideoMAEImageProcessor.from_pretrained({_quoted(name)})
with av.open("clip.mp4") as video:
    frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]{clip_code}
inputs = processor(clip, return_tensors="pt")
with torch.no_grad():
{end}"""
