"""Waiting for what a test has set going."""

import time
from typing import Any


def until(found: Any, seconds: float = 10.0) -> Any:
    """What a function returns, as soon as it is true."""
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
    return value
