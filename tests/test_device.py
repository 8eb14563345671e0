"""The GPU that is meant, and as many threads as there are idle cores."""

import psutil
import pytest
import torch

from mandorla.device import choose_device, own_random, use_idle_cores
from mandorla.errors import MandorlaError


@pytest.mark.parametrize(
    ("loads", "wanted"), [([3, 99, 10, 4], 3), ([100, 98], 1), ([1] * 4, 4), ([0] * 64, 4), ([49, 51], 1)]
)
def test_idle_cores_have_a_thread_each(monkeypatch, loads, wanted):
    before, given = torch.get_num_threads(), []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval, percpu: loads)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    use_idle_cores()
    assert given == [wanted]
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    use_idle_cores()
    assert given == [wanted], f"the user's own number counts ({before} threads here)"


def test_what_is_drawn_inside_changes_nothing_outside():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with own_random(7):
        inside = torch.rand(3)
    with own_random(7):
        assert torch.equal(torch.rand(3), inside)
    with own_random():
        torch.rand(3)
    assert torch.equal(torch.rand(3), expected)


def test_choose_device(monkeypatch):
    assert choose_device("cpu").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"
    with pytest.raises(MandorlaError, match="no CUDA device"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose_device("cuda") == torch.device("cuda", 1)
    assert choose_device("cpu").type == "cpu"
