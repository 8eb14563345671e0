"""The loss of stage 1: every term reaches what it should, and nothing else."""

import pytest
import torch

from mandorla.data.dataset import Batch, Modality, all_present
from mandorla.nets.encoder_decoder import ConvolutionalConfig, EncoderDecoder
from mandorla.vae import objective as objectives
from mandorla.vae.losses import reconstruction
from mandorla.vae.memory import Memory
from mandorla.vae.model import VAE, LatentConfig, ModelConfig, pool
from mandorla.vae.objective import LossConfig, Objective, frozen, leak, let_through, some

SMALL = ConvolutionalConfig(channels=(6, 8), hidden=12)
ALONE = Memory(0, 1, 1)  # nothing of past steps
MODALITIES = tuple(Modality(name, 1, (10, 13)) for name in ("t1", "t2", "pd"))
VECTOR, MAP = LatentConfig(channels=3), LatentConfig(channels=2, stride=4)
OFF = {"kl_weight": 0.0, "agreement_weight": 0.0, "swap_weight": 0.0, "leak_weight": 0.0, "agreement_first": 0.0}


def build(shared=VECTOR, private=VECTOR, **loss) -> Objective:
    config = ModelConfig(shared=shared, private=private, encoder_decoder=SMALL)
    return Objective(VAE(config, MODALITIES), LossConfig(**loss))


def batch(num: int = 12) -> Batch:
    x = {m.name: torch.rand(num, *m.shape) for m in MODALITIES}
    return Batch(x, all_present(x))


def reached(objective: Objective, part: str) -> bool:
    """Return whether a gradient came to the weights whose name contains `part`."""
    named = [p for name, p in objective.named_parameters() if part in name]
    assert named, part
    return any(p.grad is not None and p.grad.abs().sum() > 0 for p in named)


