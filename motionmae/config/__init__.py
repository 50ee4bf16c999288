"""Typed configuration: the schema, and loading it from YAML with inheritance and ``key=value`` overrides."""

from motionmae.config.load import load_config, save_config
from motionmae.config.schema import (
    CheckpointConfig,
    ClipConfig,
    Config,
    DataConfig,
    EngineConfig,
    LaunchConfig,
    LogConfig,
    MaskConfig,
    ModelConfig,
    OptimConfig,
    TargetConfig,
)

__all__ = [
    "CheckpointConfig",
    "ClipConfig",
    "Config",
    "DataConfig",
    "EngineConfig",
    "LaunchConfig",
    "LogConfig",
    "MaskConfig",
    "ModelConfig",
    "OptimConfig",
    "TargetConfig",
    "load_config",
    "save_config",
]
