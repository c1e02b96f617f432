"""Contradictions among the paper's numbers, and between them and the released files, found in `paper.csv` by rules.

The docstring of a rule states what must hold, and its findings cite the numbers that violate it. A contradiction means
that two places cannot both be right, not which one is wrong. `python -m ldmlab.paper.linter` prints the report.
"""

import argparse
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import combinations

from ldmlab.paper.aliases import ALIASES, BASE_RATES, HEADS, SAME_SIZE
from ldmlab.paper.numbers import Number, Value, numbers

PARAMS_TOLERANCE = 0.005  # 294 966 916 is printed as 294M
OWN_RULES = {"num_heads", "head_channels", "base_lr"}  # metrics that are compared by rules of their own


@dataclass(frozen=True)
class Finding:
    """One contradiction: the violated rule, model, metric, what was found, and the numbers that contradict."""

    rule: str
    subject: str
    metric: str
    detail: str
    citations: tuple[Number, ...]


class Facts:
    """Numbers by (table, row, metric), for rules that skip what is absent."""

    def __init__(self, found: Sequence[Number]):
        self.all = tuple(found)
        self.by_key = {(n.table, n.row, n.metric): n for n in found}

    def get(self, table: str, row: str, metric: str) -> Number | None:
        """One number, None if it is absent."""
        return self.by_key.get((table, row, metric))

    def get_all(self, *keys: tuple[str, str, str]) -> tuple[Number, ...] | None:
        """The numbers of all these keys, None if any is absent."""
        found = [self.by_key.get(key) for key in keys]
        return tuple(n for n in found if n) if all(found) else None

    def rows(self, table: str) -> list[str]:
        """The names of a table's rows, in order."""
        return list(dict.fromkeys(n.row for n in self.all if n.table == table))


Rule = Callable[[Facts], Iterator[Finding]]
RULES: list[Rule] = []


def rule(check: Rule) -> Rule:
    """Decorate a function to add it to `RULES`; its docstring states what must hold."""
    RULES.append(check)
    return check


def lint(found: Sequence[Number] | None = None) -> list[Finding]:
    """All contradictions in some numbers, by default the paper's, in order of the rules."""
    facts = Facts(numbers() if found is None else found)
    return [finding for check in RULES for finding in check(facts)]


def _finding(check: Rule, subject: str, metric: str, detail: str, citations: Sequence[Number]) -> Finding:
    return Finding((check.__doc__ or check.__name__).strip(), subject, metric, detail, tuple(citations))


def agree(metric: str, a: Value, b: Value) -> bool:
    """Whether two values are equal at the precision of the coarser one; numbers of parameters within half a percent."""
    if not isinstance(a, (int, float)) or not isinstance(b, (int, float)):
        return a == b
    if metric == "num_params":
        return abs(a - b) <= PARAMS_TOLERANCE * max(a, b)
    digits = min(_decimals(a), _decimals(b))
    return abs(Decimal(repr(a)) - Decimal(repr(b))) <= Decimal(1).scaleb(-digits) / 2 if digits else a == b


def _decimals(value: float | int) -> int:
    return max(0, -int(Decimal(repr(value)).as_tuple().exponent))


@rule
def one_model_has_one_value(facts: Facts) -> Iterator[Finding]:
    """The same model has the same value wherever the paper or the released files state it."""
    groups: dict[str, list[Number]] = {}
    names = {place: name for name, places in ALIASES.items() for place in places}
    sizes = {place: name for name, places in SAME_SIZE.items() for place in places}
    for n in facts.all:
        place = (n.table, n.row)
        name = names.get(place, n.row if " / " in n.row else "")
        if not name and n.metric == "num_params":
            name = sizes.get(place, "")
        if name and n.metric not in OWN_RULES:
            groups.setdefault(f"{name}|{n.metric}", []).append(n)
    for key, group in groups.items():
        name, metric = key.split("|")
        if any(not agree(metric, a.value, b.value) for a, b in combinations(group, 2)):
            detail = "; ".join(f"{n.table} {show(n.value)}" for n in group)
            yield _finding(one_model_has_one_value, name, metric, detail, group)


