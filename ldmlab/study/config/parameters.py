"""The parameters of a notebook: parsed, validated and frozen before any work.

papermill only warns of an unknown name, and hands `-p ema false` over as a string. So the first line of every
set-up cell is `params = read_parameters("04_tradeoff", globals())`; it needs no torch and answers at once.
"""

import ast
import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError

from ldmlab.data.dataset_names import ACCEPTED as ACCEPTED_DATA
from ldmlab.data.dataset_names import check_data_name
from ldmlab.study.config.budgets import TIERS
from ldmlab.study.config.notebooks import FS, NOTEBOOKS, RELEASED


class ParameterError(ValueError):
    """Parameters that no run can have; the message names every value given and what is accepted instead."""


@dataclass(frozen=True)
class Parameters:
    """Validated parameters of one notebook, by attribute: `params.f`."""

    notebook: str
    values: Mapping[str, Any]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["values"][name]
        except KeyError:
            raise AttributeError(f"no parameter {name!r}; there are {', '.join(self.__dict__['values'])}") from None

    def as_dict(self) -> dict[str, Any]:
        """A plain copy, in the order of the notebook."""
        return dict(self.values)


def read_parameters(notebook: str, namespace: Mapping[str, Any]) -> Parameters:
    """The parameters of `notebook` from its `globals()`, parsed and checked.

    Raises ParameterError for a value that is not accepted, a name that is not set, and a name that papermill injected
    but the notebook does not have; all at once. Other variables of the namespace do not matter.
    """
    if notebook not in NOTEBOOKS:
        raise ValueError(f"no notebook {notebook!r}; there are {', '.join(NOTEBOOKS)}")
    names = NOTEBOOKS[notebook].parameters
    values, problems = {}, []
    for name in names:
        if name not in namespace:
            problems.append(f"{name}: not set; accepted is {parameter(notebook, name).accepted}")
            continue
        given = namespace[name]
        number = name in _TEXTS and isinstance(given, int | float)
        try:
            values[name] = parameter(notebook, name).parse(given)
            if number:
                print(f"{name} is text: {_shown(given)} was taken as {values[name]!r}; {_raw(name)}", flush=True)
        except ValidationError as error:
            reason = error.errors()[0].get("ctx", {}).get("error")
            why = "".join(f"{part}; " for part in (str(reason or ""), _raw(name) if number else "") if part)
            problems.append(f"{name} = {_shown(given)}: {why}accepted is {parameter(notebook, name).accepted}")
    if values.get("size", 0) % values.get("f", 1):
        problems.append(f"size = {values['size']}: not divisible by f = {values['f']}; "
                        f"accepted is 0 or a multiple of f from {_MIN_SIZE} to {_MAX_SIZE}")
    for name, value in _injected(namespace).items():
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            problems.append(f"{name} = {value}: {notebook} has no such parameter{hint}")
    if problems:
        raise ParameterError(_message(notebook, problems))
    return Parameters(notebook, MappingProxyType(values))


class Parameter(NamedTuple):
    """One parameter: its pydantic type, what it is, and what is accepted, in words."""

    kind: Any
    meaning: str
    accepted: str

    def parse(self, value: Any) -> Any:
        """The value in its own type; pydantic.ValidationError if it has none."""
        return TypeAdapter(self.kind).validate_python(value)


def _shown(value: Any) -> str:
    """A value as it is written in Python, shortened where it is long."""
    try:
        text = repr(value)
    except Exception:  # of an object of the caller's, or of a number of more digits than Python writes
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def _raw(name: str) -> str:
    """How a number's spelling is kept, which papermill's -p changes before a notebook can see it."""
    return f"papermill's -p makes numbers of 007 and 1e3, -r {name} keeps them as they are"


def _as_text(value: Any) -> Any:
    """Text of a number, true or false: papermill's -p makes them of what looks like one."""
    if value is None:
        raise ValueError("None is no text")
    return str(value) if isinstance(value, int | float) else value


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("true and false are no numbers")
    return value


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("not a finite number")
    return value


def _among(values: Sequence[int]) -> Callable[[int], int]:
    """A validator, since Literal[1, 2] refuses the "2" of papermill's -r."""

    def check(value: int) -> int:
        if value not in values:
            raise ValueError("")
        return value

    return check


