"""What killed processes, full disks, several writers and damaged files do to a run: a table, and results as JSON.

`python benchmarks/faults.py` runs some four hundred trials, three quarters of an hour on two cores; `--every 3` each
third of them. Each trial is a process of its own with a project folder of its own, in which a tiny run of 04_tradeoff
meets one fault, and the same run is then started again. Its numbers, weights and latents are compared with those of a
run without faults:

- identical: as without the fault, at once;
- refused: the run that met the fault stopped with an error, and the same run again was identical;
- stuck: the same run again stopped as well; silent: other numbers without an error.

A full disk is a tmpfs, which takes root to mount; without it, a limit on the size of files (RLIMIT_FSIZE) stands in.
Files without read permission are read as nobody, for which root is needed too.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from trials import OUTCOMES, TIMEOUT_S, Bench, Trial, judge

NOBODY = 65534


# --- Faults -----------------------------------------------------------------------------------------------------------


def save_often() -> None:
    """A state after every step, and slow ones, so that kills meet them."""
    from ldmlab.study.training import callbacks

    callbacks.CHECKPOINT_EVERY_S = 0.0


def kills(bench: Bench) -> None:
    """SIGKILL at 20 instants of a run that starts from nothing."""
    for i in bench.chosen(list(range(20))):
        root = bench.fresh()
        trial = Trial(root, save_often)
        trial.process.join(bench.seconds * (i + 0.5) / 20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(trial.process.pid, signal.SIGKILL)
        trial.process.join()
        bench.rerun("killed", f"at {5 * i + 2.5:.1f} % of the time", root)


def full_disks(bench: Bench) -> None:
    """A disk of 20 sizes up to a little less than what a run takes; then enough of it.

    In every second trial, space is not compared with what will be written: as where others fill the disk meanwhile.
    """
    total = sum(file.stat().st_size for file in bench.whole.rglob("*") if file.is_file())
    for i in bench.chosen(list(range(20))):
        size = max(1 << 16, int(2 * total * (i + 0.5) / 20))
        root = bench.fresh()
        with _limited(root, size) as (limit, lift):
            first = Trial(root, _after(limit, _blind if i % 2 else None)).wait()
            lift()
            outcome, error = judge(bench.expected, first, lambda root=root: Trial(root).wait())
        bench.note("disk full" if limit is None else "file too large", f"{size / 1e6:.2f} MB", outcome, error)


def _after(*steps: Callable[[], None] | None) -> Callable[[], None]:
    def prepare() -> None:
        for step in filter(None, steps):
            step()

    return prepare


def _blind() -> None:
    from ldmlab import atomic
    from ldmlab.study.runs import first_stage
    from ldmlab.study.training import loop

    for module in (atomic, first_stage, loop):
        module.check_free_space = lambda *_: None
    save_often()


@contextlib.contextmanager
def _limited(root: Path, size: int) -> Iterator[tuple[Callable[[], None] | None, Callable[[], object]]]:
    def mount(*options: str) -> int:
        return subprocess.run(["mount", *options, str(root)], capture_output=True).returncode

    if mount("-t", "tmpfs", "-o", f"size={size}", "none") == 0:
        try:
            yield None, lambda: mount("-o", f"remount,size={1 << 30}")
        finally:
            subprocess.run(["umount", "-l", str(root)], check=True)
        return

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 8, size // 8))

    yield limit, lambda: None


def together(bench: Bench) -> None:
    """The same run four times at once, in one folder."""
    _at_once(bench, "four at once", [None] * 4)


def two_hosts(bench: Bench) -> None:
    """Two machines that share a folder, where locks do not lock."""
    _at_once(bench, "two hosts, no locks", [_as_host("one"), _as_host("two")])


def _as_host(name: str) -> Callable[[], None]:
    def prepare() -> None:
        from ldmlab import atomic

        atomic._machine = lambda: hashlib.sha256(name.encode()).hexdigest()[:8]
        atomic._acquire = lambda lock, path, waiting: None
        save_often()

    return prepare


def _at_once(bench: Bench, kind: str, prepares: list) -> None:
    root = bench.fresh()
    trials = [Trial(root, prepare) for prepare in prepares]
    for i, trial in enumerate(trials):
        first = trial.wait(4 * TIMEOUT_S)
        bench.note(kind, f"process {i + 1}", *judge(bench.expected, first, lambda: Trial(root).wait()))
    shutil.rmtree(root)


def damages(bench: Bench) -> None:
    """Damage to every file that a run leaves, finished or stopped within training, one at a time."""
    other = bench.fresh()
    if "error" in Trial(other, seed=1).wait():
        raise SystemExit("the run with another seed failed")
    stopped = _stopped(bench)
    trials = [(start, file, name) for start in (bench.whole, stopped)
              for file in sorted(p.relative_to(start) for p in start.rglob("*") if p.is_file()) for name in DAMAGES]
    for start, file, name in bench.chosen([trial for trial in trials if re.search(bench.only, trial[2])]):
        root = bench.fresh(start)
        for record in root.glob("results/0*/*.json"):  # measured again, so that what is damaged is used
            if record != root / file:
                record.unlink()
        if not DAMAGES[name](root / file, other):
            shutil.rmtree(root)
            continue
        state = "finished" if start == bench.whole else "stopped"
        prepare = None
        if name == "unreadable" and os.geteuid() == 0:
            for path in [root, *root.rglob("*")]:
                os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
            prepare = _as_nobody
        bench.rerun(f"damage: {name}", f"{state}, {file}", root, prepare=prepare)


def _stopped(bench: Bench) -> Path:
    """The folder of a run that was killed in the training of its diffusion model, with two states."""
    def stop_late() -> None:
        from ldmlab.study.training import callbacks

        save_often()
        real = callbacks.save_state

        def save(folder: Path, state: dict) -> None:
            real(folder, state)
            if folder.name.startswith("diffusion") and state["step"] == 6:
                os._exit(1)

        callbacks.save_state = save

    root = bench.fresh()
    Trial(root, stop_late).wait()
    assert list(root.rglob("state-older.pt")), "no run was stopped within training"
    return root


def _as_nobody() -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    os.environ["HOME"] = "/tmp"


def _cut(part: Callable[[int], int]) -> Callable[[Path, Path], bool]:
    def cut(path: Path, other: Path) -> bool:
        size = path.stat().st_size
        if size:
            os.truncate(path, part(size))
        return size > 0

    return cut


def _flip(part: float) -> Callable[[Path, Path], bool]:
    def flip(path: Path, other: Path) -> bool:
        raw = bytearray(path.read_bytes())
        if raw:
            raw[int(part * (len(raw) - 1))] ^= 1 << 4
            path.write_bytes(raw)
        return bool(raw)

    return flip


def _zero(path: Path, other: Path) -> bool:
    path.write_bytes(bytes(path.stat().st_size))
    return path.stat().st_size > 0


def _foreign(path: Path, other: Path) -> bool:
    """The file of a run with another seed, of the same kind."""
    kind = path.parent.name.split("-")[0]
    same = [file for file in other.rglob(path.name) if file.parent.name.split("-")[0] == kind]
    same = same or [file for file in other.rglob(f"*{path.suffix}") if file.parent.name.split("-")[0] == kind]
    same = [file for file in same if file.read_bytes() != path.read_bytes()]
    if same:
        shutil.copyfile(same[0], path)
    return bool(same)


def _folder(path: Path, other: Path) -> bool:
    path.unlink()
    path.mkdir()
    (path / "in_it").write_text("something")
    return True


def _unreadable(path: Path, other: Path) -> bool:
    path.chmod(0)
    return True


DAMAGES: dict[str, Callable[[Path, Path], bool]] = {
    "cut to nothing": _cut(lambda size: 0), "cut to half": _cut(lambda size: size // 2),
    "last byte cut": _cut(lambda size: size - 1), "zeroed": _zero, "a bit flipped at 2 %": _flip(0.02),
    "a bit flipped at 50 %": _flip(0.5), "a bit flipped at 98 %": _flip(0.98), "another run's": _foreign,
    "a folder": _folder, "unreadable": _unreadable,
}
KINDS = {"kills": kills, "disks": full_disks, "together": together, "hosts": two_hosts, "damage": damages}


# --- The table --------------------------------------------------------------------------------------------------------


def table(rows: list[dict]) -> str:
    """Kind of fault, trials, and how many had which outcome."""
    lines = [f"{'':<32}{'tried':>8}" + "".join(f"{name:>11}" for name in OUTCOMES)]
    for kind in [*dict.fromkeys(row["kind"] for row in rows), "all"]:
        found = [row["outcome"] for row in rows if kind in (row["kind"], "all")]
        lines.append(f"{kind:<32}{len(found):>8}" + "".join(f"{found.count(name):>11}" for name in OUTCOMES))
    return "\n".join(lines)


def main() -> None:
    """Run the trials, print the table, write results/benchmarks/faults.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--every", type=int, default=1, help="only each n-th trial of a kind")
    parser.add_argument("--start", type=int, default=0, help="the first of them; --every 2 --start 1: the other half")
    parser.add_argument("--only", default="", help="damages whose name this regular expression matches")
    parser.add_argument("--write", action="store_true", help="write results/benchmarks/faults.json")
    args = parser.parse_args()

    import torch

    from ldmlab.study.config.paths import results_dir
    from ldmlab.study.records.record import environment

    torch.set_num_threads(1)
    os.environ["LDMLAB_THREADS"] = "1"
    out = results_dir() / "benchmarks" / "faults.json"
    began, env = time.perf_counter(), environment("cpu")  # the commit that is tested, whatever comes meanwhile
    with tempfile.TemporaryDirectory() as work:
        os.chmod(work, 0o777)
        bench = Bench(Path(work), args.every, args.start, args.only)
        for kind in args.kinds:
            KINDS[kind](bench)
            print(f"{kind}: {len(bench.rows)} trials so far, {time.perf_counter() - began:.0f} s", flush=True)
    print(table(bench.rows))
    if args.write:
        counts = {name: sum(row["outcome"] == name for row in bench.rows) for name in OUTCOMES}
        content = {"table": "faults", "env": env, "tried": len(bench.rows), **counts,
                   "seconds": round(time.perf_counter() - began), "rows": bench.rows}
        rows = ",\n".join(f"  {json.dumps(row)}" for row in content.pop("rows"))
        out.write_text(f'{json.dumps(content, indent=1)[:-2]},\n "rows": [\n{rows}\n ]\n}}\n')


if __name__ == "__main__":
    main()
