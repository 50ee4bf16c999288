"""The subcommands of ``python -m motionmae``, a module each: ``add_parser(subparsers)`` and ``run(arguments) -> int``.

Every module is imported to build ``--help``, so what takes long to import (torch, DeepSpeed) is imported in ``run``.
"""
