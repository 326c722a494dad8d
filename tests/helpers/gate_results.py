"""What the gate is shown."""

from typing import Any


def interval(lo: float | None, hi: float | None) -> dict[str, float | None]:
    return {"diff": None if lo is None or hi is None else (lo + hi) / 2, "lo": lo, "hi": hi}


def candidate(valid: float, dummy: Any, linear: Any, loss: Any = (0.01, 0.02), metric: str = "auc") -> dict[str, Any]:
    return {
        "valid": {metric: valid, "log_loss": 1 - valid},
        "test": {metric: {"value": valid}, "log_loss": {"value": 1 - valid}},
        "vs_dummy": {metric: interval(*dummy), "log_loss": interval(*loss)},
        "vs_linear": {metric: interval(*linear), "log_loss": interval(0, 0.1)},
    }


def metrics(task: str = "binary", primary: str = "auc", **candidates: dict[str, Any]) -> dict[str, Any]:
    every = {"dummy": candidate(0.5, (0, 0), (-0.2, -0.1), metric=primary)} | candidates
    best = max(every, key=lambda name: every[name]["valid"][primary])
    return {"task": task, "primary": primary, "best": best, "candidates": every}


LINEAR = candidate(0.65, (0.12, 0.18), (0, 0))
NET = candidate(0.70, (0.15, 0.22), (0.03, 0.06))
NO_BETTER = candidate(0.66, (0.12, 0.19), (-0.01, 0.02))
