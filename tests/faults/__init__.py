"""The harness of faults: what a run does when the machine, the disk, a signal or the input turns against it."""
