"""Stage 1: the shared code is the same whatever the order of modalities, and reads only what is there."""

from itertools import permutations

import pytest
import torch

from mandorla.data.dataset import Modality, all_present
from mandorla.errors import MandorlaError
from mandorla.latents import to_sphere
from mandorla.nets.encoder_decoder import ConvolutionalConfig, PerceptronConfig
from mandorla.vae.model import VAE, LatentConfig, ModelConfig, encode_batch, pool, random_subsets

SMALL = ConvolutionalConfig(channels=(6, 8), hidden=12)
MODALITIES = tuple(Modality(name, channels, (10, 13)) for name, channels in (("t1", 1), ("t2", 1), ("rgb", 3)))
VECTOR, MAP = LatentConfig(channels=3), LatentConfig(channels=2, stride=4)


def build(shared=VECTOR, private=VECTOR, modalities=MODALITIES, **more) -> VAE:
    return VAE(ModelConfig(shared=shared, private=private, encoder_decoder=SMALL, **more), modalities).eval()


def data(num: int = 5, modalities=MODALITIES) -> dict[str, torch.Tensor]:
    return {m.name: torch.rand(num, *m.shape) for m in modalities}


@pytest.mark.parametrize("shared", [VECTOR, MAP])
@pytest.mark.parametrize("private", [VECTOR, MAP])
def test_order_of_modalities_does_not_matter(shared, private):
    vae, x = build(shared, private), data()
    encoded = encode_batch(vae, x, all_present(x))
    for order in permutations(MODALITIES):
        other = build(shared, private, order)
        other.load_state_dict(vae.state_dict())
        moved = {m.name: x[m.name] for m in order}
        again = encode_batch(other, moved, all_present(moved))
        assert list(again.latents.private) == [m.name for m in order]
        torch.testing.assert_close(again.latents.shared, encoded.latents.shared, atol=1e-5, rtol=0)
        for name in x:
            torch.testing.assert_close(again.latents.private[name], encoded.latents.private[name], atol=1e-5, rtol=0)
            torch.testing.assert_close(again.std[name], encoded.std[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("shared", [VECTOR, MAP])
def test_missing_modalities_are_as_if_never_given(shared):
    vae, x = build(shared), data()
    present = {"t1": torch.tensor([1, 1, 0, 0, 1]), "t2": torch.tensor([1, 0, 1, 0, 0]), "rgb": torch.ones(5)}
    present = {name: mask.bool() for name, mask in present.items()}
    encoded = encode_batch(vae, x, present)
    poisoned = {name: z.clone() for name, z in x.items()}
    for name, z in poisoned.items():
        z[~present[name]] = torch.nan
    again = encode_batch(vae, poisoned, present)
    for name, z in encoded.latents.components.items():
        assert torch.equal(z, again.latents.components[name])
    for i in range(5):
        own = {name: x[name][i : i + 1] for name in x if present[name][i]}
        alone = encode_batch(vae, own, all_present(own)).latents
        torch.testing.assert_close(alone.shared, encoded.latents.shared[i : i + 1], atol=1e-5, rtol=0)
        for name, u in encoded.latents.private.items():
            expected = alone.private.get(name, torch.zeros(1, *u.shape[1:]))
            torch.testing.assert_close(expected, u[i : i + 1], atol=1e-5, rtol=0)


@torch.no_grad()
def test_codes_lie_on_the_sphere():
    vae, x = build(MAP), data()
    _, codes = vae.encode(x, all_present(x))
    for code in (*codes.values(), pool(codes, all_present(x))):
        torch.testing.assert_close(code.square().mean((1, 2, 3)), torch.ones(5), atol=1e-5, rtol=0)
        assert code.square().mean(1).std() > 0.01, "cells of one map are as strong as they are"


def test_pool_is_the_direction_of_the_mean_over_those_chosen():
    codes = {name: to_sphere(torch.randn(3, 4)) for name in "abc"}
    chosen = {"a": torch.tensor([1, 1, 0]), "b": torch.tensor([0, 1, 0]), "c": torch.tensor([0, 1, 1])}
    pooled = pool(codes, {name: mask.bool() for name, mask in chosen.items()})
    torch.testing.assert_close(pooled[0], codes["a"][0])
    torch.testing.assert_close(pooled[1], to_sphere(sum(codes.values())[1:2])[0])
    torch.testing.assert_close(pooled[2], codes["c"][2])


def test_random_subsets_are_present_and_never_empty():
    present = {name: torch.rand(4000) < 0.6 for name in "abc"}
    present["a"] |= ~(present["b"] | present["c"])
    drawn = random_subsets(present)
    assert list(drawn) == list(present)
    assert not any((drawn[name] & ~present[name]).any() for name in present)
    assert torch.stack(list(drawn.values())).any(0).all()


@pytest.mark.parametrize("there", ["abc", "ac", "b"])
def test_random_subsets_are_all_alike(there):
    present = {name: torch.full((70_000,), name in there) for name in "abc"}
    drawn = torch.stack(list(random_subsets(present).values()), 1)
    subsets, counts = drawn.unique(dim=0, return_counts=True)
    assert len(subsets) == 2 ** len(there) - 1
    torch.testing.assert_close(counts / 70_000, torch.ones(len(subsets)) / len(subsets), atol=0.006, rtol=0)


def test_random_subsets_of_many_modalities():
    drawn = torch.stack(list(random_subsets({str(n): torch.ones(400, dtype=torch.bool) for n in range(28)}).values()))
    assert ((drawn.float().mean(1) > 0.35) & (drawn.float().mean(1) < 0.65)).all()


def test_cells_of_a_shared_map_lie_at_one_place_in_all_modalities():
    """Networks that fill up to 56 and to 52 pixels: refused; to 48 both: not."""
    config = ModelConfig(
        shared=LatentConfig(channels=2, stride=4),
        private=LatentConfig(channels=2),
        encoder_decoder=ConvolutionalConfig(patch=4, channels=(4, 4), hidden=4),
        encoder_decoder_of={"b": ConvolutionalConfig(patch=4, channels=(4,), hidden=4)},
    )
    assert VAE(config, (Modality("a", 1, (48,)), Modality("b", 1, (48,)))).covered == {"a": (48,), "b": (48,)}
    with pytest.raises(MandorlaError, match=r"fill images up .* here a \(56,\), b \(52,\): cells of the shared map"):
        VAE(config, (Modality("a", 1, (50,)), Modality("b", 1, (50,))))


def test_three_unlike_modalities_side_by_side():
    modalities = (Modality("image", 3, (12, 9)), Modality("sound", 1, (33,)), Modality("facts", 5, ()))
    vae = VAE(
        ModelConfig(
            shared=VECTOR,
            private=VECTOR,
            private_of={"image": MAP},
            encoder_decoder=SMALL,
            encoder_decoder_of={"facts": PerceptronConfig(hidden=(8,))},
        ),
        modalities,
    ).eval()
    assert vae.layout.shapes == {"shared": (3,), "image": (2, 3, 3), "sound": (3,), "facts": (3,)}
    x = data(4, modalities)
    latents = encode_batch(vae, x, all_present(x)).latents
    for m in modalities:
        assert vae.decode(m.name, latents.shared, latents.private[m.name]).shape == (4, *m.shape)


@pytest.mark.parametrize("sees", [True, False])
@pytest.mark.parametrize("shared", [VECTOR, MAP])
def test_the_posterior_sees_the_shared_code_or_not(shared, sees):
    vae, x = build(shared, posterior_sees_shared=sees), data()
    features, codes = vae.encode(x, all_present(x))
    here, elsewhere = (vae.posterior("t1", features["t1"], c)[0] for c in (codes["t1"], codes["t1"].flip(0)))
    assert torch.equal(here, elsewhere) != sees


def test_log_std_stays_in_bounds():
    vae, x = build(), data()
    torch.nn.init.constant_(vae.networks["t1"].read_private[-1].bias, 1e3)
    features, codes = vae.encode(x, all_present(x))
    _, log_std = vae.posterior("t1", features["t1"], codes["t1"])
    assert log_std.max() <= 2


@pytest.mark.parametrize(
    ("config", "modalities", "message"),
    [
        (ModelConfig(), MODALITIES[:1], "at least two modalities are needed, the data has 1: t1"),
        *(
            (ModelConfig(), (MODALITIES[0], Modality(name, 1, (8, 8))), f"a modality cannot be called '{name}'")
            for name in ("shared", "present", "t1.gd", "../t1", "half", "", "file", "x" * 101)
        ),
        *(
            (ModelConfig(), (Modality("t1", 1, (8, 8)), Modality(name, 1, (8, 8))), "two of these names would be one")
            for name in ("T1", "t1_std", "T1_STD", "t1")
        ),
        (ModelConfig(private_of={"flair": VECTOR}), MODALITIES, "'flair' that the data does not have: t1, t2, rgb"),
        (ModelConfig(encoder_decoder_of={"ct": SMALL}), MODALITIES, "'ct' that the data does not have"),
        (
            ModelConfig(shared=MAP),
            (Modality("a", 1, (8, 8)), Modality("b", 1, (8, 9))),
            r"a shared map needs modalities of one size, here a \(8, 8\), b \(8, 9\)",
        ),
        (ModelConfig(private=LatentConfig(channels=2, stride=1)), MODALITIES, "finer than its first features"),
    ],
)
def test_mistakes(config, modalities, message):
    with pytest.raises(MandorlaError, match=message):
        VAE(config, modalities)
