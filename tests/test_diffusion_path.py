"""The path: times per component, and a loss that only what travels contributes to."""

import pytest
import torch
from oracles import GaussianFlow

from mandorla.diffusion.path import draw_regions, draw_times, flow_loss, interpolate
from mandorla.diffusion.samplers import time_grid

NAMES = ["shared", "t1", "t2"]
MANY = 20_000


def everyone(num: int = MANY) -> dict[str, torch.Tensor]:
    return {name: torch.ones(num, dtype=torch.bool) for name in NAMES}


def test_path_begins_in_noise_and_ends_in_data():
    noise, data = torch.randn(2, 3, 2, 4)
    torch.testing.assert_close(interpolate(noise, data, torch.zeros(3)), noise)
    torch.testing.assert_close(interpolate(noise, data, torch.ones(3)), data)
    middle = interpolate(noise, data, torch.tensor([0.25, 0.5, 1.0]))
    torch.testing.assert_close(middle[0], 0.75 * noise[0] + 0.25 * data[0])


def test_one_time_per_sample_known_is_one_unknown_is_zero():
    times, travels = draw_times(NAMES, everyone(), 0.3, "joint", 1.0)
    assert ((times == 0) | (times == 1) | travels).all()
    lowest, highest = times.where(travels, 2.0).amin(1), times.where(travels, -1.0).amax(1)
    assert torch.equal(lowest, highest)
    assert ((highest > 0) & (highest < 1)).all(), "every sample has a component that travels"
    assert (times == 1).any()
    assert (times == 0).any()


def test_times_are_logit_normal():
    times, travels = draw_times(NAMES, everyone(), 1.0, "joint", 0.7)
    assert travels.all()
    logits = torch.logit(times[:, 0].double())
    assert logits.mean().item() == pytest.approx(0, abs=4 * 0.7 / MANY**0.5)
    assert logits.std().item() == pytest.approx(0.7, rel=4 / (2 * MANY) ** 0.5)


def test_times_are_shifted_as_the_grid_of_samplers_is():
    torch.manual_seed(0)
    plain, _ = draw_times(NAMES, everyone(), 1.0, "joint", 1.0)
    torch.manual_seed(0)
    shifted, _ = draw_times(NAMES, everyone(), 1.0, "joint", 1.0, time_shift=3.0)
    grid, even = (torch.tensor(time_grid(10, shift=shift)) for shift in (3.0, 1.0))
    for before, after in zip(even[1:-1], grid[1:-1], strict=True):
        assert torch.equal(plain < before, shifted < after)
    assert shifted.mean() < plain.mean() - 0.1


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_share_of_samples_in_which_all_travel(share):
    _, travels = draw_times(NAMES, everyone(), share, "joint", 1.0)
    by_chance = (1 / 3) ** 2  # one is forced to travel, the two others each do so in a third of the cases
    assert travels.all(1).float().mean().item() == pytest.approx(share + (1 - share) * by_chance, abs=0.015)


def test_conditional_mode_always_knows_the_shared_part():
    times, travels = draw_times(NAMES, everyone(), 0.5, "conditional", 1.0)
    assert (times[:, 0] == 1).all()
    assert not travels[:, 0].any()
    assert travels[:, 1:].any(1).all()


@pytest.mark.parametrize("mode", ["joint", "conditional"])
def test_absent_components_never_travel_and_others_do_instead(mode):
    given = everyone()
    given["t1"] = torch.arange(MANY) % 2 == 0
    given["t2"] = torch.arange(MANY) % 3 == 0
    given["shared"] = given["t1"] | given["t2"]
    times, travels = draw_times(NAMES, given, 0.2, mode, 1.0)
    exists = torch.stack([given[name] for name in NAMES], 1)
    assert not travels[~exists].any()
    assert (times[~exists] == 0).all()
    can = exists[:, 1:] if mode == "conditional" else exists
    assert torch.equal(travels.any(1), can.any(1)), "a sample that has something to learn from is used"


def gaussian_batch(num: int = 6):
    noise, data, velocity = ({name: torch.randn(num, 2, 3) for name in NAMES} for _ in range(3))
    travels = torch.rand(num, len(NAMES)) < 0.5
    travels[0], travels[1] = False, True
    return velocity, noise, data, travels


def test_loss_is_the_mean_over_what_travels():
    velocity, noise, data, travels = gaussian_batch()
    errors = [
        (velocity[name][i] - (data[name][i] - noise[name][i])).square().mean()
        for i in range(6)
        for k, name in enumerate(NAMES)
        if travels[i, k]
    ]
    total, parts = flow_loss(velocity, noise, data, travels)
    torch.testing.assert_close(total, torch.stack(errors).mean())
    counts = travels.sum(0)
    mean = sum(parts[name] * counts[k] for k, name in enumerate(NAMES)) / counts.sum()
    torch.testing.assert_close(mean, total)


