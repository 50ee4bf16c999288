"""Typed configuration: the schema, and loading it from YAML with inheritance and ``key=value`` overrides."""

from motionmae.config.cluster import LaunchConfig, MonitoringConfig
from motionmae.config.data import DataConfig
from motionmae.config.downstream import FinetuneConfig, MultiviewTestConfig
from motionmae.config.load import config_yaml, load_config, refuse_unused, save_config, saved_config
from motionmae.config.method import ClipConfig, MaskConfig, ModelConfig, TargetConfig
from motionmae.config.pretrain import PretrainConfig
from motionmae.config.schema import Config, absolute_paths
from motionmae.config.training import CheckpointConfig, EngineConfig, LogConfig, OptimConfig, WatchdogConfig
from motionmae.config.trees import flat
from motionmae.config.validation import ValidationConfig

__all__ = [
    "CheckpointConfig", "ClipConfig", "Config", "DataConfig", "EngineConfig", "FinetuneConfig", "LaunchConfig",
    "LogConfig", "MaskConfig", "ModelConfig", "MonitoringConfig", "MultiviewTestConfig", "OptimConfig",
    "PretrainConfig", "TargetConfig", "ValidationConfig", "WatchdogConfig", "absolute_paths", "config_yaml", "flat",
    "load_config", "refuse_unused", "save_config", "saved_config",
]  # fmt: skip
