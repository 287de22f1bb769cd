"""Forward the points of a run to the programs that its user logs to."""
