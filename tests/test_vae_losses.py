"""The terms of stage 1 against torch.distributions, plain loops and closed forms."""

import math
from itertools import permutations

import pytest
import torch
from torch.distributions import Laplace, Normal, kl_divergence

from mandorla.vae import losses
from mandorla.vae.losses import agreement, alignment, dependence, info_nce, kl, private_recovery, reconstruction


@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 3, 4), (1, 2, 2, 3)])
def test_kl_is_that_of_torch(shape):
    mean, log_std = torch.randn(2, 5, *shape, dtype=torch.float64)
    truth = kl_divergence(Normal(mean, log_std.exp()), Normal(torch.zeros_like(mean), 1.0)).flatten(1).sum(1)
    torch.testing.assert_close(kl(mean, log_std), truth)
    assert (kl(torch.zeros(3, *shape), torch.zeros(3, *shape)) == 0).all()


@pytest.mark.parametrize("std", [0.05, 1.0])
def test_reconstruction_is_minus_the_log_density_up_to_a_constant(std):
    x, decoded = torch.rand(2, 6, 3, 4, 5, dtype=torch.float64)
    constant = math.log(std * math.sqrt(2 * math.pi))
    truth = -Normal(decoded, std).log_prob(x).flatten(1).mean(1) - constant
    torch.testing.assert_close(reconstruction(x, decoded, std), truth)


@pytest.mark.parametrize("std", [1.0, 0.05])
def test_reconstruction_by_a_laplace_law(std):
    x, decoded = torch.rand(2, 6, 3, 4, 5, dtype=torch.float64)
    constant = math.log(std * math.sqrt(2))
    truth = -Laplace(decoded, std / math.sqrt(2)).log_prob(x).flatten(1).mean(1) - constant
    torch.testing.assert_close(reconstruction(x, decoded, std, laplace=True), truth)


def test_private_recovery_is_minus_the_log_density_up_to_a_constant():
    u, again = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    truth = -Normal(again, 1.0).log_prob(u).flatten(1).mean(1) - math.log(math.sqrt(2 * math.pi))
    torch.testing.assert_close(private_recovery(u, again), truth)


def test_info_nce_is_that_of_a_plain_loop():
    a, b = torch.randn(2, 7, 4, dtype=torch.float64)
    tau, total = 0.3, 0.0
    for i in range(7):
        for one, other in ((a, b), (b, a)):
            scores = [torch.cosine_similarity(one[i], other[j], dim=0).item() / tau for j in range(7)]
            total += (math.log(sum(map(math.exp, scores))) - scores[i]) / 2 / 7
    assert info_nce(a, b, tau).item() == pytest.approx(total, abs=1e-10)
    assert info_nce(b, a, tau).item() == pytest.approx(total, abs=1e-10)


def test_info_nce_between_nothing_and_everything():
    same = torch.ones(16, 3)
    assert info_nce(same, same, 0.1).item() == pytest.approx(math.log(16), abs=1e-5)
    apart = torch.eye(16)
    assert info_nce(apart, apart, 0.05).item() == pytest.approx(0, abs=1e-6)
    assert info_nce(apart, -apart, 0.02).item() == pytest.approx(50 + math.log(15), rel=1e-6), "the least temperature"


def test_agreement_compares_only_samples_that_have_both():
    codes = {name: torch.randn(9, 4) for name in "abc"}
    present = {name: torch.rand(9) < 0.7 for name in "abc"}
    terms = []
    for one, other in (("a", "b"), ("a", "c"), ("b", "c")):
        both = present[one] & present[other]
        terms.append(info_nce(codes[one][both], codes[other][both], 0.3))
    poisoned = {name: code.masked_fill(~present[name][:, None], torch.nan) for name, code in codes.items()}
    torch.testing.assert_close(agreement(poisoned, present, 0.3, 1024), torch.stack(terms).mean())