@rule
def compute_adds_up(facts: Facts) -> Iterator[Finding]:
    """Overall compute is the sum of the generator's and the classifier's [Tab. 18]."""
    for row in facts.rows("Tab. 18"):
        columns = ("generator_v100_days", "classifier_v100_days", "total_v100_days")
        *found, total = (facts.get("Tab. 18", row, column) for column in columns)
        parts = [n for n in found if n and not isinstance(n.value, str)]
        if parts and total and (parts_sum := sum(n.value for n in parts)) != total.value:
            detail = f"{' + '.join(show(n.value) for n in parts)} is {show(parts_sum)}, printed is {show(total.value)}"
            yield _finding(compute_adds_up, row, "total_v100_days", detail, (*parts, total))


@rule
def rates_follow_the_batch(facts: Facts) -> Iterator[Finding]:
    """The learning rate is the batch size times the released base rate."""
    for (table, row), released in BASE_RATES:
        found = facts.get_all((table, row, "lr"), (table, row, "batch_size"), ("Released", released, "base_lr"))
        if found and abs(found[1].value * found[2].value / found[0].value - 1) > 0.05:
            detail = (f"{found[1].value} x {found[2].value:g} is {found[1].value * found[2].value:.3g}, "
                      f"printed is {found[0].value:g}")
            yield _finding(rates_follow_the_batch, f"{table}, {row}", "lr", detail, found)


