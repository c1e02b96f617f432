"""The ledger of claims: every verdict can be had from records, and nothing but records gives one."""

from copy import deepcopy
from dataclasses import replace

import pytest

from claims.made_world import KL, SHARED, STEPS, VQ, WORLD, make, otherwise
from ldmlab.claims import claims
from ldmlab.claims.definitions import CLAIMS
from ldmlab.claims.evidence import Evidence
from ldmlab.claims.judging import (
    CONTRADICTED,
    DEPENDS_ON_SAMPLER,
    DEPENDS_ON_SCORE,
    SUPPORTED,
    UNDERPOWERED,
    VERDICTS,
    corrected,
    judge,
    ledger,
)
from ldmlab.claims.quantities import coding_floor

# For every claim, what has to be otherwise for it to be wrong.
OTHERWISE = {
    "slow-f1": {"shared": {(1, "none"): 400}},
    "slow-f2": {"end": {(2, "kl"): 200}},
    "stagnates-f32": {"half": {(32, "kl"): 1500}},
    "limited-f32": {"end": {(32, "kl"): 150}},
    "gap-f1-f8": {"shared": {(1, "none"): 750}},
    "gap-38": {"fid": {(1, "none"): 25}},
    "balance-f4-f16": {"images_per_s": {(4, "kl"): 8}},
    "best-f4-f8": {"end": {(2, "kl"): 150}},
    "equal-cost": {"shared": {(1, "none"): 100}, "end": {(1, "none"): 100}},
    "throughput-rises": {"images_per_s": {(8, "kl"): 9}},
    "speed-up": {"step_s": {(1, "none"): 0.4}},
    "quality-factor": {"shared": {(1, "none"): 800}},
    "flops-fall": {"flops": {(16, "kl"): 60}},
    "psnr-falls": {"psnr": {(16, "kl"): 27}},
    "rfd-rises": {"rkd": {(8, "kl"): 50}},
    "vq-reconstructs-worse": {"psnr": {(4, "vq"): 33, (8, "vq"): 29, (16, "vq"): 26}},
    "vq-samples-better": {"end": {(8, "vq"): 600}},
    "kl-snr-high": {"latent_std": {(8, "kl"): 1.2}},
    "vq-variance-near-1": {"latent_std": {(8, "vq"): 3.0}},
    "layout-early": {"layout_t": {"kl_none": 300}},
    "rescaling-helps": {"kd_2x": {"kl_none": 500}},
    "rescaling-cures": {"kd_2x": {"kl_none": 500}},
    "vq-needs-none": {"kd_2x": {"vq_none": 1200}},
    "pareto-f4-f8": {"by_steps": {(8, 10): 3000}},
    "fewer-steps": {"by_steps": {(4, 50): 600}},
    "guidance-boosts": {"guidance": {1.5: 500}},
    "imperceptible-bits": {"seen_at": 2.0},
    "first-stage-limits": {"to_reconstructions": {(16, "kl"): 200}},
    "left-to-diffusion": {"to_reconstructions": {(32, "kl"): 200}},
}


ONLY_ETA_0 = ("slow-f1", "limited-f32", "best-f4-f8", "rescaling-helps", "first-stage-limits", "stagnates-f32",
              "speed-up")


def verdicts(records, **where):
    """The ledger as {id: verdict}."""
    return {v.claim.id: v for v in ledger(**{"data": "scenes", "tier": "laptop", "records": records} | where)}


def of(claim_id, records):
    """The verdict on one claim, not corrected."""
    return judge(next(claim for claim in CLAIMS if claim.id == claim_id), Evidence("scenes", "laptop", records))


@pytest.fixture(scope="module")
def right():
    """The ledger of a world where the paper is right."""
    return verdicts(make(WORLD))


def test_every_claim_has_its_test():
    """Ids stand once; every claim has a place in the paper, a reason for its threshold, and a way to be wrong."""
    ids = [claim.id for claim in CLAIMS]
    assert len(ids) == len(set(ids)) >= 20 and set(OTHERWISE) == set(ids)
    assert all(claim.place.startswith(("Sec.", "App.", "Fig.", "Tab.")) and claim.reason for claim in CLAIMS)


