"""Options for faster sampling that change the last bits: narrower weights, compilation, CUDA graphs."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ldmlab.diffusion.unet.attention import KeysValues
from ldmlab.diffusion.unet.unet import UNet


class Accelerated(nn.Module):
    """A frozen copy of `module` with the options of `accelerate`, called like it; the output has the dtype of x.

    Autocast is off inside. Calls with gradients, as in guidance, run the copy without compilation and CUDA graphs.
    """

    def __init__(
        self, module: nn.Module, dtype: torch.dtype | None, compile: bool, cuda_graphs: bool,
        backend: str | Callable[..., Any],
    ):
        super().__init__()
        self.module = copy.deepcopy(module).eval().requires_grad_(False).to(dtype)
        self.dtype = next(self.module.parameters()).dtype
        run = _compiled(self.module, backend) if compile else self.module
        # In a list it is no submodule, so the parameters are here once.
        self._run = [_CudaGraphs(run) if cuda_graphs else run]

    @property
    def config(self) -> Any:
        """The config of the module."""
        return self.module.config

    def forward(self, x: Float[Tensor, "b c h w"], *given: Any) -> Float[Tensor, "b c2 h2 w2"]:
        """The module's output for `x` and its further inputs."""
        with torch.autocast(x.device.type, enabled=False):
            run = self.module if torch.is_grad_enabled() else self._run[0]
            return run(x.to(self.dtype), *given).to(x.dtype)


class AcceleratedUNet(Accelerated):
    """An accelerated `UNet`; time steps stay in float32."""

    module: UNet

    def project(self, context: Float[Tensor, "b n d"]) -> KeysValues:
        """The keys and values of `context`, as by `UNet.project`."""
        with torch.autocast(context.device.type, enabled=False):
            return self.module.project(context.to(self.dtype))

    def forward(
        self, z_t: Float[Tensor, "b c_in h w"], t: Shaped[Tensor, " b"],
        context: Float[Tensor, "b n d"] | KeysValues | None = None, y: Shaped[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b c_out h w"]:
        """eps_hat, as by `UNet.forward`."""
        if isinstance(context, Tensor):
            context = context.to(self.dtype)
        return super().forward(z_t, t.float(), context, y)  # one dtype of t, so one compilation


def accelerate(
    module: nn.Module, *, dtype: torch.dtype | None = None, compile: bool = False, cuda_graphs: bool = False,
    backend: str | Callable[..., Any] = "inductor",
) -> Accelerated:
    """A faster copy of a denoiser or decoder, for sampling only; `module` itself is not changed.

    `dtype` is that of the weights and of all computation but normalisation and the embedding of t; torch.bfloat16 has
    errors of about 1e-2. `compile` fuses operations and, without gradients, packs the weights: it takes a minute or two
    at the first call, and at the first of every other shape of input. `cuda_graphs` replays the kernel launches of a
    shape's first call, for small batches, where launching takes longer than computing. ValueError for a dtype that is
    not floating-point, for a module without weights, and for CUDA graphs of a module that is not on a CUDA device.
    """
    weight = next(module.parameters(), None)
    if weight is None:
        raise ValueError(f"only modules with weights can be accelerated, got {type(module).__name__}")
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype must be floating-point, such as torch.bfloat16; got {dtype}")
    if cuda_graphs and weight.device.type != "cuda":
        raise ValueError(f"CUDA graphs need a model on a CUDA device; this one is on {weight.device}")
    kind = AcceleratedUNet if isinstance(module, UNet) else Accelerated
    return kind(module, dtype, compile, cuda_graphs, backend)


def _compiled(module: nn.Module, backend: str | Callable[..., Any]) -> Callable[..., Tensor]:
    """The module compiled for each shape; inductor treats weights as constants, to lay them out for its kernels."""
    compiled = torch.compile(module, dynamic=False, backend=backend)
    if backend != "inductor":
        return compiled
    from torch._inductor import config  # slow to import

    def run(*inputs: Any) -> Tensor:
        with config.patch(freezing=True):  # `options` would come too late: tracing reads it already
            return compiled(*inputs)

    return run


class _Recorded(NamedTuple):
    graph: Any  # torch.cuda.CUDAGraph
    inputs: list
    output: Tensor
    constants: dict[int, KeysValues]


class _CudaGraphs:
    """Records `run` at the first call with inputs of each shape, and replays the recording at later calls."""

    def __init__(self, run: Callable[..., Tensor]):
        self.run = run
        self.recorded: dict[tuple, _Recorded] = {}

    def __call__(self, *inputs: Tensor | KeysValues | None) -> Tensor:
        key = tuple(tuple((a.shape, a.dtype) for a in _tensors(each)) for each in inputs)
        if key not in self.recorded:
            self.recorded[key] = self._record(inputs)
        recorded = self.recorded[key]
        for i, (own, given) in enumerate(zip(recorded.inputs, inputs, strict=True)):
            if isinstance(given, KeysValues) and recorded.constants.get(i) is given:
                continue  # as at the last step: nothing to copy
            for to, a in zip(_tensors(own), _tensors(given), strict=True):
                to.copy_(a)
            if isinstance(given, KeysValues):
                recorded.constants[i] = given
        recorded.graph.replay()
        return recorded.output.clone()

    def _record(self, inputs: tuple) -> _Recorded:
        device = inputs[0].device
        # Later calls in any mode write to these inputs, so they must not be tensors of inference mode.
        with torch.inference_mode(False), torch.no_grad(), torch.cuda.device(device):
            own = [_cloned(each) for each in inputs]
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # initialisation of libraries, and compilation, come before recording
                for _ in range(3):
                    self.run(*own)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                output = self.run(*own)
        return _Recorded(graph, own, output, {})


def _tensors(given: Tensor | KeysValues | None) -> list[Tensor]:
    if isinstance(given, KeysValues):
        return [a for projected in given.projections for a in projected]
    return [] if given is None else [given]


def _cloned(given: Tensor | KeysValues | None) -> Tensor | KeysValues | None:
    if isinstance(given, KeysValues):
        return KeysValues(tuple(tuple(a.clone() for a in projected) for projected in given.projections))
    return None if given is None else given.clone()
