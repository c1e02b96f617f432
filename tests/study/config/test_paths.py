"""Where things lie."""

from pathlib import Path

from ldmlab.study.config.paths import project_root, results_dir, runs_dir

CHECKOUT = Path(__file__).resolve().parents[3]


def test_the_checkout_is_found_from_any_working_directory(tmp_path, monkeypatch):
    """papermill runs in the caller's folder, JupyterLab in notebooks/: both must meet the same records."""
    monkeypatch.delenv("LDMLAB_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    assert project_root() == CHECKOUT
    assert results_dir() == CHECKOUT / "results" and runs_dir() == CHECKOUT / "results" / "runs"


def test_a_named_root_goes_before_the_checkout(lab_root):
    """A cluster's scratch disk, or a test's own folder."""
    assert runs_dir() == lab_root / "results" / "runs"


def test_an_installed_package_writes_to_the_working_directory(tmp_path, monkeypatch):
    """Never into site-packages."""
    monkeypatch.delenv("LDMLAB_ROOT", raising=False)
    monkeypatch.setattr("ldmlab.study.config.paths.__file__", str(tmp_path / "site-packages/ldmlab/study/config/x.py"))
    monkeypatch.chdir(tmp_path)
    assert project_root() == tmp_path
