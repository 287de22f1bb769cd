"""Settings of a run: the schema, Hydra's config, and the plan made from it."""

from train.config.load import compose_plan, load_plan
from train.config.schema import TrainCfgSchema

__all__ = ["TrainCfgSchema", "compose_plan", "load_plan"]