def test_loss_and_gradient_ignore_what_does_not_travel():
    velocity, noise, data, travels = gaussian_batch()
    total, _ = flow_loss(velocity, noise, data, travels)
    for k, name in enumerate(NAMES):
        for tensors in (velocity, noise, data):
            tensors[name][~travels[:, k]] = torch.nan
        velocity[name].requires_grad_()
    poisoned, parts = flow_loss(velocity, noise, data, travels)
    assert torch.equal(poisoned, total)
    assert all(part.isfinite() for part in parts.values())
    poisoned.backward()
    for k, name in enumerate(NAMES):
        gradient = velocity[name].grad
        assert gradient.isfinite().all()
        assert (gradient[~travels[:, k]] == 0).all()


def test_nothing_travels_means_no_loss():
    velocity, noise, data, travels = gaussian_batch()
    velocity["t1"].requires_grad_()
    total, parts = flow_loss(velocity, noise, data, torch.zeros_like(travels))
    assert total.item() == 0
    assert {name: part.item() for name, part in parts.items()} == dict.fromkeys(data, 0)
    total.backward()


def test_exact_velocity_is_the_minimum_of_the_loss():
    """E|x_1 - x_0 - velocity|^2 is the variance of x_1 - x_0 given x_t, a closed form for Gaussians."""
    flow, t = GaussianFlow.draw(4), 0.6
    noise = torch.randn(MANY, 4, dtype=torch.float64)
    data = flow.transport(torch.randn(MANY, 4, dtype=torch.float64))
    exact = flow.velocity(interpolate(noise, data, torch.full((MANY,), t)), t)
    identity = torch.eye(4, dtype=torch.float64)
    cross = t * flow.covariance - (1 - t) * identity
    spread = t**2 * flow.covariance + (1 - t) ** 2 * identity
    left = (flow.covariance + identity - cross @ torch.linalg.inv(spread) @ cross.T).trace() / 4
    travels = torch.ones(MANY, 1, dtype=torch.bool)
    loss = {f: flow_loss({"z": exact * f}, {"z": noise}, {"z": data}, travels)[0].item() for f in (0.95, 1.0, 1.05)}
    assert loss[1.0] == pytest.approx(left.item(), rel=0.03)  # four standard errors
    assert loss[1.0] < min(loss[0.95], loss[1.05])


def test_regions_are_boxes_or_all_but_boxes():
    data = {"shared": torch.zeros(MANY, 4), "t1": torch.zeros(MANY, 2, 5, 6), "t2": torch.zeros(MANY, 1, 7)}
    travels = torch.rand(MANY, 3) < 0.8
    held = draw_regions(data, travels, 0.5)
    assert {name: cells.shape for name, cells in held.items()} == {"t1": (MANY, 5, 6), "t2": (MANY, 7)}
    assert not draw_regions(data, travels, 0.0)
    for column, name in ((1, "t1"), (2, "t2")):
        cells = held[name]
        assert not cells[~travels[:, column]].any()
        some = cells.flatten(1).any(1) & ~cells.flatten(1).all(1)
        assert 0.3 < some[travels[:, column]].float().mean() < 0.5, "half are chosen; a few boxes are empty or all"
        assert cells[travels[:, column]].float().mean().item() == pytest.approx(0.25, abs=0.03)
    for one in held["t1"][held["t1"].flatten(1).any(1)][:200]:
        assert is_box(one) or is_box(~one)


def is_box(cells: torch.Tensor) -> bool:
    rows, columns = cells.any(1).nonzero()[:, 0], cells.any(0).nonzero()[:, 0]
    return not len(rows) or bool(cells[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all())


def test_what_is_held_costs_nothing():
    velocity, noise, data, travels = gaussian_batch()
    travels[:] = True
    velocity, noise, data = ({name: z[name][..., None] for name in NAMES} for z in (velocity, noise, data))
    held = {"t1": torch.zeros(6, 3, 1, dtype=torch.bool)}
    plain, _ = flow_loss(velocity, noise, data, travels)
    assert flow_loss(velocity, noise, data, travels, held)[0] == plain
    held["t1"][:, 1] = True
    wrong = velocity | {"t1": velocity["t1"].clone()}
    wrong["t1"][:, :, 1] += 100
    assert flow_loss(wrong, noise, data, travels, held)[0] == flow_loss(velocity, noise, data, travels, held)[0]
    assert flow_loss(velocity, noise, data, travels, held)[0] < plain
