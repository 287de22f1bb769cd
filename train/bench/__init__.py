"""The benchmark: full optimizer steps of this project and of others, raced in turns on the same machine."""
