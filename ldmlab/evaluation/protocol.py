"""Protocols of scores, which must be equal for the scores to be compared [LDM v2, App. E.3]."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ldmlab.evaluation.distances import Score

# Settings of sampling, which rFD does not have.
SAMPLING = ("sampler", "num_steps", "eta", "guidance_scale", "ema", "noise")


@dataclass(frozen=True)
class Protocol:
    """Settings that a score was computed with; None where it does not state one. `seed` is not compared."""

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
    noise: str | None = None  # how it is drawn
    dtype: str | None = None
    subset: str | None = None  # how some of the pictures are drawn where not all are used
    seed: int | None = field(default=None, compare=False)

    @classmethod
    def of(cls, score: Score | Mapping[str, Any], protocol: Mapping[str, Any] | None = None) -> "Protocol":
        """The protocol of a `Score`, or of its entries as a record holds them beside the record's own `protocol`."""
        entries = score.as_dict() if isinstance(score, Score) else score
        stated = {**(protocol or {}), **entries.get("protocol", {})}
        # The split of the reference may differ from that of the data that samples were made for.
        stated["split"] = stated.get("reference", stated.get("split"))
        stated |= {name: entries.get(name) or None for name in ("extractor", "weights_hash", "n_real", "n_fake")}
        return cls(**{f.name: stated.get(f.name) for f in fields(cls)})

    def compared(self, without: Sequence[str] = ()) -> dict[str, Any]:
        """The entries that must be equal for a comparison, except those in `without`."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.compare and f.name not in without}


def differences(a: Protocol, b: Protocol) -> dict[str, tuple[Any, Any]]:
    """The entries in which two protocols differ, each with both values; empty if their scores are comparable."""
    ours, theirs = a.compared(), b.compared()
    return {name: (value, theirs[name]) for name, value in ours.items() if value != theirs[name]}


def refuse_differences(named: Sequence[tuple[str, Mapping[str, Any]]], allow: bool = False) -> dict[str, list[Any]]:
    """Raise ValueError for the first two of `named` that differ; with `allow`, return all differences and values.

    `named` are pairs of a name and the entries that must be equal. Figures that allow differences mark them.
    """
    found: dict[str, list[Any]] = {}
    for name, key in named[1:]:
        first_name, first = named[0]
        entries = [*first, *(entry for entry in key if entry not in first)]
        differs = {e: (first.get(e), key.get(e)) for e in entries if first.get(e) != key.get(e)}
        if differs and not allow:
            listed = "; ".join(f"{entry}: {_short(a)} / {_short(b)}" for entry, (a, b) in differs.items())
            raise ValueError(f"{first_name} and {name} cannot stand in one figure; they differ in {listed}")
        for entry, (a, b) in differs.items():
            values = found.setdefault(entry, [a])
            values.extend([b] if b not in values else [])
    return found


def check_comparable(scores: Mapping[str, Score], allow: bool = False) -> dict[str, list[Any]]:
    """Raise ValueError for scores of different metrics or protocols, given by name; see `refuse_differences`."""
    return refuse_differences(
        [(name, {"metric": score.name} | Protocol.of(score).compared()) for name, score in scores.items()], allow
    )


def _short(value: Any) -> str:
    """A value as text; of hashes the first 8 digits."""
    text = str(value)
    return text[:8] if len(text) == 64 else text
