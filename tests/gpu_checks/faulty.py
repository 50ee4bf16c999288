"""Checks that go wrong in every way."""

import os
import subprocess
import sys
import time
from pathlib import Path

from motionmae.gpu_checks.check import CheckError, Figures, NotRunError, Setting


def succeed(setting: Setting) -> Figures:
    return {"pid": os.getpid(), "rate": 1 / 3, "nan": float("nan"), "path": Path("x"), "not_run": ["a part"]}


def fail(setting: Setting) -> Figures:
    raise CheckError("2 is not 3", {"two": 2})


def crash(setting: Setting) -> Figures:
    print("CUDA error: device-side assert triggered", flush=True)
    os.abort()


def raise_error(setting: Setting) -> Figures:
    raise ZeroDivisionError("\x1b[31mdivision")


def hang(setting: Setting) -> Figures:
    """Start a process in a session of its own, as a submitted job does, and hang."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    (setting.folder / "child").write_text(str(child.pid))
    time.sleep(600)
    return {}


def cannot(setting: Setting) -> Figures:
    raise NotRunError("no such device")
