"""The curve of a training run: values by step, and events in words."""

import numpy as np


class Curve:
    """What a run measured along the way: {name: [[step, value], ...]} and events as plain sentences."""

    def __init__(self, values: dict[str, list[list[float | int]]] | None = None, events: list[str] | None = None):
        self.values = values or {}
        self.events = events or []

    def add(self, step: int, **values: float) -> None:
        for name, value in values.items():
            self.values.setdefault(name, []).append([step, float(value)])

    def last(self, name: str) -> float:
        return self.values[name][-1][1]

    def steps(self, name: str) -> np.ndarray:
        return np.array([step for step, _ in self.values.get(name, [])])

    def __getitem__(self, name: str) -> np.ndarray:
        return np.array([value for _, value in self.values.get(name, [])])
