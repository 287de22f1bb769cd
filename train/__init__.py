"""A training run: composed by Hydra, checked by pydantic, carried out by one loop."""
