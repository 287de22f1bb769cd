"""The library of niels_gpt: models, data and loss, usable from a notebook; it knows nothing of runs."""
