"""The act of learning: a run, composed by Hydra, checked by pydantic, carried out by one loop."""
