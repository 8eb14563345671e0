"""The transformer of stage 2: tokens cut and joined, components at times of their own."""

import pytest
import torch
from pydantic import ValidationError

from mandorla.errors import MandorlaError
from mandorla.latents import Layout
from mandorla.nets.transformer import ComponentTransformer, Tokenizer, TransformerConfig, attend, time_features

LAYOUT = Layout({"shared": (3,), "t1": (2, 5), "t2": (2, 4, 3), "ct": (1, 2, 3, 3)})


@pytest.mark.parametrize("patch", [1, 2, 3])
@pytest.mark.parametrize("shape", [(7,), (3, 6), (2, 5), (3, 4, 6), (2, 5, 7), (1, 1, 1), (2, 4, 2, 6), (2, 3, 5, 2)])
def test_cut_and_join_are_inverse(shape, patch):
    """With reading and writing set to the identity, what is cut comes back, also where the patch does not divide."""
    values = shape[0] * min(patch, shape[1] if shape[1:] else 1) * 64  # wide enough for any token
    tokenizer = Tokenizer(shape, values, tuple(min(patch, n) for n in shape[1:])).double()
    size = tokenizer.read.in_features
    with torch.no_grad():
        tokenizer.position.zero_()
        tokenizer.read.bias.zero_()
        tokenizer.read.weight.copy_(torch.eye(values, size))
        tokenizer.write.weight.copy_(torch.eye(size, values))
    z = torch.randn(3, *shape, dtype=torch.float64)
    tokens = tokenizer.cut(z)
    assert tokens.shape == (3, tokenizer.num_tokens, values)
    assert torch.equal(tokenizer.join(tokens), z)


def test_tokens_are_patches():
    tokenizer = Tokenizer((1, 4, 4), 4, (2, 2))
    with torch.no_grad():
        tokenizer.position.zero_()
        tokenizer.read.bias.zero_()
        tokenizer.read.weight.copy_(torch.eye(4))
    z = torch.arange(16.0).view(1, 1, 4, 4)
    expected = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert tokenizer.cut(z)[0].tolist() == expected


def trained(seed: int = 0, layout: Layout = LAYOUT, stack: bool | str = False) -> ComponentTransformer:
    """Return a network none of whose weights is zero, as at the start they are."""
    torch.manual_seed(seed)
    network = ComponentTransformer(TransformerConfig(width=16, depth=2, heads=2, stack=stack), layout)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network


def components(num: int, layout: Layout = LAYOUT) -> dict[str, torch.Tensor]:
    return {name: torch.randn(num, *shape) for name, shape in layout.shapes.items()}


def test_output_has_the_shape_of_the_components():
    for num in (1, 4):
        out = trained()(components(num), torch.rand(num, 4))
        assert {name: tuple(z.shape) for name, z in out.items()} == {
            name: (num, *shape) for name, shape in LAYOUT.shapes.items()
        }


def test_first_output_is_zero():
    """The network begins as the best constant guess: its last layer is zero."""
    out = ComponentTransformer(TransformerConfig(width=16, depth=1), LAYOUT)(components(2), torch.rand(2, 4))
    assert all((z == 0).all() for z in out.values())


@torch.no_grad()
def test_every_output_sees_every_component_and_every_time():
    network, z, times = trained(), components(3), torch.rand(3, 4)
    out = network(z, times)
    for k, name in enumerate(LAYOUT.shapes):
        moved = network(z | {name: z[name] + 1}, times)
        other = times.clone()
        other[:, k] = 1 - other[:, k]
        later = network(z, other)
        for target in LAYOUT.shapes:
            assert not torch.allclose(out[target], moved[target], atol=1e-4), (name, target)
            assert not torch.allclose(out[target], later[target], atol=1e-4), (name, target)


@torch.no_grad()
@pytest.mark.parametrize("layer", ["last", "block"])
def test_the_time_of_a_component_modulates_its_own_tokens(layer):
    """Without attention, and modulated in one place only, an output follows the time of its own component alone."""
    network, z, times = trained(), components(3), torch.rand(3, 4)
    for block in network.blocks:
        block.merge.weight.zero_()
    for module in network.blocks if layer == "last" else [network]:
        module.modulate.weight.zero_()
    out = network(z, times)
    for k, name in enumerate(LAYOUT.shapes):
        other = times.clone()
        other[:, k] = 1 - other[:, k]
        later = network(z, other)
        for target in LAYOUT.shapes:
            assert torch.equal(later[target], out[target]) == (target != name), (name, target)


@torch.no_grad()
def test_samples_do_not_see_each_other():
    network, z, times = trained(), components(4), torch.rand(4, 4)
    whole = network(z, times)
    alone = network({name: x[2:3] for name, x in z.items()}, times[2:3])
    for name in z:
        torch.testing.assert_close(alone[name], whole[name][2:3], atol=1e-5, rtol=0)


@pytest.mark.parametrize("width", [8, 9])
def test_time_features_tell_times_apart(width):
    times = torch.linspace(0, 1, 101)
    features = time_features(times, width)
    assert features.shape == (101, width)
    assert torch.cdist(features, features).fill_diagonal_(9).min() > 1e-3


def test_heads_divide_the_width():
    with pytest.raises(ValidationError, match="heads 3 must divide width 16"):
        TransformerConfig(width=16, heads=3)


@pytest.mark.parametrize("length", [1, 7, 400, 1024])  # one table, some at a time (the last group has fewer), fused
def test_attention_is_that_of_torch(length):
    q, k, v = torch.randn(3, 2, 4, length, 8, dtype=torch.float64, requires_grad=True)
    ours, theirs = attend(q, k, v), torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("patch", [1, 2, 3])
