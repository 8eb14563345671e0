"""Rows that several processes divide: gathered they are those of one, and so are gradients."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import several
import torch
from torch import Tensor, nn

from mandorla import parallel
from mandorla.errors import MandorlaError
from mandorla.nets.blocks import normalise_in_common
from mandorla.parallel import counts_of, gather, in_turn, mean_of_all, share, share_of
from mandorla.processes import together


def results(num: int, folder: Path, work: Callable[[], dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Return what `work()` returns in each of `num` processes."""

    def save(rank: int) -> None:
        with together("train"):
            torch.save(work(), folder / f"{rank}.pt")

    ended = several.together(num, folder, save)
    assert [one.status for one in ended] == [0] * num, "".join(one.err for one in ended)
    return [torch.load(folder / f"{rank}.pt") for rank in range(num)]


def test_alone_everything_stays_what_it_is():
    z = torch.randn(5, 3, requires_grad=True)
    assert gather(z) is z
    assert z[share(5)].shape == z.shape
    assert (parallel.world(), parallel.rank(), parallel.is_first(), parallel.anyone(True)) == (1, 0, True, True)
    assert mean_of_all(z) == z.mean()
    with in_turn():
        assert share_of(counts_of(torch.ones(5, dtype=torch.bool))) == slice(None)


@pytest.mark.parametrize(("num", "count"), [(2, 7), (3, 2)])
def test_gathered_rows_and_their_gradients_are_those_of_one_process(tmp_path, num, count):
    """Shares are of unequal size, one of three is empty; the loss is sum z^3, and each process holds all of it."""
    z = torch.arange(1.0, 2 * count + 1).view(count, 2)
    present = torch.arange(count) % 3 != 1

    def work():
        own = z[share(count)].clone().requires_grad_()
        whole = gather(own)
        whole.pow(3).sum().backward()
        chosen = z[present][share_of(counts := counts_of(present))]
        return {
            "whole": whole.detach(),
            "gradient": own.grad / num,
            "present": gather(present[share(count)]),
            "chosen": gather(chosen),
            "counted": gather(chosen, counts),
            "mean": mean_of_all(own),
        }

    found = results(num, tmp_path, work)
    for one in found:
        assert torch.equal(one["whole"], z)
        assert torch.equal(one["present"], present)
        assert torch.equal(one["chosen"], z[present])
        assert torch.equal(one["counted"], z[present])
        torch.testing.assert_close(one["mean"], z.mean())
    torch.testing.assert_close(torch.cat([one["gradient"] for one in found]), 3 * z.square())


@pytest.mark.parametrize("dims", [0, 1, 2])
def test_batch_normalisation_sees_the_rows_of_all(tmp_path, dims):
    """Values, gradients and statistics are those of one process with all rows; one of three has none."""
    torch.manual_seed(0)
    x = 3 + 2 * torch.randn(2, 4, *[5] * dims)
    norm = nn.Sequential(nn.BatchNorm2d(4) if dims == 2 else nn.BatchNorm1d(4))
    nn.init.normal_(norm[0].weight)
    alone, whole = copy.deepcopy(norm), x.clone().requires_grad_()
    y = alone(whole)
    y.pow(3).sum().backward()

    def work():
        normalise_in_common(norm)
        own = x[share(2)].clone().requires_grad_()
        (y := gather(norm(own))).pow(3).sum().backward()
        layer = norm[0]
        weights = torch.stack([layer.weight.grad, layer.bias.grad])[None]
        return dict(layer.named_buffers()) | {"y": y.detach(), "x": own.grad / 3, "weights": gather(weights).mean(0)}

    found = results(3, tmp_path, work)
    for one in found:
        torch.testing.assert_close(one["y"], y.detach(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(one["running_mean"], alone[0].running_mean)
        torch.testing.assert_close(one["running_var"], alone[0].running_var)
        assert one["num_batches_tracked"] == 1
        weights = torch.stack([alone[0].weight.grad, alone[0].bias.grad])
        torch.testing.assert_close(one["weights"], weights, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.cat([one["x"] for one in found]), whole.grad, atol=1e-4, rtol=1e-3)


def test_a_batch_without_a_row_leaves_the_statistics(tmp_path):
    """No sample of a small batch has the modality: nothing becomes NaN, and nothing moves."""

    def work():
        norm = nn.Sequential(nn.BatchNorm2d(4))
        normalise_in_common(norm)
        x = torch.zeros(0, 4, 5, 5, requires_grad=True)
        norm(x).sum().backward()
        return dict(norm[0].named_buffers()) | {"weight": norm[0].weight.grad, "x": x.grad}

    for one in results(2, tmp_path, work):
        assert torch.equal(one["running_mean"], torch.zeros(4)) and torch.equal(one["running_var"], torch.ones(4))
        assert torch.equal(one["weight"], torch.zeros(4)) and one["x"].shape == (0, 4, 5, 5)


def test_a_batch_normalisation_that_cannot_be_shared_is_named():
    with pytest.raises(MandorlaError, match="1: several processes need a batch normalisation as torch makes it"):
        normalise_in_common(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, affine=False)))


def test_texts_are_gathered(tmp_path):
    def work():
        texts = ["é", "", "b\nc"][: parallel.rank()]
        return {"same": torch.tensor(parallel.gather_texts(texts) == ["é", "é", ""])}

    assert parallel.gather_texts(["a", ""]) == ["a", ""]
    assert all(one["same"] for one in results(3, tmp_path, work))


def test_one_after_another(tmp_path):
    def work():
        with in_turn(), (tmp_path / "order").open("a") as file:
            file.write(str(parallel.rank()))
        return {}

    results(3, tmp_path, work)
    assert (tmp_path / "order").read_text() == "012"
