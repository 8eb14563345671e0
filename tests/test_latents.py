"""Latents: what is split and joined, whitened and coloured, comes back; statistics are those of numpy."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mandorla.latents import Encoded, Latents, Layout, Whitening, to_sphere

LAYOUT = Layout({"shared": (3,), "t1": (2, 4, 5), "t2": (2, 3, 2, 2), "ecg": (1, 7)})


def components(num: int, layout: Layout = LAYOUT, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (k + 1) * torch.randn(num, *shape, generator=generator, dtype=torch.float64) + k
        for k, (name, shape) in enumerate(layout.shapes.items())
    }


def everyone(num: int) -> dict[str, torch.Tensor]:
    return {name: torch.ones(num, dtype=torch.bool) for name in LAYOUT.shapes}


def test_join_and_split_are_inverse():
    z = components(6)
    joined = LAYOUT.join(z)
    assert joined.shape == (6, 3 + 40 + 24 + 7)
    again = LAYOUT.split(joined)
    assert list(again) == list(LAYOUT.shapes)
    for name in z:
        assert torch.equal(again[name], z[name])
    assert torch.equal(LAYOUT.join(dict(reversed(z.items()))), joined), "the layout decides the order"
    assert LAYOUT.modalities == ("t1", "t2", "ecg")


def test_whitened_data_have_mean_zero_and_std_one_per_channel():
    z = components(50)
    white = Whitening.fit(LAYOUT, [(z, everyone(50))]).whiten(z)
    for x in white.values():
        axes = [axis for axis in range(x.ndim) if axis != 1]
        torch.testing.assert_close(x.mean(axes), torch.zeros(x.shape[1]).double(), atol=1e-6, rtol=0)
        torch.testing.assert_close(x.std(axes, correction=0), torch.ones(x.shape[1]).double(), atol=1e-6, rtol=0)


def test_whiten_and_colour_are_inverse_in_float64():
    z = components(20)
    whitening = Whitening.fit(LAYOUT, [(z, everyone(20))])
    other = components(5, seed=1)
    for there, back in ((whitening.whiten, whitening.colour), (whitening.colour, whitening.whiten)):
        again = back(there(other))
        assert list(again) == list(other)
        for name in other:
            torch.testing.assert_close(again[name], other[name], atol=1e-12, rtol=0)


def test_statistics_do_not_depend_on_batches_and_skip_what_is_missing():
    z, present = components(30), everyone(30)
    present["t1"] = torch.arange(30) % 3 > 0
    z["t1"][~present["t1"]] = torch.nan
    rows = [slice(0, 7), slice(7, 8), slice(8, 30)]
    batches = [({n: x[r] for n, x in z.items()}, {n: x[r] for n, x in present.items()}) for r in rows]
    whitening = Whitening.fit(LAYOUT, batches)
    seen = z["t1"][present["t1"]].numpy()
    np.testing.assert_allclose(whitening.mean["t1"].flatten(), seen.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(whitening.std["t1"].flatten(), seen.std((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(whitening.std["shared"], z["shared"].numpy().std(0), rtol=1e-6)


def test_constant_channels_and_absent_components_stay_finite():
    z, present = components(8), everyone(8)
    z["shared"][:, 1] = 3.7
    present["ecg"] = torch.zeros(8, dtype=torch.bool)
    whitening = Whitening.fit(LAYOUT, [(z, present)])
    assert whitening.std["shared"][1] == 1
    assert whitening.mean["ecg"].item() == 0
    assert whitening.std["ecg"].item() == 1


def test_statistics_survive_as_tensors():
    whitening = Whitening.fit(LAYOUT, [(components(9), everyone(9))])
    again = Whitening.of_tensors(whitening.tensors())
    for name in LAYOUT.shapes:
        assert torch.equal(again.mean[name], whitening.mean[name])
        assert torch.equal(again.std[name], whitening.std[name])


@pytest.mark.parametrize("with_shared", [True, False])
def test_latents_by_component(with_shared):
    parts = components(6)
    if not with_shared:
        del parts["shared"]
    latents = Latents.of(parts)
    assert list(latents.components) == list(parts)
    assert (latents.shared is not None) == with_shared
    assert len(latents) == 6
    assert torch.equal(latents[2:4].private["t1"], parts["t1"][2:4])
    assert len(latents[torch.arange(6) > 1]) == 4


def test_residuals_half_way_are_as_large_as_noise():
    """A mean of two independent draws of noise has a deviation of .71, which the flow was never trained on."""
    a, b = (Latents(torch.randn(500, 4), {"t1": torch.randn(500, 8)}, residual=True) for _ in range(2))
    assert a.towards(b, 0.5, 0.5).private["t1"].std() == pytest.approx(1, abs=0.05)
    a, b = (replace(z, residual=False) for z in (a, b))
    plain = a.towards(b, 0.5, 0.5)
    torch.testing.assert_close(plain.private["t1"], (a.private["t1"] + b.private["t1"]) / 2)


def test_the_length_of_a_code_does_not_count():
    c = torch.randn(4, 3, 2)
    torch.testing.assert_close(to_sphere(7 * c), to_sphere(c))
    torch.testing.assert_close(to_sphere(to_sphere(c)), to_sphere(c))


def test_draw_is_from_the_posterior():
    count = 50_000
    torch.manual_seed(0)
    latents = Latents(torch.full((count, 1), 0.5), {"t1": torch.full((count, 2), 3.0)})
    drawn = Encoded(latents, {"t1": torch.tensor([0.0, 2.0]).expand(count, 2)}, {}).draw()
    assert (drawn["shared"] == 0.5).all(), "the shared code has no spread"
    assert (drawn["t1"][:, 0] == 3).all()
    assert drawn["t1"][:, 1].mean().item() == pytest.approx(3, abs=4 * 2 / count**0.5)
    assert drawn["t1"][:, 1].std().item() == pytest.approx(2, rel=4 / (2 * count) ** 0.5)


def test_samples_are_repeated_and_put_one_after_another():
    z, seen = components(3), torch.tensor([True, False, True])
    latents = replace(Latents.of(z), detail={"t1": z["t1"] + 1}, present={"t1": seen}, residual=True)
    twice, both = latents.repeat(2), Latents.cat([latents, latents[1:]])
    for again, rows in ((twice, [0, 0, 1, 1, 2, 2]), (both, [0, 1, 2, 1, 2])):
        assert again.residual and torch.equal(again.present["t1"], seen[rows])
        assert torch.equal(again.detail["t1"], z["t1"][rows] + 1)
        assert list(again.components) == list(z)
        assert all(torch.equal(again.components[name], value[rows]) for name, value in z.items())
