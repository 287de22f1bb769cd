"""The settings of a run: their schema, and how Hydra's config becomes a plan."""

from train.config.load import load_plan
from train.config.schema import TrainCfgSchema

__all__ = ["TrainCfgSchema", "load_plan"]