@pytest.mark.parametrize("shape", [(3, 6), (2, 5), (3, 4, 6), (2, 5, 7), (2, 5, 3, 2)])
def test_a_token_is_known_if_all_its_cells_are(shape, patch):
    network = ComponentTransformer(TransformerConfig(width=16, depth=1, patch=patch), Layout({"a": (2,), "b": shape}))
    cells = torch.rand(20, *shape[1:]) < 0.8
    whole = network.whole_tokens("b", cells)
    assert whole.shape == cells.shape and not (whole & ~cells).any()
    assert network.whole_tokens("b", torch.ones_like(cells)).all()
    assert torch.equal(network.whole_tokens("b", whole), whole)
    assert patch > 1 or torch.equal(whole, cells)


@pytest.mark.parametrize("stack", [False, True, "private"])
def test_known_regions_are_at_time_one(stack):
    """All cells of a map held is the same as the map known; none held the same as without."""
    network = trained(stack=stack)
    z = components(3)
    times = torch.rand(3, 4)
    plain = network(z, times)
    none, all_of_it = ({"t2": torch.full((3, 4, 3), held)} for held in (False, True))
    for name, value in network(z, times, none).items():
        torch.testing.assert_close(value, plain[name])
    known = times.clone()
    known[:, list(LAYOUT.shapes).index("t2")] = 1.0
    expected = network(z, known)
    for name, value in network(z, times, all_of_it).items():
        torch.testing.assert_close(value, expected[name])
    half = {"t2": torch.arange(4)[None, :, None].expand(3, 4, 3) < 2}
    assert (network(z, times, half)["shared"] - plain["shared"]).abs().max() > 1e-5


def test_times_that_all_samples_share_are_given_once():
    network, z, times = trained(), components(5), torch.rand(1, 4)
    one, each = (network(z, t) for t in (times, times.expand(5, -1)))
    for name in each:
        torch.testing.assert_close(one[name], each[name], atol=1e-6, rtol=0)


REGISTERED = Layout({"shared": (3, 13, 8), "t1": (2, 7, 4), "v": (4,), "t2": (1, 13, 8), "signal": (2, 5)})


@torch.no_grad()
def test_stacked_maps_share_the_tokens_of_a_place():
    network, z, times = trained(0, REGISTERED, stack=True), components(3, REGISTERED), torch.rand(3, 5)
    assert network.num_tokens == [4 * 2, 1, 3], "the maps, the vector, the signal, which has one axis"
    assert [tuple(t.patch) for t in network.tokenizers] == [(4, 4), (2, 2), (), (4, 4), (2,)]
    out = network(z, times)
    assert {name: tuple(x.shape[1:]) for name, x in out.items()} == REGISTERED.shapes
    for k, name in enumerate(REGISTERED.shapes):
        other = times.clone()
        other[:, k] = 1 - other[:, k]
        later, moved = network(z, other), network(z | {name: z[name] + 1}, times)
        for target in REGISTERED.shapes:
            assert not torch.allclose(out[target], later[target], atol=1e-4), (name, target)
            assert not torch.allclose(out[target], moved[target], atol=1e-4), (name, target)
    swapped = times[:, [1, 0, 2, 3, 4]]
    assert not torch.allclose(network(z, swapped)["t2"], out["t2"], atol=1e-4), "each time is told whose it is"


@torch.no_grad()
def test_what_is_stacked_lies_at_the_same_place():
    """Without attention, a change at one place of one map is seen at that place of all maps, and nowhere else."""
    network, z, times = trained(0, REGISTERED, stack=True), components(1, REGISTERED), torch.rand(1, 5)
    for block in network.blocks:
        block.merge.weight.zero_()
    out = network(z, times)
    moved = z | {"t1": z["t1"].clone()}
    moved["t1"][:, :, 4:6, 2:] += 1  # pixels 32 to 47 and 16 to 31, of strides of 8 and of 4
    later = network(moved, times)
    for name, (rows, columns) in {"t1": ((4, 6), (2, 4)), "shared": ((8, 12), (4, 8)), "t2": ((8, 12), (4, 8))}.items():
        changed = (later[name] != out[name]).any(1)[0]
        expected = torch.zeros_like(changed)
        expected[rows[0] : rows[1], columns[0] : columns[1]] = True
        assert torch.equal(changed, expected), name


@torch.no_grad()
def test_private_maps_are_stacked_beside_the_shared_one():
    """Without attention, a change of one private map is seen in the others, and not in the shared one."""
    network, z, times = trained(0, REGISTERED, stack="private"), components(1, REGISTERED), torch.rand(1, 5)
    assert network.num_tokens == [7 * 4, 4 * 2, 1, 3], "the shared map, the private ones, the vector, the signal"
    for block in network.blocks:
        block.merge.weight.zero_()
    out, later = network(z, times), network(z | {"t1": z["t1"] + 1}, times)
    changed = {name for name in out if not torch.equal(out[name], later[name])}
    assert changed == {"t1", "t2"}


def test_maps_that_cannot_be_stacked():
    with pytest.raises(MandorlaError, match="stack: maps of 9x9, 5x5, 8x8 cells cannot be cut alike: choose strides"):
        ComponentTransformer(TransformerConfig(stack=True), Layout({"a": (1, 9, 9), "b": (2, 5, 5), "c": (1, 8, 8)}))
