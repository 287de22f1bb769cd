"""A sweep: many runs, planned together, carried out one by one, compared in one report."""
