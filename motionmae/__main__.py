"""``python -m motionmae COMMAND``: see :mod:`motionmae.commands`."""

import argparse
import importlib
import pkgutil
import signal
import sys
import traceback
from collections.abc import Sequence

from motionmae import commands
from motionmae.errors import UserError
from motionmae.runs.end_reason import LeaseLost, classify_error


def build_parser() -> argparse.ArgumentParser:
    """A parser with a subcommand for each module of :mod:`motionmae.commands`."""
    parser = argparse.ArgumentParser(
        prog="python -m motionmae",
        description="Self-supervised video pre-training with motion-aware masked autoencoders.",
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in pkgutil.iter_modules(commands.__path__):
        if module.name != "app":
            importlib.import_module(f"{commands.__name__}.{module.name}").add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    A :class:`UserError` becomes one sentence on standard error; other errors keep their traceback.
    """
    arguments = build_parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except UserError as error:
        if not error.already_reported:
            print(f"error: {error}", file=sys.stderr)
        return classify_error(error).exit_code
    except LeaseLost as error:
        print(f"error: {error}", file=sys.stderr)
        return classify_error(error).exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        traceback.print_exc()
        return classify_error(error).exit_code


if __name__ == "__main__":
    sys.exit(main())
