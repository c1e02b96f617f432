"""The commands of `python -m ldmlab`: help without torch, one line an error, and the older spelling."""

import json
import subprocess
import sys

import pytest

import ldmlab
from ldmlab.__main__ import COMMANDS, main
from ldmlab.checkpoints.__main__ import main as older
from ldmlab.checkpoints.files import save_model


def test_the_package_and_the_help_are_light():
    """Neither `import ldmlab` nor `--help` of any command imports torch, numpy or matplotlib."""
    code = ("import sys; import ldmlab; from ldmlab.__main__ import main\n"
            "for words in (['--help'], ['fetch', '--help'], ['inspect', '--help'], ['cache', 'prune', '--help']):\n"
            "    try: main(words)\n"
            "    except SystemExit as done: assert done.code == 0\n"
            "print(sorted({'torch', 'numpy', 'matplotlib', 'pytorch_lightning'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


def test_the_version_is_the_packages(capsys):
    """`--version` prints the version that records state."""
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0 and capsys.readouterr().out == f"ldmlab {ldmlab.__version__}\n"


@pytest.mark.parametrize("words", [[], ["nothing"], ["cache"], ["fetch", "--no"], ["inspect"]])
def test_a_wrong_command_line_is_one_line_and_status_2(words, capsys):
    """The usage is left to --help."""
    with pytest.raises(SystemExit) as done:
        main(words)
    error = capsys.readouterr().err
    assert done.value.code == 2 and error.startswith("python -m ldmlab") and error.count("\n") == 1


def test_errors_are_one_line_and_status_1(lab_root, capsys):
    """An unknown name, of a released file or of an entry, says what there is."""
    for words, told in ((["fetch", "nope"], "kl-f8"), (["cache", "prune", "nope"], "cache list")):
        assert main(words) == 1
        error = capsys.readouterr().err
        assert told in error and "nope" in error and error.count("\n") == 1


def test_the_older_spelling_gives_the_same(tmp_path, capsys):
    """`python -m ldmlab.checkpoints inspect FILE` prints and returns what `python -m ldmlab inspect FILE` does."""
    import torch

    path = tmp_path / "a.safetensors"
    save_model(path, {"w": torch.ones(2)}, {"kind": "first_stage", "name": "KL-f8"})
    seen = []
    for run in (main, older):
        assert run(["inspect", str(path)]) == 0 and run(["inspect", str(tmp_path / "none.ckpt")]) == 2
        seen.append(capsys.readouterr())
    assert seen[0] == seen[1] and "KL-f8" in seen[0].out


def test_every_command_is_a_row():
    """`fetch`, `inspect` and `cache` are there; each row adds one command with something to run."""
    names = [add.__name__.removeprefix("add_") for add in COMMANDS]
    assert names == list(dict.fromkeys(names)) and {"fetch", "inspect", "cache"} <= set(names)


def test_prune_asks_before_it_removes(lab_root, capsys):
    """Without a terminal and without --yes nothing is removed; with --yes what was shown is."""
    lock = lab_root / "results" / "runs" / "latents-lock-0123456789ab" / ".lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    assert main(["cache", "prune"]) == 0 and lock.exists() and "--yes" in capsys.readouterr().out
    assert main(["cache", "prune", "--yes"]) == 0 and not lock.parent.exists()
    assert "latents-lock-0123456789ab" in capsys.readouterr().out
    assert main(["cache", "list"]) == 0 and "0 entries" in capsys.readouterr().out


def test_a_record_states_the_version():
    """`environment` names the version of the package that measured."""
    from ldmlab.study.records.record import environment

    env = environment("cpu")
    assert env["ldmlab"] == ldmlab.__version__ and json.dumps(env)
