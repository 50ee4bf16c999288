"""The commands of `motionmae`, one in a module; :mod:`motionmae.commands.table` lists them.

A module defines `COMMAND`, a :class:`motionmae.commands.app.Command`. Its arguments must be known without importing
torch or DeepSpeed, so `run` imports what is slow.
"""