def _size(value: int) -> int:
    if value != 0 and not _MIN_SIZE <= value <= _MAX_SIZE:
        raise ValueError("")
    return value


def _data(value: str) -> str:
    try:
        check_data_name(value)
    except ValueError as error:
        raise ValueError(str(error).partition("; accepted")[0]) from None  # what is accepted stands beside it anyway
    except (OSError, RuntimeError) as error:  # a name that is too long, a home folder that is not known
        raise ValueError(getattr(error, "strerror", None) or str(error)) from None
    return value


def _tier(value: str) -> str:
    if value not in ("auto", *TIERS):
        raise ValueError("")
    return value


def _text(value: str) -> str:
    if len(value.strip().splitlines()) > 1:
        raise ValueError("more than one line")
    return value.strip()


def _layout(value: str) -> str:
    parse_layout(value)
    return value


def parse_layout(value: str) -> list[tuple[str, float, float, float, float]]:
    """(name, x0, y0, x1, y1) of each box in "car 0.3 0.5 0.7 0.9; sun ..."; ValueError names the one that is wrong."""
    boxes = []
    for part in value.split(";") if value.strip() else ():
        name, *numbers = part.rsplit(maxsplit=4) or [""]
        try:
            x0, y0, x1, y1 = map(float, numbers)
        except ValueError:
            raise ValueError(f"no box: {part.strip()!r}") from None
        if not all(map(math.isfinite, (x0, y0, x1, y1))) or x0 >= x1 or y0 >= y1:
            raise ValueError(f"left is not below right, or top not below bottom: {part.strip()!r}")
        if x0 >= 1 or y0 >= 1 or x1 <= 0 or y1 <= 0:
            raise ValueError(f"outside of the picture, which is from 0 to 1: {part.strip()!r}")
        boxes.append((name.strip(), x0, y0, x1, y1))
    return boxes


def _path(value: str) -> str:
    try:
        found = not value or Path(value).expanduser().exists()
    except (OSError, RuntimeError) as error:  # a name that is too long, a home folder that is not known
        raise ValueError(getattr(error, "strerror", None) or str(error)) from None
    if not found:
        raise ValueError("there is nothing of this name")
    return value


def _rater(value: str) -> str:
    if not re.fullmatch(r"[\w-]{0,32}", value):
        raise ValueError("")
    return value


def _one_of(values: Sequence[int | str]) -> str:
    return f"one of {' '.join(map(str, values))}"


_MIN_SIZE, _MAX_SIZE = 32, 4096
_LONGEST = 300  # letters of a value in a message
_FACTORS = (2, 4, 8)
_Text = Annotated[str, BeforeValidator(_as_text)]
_Int = Annotated[int, BeforeValidator(_no_bool)]
_Float = Annotated[float, BeforeValidator(_no_bool), AfterValidator(_finite)]


