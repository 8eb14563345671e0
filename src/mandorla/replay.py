"""Gradients of many steps that run the same kernels: recorded once as a CUDA graph, then replayed.

A step of small networks is thousands of kernels, and a GPU is done with each of them long before Python has launched
the next. A graph launches all of them at once. What is recorded are kernels and addresses: inputs are copied to where
those of the recorded step lay, and nothing inside may ask for a value, so that shapes and branches do not depend on it.

References: CUDA Graphs, https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs (whole-network capture).
"""

from collections.abc import Callable, Hashable, Iterable, Sequence

import torch
from torch import Tensor, nn

from mandorla.errors import MandorlaError

Inputs = Sequence[dict[str, Tensor]]
_WARM_UP = 3  # steps as they are, in which libraries choose their kernels, before one is recorded


class Replay:
    """Leave the gradients of a step in the weights by `work(inputs)`, which returns named values.

    `parameters` are those weights, and `setting` names the one that switches this off. What is random follows the state
    of the generator at each call, as without a graph.
    """

    def __init__(
        self, work: Callable[[Inputs], dict[str, Tensor]], parameters: Iterable[nn.Parameter], setting: str = ""
    ):
        self.work, self.parameters, self.setting = work, list(parameters), setting
        self.kind: Hashable = None
        self.seen, self.graph = 0, None

    def __call__(self, inputs: Inputs, kind: Hashable) -> dict[str, Tensor]:
        """Return the named values. Steps of one `kind` run the same kernels, on tensors of the same shapes.

        Those of none (None) run as they are, and what is recorded stays. Raises MandorlaError if a step cannot be
        recorded.
        """
        if kind is None:
            return self._run(inputs)
        if kind != self.kind:
            self.kind, self.seen, self.graph = kind, 0, None
        if self.seen < _WARM_UP:
            self.seen += 1
            return self._run(inputs)
        if self.graph is None:
            self._record(inputs)
        for own, part in zip(self.inputs, inputs, strict=True):
            for name, z in part.items():
                own[name].copy_(z)
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient  # a step as it is, in between, has left others
        self.graph.replay()
        return {name: z.clone() for name, z in self.values.items()}  # the next step writes to the same place

    def _run(self, inputs: Inputs) -> dict[str, Tensor]:
        for parameter in self.parameters:
            parameter.grad = None
        return self.work(inputs)

    def _record(self, inputs: Inputs) -> None:
        self.inputs = [{name: z.clone() for name, z in part.items()} for part in inputs]
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # another thread makes the next batch
                self.values = self._run(self.inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise MandorlaError(
                f"a step cannot be recorded as a CUDA graph ({str(error).splitlines()[0]}), as where a network asks for"
                f" the value of a tensor: set {self.setting} to false"
            ) from error
        self.graph, self.gradients = graph, [parameter.grad for parameter in self.parameters]
