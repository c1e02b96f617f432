"""The ledger of claims: every verdict can be had from records, and nothing but records gives one."""

import math
from copy import deepcopy

import pytest

from ldmlab.claims import claims
from ldmlab.claims.claims import CLAIMS, CONTRADICTED, SUPPORTED, UNDERPOWERED, judge, ledger
from ldmlab.claims.evidence import FAR, Evidence, estimate_effect
from ldmlab.claims.quantities import FD_END, PSNR
from ldmlab.study.config.notebooks import FS
from ldmlab.study.records.record import Record

STEPS, SHARED, LAST = (10, 20, 50, 100, 200), 400, 2400
KL = [(1, "none"), *((f, "kl") for f in FS[1:])]
VQ = [(f, "vq") for f in (4, 8, 16)]
NAMES = ("kl_none", "kl_rescaled", "vq_none")

# A world in which all that the paper says is so. By f and regularizer, unless said otherwise.
WORLD = {
    "shared": dict(zip(KL, (400, 150, 60, 60, 70, 100), strict=True)) | {(4, "vq"): 65, (8, "vq"): 50, (16, "vq"): 75},
    "half": {cell: 60 for cell in KL + VQ} | {(32, "kl"): 90},
    "end": dict(zip(KL, (400, 100, 20, 20, 30, 89), strict=True)) | {(4, "vq"): 25, (8, "vq"): 15, (16, "vq"): 35},
    "fid": {cell: 20 for cell in KL + VQ} | {(1, "none"): 60},
    "images_per_s": dict(zip(KL, (10, 20, 50, 80, 110, 200), strict=True)) | {cell: 60 for cell in VQ},
    "step_s": dict(zip(KL, (1.4, 0.4, 0.2, 0.1, 0.1, 0.1), strict=True)) | {cell: 0.1 for cell in VQ},
    "flops": dict(zip(KL, (600, 300, 100, 50, 20, 10), strict=True)) | {cell: 50 for cell in VQ},
    "psnr": dict(zip(KL[1:], (34, 30, 26, 23, 20), strict=True)) | {(4, "vq"): 29, (8, "vq"): 25, (16, "vq"): 22},
    "rfd_lab": dict(zip(KL[1:], (1, 3, 9, 20, 60), strict=True)) | {cell: 12 for cell in VQ},
    "latent_std": {cell: 4.0 for cell in KL} | {cell: 1.05 for cell in VQ},
    "guidance": {1.0: 30, 1.5: 20},  # FD-lab by guidance scale, of LDM-8
    "seen_at": 0.3,  # share of LDM-1's bits after which nothing is seen to be missing
    "fd_2x": dict(zip(NAMES, (120, 60, 62), strict=True)),
    "layout_t": dict(zip(NAMES, (700, 450, 470), strict=True)),
    "beyond_1x": 40,
    "by_steps": {(f, k): fd * (1.04 if k < 200 else 1) for f, fd in ((1, 300), (4, 40), (8, 30)) for k in STEPS},
    "rate_by_steps": {(f, steps): rate / steps for f, rate in ((1, 200), (4, 900), (8, 1500)) for steps in STEPS},
}

# For every claim, what has to be otherwise for it to be wrong.
OTHERWISE = {
    "slow-f1": {"shared": {(1, "none"): 40}},
    "slow-f2": {"shared": {(2, "kl"): 40}},
    "stagnates-f32": {"half": {(32, "kl"): 150}},
    "limited-f32": {"end": {(32, "kl"): 15}},
    "gap-f1-f8": {"shared": {(1, "none"): 75}},
    "gap-38": {"fid": {(1, "none"): 25}},
    "balance-f4-f16": {"images_per_s": {(4, "kl"): 8}},
    "best-f4-f8": {"end": {(2, "kl"): 15}},
    "equal-cost": {"shared": {(1, "none"): 10}, "first": {(1, "none"): 10}},
    "throughput-rises": {"images_per_s": {(32, "kl"): 90}},
    "speed-up": {"step_s": {(1, "none"): 0.4}},
    "quality-factor": {"shared": {(1, "none"): 80}},
    "flops-fall": {"flops": {(16, "kl"): 60}},
    "psnr-falls": {"psnr": {(16, "kl"): 27}},
    "rfd-rises": {"rfd_lab": {(8, "kl"): 2}},
    "vq-reconstructs-worse": {"psnr": {(4, "vq"): 33, (8, "vq"): 29, (16, "vq"): 26}},
    "vq-samples-better": {"end": {(8, "vq"): 30}},
    "kl-snr-high": {"latent_std": {(8, "kl"): 1.2}},
    "vq-variance-near-1": {"latent_std": {(8, "vq"): 3.0}},
    "layout-early": {"layout_t": {"kl_none": 300}},
    "rescaling-helps": {"fd_2x": {"kl_none": 60}},
    "rescaling-cures": {"beyond_1x": -20},
    "vq-needs-none": {"fd_2x": {"vq_none": 120}},
    "pareto-f4-f8": {"by_steps": {(8, 10): 500}},
    "fewer-steps": {"by_steps": {(4, 50): 60}},
    "guidance-boosts": {"guidance": {1.5: 50}},
    "imperceptible-bits": {"seen_at": 0.8},
}