@rule
def heads_match_released_configs(facts: Facts) -> Iterator[Finding]:
    """The number of attention heads equals that of the released configuration."""
    for (table, row), released in HEADS:
        printed = facts.get(table, row, "num_heads")
        heads = facts.get("Released", released, "num_heads")
        width = facts.get_all(("Released", released, "head_channels"), ("Released", released, "channels"),
                              ("Released", released, "ch_mult"))
        if printed and heads and heads.value != printed.value:
            detail = f"{printed.value} in the table, {heads.value} released"
            yield _finding(heads_match_released_configs, f"{table}, {row}", "num_heads", detail, (printed, heads))
        if printed and width:
            by_level = [width[1].value * m // width[0].value for m in width[2].value]
            if set(by_level) != {printed.value}:
                detail = (f"{printed.value} in the table; {width[0].value} channels per head give "
                          f"{', '.join(map(str, by_level))} heads by level")
                yield _finding(heads_match_released_configs, f"{table}, {row}", "num_heads", detail, (printed, *width))


@rule
def latents_fit_their_first_stage(facts: Facts) -> Iterator[Finding]:
    """The latent of a picture of 256 px has sides 256 / f and the channels of its first stage in Tab. 8."""
    vq = {tuple(n.value for n in found): row for row in facts.rows("Tab. 8") if row.startswith("VQ-")
          if (found := facts.get_all(("Tab. 8", row, "f"), ("Tab. 8", row, "num_codes")))}
    for table in ("Tab. 12", "Tab. 13", "Tab. 14", "Tab. 15"):
        for row in facts.rows(table):
            found = facts.get_all((table, row, "z_shape"), (table, row, "f"), (table, row, "num_codes"))
            if not found:
                continue
            shape, f, codes = (n.value for n in found)
            c = facts.get("Tab. 8", vq.get((f, codes), ""), "c")
            if c and shape != (256 // f, 256 // f, c.value):
                detail = f"printed {show(shape)}; f = {f} and c = {c.value} give {256 // f} {256 // f} {c.value}"
                yield _finding(latents_fit_their_first_stage, f"{table}, {row}", "z_shape", detail, (*found, c))


@rule
def steps_are_those_executed(facts: Facts) -> Iterator[Finding]:
    """The released DDIM sampler takes the requested number of steps, with a stride of T // steps over T = 1000."""
    for n in facts.all:
        if n.metric == "sampling_steps" and "LDM" in n.row and isinstance(n.value, int):
            taken = len(range(0, 1000, 1000 // n.value))
            if taken != n.value:
                detail = f"{n.value} requested; a stride of {1000 // n.value} over 1000 gives {taken}"
                yield _finding(steps_are_those_executed, n.row, "sampling_steps", detail, (n,))


@rule
def steps_stay_below_T(facts: Facts) -> Iterator[Finding]:
    """Every number of DDIM steps that the released script accepts visits only time steps from 0 to T - 1."""
    found = facts.get_all(("Released", "DDIM script", "most_sampling_steps"), ("Released", "DDIM script", "T"))
    if found:
        most, T = (n.value for n in found)
        last = range(0, T, T // most)[-1] + 1  # the released code adds 1 to each time step
        if last >= T:
            detail = f"{most} steps end at t = {last}, and the last of {T} is {T - 1}: an index out of range"
            yield _finding(steps_stay_below_T, "DDIM script", "most_sampling_steps", detail, found)


@rule
def batches_fit_their_gpu(facts: Facts) -> Iterator[Finding]:
    """A batch fits into the memory of the GPUs it is trained on; no gradient accumulation is stated."""
    found = facts.get_all(("Tab. 15", "text LAION", "batch_size"), ("Tab. 15", "text LAION", "num_gpus"),
                          ("Issue 132", "text LAION", "batch_size_that_fits"))
    if found and found[0].value / found[1].value > 2 * found[2].value:
        detail = f"{found[0].value} on {found[1].value} GPU; {found[2].value} fit into 48 GB; an A100 has 40 or 80"
        yield _finding(batches_fit_their_gpu, "text LAION", "batch_size", detail, found)


@rule
def models_train_where_the_text_says(facts: Facts) -> Iterator[Finding]:
    """All models are trained on the number of GPUs that App. F names."""
    said = facts.get("App. F", "all models", "num_gpus")
    for n in facts.all:
        if said and n.table == "Tab. 15" and n.metric == "num_gpus" and n.value != said.value:
            detail = f"App. F: all on {said.value}; Tab. 15: {n.value}"
            yield _finding(models_train_where_the_text_says, n.row, "num_gpus", detail, (said, n))


@rule
def reconstruction_scores_rank_alike(facts: Facts) -> Iterator[Finding]:
    """Of two first stages with the same f and regularizer, that with the lower R-FID has the higher PSNR [Tab. 8]."""
    rows = [row for row in facts.rows("Tab. 8") if row.startswith(("VQ-", "KL-"))]
    for a, b in combinations(rows, 2):
        found = facts.get_all(*(("Tab. 8", row, metric) for metric in ("r_fid", "psnr") for row in (a, b)))
        if a.split()[0] == b.split()[0] and found:
            fid_a, fid_b, psnr_a, psnr_b = (n.value for n in found)
            if (fid_a - fid_b) * (psnr_a - psnr_b) > 0:
                detail = f"R-FID {fid_a} and {fid_b}, PSNR {psnr_a} and {psnr_b} dB"
                yield _finding(reconstruction_scores_rank_alike, f"{a}, {b}", "r_fid", detail, found)


@rule
def one_advice_on_f(facts: Facts) -> Iterator[Finding]:
    """Sec. 4.1 recommends one set of f."""
    found = facts.get_all(("Sec. 4.1", "a good balance", "f"), ("Sec. 4.1", "the best conditions", "f"))
    if found and found[0].value != found[1].value:
        detail = f"a good balance: {show(found[0].value)}; the best conditions: {show(found[1].value)}"
        yield _finding(one_advice_on_f, "the recommended f", "f", detail, found)


@rule
def factors_in_text_are_those_of_tables(facts: Facts) -> Iterator[Finding]:
    """A margin or factor in the text equals that of its table, at the precision of the text."""
    def least(metric: str, better: Callable[[float, float], float]) -> float | None:
        base = facts.get("Tab. 6", "LDM-1", metric)
        ours = [n for row in facts.rows("Tab. 6") if row != "LDM-1" and (n := facts.get("Tab. 6", row, metric))]
        return min(better(base.value, n.value) for n in ours) if base and ours else None

    rates = ("train_images_per_s", "images_per_s", "images_per_s_512")
    speeds = [least(metric, lambda base, ours: ours / base) for metric in rates]
    speeds.append(least("hours_per_epoch", lambda base, ours: base / ours))
    fid = least("fid_2k", lambda base, ours: base / ours)
    known = [speed for speed in speeds if speed is not None]
    speed_up = min(known) if len(known) == len(speeds) else None
    for metric, value in (("speed_up", speed_up), ("fid_factor", fid)):
        said = facts.get("Sec. 4.5", "inpainting", metric)
        if said and value is not None and round(value, 1) < said.value:
            cited = [n for n in facts.all if n.table == "Tab. 6"]
            yield _finding(factors_in_text_are_those_of_tables, "inpainting", metric,
                           f"at least {said.value} in the text, {value:.2f} in Tab. 6", (said, *cited))
    margin = facts.get("App. D.3", "layout / LDM-4", "fid_margin")
    pairs = [found for metric in ("fid_openimages", "fid_openimages_512")
             if (found := facts.get_all(*(("Tab. 9", f"layout / {name}", metric) for name in ("VQGAN+T", "LDM-4"))))]
    gaps = [theirs.value - ours.value for theirs, ours in pairs]
    if margin and gaps and all(abs(gap - margin.value) > 1 for gap in gaps):
        detail = f"nearly {margin.value} in the text, {' and '.join(f'{gap:.2f}' for gap in gaps)} in Tab. 9"
        yield _finding(factors_in_text_are_those_of_tables, "layout / LDM-4", "fid_margin", detail,
                       (margin, *(n for pair in pairs for n in pair)))


@rule
def shares_of_votes_sum_to_one(facts: Facts) -> Iterator[Finding]:
    """The shares of votes for two methods sum to 100 % [Tab. 4, task 2]."""
    for task, theirs in (("super-resolution", "Pixel-DM"), ("inpainting", "LaMa")):
        found = facts.get_all(*(("Tab. 4", f"{task} / {name}", "percent_preferred") for name in (theirs, "LDM-4")))
        if found and abs(sum(n.value for n in found) - 100) > 0.1:
            yield _finding(shares_of_votes_sum_to_one, task, "percent_preferred",
                           f"{found[0].value} % and {found[1].value} %", found)


@rule
def references_point_to_the_right_table(facts: Facts) -> Iterator[Finding]:
    """A table that the text refers to contains the row in question."""
    said = facts.get("App. E.2.1", "text and layout UNets", "table")
    rows = [n for n in facts.all if n.metric == "num_params" and n.row in ("text LAION", "layout OpenImages")]
    if said and rows and all(n.table != said.value for n in rows):
        detail = f"referred to {said.value}, found in {', '.join(sorted({n.table for n in rows}))}"
        yield _finding(references_point_to_the_right_table, said.row, "table", detail, (said, *rows))


def show(value: Value) -> str:
    """Format a value: 395M, 1.9M, 410000, 4 8 16."""
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    if isinstance(value, (int, float)) and value >= 1e6:
        return f"{value / 1e6:g}M"
    return str(value)


def report(findings: Sequence[Finding]) -> str:
    """The findings as text, by rule, each with its citations."""
    lines = [f"{len(findings)} contradictions"]
    for index, finding in enumerate(findings):
        if index == 0 or finding.rule != findings[index - 1].rule:
            lines += ["", *textwrap.wrap(finding.rule, 110)]
        lines += textwrap.wrap(f"- {finding.subject}, {finding.metric}: {finding.detail}", 110, initial_indent="  ",
                               subsequent_indent="    ")
        cited = list(dict.fromkeys(f"[{n.source}: {n.row}] ({n.mark})" for n in finding.citations))
        lines += textwrap.wrap(" ".join(cited), 110, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(report(lint()))
