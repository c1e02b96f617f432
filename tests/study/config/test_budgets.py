"""A tier is one row: every other place reads it, and none keeps a table of its own."""

import ast
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import ldmlab
from ldmlab.study.config.budgets import BUDGETS, TIERS, auto_tier, budget_of, evidence_tiers, is_smoke
from ldmlab.study.config.presets import RECIPES, classifier_spec, regression_spec, study_spec
from ldmlab.study.config.specs import content_key

# Where names of tiers belong: the rows, and the recipes that they name.
KNOWING = {"study/config/budgets.py", "study/config/presets.py"}


def test_every_tier_names_a_recipe():
    """A row whose models no recipe makes is named here, not when a run starts."""
    assert {tier: row.models for tier, row in BUDGETS.items() if row.models not in RECIPES} == {}


def test_a_tier_is_one_row(monkeypatch):
    """Size, pictures, evaluation and networks beside the model follow from the row; the models from its recipe."""
    row = replace(BUDGETS["laptop"], size=64, num_train=30_000, evaluation={**BUDGETS["gpu"].evaluation})
    monkeypatch.setitem(BUDGETS, "overnight", row)
    spec, laptop = study_spec(8, tier="overnight"), study_spec(8, size=64)
    assert (spec.data.size, spec.data.num_train, spec.evaluation.num_samples) == (64, 30_000, 2560)
    assert content_key(spec.diffusion, spec.first_stage) == content_key(laptop.diffusion, laptop.first_stage)
    assert classifier_spec(spec, 12) == classifier_spec(laptop, 12) and regression_spec(spec) == regression_spec(laptop)
    assert "overnight" in TIERS and "overnight" in evidence_tiers() and spec.budget is row


def test_a_recipe_of_its_own_is_one_function(monkeypatch):
    """The row names it."""
    def narrow(*args):
        first_stage, diffusion = RECIPES["laptop"](*args)
        return first_stage, replace(diffusion, denoiser=replace(diffusion.denoiser, widths=(16, 16)))

    monkeypatch.setitem(RECIPES, "narrow", narrow)
    monkeypatch.setitem(BUDGETS, "overnight", replace(BUDGETS["laptop"], models="narrow"))
    assert study_spec(8, tier="overnight").diffusion.denoiser.widths == (16, 16)


def test_a_new_tier_is_accepted_as_a_parameter():
    """From the row alone, the message that lists accepted values included; and before torch is imported."""
    code = """
import sys
from ldmlab.study.config.budgets import BUDGETS
BUDGETS["overnight"] = BUDGETS["laptop"]
from ldmlab.study.config.parameters import PARAMETERS
assert PARAMETERS["tier"].parse("overnight") == "overnight"
print(PARAMETERS["tier"].accepted, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"one of auto {' '.join(TIERS)} overnight False\n"


def test_smoke_is_no_evidence_and_auto_is_what_the_device_can_do():
    """A record of a tier that is not known here counts as it is."""
    assert evidence_tiers() == ("laptop", "gpu", "paper")
    assert is_smoke("smoke") and not is_smoke("laptop") and not is_smoke("of another checkout")
    assert {device: auto_tier(device) for device in ("cpu", "mps", "cuda")} == {
        "cpu": "laptop", "mps": "laptop", "cuda": "gpu"}
    with pytest.raises(ValueError, match=f"one of {', '.join(TIERS)}; got 'huge'"):
        budget_of("huge")


@pytest.mark.parametrize("folder", ["ldmlab", "benchmarks"])
def test_nothing_else_knows_what_a_tier_changes(folder):
    """No table has tiers for keys, and nothing is compared with the name of a tier, in any module but two."""
    package, found = Path(ldmlab.__file__).parent, []
    for path in sorted((package.parent / folder).rglob("*.py")):
        if path.is_relative_to(package) and path.relative_to(package).as_posix() in KNOWING:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Dict(keys=keys):
                    suspects = keys if sum(_names_tier(key) for key in keys) > 1 else []
                case ast.Compare(left=ast.Name(id="tier") | ast.Attribute(attr="tier"), comparators=suspects):
                    pass
                case _:
                    continue
            if any(_names_tier(inner) for suspect in suspects if suspect for inner in ast.walk(suspect)):
                found.append(f"{path.name}:{node.lineno}")
    assert not found, f"what a tier changes belongs in study/config/budgets.py: {found}"


def _names_tier(node) -> bool:
    return isinstance(node, ast.Constant) and node.value in TIERS
