"""MotionMAE: masked autoencoding of appearance and motion in video, and the distributed system around it.

Use from Python (docs/use/python.md)::

    import motionmae

    model = motionmae.load("runs/finetune_tiny_toy")
    print(model.predict("clip.mp4").top(3))

The first use of a name imports torch; `import motionmae` itself imports nothing.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from motionmae.api import Model as Model
    from motionmae.api import load as load
    from motionmae.data.torch_dataset import ClipData as ClipData
    from motionmae.data.torch_dataset import dataset as dataset
    from motionmae.errors import UserError as UserError

__version__ = "0.1.0"
__all__ = ["ClipData", "Model", "UserError", "__version__", "dataset", "load"]

_PLACES = {
    "ClipData": "motionmae.data.torch_dataset",
    "Model": "motionmae.api",
    "UserError": "motionmae.errors",
    "dataset": "motionmae.data.torch_dataset",
    "load": "motionmae.api",
}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module 'motionmae' has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_PLACES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