def test_alignment_is_the_mean_squared_difference_of_those_that_have_both():
    codes = {name: torch.randn(6, 3, 2) for name in "abc"}
    present = {"a": torch.ones(6, dtype=torch.bool), "b": torch.arange(6) < 4, "c": torch.zeros(6, dtype=torch.bool)}
    expected = (codes["a"][:4] - codes["b"][:4]).square().mean()
    torch.testing.assert_close(alignment(codes, present), expected)
    assert alignment({"a": codes["a"], "b": codes["a"]}, {"a": present["a"], "b": present["a"]}) == 0
    assert alignment(codes, {name: present["c"] for name in "abc"}) == 0


def test_agreement_without_any_pair_is_zero():
    codes = {name: torch.randn(4, 3) for name in "ab"}
    present = {"a": torch.arange(4) < 2, "b": torch.arange(4) >= 2}
    assert agreement(codes, present, 0.3, 1024).item() == 0


def test_agreement_of_maps_matches_location_by_location():
    codes = {name: torch.randn(3, 5, 2, 4) for name in "ab"}
    present = {name: torch.ones(3, dtype=torch.bool) for name in "ab"}
    rows = {name: code.permute(0, 2, 3, 1).reshape(24, 5) for name, code in codes.items()}
    torch.testing.assert_close(agreement(codes, present, 0.3, 1024), info_nce(rows["a"], rows["b"], 0.3))
    few = agreement({name: torch.ones(3, 5, 2, 4) for name in "ab"}, present, 0.3, 6)
    assert few.item() == pytest.approx(math.log(6), abs=1e-5), "at most max_cells locations"


def test_hsic_without_bias_is_the_mean_over_all_quadruples():
    """Song et al. 2012: the estimate is a U-statistic, a mean over quadruples of different rows."""
    n = 7
    k, l = (m + m.T for m in torch.rand(2, n, n, dtype=torch.float64))  # noqa: E741
    k.fill_diagonal_(1)
    l.fill_diagonal_(1)
    terms = [k[i, j] * l[i, j] + k[i, j] * l[q, r] - 2 * k[i, j] * l[i, q] for i, j, q, r in permutations(range(n), 4)]
    assert losses._hsic(k, l).item() == pytest.approx(torch.stack(terms).mean().item(), abs=1e-12)


def test_dependence_of_independent_rows_is_zero_on_average():
    values = torch.stack([dependence(torch.randn(64, 3), torch.randn(64, 4)) for _ in range(100)])
    assert values.mean().item() == pytest.approx(0, abs=4 * (values.std() / 10).item())
    assert (values < 0).any(), "an estimate without bias lies on both sides of zero"
    assert values.abs().max() < 0.2


def test_dependence_of_many_rows_is_that_in_double_precision():
    c = torch.randn(2000, 16)
    u = torch.randn(2000, 16) + 0.3 * c
    assert dependence(u, c).item() == pytest.approx(dependence(u.double(), c.double()).item(), abs=3e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert dependence(u, c).item() == pytest.approx(dependence(u.double(), c.double()).item(), abs=3e-6)


def test_dependence_of_identical_rows_is_one():
    u = torch.randn(64, 3)
    assert dependence(u, u).item() == pytest.approx(1, abs=1e-4)
    assert dependence(u, -3 * u + 5).item() == pytest.approx(1, abs=1e-3), "neither sign, scale nor place matter"


def test_dependence_sees_what_correlation_does_not():
    c = torch.randn(256, 1)
    u = c.square()
    assert torch.corrcoef(torch.cat([u, c], 1).T)[0, 1].abs() < 0.2
    blind = dependence(u[torch.randperm(256)], c)
    assert dependence(u, c) > 0.2
    assert dependence(u, c) > 5 * blind.abs()


def test_dependence_grows_with_the_leak_and_can_be_lowered():
    c = torch.randn(128, 2)
    own = torch.randn(128, 2)
    values = [dependence(own + leak * c, c).item() for leak in (0.0, 0.5, 1.0, 3.0)]
    assert values == sorted(values)
    u = (own + c).requires_grad_()
    before = dependence(u, c)
    before.backward()
    assert u.grad.isfinite().all()
    assert dependence(u.detach() - 5 * u.grad, c) < before


def test_dependence_of_a_collapsed_code_is_finite():
    u = torch.zeros(32, 3, requires_grad=True)
    value = dependence(u, torch.randn(32, 2))
    value.backward()
    assert value.isfinite()
    assert u.grad.isfinite().all()
