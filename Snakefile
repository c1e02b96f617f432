"""The study: one papermill run for each f, then the figure over all records. The same file on local cores and on SLURM.

    snakemake --cores 2 --config tier=laptop data=scenes seed=0 reg=kl

`make study` does this. Several seeds or data sets: run it again with other values; records add up.
"""
import sys
from pathlib import Path

from ldmlab.first_stage.factors import FS
from ldmlab.study.config.budgets import TIERS, budget_of
from ldmlab.study.config.data_names import data_label

TIER = config.get("tier", "laptop")
DATA = str(config.get("data", "scenes"))
SEED = int(config.get("seed", 0))
REG = config.get("reg", "kl")
if TIER == "auto":
    raise ValueError(f"tier=auto: the jobs of one study must not differ in tier; name one of {' '.join(TIERS)}")

NAME = data_label(DATA)
RUN = f"results/executed/study/{NAME}_{TIER}_{REG}_s{SEED}"
MINUTES = budget_of(TIER).minutes


rule all:
    input:
        expand(RUN + "_f{f}.ipynb", f=FS),  # named, since the figure alone is there in a fresh clone
        f"results/figures/tradeoff_{NAME}_{TIER}.png",


rule run:
    """One f, trained or loaded; a job that was killed continues where it stood."""
    input:
        "notebooks/04_tradeoff.ipynb",
    output:
        RUN + "_f{f}.ipynb",
    log:
        RUN + "_f{f}.log",
    priority: lambda wildcards: 32 // int(wildcards.f)  # the longest first
    threads: 1
    resources:
        mem_mb=4000,
        runtime=MINUTES,
    shell:
        "{sys.executable} -m papermill --no-progress-bar --log-output {input} {output}"
        " -p f {wildcards.f} -r reg {REG} -r data '{DATA}' -p tier {TIER} -p seed {SEED} > {log} 2>&1"


rule figure:
    """All records of this data and tier, whichever study made them."""
    input:
        expand(RUN + "_f{f}.ipynb", f=FS),
    output:
        f"results/figures/tradeoff_{NAME}_{TIER}.png",
    localrule: True
    shell:
        "{sys.executable} -m ldmlab.figures tradeoff --data '{DATA}' --tier {TIER}"
