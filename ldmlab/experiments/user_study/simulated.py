"""The user study on super-resolution: simulated raters, and the record of all answers [LDM v2, App. E.3.6, Tab. 4].

Answers of simulated raters pass through the same session and file as those of people. Metrics of the record:
`vs_truth_<method>_<who>`, `prefer_<first>_over_<second>_<who>`, `strength_<method>_<who>`, where who is "simulated" or
"human".
"""

import hashlib
import itertools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ldmlab.checkpoints.files import load_model, save_model
from ldmlab.damage import read_or_set_aside, reading
from ldmlab.data.images import quantize_8bit, to_float, to_uint8
from ldmlab.diffusion.guiders import downsample
from ldmlab.diffusion.samplers import NOISE
from ldmlab.evaluation.preference import (
    SimulatedRater,
    Vote,
    known_share,
    preference,
    questions_needed,
    share_interval,
    simulated_class,
)
from ldmlab.experiments.image_guiding import enlarge, sample_guided, targets
from ldmlab.experiments.super_resolution import upscale
from ldmlab.experiments.user_study.answers import Answer, read_answers
from ldmlab.experiments.user_study.questions import Comparison
from ldmlab.experiments.user_study.session import Session, results
from ldmlab.perception.files import file_hash
from ldmlab.perception.lab_networks import FeatureNet
from ldmlab.study.config.paths import results_dir, runs_dir
from ldmlab.study.config.specs import content_key
from ldmlab.study.records.record import Record
from ldmlab.study.runs.run import Run
from ldmlab.study.training.state import check_meta

FACTOR, SCALE = 4, 30.0  # of downsampling; of the Gaussian guider, the best in 14_image_guiding
# Utility is minus the distance to the real picture in features of EfficientNet-Lite0; `taste_sd`, in logits, varies
# over raters.
SIMULATED = {"sharpness": 2.5, "lapse": 0.02, "taste_sd": 0.5}


# --- Simulated raters -------------------------------------------------------------------------------------------------


@torch.inference_mode()
def utilities(comparison: Comparison, net: FeatureNet) -> dict[str, Float[np.ndarray, " n"]]:
    """Utility of each picture by method: minus the RMS difference of its features from those of the real picture."""
    device: Any = net.embed_mean.device
    real = net.embed(comparison.truth.to(device))
    return {name: -(net.embed(x.to(device)) - real).square().mean(1).sqrt().double().cpu().numpy()
            for name, x in comparison.pictures.items()}


def simulate(
    comparison: Comparison, path: Path, raters: Sequence[SimulatedRater], utility: Mapping[str, np.ndarray],
    num_questions: int, seed: int = 0,
) -> None:
    """Let each of the raters, whose preferences are known, answer `num_questions` in a session that writes to `path`.
    """
    for i, rater in enumerate(raters):
        session, rng = Session(comparison, path, rater.name, num_questions, seed), np.random.default_rng([seed, i])
        while (question := session.current) is not None:
            gain = float(utility[question.left][question.item] - utility[question.right][question.item])
            session.shown()
            session.answer("left" if rng.random() < rater.probability(question.left, question.right, gain) else "right")


