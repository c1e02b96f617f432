"""Trials of `faults.py`: a tiny run in a process and a project folder of its own, compared with one without faults."""

import contextlib
import hashlib
import importlib
import json
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

PARAMS = {"f": 8, "reg": "kl", "data": "scenes", "size": 0, "tier": "smoke", "seed": 0}
TIMEOUT_S = 120.0
OUTCOMES = ("identical", "refused", "stuck", "silent")


def tiny_run(seed: int = 0):
    """A run of a few steps on few pictures, with captions among the files that it writes."""
    from ldmlab.study.runs.run import Run

    run = Run("04_tradeoff", {**PARAMS, "seed": seed}, "cpu", quiet=True)
    spec = run.spec
    run.spec = replace(
        spec, data=replace(spec.data, num_train=300, num_val=16),
        first_stage=replace(spec.first_stage, num_steps=6, batch_size=4, val_every=3),
        diffusion=replace(spec.diffusion, num_steps=8, batch_size=8, milestones=(4,)),
        evaluation=replace(spec.evaluation, num_samples=16, num_reference=32, batch_size=16, speed_steps=(2,)))
    return run


def measure(seed: int = 0) -> dict[str, object]:
    """What one run computes, without times: to be equal bit for bit, whatever happened before."""
    from matplotlib.figure import Figure

    from ldmlab.experiments.tradeoff import record_tradeoff
    from ldmlab.study.records.record import load_records

    run = tiny_run(seed)
    record = record_tradeoff(run)
    run.finish(record)
    run.keep("faults", Figure())
    load_records("04_tradeoff")
    latents = run.latents.moments if seed == 0 else np.zeros(1)
    annotations = [(a.label, a.caption) for a in run.pictures.annotations()]
    values = {name: entry["value"] for name, entry in record.metrics.items() if not name.endswith("train_s")}
    curves = {name: points for name, points in record.curves.items() if name not in ("train_s", "images_per_s")}
    return {"values": values, "curves": curves, "inputs": record.inputs, "denoiser": run.diffusion.hash,
            "latents": hashlib.sha256(np.ascontiguousarray(latents)).hexdigest(),
            "pictures": hashlib.sha256(run.pictures.train.images(range(300)).numpy()).hexdigest(),
            "annotations": hashlib.sha256(repr(annotations).encode()).hexdigest()}


# --- Trials in processes ----------------------------------------------------------------------------------------------


def _child(root: Path, answer: Path, prepare: Callable[[], None] | None, seed: int) -> None:
    os.environ["LDMLAB_ROOT"] = str(root)
    os.setsid()
    with open(answer.with_suffix(".log"), "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            if prepare is not None:
                prepare()
            found = {"result": measure(seed)}
            if os.environ.get("FAULTS_MODULES"):
                Path(os.environ["FAULTS_MODULES"]).write_text("\n".join(sys.modules))
        except BaseException as error:
            traceback.print_exc()
            found = {"error": f"{type(error).__name__}: {error}"}
        answer.write_text(json.dumps(found, sort_keys=True))
        sys.stdout.flush()
        os._exit(0)


class Trial:
    """One process that measures in `root`."""

    def __init__(self, root: Path, prepare: Callable[[], None] | None = None, seed: int = 0):
        handle, name = tempfile.mkstemp(suffix=".json", dir=root.parent)
        os.chmod(name, 0o666)
        os.close(handle)
        self.answer = Path(name)
        log = self.answer.with_suffix(".log")
        log.touch()
        log.chmod(0o666)
        self.process = multiprocessing.get_context("fork").Process(
            target=_child, args=(root, self.answer, prepare, seed))
        self.process.start()

    def wait(self, timeout: float = TIMEOUT_S) -> dict:
        """Its result, or its error; "hangs" where it takes longer."""
        self.process.join(timeout)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            return {"error": "hangs"}
        text = self.answer.read_text()
        return json.loads(text) if text else {"error": f"ended with {self.process.exitcode}"}

    @property
    def log(self) -> str:
        """What it printed."""
        return self.answer.with_suffix(".log").read_text()


def judge(expected: dict, first: dict, again: Callable[[], dict]) -> tuple[str, str]:
    """The outcome of a trial, and the error that the run with the fault stopped with."""
    if "result" in first:
        return ("identical" if first == expected else "silent"), ""
    second = again()
    if "result" in second:
        return ("refused" if second == expected else "silent"), first["error"]
    return "stuck", second["error"]


class Bench:
    """The reference run, snapshots of its folder, and what was found."""

    def __init__(self, work: Path, every: int, start: int, only: str):
        self.work, self.every, self.start, self.only = work, every, start, only
        self.rows: list[dict] = []
        self.number = 0
        self.whole, modules = work / "whole", work / "modules"
        os.environ["FAULTS_MODULES"] = str(modules)
        trial = Trial(work / "first")
        first = trial.wait(10 * TIMEOUT_S)
        del os.environ["FAULTS_MODULES"]
        if "error" in first:
            raise SystemExit(f"the run without faults failed: {first}\n{trial.log}")
        for name in modules.read_text().split():  # imported once, for all trials
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        began = time.perf_counter()
        self.expected = Trial(self.whole).wait()
        self.seconds = time.perf_counter() - began
        assert self.expected == first, "two runs without faults differ"
        print(f"a run without faults takes {self.seconds:.1f} s", flush=True)

    def chosen(self, trials: list) -> list:
        """Every n-th of them, from a first one on."""
        return trials[self.start :: self.every]

    def fresh(self, start: Path | None = None) -> Path:
        """A project folder for one trial, empty or a copy."""
        self.number += 1
        root = self.work / f"trial{self.number}"
        if start is None:
            root.mkdir()
        else:
            shutil.copytree(start, root, symlinks=True)
        return root

    def note(self, kind: str, what: str, outcome: str, error: str) -> None:
        """Count a trial; what is stuck or silent is printed."""
        error = re.sub(rf"{re.escape(str(self.work))}/\w+", "$LDMLAB_ROOT", error)
        self.rows.append({"kind": kind, "what": what, "outcome": outcome, "error": error[:300]})
        if outcome not in ("identical", "refused"):
            print(f"{outcome}: {kind}, {what}: {error[:300]}", flush=True)

    def rerun(self, kind: str, what: str, root: Path, **options) -> None:
        """Start the run in a folder that has met a fault, again if that is refused, and judge."""
        trial = Trial(root, **options)
        self.note(kind, what, *judge(self.expected, trial.wait(), lambda: Trial(root, **options).wait()))
        shutil.rmtree(root)
