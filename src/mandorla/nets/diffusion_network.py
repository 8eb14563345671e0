"""What a network of stage 2 is, and networks of the user's own.

x_t (B, *shape) of every latent component, each at a time of its own -> a velocity of the same shape for each.

A network is one class with a constructor and `forward`. Register it with `@register("name")` and write `kind: name` in
the YAML, or write its import path (`kind: my_package.nets:MyNet`); keys under `options` reach its constructor.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mandorla.config import Settings
from mandorla.device import own_random
from mandorla.errors import MandorlaError
from mandorla.latents import Components, Layout
from mandorla.registry import Register


class DiffusionNetwork(nn.Module):
    """Map components and their times to one velocity per component, of the same shape.

    Arguments: `layout` (the shape of each component without batch), `labels` (how many numbers each label has, on which
    the network may be conditioned).
    """

    common_times = False  # whether times that all samples share may be given as `(1, K)`

    def __init__(self, layout: Layout, labels: Mapping[str, int]):
        super().__init__()
        self.layout, self.labels = layout, dict(labels)

    def forward(self, components: Components, times: Tensor, held: Components, labels: Components) -> Components:
        """Return one output per component of the layout, of the shape that it has in `components`, `(B, *shape)`.

        - `times`: `(B, K)` in [0, 1], in the layout's order: at 1 a component is known, at 0 nothing is known of it
        - `held[name]`, bool `(B, *grid)`: cells of a map that are known, whatever its time; empty but for in-painting
        - `labels[name]`, `(B, size)`: what is known beside the components; NaN where it is not
        """
        raise NotImplementedError

    def whole_tokens(self, name: str, cells: Tensor) -> Tensor:
        """Return which of the `cells` of the map `name`, bool `(B, *grid)`, can be held: by default all of them.

        A network that sees cells in groups leaves out those of groups that are not whole.
        """
        return cells


DIFFUSION_NETWORKS = Register(
    "diffusion.network.kind",
    "a subclass of mandorla.DiffusionNetwork: derive it",
    lambda thing: isinstance(thing, type) and issubclass(thing, DiffusionNetwork),
    ("transformer",),
)


class OwnNetworkConfig(Settings):
    """A class of the user's own, by registered name or import path `package.module:Class`."""

    kind: str
    """registered name, or import path"""
    options: dict[str, Any] = {}
    """keyword arguments of the constructor, after layout and labels"""


def build_own_network(config: OwnNetworkConfig, layout: Layout, labels: Mapping[str, int]) -> DiffusionNetwork:
    """Build the user's network that `config` names.

    Raises MandorlaError if it cannot be found, does not accept its options, or gives other shapes than it must.
    """
    whose = f"diffusion.network {config.kind!r}"
    network = DIFFUSION_NETWORKS.build(config.kind, (layout, labels), config.options, whose)
    _check_shapes(network, layout, labels, whose)
    return network


@torch.no_grad()
def _check_shapes(network: DiffusionNetwork, layout: Layout, labels: Mapping[str, int], whose: str) -> None:
    """Run two empty samples through a user's network: its mistakes are better known before the training."""
    components = {name: torch.zeros(2, *shape) for name, shape in layout.shapes.items()}
    cells = {name: torch.ones(2, *shape[1:]).bool() for name, shape in layout.shapes.items() if len(shape) > 1}
    unknown = {name: torch.full((2, size), torch.nan) for name, size in labels.items()}
    network.eval()
    method = "forward"
    try:
        with own_random():
            for held in ({}, cells):
                velocity = network(dict(components), torch.rand(2, len(components)), held, unknown)
                for name, z in components.items():
                    if name not in velocity or velocity[name].shape != z.shape:
                        given = f"shape {tuple(velocity[name].shape)}" if name in velocity else "nothing"
                        raise ValueError(f"it gives {given} for {name!r}, not {tuple(z.shape)}")
                    if not velocity[name].isfinite().all():
                        raise ValueError(f"it gives NaN for {name!r}{' where labels are NaN' if unknown else ''}")
            method = "whole_tokens"
            for name, marks in cells.items():
                if network.whole_tokens(name, marks).shape != marks.shape:
                    raise ValueError(f"for {name!r} it gives other cells than {tuple(marks.shape)}")
    except Exception as error:  # whatever a user's code raises
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise MandorlaError(f"{whose}: `{method}` fails on two empty samples ({reason}): mend it") from error
    network.train()