def coverage(num: int, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Coverage and mean width of 95 % intervals over `num` simulated groups of raters, by kind of interval.

    20 raters of different tastes answer 20 questions each, on 64 pictures of different difficulty. "independent"
    assumes independent answers, "clustered" is `preference`.
    """
    rng, taste_sd = np.random.default_rng(seed), SIMULATED["taste_sd"]
    known = known_share(rng.normal(0.8, 0.7, 4000), taste_sd=taste_sd)
    found: dict[str, list[tuple[bool, float]]] = {"independent": [], "clustered": []}
    for i in range(num):
        gains, votes = rng.normal(0.8, 0.7, 64), []
        for rater in simulated_class(20, "ab", taste_sd=taste_sd, seed=seed + i):
            for item in rng.permutation(64)[:20]:
                won = rng.random() < rater.probability("a", "b", float(gains[item]))
                votes.append(Vote(rater.name, "a" if won else "b", "b" if won else "a", str(item)))
        p = preference(votes, "a", "b")
        for kind, interval in (("independent", share_interval(p.wins, p.n)), ("clustered", p.interval)):
            found[kind].append((interval.low <= known <= interval.high, interval.high - interval.low))
    means = {kind: np.mean(rows, axis=0) for kind, rows in found.items()}
    return {kind: (float(covered), float(width)) for kind, (covered, width) in means.items()}


# --- Pictures and record ----------------------------------------------------------------------------------------------


def super_resolution(run: Run) -> Comparison:
    """Validation pictures downsampled by 4 and restored by three methods: bicubic upsampling, an unconditional model
    with image guiding, and the super-resolution model of notebook 12_super_resolution.

    They are stored in results/runs, so that answers always refer to the same pictures.
    """
    num = run.spec.budget.num_compared
    trained = Run("12_super_resolution", {**run.params, "data": run.spec.data.name, "factor": FACTOR,
                                          "degradation": "bicubic"}, str(run.device), quiet=True)
    key = content_key(run.diffusion.hash, run.pictures.val.fingerprint, num, FACTOR, SCALE, run.spec.evaluation,
                      trained.diffusion.hash, NOISE, run.pictures.val.protocol.get("subset"))
    path = runs_dir() / f"user-study-{run.spec.name}-{key}" / "pictures.safetensors"

    def load(path: Path) -> dict[str, Tensor]:
        tensors, meta = load_model(path)
        check_meta(path, meta, {"folder": path.parent.name})
        with reading(path):
            return {name: to_float(tensors[name]) for name in ("truth", "condition", "bicubic", "guided", "trained")}

    kept = read_or_set_aside(path, load)
    if kept is None:
        x = targets(run, num)
        y = quantize_8bit(downsample(FACTOR)(x).clamp(-1, 1))
        kept = {"truth": x, "condition": y, "bicubic": enlarge(y, FACTOR)}
        kept |= {"guided": sample_guided(run, "gaussian", y, FACTOR, SCALE), "trained": upscale(trained, y)}
        save_model(path, {name: to_uint8(pictures) for name, pictures in kept.items()},
                   {"run": run.params, "folder": path.parent.name})
        kept = load(path)
    methods = {name: kept[name] for name in ("bicubic", "guided", "trained")}
    return Comparison("super-resolution", "Which of the two is the better high-quality version of the small picture?",
                      kept["truth"], methods, kept["condition"], f"1/{FACTOR} of the size")


def answers_path(run: Run) -> Path:
    """The file of people's answers, under results/17_user_study/answers/, which git ignores for privacy."""
    p = run.params
    name = f"f{p['f']}_{p['reg']}_{p['data']}_{p['size']}px_{p['tier']}_s{p['seed']}.csv"
    return results_dir() / run.notebook / "answers" / name


def record_user_study(run: Run, comparison: Comparison) -> Record:
    """Preferences of simulated raters, and of people so far; loaded if the same answers were evaluated before."""
    path, net = answers_path(run), run.scorer.net("effnet")
    record = run.new_record()
    shown = hashlib.sha256("".join(itertools.chain(*comparison.hashes.values())).encode()).hexdigest()
    record.inputs |= {"denoiser": run.diffusion.hash, "pictures": shown,
                      "answers": file_hash(path) if path.exists() else "none"} | run.scorer.inputs("kd_effnet")
    if (known := run.measured_before(record)) is not None:
        return known
    num_raters, num_questions = run.spec.budget.num_raters, run.spec.budget.num_questions
    utility = utilities(comparison, net)
    names, seed = list(comparison.pictures), run.spec.seed
    raters = simulated_class(num_raters, names, **SIMULATED, seed=seed)
    raters.append(SimulatedRater("simulated-without-looking", lapse=1.0))
    with tempfile.TemporaryDirectory() as folder:
        simulate(comparison, Path(folder) / "answers.csv", raters, utility, num_questions, seed)
        simulated, _ = read_answers(Path(folder) / "answers.csv")
    human, problems = read_answers(path)
    record.protocol |= {"comparison": comparison.name, "question": comparison.ask, "factor": FACTOR, "scale": SCALE,
                        "num_pictures": len(comparison.truth), "simulated_raters": num_raters,
                        "simulated_inattentive": 1, "simulated_questions": num_questions,
                        "simulated_by": {**SIMULATED, "utility": f"nearness in features of {net.name}"}}
    record.events += problems
    num = run.spec.budget.num_simulated
    for kind, (held, width) in coverage(num, seed).items():
        record.metrics[f"coverage_{kind}"] = {"value": held, "unit": "1", "n": num, "level": 0.95, "width": width}
    _add(record, "simulated", comparison, simulated, utility)
    if human:
        record.protocol["exposure_s"] = float(np.median([answer.exposure_s for answer in human]))
        _add(record, "human", comparison, human, None)
    else:
        record.events.append("no human answers yet: all raters are simulated")
    return record


def _add(record: Record, who: str, comparison: Comparison, answers: Sequence[Answer], utility: Mapping | None) -> None:
    found = results(comparison, answers)
    record.protocol |= {f"raters_{who}": len(found.raters), f"excluded_{who}": len(found.excluded)}
    record.events += [f"{who}: {note}" for note in found.notes]
    pairs = {f"vs_truth_{name}": p for name, p in found.vs_truth.items()}
    pairs |= {f"prefer_{first}_over_{second}": p for (first, second), p in found.between.items()}
    for name, p in pairs.items():
        entry: dict[str, Any] = {"value": p.share, "unit": "1", "n": p.n, "raters": len(p.by_rater),
                                 "interval": asdict(p.interval), "design_effect": p.design_effect}
        if utility is not None:
            entry["known"] = known_share(utility[p.first] - utility[p.second], **SIMULATED)
        if abs(p.share - 0.5) > 0.01:
            entry["questions_needed"] = questions_needed(p.share, design_effect=p.design_effect)
        record.metrics[f"{name}_{who}"] = entry
        # Shares without names, for privacy.
        record.curves[f"{name}_{who}_by_rater"] = [[i, round(w / n, 4)]
                                                   for i, (w, n) in enumerate(p.by_rater.values())]
    if (s := found.strengths) is not None:
        for name, value, interval in zip(s.methods, s.values, s.intervals, strict=True):
            record.metrics[f"strength_{name.replace(' ', '_')}_{who}"] = {
                "value": value, "unit": "logit", "n": s.n, "interval": asdict(interval)}
