"""Typed configuration: the schema, and loading it from YAML with inheritance and ``key=value`` overrides."""

from motionmae.config.data import DataConfig
from motionmae.config.downstream import FinetuneConfig, MultiviewTestConfig
from motionmae.config.launch import LaunchConfig
from motionmae.config.load import flat, load_config, refuse_idle, save_config
from motionmae.config.method import ClipConfig, MaskConfig, ModelConfig, TargetConfig
from motionmae.config.monitoring import MonitoringConfig
from motionmae.config.schema import Config
from motionmae.config.training import CheckpointConfig, EngineConfig, LogConfig, OptimConfig, WatchdogConfig

__all__ = [
    "CheckpointConfig",
    "ClipConfig",
    "Config",
    "DataConfig",
    "EngineConfig",
    "FinetuneConfig",
    "LaunchConfig",
    "LogConfig",
    "MaskConfig",
    "ModelConfig",
    "MonitoringConfig",
    "MultiviewTestConfig",
    "OptimConfig",
    "TargetConfig",
    "WatchdogConfig",
    "flat",
    "load_config",
    "refuse_idle",
    "save_config",
]