def otherwise(changes):
    """The world with some of its values changed."""
    world = deepcopy(WORLD)
    for key, value in changes.items():
        if isinstance(value, dict):
            world.setdefault(key, {}).update(value)
        else:
            world[key] = value
    return world


def make(world, seeds=(0, 1, 2), wobble=0.01, tier="laptop", data="scenes", cells=KL + VQ, interval=None):
    """The records of a world, each seed off by `wobble`, as the notebooks would make them."""
    made = []

    def record(notebook, f, reg, seed, metrics, curves, **protocol):
        made.append(Record(
            notebook, f"LDM-{f}", {"f": f, "reg": reg, "data": data, "size": 32, "tier": tier, "seed": seed},
            metrics=metrics, curves=curves, inputs={"data": "a" * 64}, env={"device": "cpu", "threads": 1},
            protocol={"sampler": "ddim", "num_steps": 20, "eta": 0.0, "guidance_scale": 1.0, **protocol}))

    for order, seed in enumerate(seeds):
        shift = wobble * (order - (len(seeds) - 1) / 2)
        factor = math.exp(shift)

        def entry(value, by=factor):
            found = {"value": value * by, "n_fake": 512, "n_real": 1024}
            return found | ({"interval": {"low": value * (1 - interval), "high": value * (1 + interval), "level": 0.95}}
                            if interval else {})

        for f, reg in cells:
            cell, last = (f, reg), SHARED if f == 1 else LAST
            shared, end = world["shared"][cell], world["shared" if f == 1 else "end"][cell]
            points = [[100, world.get("first", {}).get(cell, 2 * shared)], [SHARED, shared]]
            points += [] if f == 1 else [[LAST // 2, world["half"][cell]], [LAST, end]]
            metrics = {"fd_lab": entry(end), "fid": entry(world["fid"][cell]),
                       "flops": entry(world["flops"][cell], 1.0),
                       "latent_std": {"value": [world["latent_std"][cell] * factor]}}
            if f > 1:
                metrics |= {"rfd_lab": entry(world["rfd_lab"][cell]),
                            "psnr": {"value": world["psnr"][cell] + 20 * shift, "n_fake": 512, "n_real": 512}}
            record("04_tradeoff", f, reg, seed, metrics, {
                # The late gain is a ratio within a run: it wobbles because the middle point does so more.
                "fd_lab": [[step, value * factor ** (1 + (step == LAST // 2))] for step, value in points],
                "images_per_s": [[steps, world["images_per_s"][cell] * factor * 20 / steps] for steps in STEPS],
                "train_s": [[step, world["step_s"][cell] * step * factor] for step in range(100, last + 1, 100)]})
        record("03_diffusion", 8, "kl", seed, {}, {"fd_lab_by_guidance": [
            [scale, fd * (factor if scale > 1 else 1)] for scale, fd in world["guidance"].items()]}, guidance_n=512)
        seen = min(0.99, max(0.01, world["seen_at"] + shift))
        record("05_rate_distortion", 1, "none", seed, {"bits_per_dim": {"value": 2.0}}, {
            "progressive_bpp": [[900, 0.001], [500, 6 * seen], [0, 5.99]],
            "progressive_rmse": [[900, 60.0], [500, 4.5], [0, 1.0]]})
        twice = {f"fd_lab_2x_{name}": entry(value, factor ** (1, -1, 2)[i])
                 for i, (name, value) in enumerate(world["fd_2x"].items())}
        layout = {f"layout_t_{name}": entry(value, factor ** (1, -1, 2)[i])
                  for i, (name, value) in enumerate(world["layout_t"].items())}
        record("06_snr_rescaling", 8, "kl", seed, twice | layout | {
            "rescaling_gain_beyond_1x": {"value": world["beyond_1x"] + 100 * shift}}, {})
        for f in (1, 4, 8):
            record("07_sampling", f, "none" if f == 1 else "kl", seed, {}, {
                "fd_lab_by_steps": [[k, world["by_steps"][f, k] * factor ** (2 if k == 50 else 1)] for k in STEPS],
                "images_per_s": [[k, world["rate_by_steps"][f, k] * factor] for k in STEPS]})
    return made


def verdicts(records, **where):
    """The ledger as {id: verdict}."""
    return {v.claim.id: v for v in ledger(**{"data": "scenes", "tier": "laptop", "records": records} | where)}


def evidence_of(records):
    """What the ledger is computed from."""
    return Evidence("scenes", "laptop", records)


def of(claim_id):
    """A claim by its id."""
    return next(claim for claim in CLAIMS if claim.id == claim_id)


def test_claims_are_about_twenty_and_each_has_its_test():
    """Ids stand once; every claim has a place in the paper, a reason for its threshold, and a way to be wrong."""
    ids = [claim.id for claim in CLAIMS]
    assert len(ids) == len(set(ids)) >= 20 and set(OTHERWISE) == set(ids)
    assert all(claim.place.startswith(("Sec.", "App.", "Fig.", "Tab.")) and claim.reason for claim in CLAIMS)


@pytest.mark.parametrize("claim_id", list(OTHERWISE))
def test_a_claim_is_supported_where_it_holds(claim_id):
    """Three seeds that agree, in a world where the paper is right."""
    verdict = judge(of(claim_id), evidence_of(make(WORLD)))
    assert verdict.verdict == SUPPORTED, verdict
    low, high = verdict.interval
    assert low <= verdict.effect <= high and verdict.runs and "seeds" in verdict.basis


@pytest.mark.parametrize("claim_id", list(OTHERWISE))
def test_a_claim_is_contradicted_where_it_does_not_hold(claim_id):
    """The same world with that one thing otherwise."""
    verdict = judge(of(claim_id), evidence_of(make(otherwise(OTHERWISE[claim_id]))))
    assert verdict.verdict == CONTRADICTED, verdict


@pytest.mark.parametrize("claim_id", [c for c in OTHERWISE if c != "flops-fall"])  # counted, so no seed is off
def test_a_claim_is_underpowered_where_seeds_disagree(claim_id):
    """An interval that holds the threshold decides nothing."""
    verdict = judge(of(claim_id), evidence_of(make(WORLD, wobble=3.0)))
    assert verdict.verdict == UNDERPOWERED and "holds the threshold" in verdict.why, verdict


def test_an_interval_that_only_just_misses_the_threshold_says_so():
    """Below it at the ledger's level, but not at the one that allows for all parts: a reason, no verdict."""
    world = otherwise({"rfd_lab": {(32, "kl"): 0.98 * WORLD["rfd_lab"][16, "kl"]}})
    verdict = verdicts(make(world))["rfd-rises"]
    assert verdict.verdict == UNDERPOWERED and "allows for all 4 parts" in verdict.why
    assert "f=32" in verdict.deciding


@pytest.mark.parametrize("claim_id", list(OTHERWISE))
def test_a_claim_without_records_says_what_is_missing(claim_id):
    """And names the notebook that would measure it."""
    verdict = judge(of(claim_id), evidence_of([]))
    assert verdict.verdict == UNDERPOWERED and verdict.effect is None
    assert "no record of" in verdict.why and any(nb in verdict.why for nb in ("03_", "04_", "05_", "06_", "07_"))


def test_a_missing_f_is_named():
    """A claim over all f cannot be supported by some of them, but one of them can contradict it."""
    found = verdicts(make(WORLD, cells=[cell for cell in KL + VQ if cell[0] != 16]))
    assert found["throughput-rises"].verdict == UNDERPOWERED and "LDM-16" in found["throughput-rises"].why
    assert found["slow-f1"].verdict == UNDERPOWERED and found["gap-f1-f8"].verdict == SUPPORTED
    slow = otherwise({"images_per_s": {(2, "kl"): 5}})
    assert verdicts(make(slow, cells=[c for c in KL if c[0] != 16]))["throughput-rises"].verdict == CONTRADICTED


def test_smoke_tiers_and_data_never_mix():
    """Smoke is refused; records of another tier, or of other pictures, change nothing."""
    with pytest.raises(ValueError, match="laptop, gpu, paper; got 'smoke'"):
        Evidence("scenes", "smoke", [])
    records, upside_down = make(WORLD), otherwise({"shared": {(1, "none"): 4}})
    before = {key: v.effect for key, v in verdicts(records).items()}
    for other in ({"tier": "smoke"}, {"tier": "gpu"}, {"data": "cifar10-train"}):
        records = records + make(upside_down, **other)
    assert {key: v.effect for key, v in verdicts(records).items()} == before
    assert verdicts(records, tier="gpu")["slow-f1"].verdict == CONTRADICTED


def test_records_of_two_protocols_never_mix():
    """Scores of other numbers of samples, and a few records on other pictures, stay outside."""
    records = make(WORLD)
    before = verdicts(records)["limited-f32"].interval
    few, others = (deepcopy(next(r for r in records if r.name == "LDM-8" and "psnr" in r.metrics)) for _ in range(2))
    few.params["seed"], few.metrics["fd_lab"] = 7, {"value": 1e4, "n_fake": 64, "n_real": 1024}
    others.params["seed"], others.inputs["data"], others.metrics["fd_lab"]["value"] = 8, "b" * 64, 1e4
    assert verdicts([*records, few, others])["limited-f32"].interval == before
    assert evidence_of([*records, few, others]).left_out == 1
    few.metrics["fd_lab"]["n_fake"] = 512  # under the same protocol it does count
    assert verdicts([*records, few])["limited-f32"].interval != before


def test_timings_of_two_devices_never_mix():
    """A faster machine makes no f faster."""
    records = make(WORLD)
    for record in (elsewhere := make(WORLD, seeds=(3,), cells=[(1, "none")])):
        record.env["device"] = "cuda"
        record.curves["images_per_s"] = [[k, 1e6] for k in STEPS]
    before, after = verdicts(records), verdicts(records + elsewhere)
    assert after["speed-up"].interval == before["speed-up"].interval
    assert after["gap-f1-f8"].interval != before["gap-f1-f8"].interval  # quality does compare


def test_a_single_seed_needs_an_effect_far_outside_the_assumed_spread():
    """One run without an interval reaches FAR assumed spreads; its interval over samples narrows that."""
    weights = {(1, "none"): 1.0, (8, "kl"): -1.0}
    bare = estimate_effect(evidence_of(make(WORLD, seeds=(0,))), FD_END, weights)
    assert bare.value == pytest.approx(math.log(400 / 20))
    assert bare.interval()[1] - bare.value == pytest.approx(FAR * FD_END.spread * math.sqrt(2))
    sampled = estimate_effect(evidence_of(make(WORLD, seeds=(0,), interval=0.05)), FD_END, weights)
    assert sampled.error == pytest.approx(math.sqrt(2 * (0.1**2 + (math.log(1.05 / 0.95) / 3.92) ** 2)), rel=1e-3)
    assert "assumed" in bare.basis and "samples" in sampled.basis
    near = verdicts(make(otherwise({"shared": {(1, "none"): 80}}), seeds=(0,)))["slow-f1"]
    assert near.verdict == UNDERPOWERED and "second seed" in near.why


def test_seeds_give_a_t_interval_of_their_pooled_spread():
    """Two seeds a cell, five KL cells and three VQ ones: the spread of all, and as many degrees of freedom."""
    found = estimate_effect(evidence_of(make(WORLD, seeds=(0, 1), wobble=0.2)), PSNR, {(2, "kl"): 1.0, (4, "kl"): -1.0})
    assert found.value == pytest.approx(4) and found.df == 8  # f = 1 has no PSNR
    # Two seeds 4 dB apart have a deviation of 4 / sqrt 2; so has the difference of two means of two.
    assert found.error == pytest.approx(4 / math.sqrt(2))
    assert found.interval()[1] == pytest.approx(4 + 2.306 * 4 / math.sqrt(2), rel=1e-3)


def test_the_ledger_of_the_committed_records():
    """It stands, claim by claim, as a table and in markdown, whatever has been recorded so far."""
    for data in ("scenes", "cifar10-train"):
        found = ledger(data, "laptop")
        assert [v.claim for v in found] == list(CLAIMS)
        assert all(v.verdict in (SUPPORTED, CONTRADICTED, UNDERPOWERED) and v.why for v in found)
        assert len(claims.frame(found)) == len(CLAIMS)
        lines = claims.markdown(found).splitlines()
        assert len(lines) == len(CLAIMS) + 2 and len({line.count(" | ") for line in lines}) == 1


def test_the_table_shows_factors_and_units():
    """x6.67 and 1 dB, the threshold in the same scale."""
    shown = claims.frame(ledger("scenes", "laptop", make(WORLD)))
    assert shown.loc["gap-f1-f8", "effect"] == "x6.67" and shown.loc["gap-f1-f8", "threshold"] == "x1.5"
    assert shown.loc["vq-reconstructs-worse", "effect"] == "1 dB" and shown.loc["slow-f1", "threshold"] == "x1"
    assert " to " in shown.loc["psnr-falls", "interval"] and shown.loc["gap-38", "effect"] == "40"