@pytest.mark.parametrize("claim_id", list(OTHERWISE))
def test_a_claim_is_supported_where_it_holds(claim_id, right):
    """Four seeds that agree, in a world where the paper is right, even after the correction for all claims."""
    verdict = right[claim_id]
    assert verdict.verdict == verdict.raw == SUPPORTED, verdict.why
    low, high = verdict.interval
    assert low <= verdict.effect <= high and verdict.runs and ("seeds" in verdict.basis or verdict.basis == "exact")
    assert verdict.p_raw <= verdict.p <= 0.05 and 0 <= verdict.power <= 1


@pytest.mark.parametrize("claim_id", list(OTHERWISE))
def test_a_claim_is_contradicted_where_it_does_not_hold(claim_id):
    """The same world with that one thing otherwise."""
    verdict = of(claim_id, make(otherwise(OTHERWISE[claim_id])))
    assert verdict.verdict == CONTRADICTED, verdict.why


@pytest.mark.parametrize("claim_id", [c for c in OTHERWISE if c not in ("flops-fall", "equal-cost")])
def test_a_claim_is_underpowered_where_seeds_disagree(claim_id):
    """An interval that contains the threshold decides nothing; FLOPs are counted, and clocks would differ, too."""
    verdict = of(claim_id, make(WORLD, wobble=2.0))
    assert verdict.verdict == UNDERPOWERED and "contains the threshold" in verdict.why, verdict.why


def test_a_verdict_that_another_sampler_reverses_is_a_verdict_of_its_own():
    """Best f under eta = 0, not under eta = 1: both numbers are told, and neither is the verdict."""
    changed = make(otherwise({"eta_1": {(2, "kl"): 150}}))
    found = of("best-f4-f8", changed)
    assert found.verdict == DEPENDS_ON_SAMPLER and found.samplers == "eta = 0, eta = 1"
    assert "KD-EffNet, eta = 0" in found.why and "supported" in found.why and "contradicted" in found.why
    assert of("limited-f32", changed).verdict == SUPPORTED


def test_without_the_second_sampler_nothing_that_compares_models_is_decided():
    """eta = 0 alone says what is missing; claims about one model, or about speed, do not need it."""
    records = make(WORLD)
    for record in records:
        for name in [name for name in record.metrics if name.endswith("_eta1")]:
            del record.metrics[name]
        record.curves.pop("kd_effnet_eta1", None)
    found = {name: of(name, records) for name in ONLY_ETA_0}
    for claim_id in ("slow-f1", "limited-f32", "best-f4-f8", "rescaling-helps", "first-stage-limits"):
        assert found[claim_id].verdict == UNDERPOWERED and "eta = 1" in found[claim_id].why
    assert found["best-f4-f8"].samplers == "eta = 0" and found["stagnates-f32"].verdict == SUPPORTED
    assert found["speed-up"].verdict == SUPPORTED


def test_further_scores_have_a_say_where_records_hold_them(right):
    """FID and judged accuracy, of which more is better, must agree; accuracy cannot judge a factor."""
    assert right["best-f4-f8"].scores == "KD-EffNet" and right["gap-38"].scores == "FID"
    judged = {cell: 0.9 if cell[0] in (4, 8) else 0.4 for cell in KL + VQ}
    fid = {cell: 10 if cell[0] in (4, 8) else 50 for cell in KL + VQ}
    found = of("best-f4-f8", make(otherwise({"judged": judged, "fid": fid})))
    assert found.verdict == SUPPORTED and found.scores == "KD-EffNet, FID, judged accuracy"
    found = of("best-f4-f8", make(otherwise({"judged": judged | {(2, "kl"): 0.99}, "fid": fid})))
    assert found.verdict == DEPENDS_ON_SCORE
    assert "judged" not in of("gap-f1-f8", make(otherwise({"judged": judged}))).scores


