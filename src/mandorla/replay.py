"""Gradients of many steps that run the same kernels: recorded once as a CUDA graph, then replayed.

A step of small networks is thousands of kernels, and a GPU is done with each of them long before Python has launched
the next. A graph launches all of them at once. What is recorded are kernels and addresses: inputs are copied to where
those of the recorded step lay, and nothing inside may depend on the value of a tensor, or on what changes in Python
from step to step. A graph keeps the memory of its step for as long as it is there.

References: CUDA Graphs, https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs (whole-network capture).
"""

from collections.abc import Callable, Hashable, Iterable, Sequence

import torch
from torch import Tensor, nn

from mandorla.errors import MandorlaError

Inputs = Sequence[dict[str, Tensor]]
Work = Callable[[Inputs], dict[str, Tensor]]
_WARM_UP = 3  # steps as they are, in which libraries choose their kernels, before one is recorded


class Replay:
    """Leave the gradients of a step in the weights `parameters`.

    `setting` names the one that switches this off. What is random follows the state of the generator at each call, as
    without a graph.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], setting: str = ""):
        self.parameters, self.setting = list(parameters), setting
        self._begin(None)

    def __call__(self, work: Work, inputs: Inputs, kind: Hashable) -> dict[str, Tensor]:
        """Return the named values of `work(inputs)`, which leaves gradients in the weights.

        Steps of one `kind` run the same kernels, if their inputs have the same shapes. Those of none (None) run as they
        are, and what is recorded stays. Raises MandorlaError if a step cannot be recorded.
        """
        if kind is None:
            return self._run(work, inputs)
        kind = (kind, *((name, z.shape, z.dtype) for part in inputs for name, z in part.items()))
        if kind != self.kind:
            self._begin(kind)
        if self.seen < _WARM_UP:
            self.seen += 1
            return self._run(work, inputs)
        if self.graph is None:
            self._record(work, inputs)
        for own, part in zip(self.inputs, inputs, strict=True):
            for name, z in part.items():
                own[name].copy_(z)
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient  # a step as it is, in between, has left others
        self.graph.replay()
        return {name: z.clone() for name, z in self.values.items()}  # the next step writes to the same place

    def _begin(self, kind: Hashable) -> None:
        """Let go of what is recorded."""
        self.kind, self.seen, self.graph = kind, 0, None
        self.inputs: list[dict[str, Tensor]] = []
        self.values: dict[str, Tensor] = {}
        self.gradients: list[Tensor | None] = []

    def _run(self, work: Work, inputs: Inputs) -> dict[str, Tensor]:
        for parameter in self.parameters:
            parameter.grad = None
        return work(inputs)

    def _record(self, work: Work, inputs: Inputs) -> None:
        self.inputs = [{name: z.clone() for name, z in part.items()} for part in inputs]
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # another thread makes the next batch
                self.values = self._run(work, self.inputs)
        except RuntimeError as error:
            cause = error.__context__ or error  # leaving a recording that has failed fails as well
            if "out of memory" in str(cause):
                raise cause from None
            raise MandorlaError(
                f"a step cannot be recorded as a CUDA graph ({str(cause).splitlines()[0]}): set {self.setting} to false"
            ) from error
        self.graph, self.gradients = graph, [parameter.grad for parameter in self.parameters]
