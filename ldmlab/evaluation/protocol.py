"""What has to be equal for two scores to be compared, and what is said where it is not [LDM v2, App. E.3]."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ldmlab.evaluation.distances import Score

SAMPLING = ("sampler", "num_steps", "eta", "guidance_scale", "ema")  # how samples were made; no part of rFD


@dataclass(frozen=True)
class Protocol:
    """How a score came about; None where a score does not say. `seed` is carried, but draws of several compare."""

    extractor: str | None = None
    weights_hash: str | None = None
    n_real: int | None = None
    n_fake: int | None = None
    data: str | None = None  # the reference set
    split: str | None = None  # of the reference set
    size: int | None = None  # pixels a side
    resize: str | None = None  # kernel and antialiasing
    crop: str | None = None
    quantization: str | None = None
    sampler: str | None = None
    num_steps: int | None = None
    eta: float | int | None = None
    guidance_scale: float | int | None = None
    ema: bool | None = None
    dtype: str | None = None
    seed: int | None = field(default=None, compare=False)

    @classmethod
    def of(cls, score: Score | Mapping[str, Any], protocol: Mapping[str, Any] | None = None) -> "Protocol":
        """The protocol of a `Score`, or of its entries as a record holds them beside the record's own `protocol`."""
        entries = score.as_dict() if isinstance(score, Score) else score
        said = {**entries.get("protocol", {}), **(protocol or {})}
        # Samples are scored against a split of the data that is not always the one they were opened as.
        said["split"] = said.get("reference", said.get("split"))
        said |= {name: entries.get(name) or None for name in ("extractor", "weights_hash", "n_real", "n_fake")}
        return cls(**{f.name: said.get(f.name) for f in fields(cls)})

    def compared(self, without: Sequence[str] = ()) -> dict[str, Any]:
        """The entries that two comparable scores share; fewer `without` the named ones."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.compare and f.name not in without}


def differences(a: Protocol, b: Protocol) -> dict[str, tuple[Any, Any]]:
    """The entries in which two protocols differ, each with both values; empty where their scores compare."""
    ours, theirs = a.compared(), b.compared()
    return {name: (value, theirs[name]) for name, value in ours.items() if value != theirs[name]}


def refuse_differences(named: Sequence[tuple[str, Mapping[str, Any]]], allow: bool = False) -> dict[str, list[Any]]:
    """ValueError naming the first two of `named` that differ, and how; with `allow`, all that differs, with its values.

    Each is a name and what has to be equal. A figure that allows differences marks them.
    """
    found: dict[str, list[Any]] = {}
    for name, key in named[1:]:
        first_name, first = named[0]
        entries = [*first, *(entry for entry in key if entry not in first)]
        differs = {e: (first.get(e), key.get(e)) for e in entries if first.get(e) != key.get(e)}
        if differs and not allow:
            said = "; ".join(f"{entry}: {_short(a)} / {_short(b)}" for entry, (a, b) in differs.items())
            raise ValueError(f"{first_name} and {name} cannot stand in one figure; they differ in {said}")
        for entry, (a, b) in differs.items():
            values = found.setdefault(entry, [a])
            values.extend([b] if b not in values else [])
    return found


def check_comparable(scores: Mapping[str, Score], allow: bool = False) -> dict[str, list[Any]]:
    """Refuse scores of different metrics or protocols, by the names they are given here; see `refuse_differences`."""
    return refuse_differences(
        [(name, {"metric": score.name} | Protocol.of(score).compared()) for name, score in scores.items()], allow
    )


def _short(value: Any) -> str:
    """Hashes are told apart by their first digits."""
    text = str(value)
    return text[:8] if len(text) == 64 else text
