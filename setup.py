"""The packages of the wheel; pyproject.toml has everything else. The configs become the package `motionmae.presets`."""

from setuptools import find_packages, setup

OURS = ["motionmae*", "data_tools*", "slurm*", "monitoring*"]

setup(packages=[*find_packages(include=OURS), "motionmae.presets"], package_dir={"motionmae.presets": "configs"})
