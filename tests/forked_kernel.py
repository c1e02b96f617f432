"""Jupyter kernels forked from a process that has imported the slow third-party libraries once.

A notebook's imports cost ten seconds of CPU, its training at tier `smoke` few. A forked kernel is a process of its own,
with the environment and folder it was asked for, and no module of ldmlab loaded.
"""

import multiprocessing
import os
import sys
import time

PRELOADED = ["ipykernel.kernelapp", "pandas", "pytorch_lightning", "scipy.stats", "torch", "transformers"]


class ForkedKernel:
    """What Jupyter uses of a `subprocess.Popen`: `cmd` is a kernel's command, "... -f connection_file"."""

    stdin = stdout = stderr = None

    def __init__(self, cmd: list[str], env: dict[str, str] | None = None, cwd: str | None = None, **_):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        arguments = cmd[cmd.index("ipykernel_launcher") + 1 :], env or dict(os.environ), cwd or os.getcwd()
        self._process = context.Process(target=_run_kernel, args=arguments)
        self._process.start()
        self.pid = self._process.pid
        while os.getpgid(self.pid) != self.pid:  # Jupyter signals the kernel's group, which must not be ours
            time.sleep(0.01)

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        self._process.join(timeout)
        return self._process.exitcode

    def send_signal(self, signal: int) -> None:
        os.kill(self.pid, signal)

    def kill(self) -> None:
        self._process.kill()

    def terminate(self) -> None:
        self._process.terminate()


def _run_kernel(arguments: list[str], env: dict[str, str], cwd: str) -> None:
    """The kernel of a notebook, in the process group, folder and environment that Jupyter would give it."""
    os.setsid()
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    import matplotlib
    from ipykernel.kernelapp import launch_new_instance

    # Read when matplotlib was imported, from the environment of then.
    matplotlib.rcParams["backend"] = "module://matplotlib_inline.backend_inline"
    loaded = [name for name in sys.modules if name.partition(".")[0] == "ldmlab"]
    assert not loaded, f"a notebook imports these itself: {loaded}"
    launch_new_instance(argv=arguments)