@pytest.mark.parametrize("shared", [VECTOR, MAP])
@pytest.mark.parametrize("private", [VECTOR, MAP])
def test_all_terms_are_finite_and_reach_every_weight(shared, private):
    objective = build(shared, private)
    loss, terms = objective(batch())
    expected = {"reconstruction", "kl", "agreement", "swap_shared", "swap_private", "leak", "loss"}
    assert set(terms) == expected
    assert all(term.isfinite() for term in terms.values())
    assert not any(term.requires_grad for term in terms.values())
    loss.backward()
    idle = [name for name, p in objective.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not idle


def test_weights_weigh():
    weights = {"kl_weight": 2.0, "agreement_weight": 3.0, "swap_weight": 5.0, "leak_weight": 7.0}
    objective = build(agreement_first=0.0, **weights)
    _, terms = objective(batch())
    values = 10 * 13
    expected = (
        terms["reconstruction"]
        + 2 * terms["kl"] / values
        + 3 * terms["agreement"]
        + 5 * (terms["swap_shared"] + terms["swap_private"])
        + 7 * terms["leak"]
    )
    torch.testing.assert_close(terms["loss"], expected)


def test_a_weight_of_zero_switches_a_term_off():
    _, terms = build(**OFF)(batch())
    assert set(terms) == {"reconstruction", "kl", "loss"}, "kl costs nothing and is told in any case"
    torch.testing.assert_close(terms["loss"], terms["reconstruction"])


def test_the_likeliest_width_follows_the_error_of_each_modality():
    """The loss is then the likelihood's, up to a constant, and smallest at that width."""
    objective, data = build(decoder_std=None, **OFF), batch()
    data.x["t1"] *= 0.1
    objective.eval()(data)
    assert torch.equal(objective.errors, torch.ones(3)), "looking changes nothing"
    _, terms = objective.train()(data)
    widths = objective.errors.sqrt()
    assert widths[0] < 0.5 * widths[1] and objective.errors.max() < 1
    torch.testing.assert_close(terms["reconstruction"], (0.5 + widths.log()).mean())
    for _ in range(300):
        data.x["pd"] = torch.full_like(data.x["pd"], 2.0)
        objective(data)
    assert objective.errors[2] > 1.5 * widths[2].square(), "a moving average moves"
    x, decoded = torch.rand(2, 5, 1, 4, 4)
    normal = torch.distributions.Normal(decoded, 0.3).log_prob(x).flatten(1).mean(1)
    constant = -0.5 * torch.tensor(2 * torch.pi).log()
    torch.testing.assert_close(reconstruction(x, decoded, torch.tensor(0.3)), constant - normal)


def test_the_likeliest_width_of_a_laplace_law():
    """The loss is 1 + log(width) then, smallest at that width, as sqrt(2) mean |error| is the width."""
    objective, data = build(decoder_std=None, likelihood="laplace", **OFF), batch()
    _, terms = objective.train()(data)
    widths = 2**0.5 * objective.errors
    torch.testing.assert_close(terms["reconstruction"], (1 + widths.log()).mean())


def test_what_is_dropped_is_decoded_as_in_a_translation(monkeypatch):
    """Nothing of t1 is told: neither its u, which has no rate then, nor its c, but where there is no other."""
    rows = torch.ones(4000, dtype=torch.bool)
    assert some(rows, 0.7).float().mean().item() == pytest.approx(0.7, abs=0.03)
    assert torch.equal(some(rows, 1.0), rows)
    objective = build(private_dropout=0.999, **OFF)
    _, terms = objective(batch())
    objective(batch())[0].backward()
    assert terms["kl"] == 0
    assert not reached(objective, "read_private") and reached(objective, "read_shared")
    sources, real = [], objectives.pool
    monkeypatch.setattr(objectives, "pool", lambda codes, chosen: sources.append(chosen) or real(codes, chosen))
    data = batch()
    data.present["t2"][:4], data.present["pd"][:4] = False, False
    objective(data)
    chosen = sources[1]  # of the first target, after the pool of all
    assert chosen["t1"][:4].all() and not chosen["t1"][4:].any()
    assert (chosen["t2"] | chosen["pd"])[4:].all()


def test_agreement_comes_first_and_alone():
    objective = build(agreement_first=0.5)
    assert set(objective(batch(), 0.49)[1]) == {"agreement", "loss"}
    assert "reconstruction" in objective(batch(), 0.5)[1]


def test_a_modality_does_not_write_its_own_content_into_the_shared_code():
    """With nothing but t1 present, reconstruction must not reach the head that reads c from t1."""
    objective = build(**OFF)
    only = batch()
    for name in ("t2", "pd"):
        only.present[name][:] = False
    objective(only)[0].backward()
    assert not reached(objective, "t1.read_shared")
    assert reached(objective, "t1.read_private")
    others = build(**OFF)
    others(batch())[0].backward()
    assert reached(others, "t1.read_shared"), "other modalities' reconstructions do teach it"


def test_the_gradient_of_a_target_flows_where_it_is_told_to():
    z = torch.rand(3, requires_grad=True)
    for share in (0.0, 0.25, 1.0):
        through = let_through(z, share)
        torch.testing.assert_close(through, z)
        assert through.requires_grad == (share > 0)
    let_through(z, 0.25).sum().backward()
    assert (z.grad == 0.25).all()
    objective, only = build(**OFF, target_gradient=1.0), batch()
    for name in ("t2", "pd"):
        only.present[name][:] = False
    objective(only)[0].backward()
    assert reached(objective, "t1.read_shared")


@pytest.mark.parametrize("subsets", [True, False])
def test_reconstruction_reads_random_subsets_or_all(subsets, monkeypatch):
    objective, given, decoded = build(**OFF, subsets=subsets, shared_noise=0.0), batch(40), []
    monkeypatch.setattr(objective.vae, "decode", lambda name, c, u: decoded.append(c) or given.x[name])
    objective(given)
    whole = pool(objective.vae.encode(given.x, given.present)[1], given.present)
    assert len(decoded) == 3
    assert all(torch.allclose(c, whole, atol=1e-5) for c in decoded) != subsets


def test_the_private_code_reads_the_shared_one_and_does_not_shape_it(monkeypatch):
    objective = build(agreement_first=0.0)
    posterior, seen = objective.vae.posterior, []

    def spy(name, features, c):
        seen.append(c.requires_grad)
        return posterior(name, features, c)

    monkeypatch.setattr(objective.vae, "posterior", spy)
    objective(batch())
    assert len(seen) == 6
    assert not any(seen)


def test_swap_teaches_decoders_and_no_encoder():
    objective = build(**{**OFF, "swap_weight": 1.0})
    c, u = torch.randn(12, 3), torch.randn(12, 3)
    statistics = {name: z.clone() for name, z in objective.named_buffers()}
    sum(objective.swap("t1", c, u)).backward()
    assert reached(objective, "t1.up")
    for part in ("down", "read_shared", "read_private", "mix_features"):
        assert not reached(objective, f"t1.{part}")
    assert all(torch.equal(z, statistics[name]) for name, z in objective.named_buffers())


def test_swap_gives_each_sample_the_private_code_of_another(monkeypatch):
    objective, decoded = build(**{**OFF, "swap_weight": 1.0, "swap_fraction": 1.0, "shared_noise": 0.0}), []
    decode = objective.vae.decode
    monkeypatch.setattr(objective.vae, "decode", lambda name, c, u: decoded.append((c, u)) or decode(name, c, u))
    c, u = torch.randn(12, 3), torch.randn(12, 3)
    objective.swap("t1", c, u)
    ((shared, private),) = decoded
    assert torch.equal(shared, c)
    assert sorted(map(tuple, private.tolist())) == sorted(map(tuple, u.tolist()))
    assert (private != u).any(1).sum() >= 6


def test_leak_teaches_the_private_code_alone():
    objective = build(**{**OFF, "leak_weight": 1.0})
    vae, given = objective.vae, batch()
    features, codes = vae.encode(given.x, given.present)
    mean, _ = vae.posterior("t1", features["t1"].detach(), codes["t1"].detach())
    leak(mean, codes["t1"].detach(), 64, ALONE).backward()
    assert reached(objective, "t1.read_private")
    assert not reached(objective, "t1.read_shared")


@pytest.mark.parametrize("u_grid", [(), (4, 6)])
@pytest.mark.parametrize("c_grid", [(), (2, 3), (8, 12)])
def test_leak_of_vectors_and_maps(u_grid, c_grid):
    c = torch.randn(24, 2, *c_grid)
    u = torch.randn(24, 3, *u_grid)
    assert abs(leak(u, c, 500, ALONE).item()) < 0.25
    if u_grid and c_grid == u_grid[:0]:
        told = c[:, :, None, None].expand(-1, -1, *u_grid)
    elif not u_grid:
        told = c.flatten(1)
    else:
        told = torch.nn.functional.interpolate(c, u_grid, mode="area")
    assert leak(told, c, 500, ALONE) > 0.9


def test_leak_is_measured_on_rows_of_past_steps_too():
    """A dependence that a batch of eight is too small to show, in the value and in what each new row is told."""
    torch.manual_seed(0)
    u = torch.randn(512, 2)
    c = u.abs() + 0.3 * torch.randn(512, 2)
    memory, alone, together = Memory(480, 2, 2), [], []
    for k in range(0, 512, 8):
        rows = u[k : k + 8].clone().requires_grad_()
        for values, past in ((alone, ALONE), (together, memory)):
            value = leak(rows, c[k : k + 8], 8, past)
            (gradient,) = torch.autograd.grad(value, rows)
            values.append((value.detach(), gradient.norm()))
    few, many = (torch.tensor(values[-20:]) for values in (alone, together))
    assert many[:, 0].std() < few[:, 0].std() / 5
    assert 0.1 < many[:, 1].mean() / few[:, 1].mean() < 2
    assert torch.equal(memory.u[:8], u[-8:])
    assert torch.equal(memory.c, c.flip(0).unflatten(0, (-1, 8)).flip(1).flatten(0, 1)[:480])
    memory.eval()
    assert len(memory(u[:4], c[:4])[0]) == 484
    assert torch.equal(memory.u[:8], u[-8:])


def test_steps_are_alike_where_nothing_is_missing():
    """Those of agreement alone and those of all terms are of two kinds; what is remembered grows from step to step."""
    objective, whole = build(agreement_first=0.5), batch().present
    assert objective.kind(whole, 0.1) == objective.kind(whole, 0.4) != objective.kind(whole, 0.6) is not None
    missing = {name: rows.clone() for name, rows in whole.items()}
    next(iter(missing.values()))[0] = False
    assert objective.kind(missing, 0.6) is None
    assert build(leak_memory=8).kind(whole, 0.6) is None
    name = next(iter(objective.vae.networks))
    objective.vae.networks[name] = EncoderDecoder(MODALITIES[0], VECTOR.shape(()), VECTOR.shape(()))
    assert objective.kind(whole, 0.6) is None, "nobody knows what a network of the user's own does"


@pytest.mark.parametrize(("num", "training"), [(2, True), (3, True), (1, False)])
def test_few_samples_train_a_decoder_too(num, training):
    """Small batches, and few validation samples, by which the best weights are chosen."""
    objective = build().train(training)
    loss, terms = objective(batch(num))
    assert {"reconstruction", "kl"} <= set(terms) and not {"leak", "swap_private"} & set(terms)
    assert torch.isfinite(loss)
    if training:
        loss.backward()
        assert reached(objective, "t1.up")


def test_missing_modalities_count_for_nothing():
    objective, given = build(), batch()
    given.present["pd"][1:] = False  # one is too few for a term of its own
    given.x["pd"][1:] = torch.nan
    loss, terms = objective(given)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in objective.parameters())
    assert not reached(objective, "pd.up")


