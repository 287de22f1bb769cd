"""Scale the fault tests: a few tries in the suite, many in `make faults` (NIELS_FAULTS=whole)."""

import os

WHOLE = os.environ.get("NIELS_FAULTS") == "whole"


def scaled(part: int, whole: int) -> int:
    """Return how often something is tried: `part` times in the suite, `whole` in `make faults`."""
    return whole if WHOLE else part
