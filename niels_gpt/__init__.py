"""The library: models, data, weights and generation, usable from a notebook."""
