"""Random small models of transformers, in the folders and files that people have."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import transformers

CLASSES = {0: "archery", 1: "bowling $5", 2: "zumba"}


def save_huggingface(folder: Path, kind: str = "VideoMAEForVideoClassification", **settings: Any) -> torch.nn.Module:
    """Save a random model and its image processor as transformers does; return the model."""
    settings = {
        "image_size": 32, "patch_size": 8, "num_frames": 8, "hidden_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 192, "decoder_hidden_size": 24, "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 2, "decoder_intermediate_size": 96, "id2label": CLASSES,
        "label2id": {name: number for number, name in CLASSES.items()}, **settings,
    }  # fmt: skip
    torch.manual_seed(1)
    model = getattr(transformers, kind)(transformers.VideoMAEConfig(**settings)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn(weight.shape))
    model.save_pretrained(folder)
    processor_of(model).save_pretrained(folder)
    return model


def processor_of(model: torch.nn.Module, **settings: Any) -> Any:
    side = model.config.image_size
    sizes = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    imagenet = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    return transformers.VideoMAEImageProcessor(**{**sizes, **imagenet, **settings})


def central_frames(path: Path, frames: int, stride: int) -> list[np.ndarray]:
    """Frames of the central clip of a file, at their own size, as a user of transformers would read them."""
    with av.open(str(path)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][::stride]
    start = max(0, len(pictures) - frames) // 2
    return [pictures[min(start + number, len(pictures) - 1)] for number in range(frames)]


def their_logits(model: torch.nn.Module, path: Path, stride: int = 4, processor: Any = None) -> torch.Tensor:
    """Logits (classes,) of transformers for the central clip of a file."""
    frames = central_frames(path, model.config.num_frames, stride)
    inputs = (processor or processor_of(model))(frames, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits[0]


def write_clip(path: Path, frames: int = 40, height: int = 90, width: int = 120, seed: int = 0) -> Path:
    """Write a video of moving noise without loss of colour resolution, so that readers agree to the bit."""
    random = np.random.default_rng(seed)
    picture = random.integers(0, 255, (height, width, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=20, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            shifted = np.ascontiguousarray(np.roll(picture, number * 3, axis=1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shifted, format="rgb24")))
        container.mux(stream.encode())
    return path
