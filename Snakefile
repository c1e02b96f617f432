"""The study: one papermill run for each f, then the figure over all records. The same file on local cores and on SLURM.

    snakemake --cores 2 --config tier=laptop data=scenes seed=0 reg=kl fs=4,8

`make study` does this. Several seeds or data sets: run it again with other values; records add up. Memory, threads and
minutes of a run are those of its tier, in ldmlab/study/config/budgets.py, or
`--set-resources run:mem_mb=16000 run:runtime=300 --set-threads run=4`.
"""
import sys

from ldmlab.study.config.sweep import read_sweep

SWEEP = read_sweep(config)
# Executors hand --config to their jobs through a shell, and not all quote it: these arguments need no quotes.
workflow.config_settings.config_args = SWEEP.passed_on()
RUN = SWEEP.path


rule all:
    input:
        expand(RUN + "_f{f}.ipynb", f=SWEEP.fs),
        RUN + "_figure.txt",


rule run:
    """One f, trained or loaded; a job that was killed continues where it stood."""
    input:
        lambda wildcards: f"{workflow.basedir}/notebooks/04_tradeoff.ipynb",
    output:
        RUN + "_f{f}.ipynb",
    log:
        RUN + "_f{f}.log",
    params:
        reg=SWEEP.reg,
        data=lambda wildcards: SWEEP.data,  # a function: braces in it are no wildcards
        tier=SWEEP.tier,
        seed=SWEEP.seed,
        changed=SWEEP.changed,
    priority: lambda wildcards: 32 // int(wildcards.f)  # the longest first
    threads: SWEEP.budget.threads
    resources:
        mem_mb=SWEEP.budget.memory_mb,
        runtime=SWEEP.budget.minutes,
    shell:
        "{sys.executable:q} -m papermill --no-progress-bar --log-output {input:q} {output:q}"
        " -p f {wildcards.f} -r reg {params.reg:q} -r data {params.data:q} -r tier {params.tier:q}"
        " -p seed {params.seed} > {log:q} 2>&1"


rule figure:
    """All records of this data and tier, whichever study made them; what it prints is kept, since it names the file."""
    input:
        expand(RUN + "_f{f}.ipynb", f=SWEEP.fs),
    output:
        RUN + "_figure.txt",
    params:
        data=lambda wildcards: SWEEP.data,  # a function: braces in it are no wildcards
        tier=SWEEP.tier,
    localrule: True
    shell:
        "{sys.executable:q} -m ldmlab.figures tradeoff --data {params.data:q} --tier {params.tier:q} | tee {output:q}"


onerror:
    print(f"Some runs did not finish. The end of {RUN}_f<f>.log has the reason; on a cluster, that of a job stopped for "
          "memory or time is in .snakemake/slurm_logs/. The same command continues; for more memory or minutes add "
          "--set-resources run:mem_mb=... run:runtime=...", file=sys.stderr)