def test_scores_of_earlier_versions_alone_are_no_evidence():
    """Records of FD-lab are missing records, not other numbers."""
    records = make(WORLD)
    for record in records:
        record.metrics = {name.replace("kd_effnet", "fd_lab"): entry for name, entry in record.metrics.items()}
        record.curves = {name.replace("kd_effnet", "fd_lab"): curve for name, curve in record.curves.items()}
    slow = of("slow-f1", records)
    assert slow.verdict == UNDERPOWERED and slow.effect is None and "no record of KD-EffNet" in slow.why
    assert of("speed-up", records).verdict == SUPPORTED
    both = records + make(WORLD, seeds=(0, 1))
    assert "LDM-4 x2" in of("speed-up", both).runs  # the new ones alone, though there are fewer


def test_clocks_are_limited_by_the_models_of_the_claim_alone(right):
    """A model outside that ends early changes no clock; seconds include the first stage's."""
    records = make(WORLD)
    for record in records:
        if record.params["f"] == 32 and record.notebook == "04_tradeoff":
            record.curves["kd_effnet"] = record.curves["kd_effnet_eta1"] = record.curves["kd_effnet"][:1]
    for claim_id in ("slow-f1", "equal-cost"):
        assert of(claim_id, records).effect == pytest.approx(right[claim_id].effect)
    # LDM-4 ends after 580 s, the others after 340 s, LDM-1 after 560 s; seeds differ by up to 1.5 %.
    assert "equal seconds (decides) [336 seconds]" in right["equal-cost"].readings[0]
    assert "equal steps (decides) [400 steps]" in right["slow-f1"].readings[0]
    assert "unequal steps: LDM-1 400, LDM-4 2400" in right["slow-f1"].readings[-1]
    late = of("equal-cost", make(otherwise({"first_stage_s": 1e4})))
    assert late.verdict == UNDERPOWERED and "no record" in late.why  # no model has scores after so little training


def test_seed_0_does_not_judge_thresholds_that_it_set(right):
    """A gap is judged by the other seeds; thresholds of the paper by all."""
    assert right["gap-f1-f8"].runs == "LDM-1 x3, LDM-8 x3" and "seed 0 set the threshold" in right["gap-f1-f8"].why
    assert right["quality-factor"].runs == "LDM-1 x4, LDM-4 x4"
    alone = of("gap-f1-f8", make(WORLD, seeds=(0,)))
    assert alone.verdict == UNDERPOWERED and "seed 0 left out" in alone.why and alone.effect is None


def test_verdicts_are_corrected_for_the_number_of_claims(right):
    """A weak verdict that many others stand beside is none, and says what it was."""
    many = [replace(v, p_raw=0.03, raw=SUPPORTED, verdict=SUPPORTED) for v in right.values()]
    assert all(v.verdict == UNDERPOWERED and v.raw == SUPPORTED and "but for the correction" in v.why
               for v in corrected(many))
    assert corrected([replace(right["slow-f1"], p_raw=0.03)])[0].verdict == SUPPORTED


def test_the_floor_of_a_perfect_reconstruction_is_taken_off():
    """3.63 bits a colour value that no model can save [DDPM's discrete decoder at beta_1 = 0.0015]."""
    assert coding_floor(0.0015) == pytest.approx(3.63, abs=0.005)
    share = 1 - 0.2 / (5.9 - coding_floor(0.0015))
    assert of("imperceptible-bits", make(WORLD)).effect == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("claim_id", list(OTHERWISE))
def test_a_claim_without_records_says_what_is_missing(claim_id):
    """And names the notebook that would measure it."""
    verdict = of(claim_id, [])
    assert verdict.verdict == UNDERPOWERED and verdict.effect is None and verdict.p is None
    assert "no record of" in verdict.why and any(f"{n:02d}_" in verdict.why for n in range(3, 11))


def test_a_missing_f_is_named():
    """A claim over several f cannot be supported by some of them, but one of them can contradict it."""
    cells = [cell for cell in KL + VQ if cell[0] != 8]
    found = {name: of(name, make(WORLD, cells=cells)) for name in ("throughput-rises", "slow-f1", "quality-factor")}
    assert found["throughput-rises"].verdict == UNDERPOWERED and "LDM-8" in found["throughput-rises"].why
    assert found["slow-f1"].verdict == UNDERPOWERED and found["quality-factor"].verdict == SUPPORTED
    assert of("throughput-rises", make(otherwise({"images_per_s": {(4, "kl"): 5}}), cells=cells)).raw == CONTRADICTED