@pytest.mark.parametrize("loss", [{}, OFF, {**OFF, "agreement_first": 0.5}])
def test_batches_without_any_pair_or_term_train_on(loss):
    """Early samples of one modality each, agreement alone or switched off: no crash, and no NaN."""
    objective, given = build(**loss), batch(6)
    for k, name in enumerate(given.present):
        given.present[name] = torch.arange(6) // 2 == k
    for progress in (0.0, 1.0):
        value, _ = objective(given, progress)
        value.backward()
        assert value.isfinite()


def test_frozen_leaves_frozen_parts_frozen():
    """A user's own network may hold weights that are not trained."""
    vae = build().train().vae
    own = next(vae.parameters()).requires_grad_(False)
    still = vae.networks["t1"].down.eval()
    with frozen(vae):
        assert not any(p.requires_grad for p in vae.parameters())
    assert not own.requires_grad
    assert not still.training
    assert vae.networks["t2"].down.training
    assert sum(not p.requires_grad for p in vae.parameters()) == 1


def test_frozen_is_over_afterwards():
    objective = build()
    objective.train()
    x = torch.rand(4, 3, requires_grad=True)
    with frozen(objective.vae):
        assert not objective.vae.training
        out = objective.vae.decode("t1", x, x)
    assert objective.vae.training
    out.sum().backward()
    assert x.grad.abs().sum() > 0
    assert not reached(objective, "t1.up")
