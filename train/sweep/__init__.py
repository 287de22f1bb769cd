"""Sweeps: many runs, planned together and carried out one by one."""