PARAMETERS: dict[str, Parameter] = {
    "f": Parameter(Annotated[_Int, AfterValidator(_among(FS))], "downsampling factor", _one_of(FS)),
    "reg": Parameter(Literal["kl", "vq"], "regularization of the latents", "kl or vq"),
    "data": Parameter(Annotated[_Text, AfterValidator(_data)], "pictures to train on", ACCEPTED_DATA),
    "size": Parameter(Annotated[_Int, AfterValidator(_size)], "side of a picture in pixels",
                      f"0 (the tier's own) or a multiple of f from {_MIN_SIZE} to {_MAX_SIZE}"),
    "tier": Parameter(Annotated[str, AfterValidator(_tier)], "how much work", f"one of auto {' '.join(TIERS)}"),
    "seed": Parameter(Annotated[_Int, Field(ge=0, lt=2**32)], "all randomness derives from it",
                      "a whole number from 0 to 4294967295"),
    "perceptual": Parameter(Literal["", "student", "lpips"], "perceptual loss of the first stage",
                            "'' (the tier's own), student or lpips"),
    "scale_mode": Parameter(Literal["first_batch", "dataset", "channel"], "what latents are rescaled by",
                            "one of first_batch dataset channel"),
    "num_steps": Parameter(Annotated[_Int, Field(ge=1, le=1000)], "DDIM steps", "a whole number from 1 to 1000"),
    "eta": Parameter(Annotated[_Float, Field(ge=0, le=1)], "noise of a DDIM step",
                     "a number from 0 (deterministic) to 1 (as in DDPM)"),
    "classes": Parameter(Annotated[_Text, AfterValidator(_text)], "classes to draw",
                         "names of classes with commas between them, or '' for all"),
    "caption": Parameter(Annotated[_Text, AfterValidator(_text)], "what to draw, in words",
                         "a line of text, in quotes"),
    "layout": Parameter(Annotated[_Text, AfterValidator(_layout)], "what to draw where",
                        "'' (a validation picture's) or boxes such as 'car 0.3 0.5 0.7 0.9; sun 0.1 0.1 0.2 0.2': "
                        "a name, left, top, right and bottom in fractions of the picture"),
    "factor": Parameter(Annotated[_Int, AfterValidator(_among(_FACTORS))], "by how much the target is smaller",
                        _one_of(_FACTORS)),
    "degradation": Parameter(Literal["bicubic", "bsr"], "how pictures are made small", "bicubic or bsr"),
    "compile": Parameter(bool, "whether torch.compile speeds up the denoiser's training", "true or false"),
    "attention": Parameter(bool, "whether the first stage attends in its middle", "true or false"),
    "picture": Parameter(Annotated[_Text, AfterValidator(_path)], "a picture of your own",
                         "'' (none) or the path of a picture, a folder or a .tar"),
    "rater": Parameter(Annotated[_Text, AfterValidator(_rater)], "who answers",
                       "'' (a random name) or a nickname of up to 32 letters, digits, - and _"),
    "num_questions": Parameter(Annotated[_Int, Field(ge=1, le=1000)], "questions of a session",
                               "a whole number from 1 to 1000"),
    "exposure_s": Parameter(Annotated[_Float, Field(ge=0, le=60)], "how long pictures are shown, in seconds",
                            "a number from 0 (no limit) to 60"),
    "guidance_scale": Parameter(Annotated[_Float, Field(ge=0, le=1000)], "how hard the condition pulls",
                                "a number from 0 to 1000"),
    "model": Parameter(Literal[RELEASED], "which released model", _one_of(RELEASED)),
    "file": Parameter(Annotated[_Text, AfterValidator(_path)], "its weights",
                      "'' (the file that was fetched) or the path of a .ckpt, a .safetensors or a folder of diffusers"),
}
_TEXTS = frozenset(("data", "classes", "caption", "layout", "picture", "rater", "file"))
# Where a notebook's parameter of this name accepts other values.
OWN: dict[tuple[str, str], Parameter] = {
    ("19_released_models", "num_steps"): Parameter(
        Annotated[_Int, Field(ge=0, le=1000)], "DDIM steps", "0 (the tier's own) or a whole number to 1000"),
}


def parameter(notebook: str, name: str) -> Parameter:
    """A parameter as a notebook has it."""
    return OWN.get((notebook, name), PARAMETERS[name])


def _injected(namespace: Mapping[str, Any]) -> dict[str, str]:
    """Names and sources of the values in the cell that papermill injected, from IPython's history.

    Only that cell says which names were passed; a kernel holds many other variables. What papermill writes is Python:
    a cell of the same first line that does not parse, without its magics, is another.
    """
    history = namespace.get("In", [])
    cells = [cell for cell in history if isinstance(cell, str) and cell.startswith("# Parameters\n")]
    trees = filter(None, map(_parsed, reversed(cells)))
    found = {}
    for node in getattr(next(trees, None), "body", []):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name):
                found[target.id] = ast.unparse(node.value)
    return found


def _parsed(cell: str) -> ast.Module | None:
    """The syntax tree of a cell, without lines that are magics where it has any; None where there is none."""
    if any(line.startswith("%%") for line in cell.splitlines()):
        return None  # of another language
    without = "\n".join("" if line.lstrip().startswith(("%", "!", "?")) else line for line in cell.splitlines())
    for source in (cell, without):
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
    return None


def _message(notebook: str, problems: list[str]) -> str:
    count = "a parameter" if len(problems) == 1 else f"{len(problems)} parameters"
    names = ", ".join(f"{name} ({parameter(notebook, name).meaning})" for name in NOTEBOOKS[notebook].parameters)
    return "\n".join([f"{notebook} did not start because of {count}:", *(f"  {line}" for line in problems),
                      f"{notebook} accepts {names}."])
