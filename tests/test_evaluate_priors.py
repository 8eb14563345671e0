"""Simple priors: right where they can be, wrong where they must be."""

import pytest
import torch

from mandorla.evaluate.priors import PRIORS


def latents(num: int = 4000) -> dict[str, torch.Tensor]:
    """Return a shared code in two clusters, and a private map that follows it."""
    generator = torch.Generator().manual_seed(0)
    side = torch.randint(0, 2, (num, 1), generator=generator).float() * 8 - 4
    shared = side + torch.randn(num, 3, generator=generator)
    private = shared.mean(1)[:, None, None, None] + 0.5 * torch.randn(num, 2, 2, 2, generator=generator)
    return {"shared": shared, "t1": private}


@pytest.mark.parametrize("name", PRIORS)
def test_what_a_prior_draws_is_as_large_as_it_was_however_many_numbers_there_are(name):
    generator = torch.Generator().manual_seed(0)
    train = {"shared": torch.randn(2000, 150, generator=generator), "t1": torch.ones(2000, 2)}
    drawn = PRIORS[name](train, 1000, 1)
    assert drawn["shared"].var().item() == pytest.approx(1, abs=0.05)
    torch.testing.assert_close(drawn["t1"], torch.ones(1000, 2), msg="a channel that never varies")


def test_a_mixture_of_what_never_varies():
    constant = {"shared": torch.ones(50, 3)}
    torch.testing.assert_close(PRIORS["mixture"](constant, 10, 0)["shared"], torch.ones(10, 3))


@pytest.mark.parametrize(
    ("name", "together", "clusters"), [("gaussian", 1, 0), ("mixture", 1, 1), ("independent", 0, 1)]
)
def test_what_each_prior_keeps(name, together, clusters):
    train = latents()
    drawn = PRIORS[name](train, 3000, 1)
    assert {k: z.shape for k, z in drawn.items()} == {"shared": (3000, 3), "t1": (3000, 2, 2, 2)}
    for key, z in train.items():
        torch.testing.assert_close(drawn[key].mean(0), z.mean(0), atol=0.35, rtol=0)
        torch.testing.assert_close(drawn[key].std(0), z.std(0), atol=0.25, rtol=0)
    a, b = drawn["shared"].mean(1), drawn["t1"].flatten(1).mean(1)
    correlation = torch.corrcoef(torch.stack([a, b]))[0, 1].item()
    assert (correlation > 0.9) == bool(together) and (abs(correlation) < 0.1) == (not together)
    between = (a.abs() < 2).float().mean().item()  # a Gaussian puts much where no cluster is
    assert (between < 0.02) == bool(clusters)
    again = PRIORS[name](train, 3000, 1)
    assert all(torch.equal(drawn[key], again[key]) for key in drawn), "same seed, same draws"
    assert not torch.equal(drawn["shared"], PRIORS[name](train, 3000, 2)["shared"])