def test_smoke_tiers_and_data_never_mix(right):
    """Smoke is refused; records of another tier, or of other pictures, change nothing."""
    with pytest.raises(ValueError, match="laptop, gpu, paper; got 'smoke'"):
        Evidence("scenes", "smoke", [])
    records, upside_down = make(WORLD), otherwise({"shared": {(1, "none"): 4}})
    for other in ({"tier": "smoke"}, {"tier": "gpu"}, {"data": "cifar10-train"}):
        records = records + make(upside_down, **other)
    assert of("slow-f1", records).interval == right["slow-f1"].interval
    assert judge(CLAIMS[0], Evidence("scenes", "gpu", records)).verdict == CONTRADICTED


def test_records_of_two_protocols_never_mix(right):
    """Scores of other numbers of samples or steps, and a few records on other pictures, stay outside."""
    records = make(WORLD)
    before = right["limited-f32"].interval
    few, others, slow = (deepcopy(next(r for r in records if r.name == "LDM-8" and "psnr" in r.metrics))
                         for _ in range(3))
    few.params["seed"], few.metrics["kd_effnet"] = 7, {**few.metrics["kd_effnet"], "value": 1e4, "n_fake": 64}
    few.metrics["kd_effnet_eta1"] = {**few.metrics["kd_effnet_eta1"], "value": 1e4, "n_fake": 64}
    others.params["seed"], others.inputs["data"], others.metrics["kd_effnet"]["value"] = 8, "b" * 64, 1e4
    slow.params["seed"] = 9
    for name in ("kd_effnet", "kd_effnet_eta1"):
        slow.metrics[name]["value"], slow.metrics[name]["protocol"]["num_steps"] = 1e4, 20
    assert of("limited-f32", [*records, few, others, slow]).interval == before
    assert Evidence("scenes", "laptop", [*records, few, others]).left_out == 1


def test_timings_of_two_devices_never_mix(right):
    """A faster machine makes no f faster."""
    for record in (elsewhere := make(WORLD, seeds=(4,), cells=[(1, "none")])):
        record.env["device"] = "cuda"
        record.curves["images_per_s"] = [[k, 1e6] for k in STEPS]
    both = make(WORLD) + elsewhere
    assert of("speed-up", both).interval == right["speed-up"].interval
    assert of("slow-f1", both).interval != right["slow-f1"].interval  # quality does compare


def test_the_ledger_of_the_committed_records():
    """It stands, claim by claim, as a table and in markdown, whatever has been recorded so far."""
    for data in ("scenes", "cifar10-train"):
        found = ledger(data, "laptop")
        assert [v.claim for v in found] == list(CLAIMS)
        assert all(v.verdict in VERDICTS and v.why for v in found)
        assert len(claims.frame(found)) == len(CLAIMS)
        lines = claims.markdown(found).splitlines()
        assert len(lines) == len(CLAIMS) + 2 and len({line.count(" | ") for line in lines}) == 1


def test_the_table_shows_factors_and_units_scores_samplers_and_power(right):
    """x5 and 1 dB, the threshold in the same scale; power at a stated alternative."""
    shown = claims.frame(list(right.values()))
    assert shown.loc["speed-up", "effect"].startswith("x") and shown.loc["speed-up", "threshold"] == "x2.7"
    assert shown.loc["vq-reconstructs-worse", "effect"] == "1 dB" and shown.loc["slow-f1", "threshold"] == "0"
    assert shown.loc["slow-f1", ["scores", "samplers"]].tolist() == ["KD-EffNet", "eta = 0, eta = 1"]
    assert "at 50; 80% with" in shown.loc["slow-f1", "power"] and "corrected" in shown.loc["slow-f1", "level"]
    assert str(SHARED) in shown.loc["slow-f1", "readings"]
