"""The isolated launcher: each job of a sweep runs in its own process."""
