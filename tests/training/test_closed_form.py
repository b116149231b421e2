from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from latentwire.core.errors import Interrupted, TrainingError
from latentwire.core.names import LATENT, TEXT
from latentwire.data.example import Passage
from latentwire.model.encoding import Prepared
from latentwire.model.system import LatentWire
from latentwire.reader.slots import SlotReader
from latentwire.training.material import Material
from latentwire.training.stages import closed_form
from latentwire.training.stages.closed_form import Bands, TargetOptions, fit, r_squared, solve
from latentwire.training.stages.fixed_encoder import fit_generators
from latentwire.training.stages.importance import importance_of, rank_heads
from latentwire.training.stages.normal_equations import NormalEquations, cholesky, groups_of, shared_variance
from latentwire.training.stages.salience import auc
from tests.losses.test_objective import shake
from tests.systems import small_config, small_passages, small_system


def data(rows: int = 400, d_x: int = 12, d_y: int = 20, rank: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(rows, d_x) @ torch.randn(d_x, d_x) + 5.0
    return x, x @ torch.randn(d_x, rank) @ torch.randn(rank, d_y) * 0.3 + 2.0 + 0.05 * torch.randn(rows, d_y)


def equations(x: torch.Tensor, y: torch.Tensor, size: int = 64) -> NormalEquations:
    out = NormalEquations()
    for start in range(0, len(x), size):
        out.add(x[start : start + size], y[start : start + size])
    return out


def test_full_rank_without_ridge_is_least_squares() -> None:
    x, y = data()
    groups = torch.zeros(20, dtype=torch.long)
    factors = solve(equations(x, y), groups, rank=12, ridge=1e-7)
    fitted = (x - factors.mean_x) @ factors.encoder @ factors.generator * factors.scale + factors.mean_y
    ones = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    expected = ones @ torch.linalg.lstsq(ones, y.double()).solution
    torch.testing.assert_close(fitted, expected.float(), atol=2e-3, rtol=1e-3)


def test_low_rank_finds_the_low_rank_map_and_gives_unit_variance() -> None:
    x, y = data()
    factors = solve(equations(x, y), torch.arange(20) // 10, rank=3, ridge=1e-6)
    assert r_squared(factors, x, y) > 0.99
    z = (x - factors.mean_x) @ factors.encoder
    torch.testing.assert_close(z.std(0), torch.ones(3), atol=0.02, rtol=0.02)
    assert r_squared(solve(equations(x, y), torch.arange(20) // 10, rank=1, ridge=1e-6), x, y) < 0.95


def test_the_sum_does_not_depend_on_the_batches() -> None:
    x, y = data()
    groups = torch.zeros(20, dtype=torch.long)
    one, other = (solve(equations(x, y, size), groups, 3, 0.1) for size in (400, 37))
    torch.testing.assert_close(one.encoder @ one.generator, other.encoder @ other.generator, atol=1e-3, rtol=1e-3)


def test_a_device_without_fp64_is_not_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As MPS, where what is asked on the CPU is of another tensor."""
    whole = torch.Tensor.double

    class Single(torch.Tensor):
        def cpu(self) -> torch.Tensor:  # type: ignore[override]
            return self.as_subclass(torch.Tensor)

        def double(self) -> torch.Tensor:  # type: ignore[override]
            return pytest.fail("fp64") if type(self) is Single else whole(self)

    values, groups = torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1])
    assert shared_variance(values.as_subclass(Single), groups).tolist() == [2.0, 2.0, 5.0]
    assert auc(values.as_subclass(Single), torch.tensor([0.0, 1.0, 1.0])) == 1.0


def test_groups_share_a_scale() -> None:
    x, y = data()
    y = torch.cat([y[:, :10] * 100, y[:, 10:]], 1)
    factors = solve(equations(x, y), torch.arange(20) // 10, rank=3, ridge=1e-6)
    assert factors.scale[:10].unique().numel() == 1 and factors.scale[0] > 10 * factors.scale[10]


def test_receivers_share_no_group_of_targets() -> None:
    receivers = list(small_system(small_config()).receivers.values())
    own = [receiver.reader.target_groups() for receiver in receivers]
    found = groups_of(receivers).split([len(groups) for groups in own])
    assert [len(groups.unique()) for groups in found] == [len(groups.unique()) for groups in own]
    assert not set(found[0].tolist()) & set(found[1].tolist())


@pytest.mark.parametrize("kind", ["backbone", "simple-st"])
def test_on_a_fixed_encoder_a_generator_is_least_squares_from_latents(kind: str) -> None:
    """Also where training has moved the latents' mean; and nothing but that generator changes."""
    config = small_config(encoder={"type": kind, "d_z": 8})
    system = small_system(config)
    prepared = [system.prepare(p) for p in small_passages(30)]
    if kind == "backbone":
        with torch.no_grad():
            system.sender.encoder.mean.add_(0.3)
    before = {stem: {k: v.clone() for k, v in group.items()} for stem, group in system.state_dict().items()}
    new = {"b": system.receivers["b"]}
    scores = fit_generators(system.sender, new, prepared, held_out=4, ridge=1e-6)
    after = system.state_dict()
    for stem in ("sender", "receivers/a"):
        assert all(torch.equal(after[stem][key], value) for key, value in before[stem].items())

    with torch.no_grad():
        z, y = [], []
        for sent, texts in prepared:
            z.append(system.sender.latents_of([sent])[0][0])
            y.append(new["b"].targets([texts["b"]])[0][0].float())
        made = new["b"].reader.generate(torch.cat(z), torch.tensor([]))
        ones = torch.cat([torch.cat(z[4:]), torch.ones(sum(map(len, z[4:])), 1)], 1).double()
        solution = torch.linalg.lstsq(ones, torch.cat(y[4:]).double(), driver="gelsd").solution
        expected = torch.cat([torch.cat(z), torch.ones(len(made), 1)], 1).double() @ solution
    truth = torch.cat(y)
    error = [float((guess - truth).pow(2).mean() / truth.var()) for guess in (made, expected)]
    assert (made - expected).std() < 0.05 * expected.std()
    assert error[0] == pytest.approx(error[1], rel=0.02) and set(scores) == {"b"} and scores["b"] > 0.05


def test_fit_serves_every_receiver_from_one_latent() -> None:
    config = small_config(encoder={"d_z": 64})
    system = small_system(config)
    prepared = [system.prepare(p) for p in small_passages(30)]
    scores = fit(system, prepared, held_out=4, ridge=1e-3)
    assert set(scores) == {"a", "b"}
    assert scores["a"] > 0.6 and scores["b"] > 0.3, scores


def test_nothing_left_to_fit_on_is_named() -> None:
    config = small_config()
    system = small_system(config)
    with pytest.raises(TrainingError, match=r"curriculum\.closed_form\.held_out"):
        fit(system, [system.prepare(p) for p in small_passages(2)], held_out=2, ridge=0.1)


def test_a_ridge_too_small_for_the_text_is_named() -> None:
    matrix = torch.ones(4, 4) + torch.eye(4)
    factor = cholesky(matrix)
    torch.testing.assert_close(factor @ factor.T, matrix)
    with pytest.raises(TrainingError, match=r"curriculum\.closed_form\.ridge: too small"):
        cholesky(torch.ones(4, 4) - torch.eye(4))


def test_a_stopped_fit_goes_on_from_its_sums(tmp_path: Path) -> None:
    config = small_config()
    passages = small_passages(30)
    whole, cut = small_system(config), small_system(config)
    expected = fit(whole, [whole.prepare(p) for p in passages], held_out=4, ridge=1e-3, batch_size=4)

    read: list[int] = []

    def prepared(system: LatentWire, press_at: int | None) -> Iterator[Prepared]:
        for i, passage in enumerate(passages):
            if i == press_at:
                os.kill(os.getpid(), signal.SIGINT)
            read.append(i)
            yield system.prepare(passage)

    with pytest.raises(Interrupted, match=r"saved to .*The same command goes on"):
        fit(cut, prepared(cut, 13), held_out=4, ridge=1e-3, batch_size=4, state=tmp_path / "sums")
    assert max(read) == 15  # the batch that was begun is finished
    seen: list[int] = []
    resumed = fit(
        cut, prepared(cut, None), held_out=4, ridge=1e-3, batch_size=4, state=tmp_path / "sums", report=seen.append
    )
    assert resumed == pytest.approx(expected, abs=1e-3)
    assert len(seen) == 1 + 4  # the kept sums, then the 14 passages that were left, four at a time
    torch.testing.assert_close(
        cut.sender.encoder.weight @ cut.receivers["a"].reader.generator.linear,
        whole.sender.encoder.weight @ whole.receivers["a"].reader.generator.linear,
        atol=1e-3,
        rtol=1e-2,
    )


def test_a_band_keeps_far_tokens_out_and_predicts_better_from_few_rows() -> None:
    """Four phases of six inputs; each target depends on its own phase alone."""
    torch.manual_seed(0)
    of = torch.arange(16) % 4
    truth = torch.zeros(24, 16)
    for phase in range(4):
        truth[phase * 6 : phase * 6 + 6, of == phase] = torch.randn(6, 4)
    x, new = torch.randn(40, 24), torch.randn(200, 24)
    y, groups = x @ truth + torch.randn(40, 16), torch.zeros(16, dtype=torch.long)
    banded = solve(equations(x, y), groups, 16, 1e-3, Bands(of, 4, 0))
    whole = solve(equations(x, y), groups, 16, 1e-3)
    assert r_squared(banded, new, new @ truth) > r_squared(whole, new, new @ truth) + 0.05
    weight = banded.encoder @ banded.generator
    for phase in range(4):
        far = torch.ones(24, dtype=torch.bool)
        far[phase * 6 : phase * 6 + 6] = False
        assert weight[far][:, of == phase].abs().max() < 1e-4
    # As wide as the window it is the same as without a band.
    wide = solve(equations(x, y), groups, 16, 1e-3, Bands(of, 4, 4))
    torch.testing.assert_close(wide.encoder @ wide.generator, whole.encoder @ whole.generator, atol=1e-3, rtol=1e-3)
    # A target of the whole window (-1) beside banded ones.
    mixed = solve(equations(x, y), groups, 16, 1e-3, Bands(torch.where(of == 0, -1, of), 4, 0))
    weight = mixed.encoder @ mixed.generator
    assert weight[6:][:, of == 0].abs().max() > 1e-3 and weight[:6][:, of == 1].abs().max() < 1e-4


def test_what_matters_is_kept_when_the_rank_is_cut() -> None:
    """Two targets that vary little but matter, beside many that do not."""
    torch.manual_seed(0)
    x = torch.randn(400, 12)
    y = torch.cat([0.1 * x[:, :2], x[:, 2:] @ torch.randn(10, 10)], 1)
    groups, importance = torch.zeros(12, dtype=torch.long), torch.full((12,), 1e-3)
    importance[:2] = 1e3
    plain, weighted = (solve(equations(x, y), groups, 3, 1e-6, importance=w) for w in (None, importance))
    error = [
        float(((x - f.mean_x) @ f.encoder @ f.generator * f.scale + f.mean_y - y)[:, :2].pow(2).mean())
        for f in (plain, weighted)
    ]
    assert error[1] < 1e-3 * error[0]
    even = solve(equations(x, y), groups, 3, 1e-6, importance=torch.full((12,), 7.0))
    torch.testing.assert_close(even.encoder @ even.generator, plain.encoder @ plain.generator, atol=1e-3, rtol=1e-3)


def test_ridge_does_not_depend_on_the_units_of_a_feature() -> None:
    x, y = data(rank=12)
    groups = torch.zeros(20, dtype=torch.long)
    units = torch.logspace(-1, 1, 12)
    one, other = (solve(equations(x * scale, y), groups, 12, 0.5) for scale in (torch.ones(12), units))
    torch.testing.assert_close(other.encoder @ other.generator * units[:, None], one.encoder @ one.generator)


def test_held_out_scores_are_those_of_the_generators_as_they_are() -> None:
    scores = {}
    for rank in (None, 2):
        system = small_system(small_config(deep_prefix={"rank": rank, "hidden": 0}), ("llama",))
        passages = [system.prepare(p) for p in small_passages(12)]
        scores[rank] = fit(system, passages, held_out=3, ridge=1e-3)["a"]
    assert scores[2] < scores[None] - 0.02


def test_importance_is_the_squared_gradient_and_finds_the_slots_that_are_read() -> None:
    system = small_system(small_config(), ("llama",))
    receiver = system.receivers["a"]
    texts = [system.prepare(p)[1]["a"] for p in small_passages(4)]
    weights = importance_of(receiver, texts, 0.01)
    assert weights.shape == (receiver.lm.anatomy.slot_size,) and bool((weights > 0).all())
    # With the output of the last attention cut off, nothing in the last layer matters but the floor.
    with torch.no_grad():
        receiver.lm.model.model.layers[-1].self_attn.o_proj.weight.zero_()
    cut = importance_of(receiver, texts, 0.01).view(receiver.lm.anatomy.slot_shape)
    values = torch.cat([v for v in receiver.targets(texts)[0]]).var(0).view(cut.shape)
    assert (cut[-1] * values[-1].mean((0, 2), keepdim=True)).max() < 0.05
    assert (cut[0] * values[0].mean((0, 2), keepdim=True)).max() > 1


def test_importance_is_measured_without_dropout() -> None:
    lora = {"features": {"use_lora": True}, "lora": {"dropout": 0.5}}
    system = small_system(small_config(**lora), ("llama",))
    receiver = system.receivers["a"]
    adapter = receiver.add_adapter("latent")
    for parameter in adapter.trainable_parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    texts = [system.prepare(p)[1]["a"] for p in small_passages(4)]
    found = []
    for seed in range(2):
        torch.manual_seed(seed)
        found.append(importance_of(receiver, texts, 0.01))
    torch.testing.assert_close(found[0], found[1], atol=0, rtol=0)


@pytest.mark.parametrize(("keep", "width"), [(None, 1), (2, 0)])
def test_tokens_that_were_chosen_have_no_neighbours(
    keep: int | None, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Bands] = []

    def solving(*given: Any) -> Any:
        seen.append(given[4])
        return solve(*given)

    monkeypatch.setattr(closed_form, "solve", solving)
    system = small_system(small_config(encoder={"keep": keep}))
    fit(system, [system.prepare(p) for p in small_passages(6)], held_out=2, ridge=0.1, options=TargetOptions(band=1))
    assert [(bands.phases, bands.width) for bands in seen] == [(keep or 4, width)]


def test_text_is_read_after_every_passage_and_none_twice() -> None:
    config = small_config(curriculum={"closed_form": {"passages": 5, "held_out": 1}})
    system, passages = small_system(config), small_passages(4)
    more = [
        f"On day {day} snow fell on every one of the seven hills and on all the roads between them." for day in "123"
    ]
    system.config = config
    material = Material(system, config, passages, [passages[1].context, "Too short.", *more])
    read = [sent.text for sent, _ in material.for_closed_form()]
    asked = [passage.context for passage in passages]
    assert read == [asked[0], more[0], asked[1], more[1], asked[2], more[2]]
    config = small_config(curriculum={"closed_form": {"passages": 50}})
    assert len(list(Material(system, config, passages, more).for_closed_form())) == len(passages) + len(more)


def test_what_is_set_aside_is_not_fitted_on_under_another_name() -> None:
    config = small_config(curriculum={"closed_form": {"passages": 5, "held_out": 1}})
    system, passages = small_system(config), small_passages(3)
    twins = [replace(p, context=f"Once more: {p.context}", origin=p.context) for p in passages]
    for first, others in ((passages, twins), (twins, passages)):
        read = [sent.text for sent, _ in Material(system, config, [*first, *others], []).for_closed_form()]
        assert read == [p.context for p in (*first, *others[1:])]


def test_codebooks_are_not_judged_on_what_they_were_found_on_under_another_name() -> None:
    config = small_config(codec={"learned": ["fsq"], "passages": 11})
    passages = small_passages(10)
    twins = [replace(p, context=f"Once more: {p.context}", origin=p.context) for p in passages]

    def read(*those: Passage) -> list[str]:
        material = Material(small_system(config), config, those, [])
        return [sent.text for sent, _ in material.for_codebooks()]

    assert read(*passages, *twins) == [p.context for p in (*passages[1:], twins[0])]  # the last tenth of eleven
    same = [replace(p, id="0-1") for p in passages]  # ids of several files may be the same
    assert read(*same) == [p.context for p in passages]
    config = small_config(codec={"learned": ["fsq"], "passages": 20})
    several = (*passages[:9], *twins[:9], passages[9], twins[9])  # both of the last tenth are one text
    assert read(*several) == [p.context for p in several[:19]]


def test_heads_are_ranked_by_what_answers_hang_on_when_the_text_is_read() -> None:
    config = small_config(deep_prefix={"ranked": {"a": 2}}, encoder={"window": 4})
    system = small_system(config, ("llama",))
    receiver, reader = system.receivers["a"], system.receivers["a"].reader
    texts = [system.prepare(p)[1]["a"] for p in small_passages(6)]
    assert isinstance(reader, SlotReader)
    with torch.no_grad():  # all but the first layer's attention is cut off
        for layer in receiver.lm.model.model.layers[1:]:
            layer.self_attn.o_proj.weight.zero_()
    share = rank_heads(receiver, texts)
    assert share.shape == reader.phases_of.shape and float(share.sum()) == pytest.approx(1)
    assert float(share[0].sum()) == pytest.approx(1)
    order = share.flatten().argsort(descending=True, stable=True)
    assert reader.phases_of.flatten()[order].tolist() == [i % 2 for i in range(len(order))]


def test_importance_weighs_errors_in_a_target_s_own_units() -> None:
    x, y = data(rank=12)
    groups, importance = torch.arange(20) // 5, torch.linspace(0.1, 2, 20)
    units = torch.tensor([0.01, 1.0, 10.0, 100.0]).repeat_interleave(5)
    one, other = (
        solve(equations(x, y * u), groups, 3, 1e-6, importance=importance / u.pow(2)) for u in (units / units, units)
    )
    made = [(x - f.mean_x) @ f.encoder @ f.generator * f.scale for f in (one, other)]
    torch.testing.assert_close(made[1] / units, made[0], atol=2e-2, rtol=1e-2)


def test_importance_by_hand() -> None:
    system = small_system(small_config(), ("llama",))
    receiver = system.receivers["a"]
    texts = [system.prepare(p)[1]["a"] for p in small_passages(4)]
    values, counts = receiver.targets(texts)
    values.requires_grad_()
    with receiver.using(LATENT):
        block = receiver.pack(texts, random.Random(0), copying=False)
        loss = receiver.loss(receiver.reader.context(receiver.lm, values, counts), block).total
    (gradient,) = torch.autograd.grad(loss, values)
    rows = torch.cat([row[:n] for row, n in zip(values.detach(), counts.tolist(), strict=True)])
    variance = rows.var(0).view(receiver.lm.anatomy.slot_shape).mean((1, 3), keepdim=True)
    variance = variance.expand(receiver.lm.anatomy.slot_shape).flatten()  # of a layer's keys or values
    share = gradient.pow(2).sum((0, 1)) * variance
    expected = (0.75 * share / share.mean() + 0.25) / variance
    torch.testing.assert_close(importance_of(receiver, texts, 0.25), expected, rtol=1e-3, atol=1e-4)


def test_ridge_of_a_generator_is_a_share_of_what_latents_vary() -> None:
    made = []
    for size in (1.0, 10.0):
        system = small_system(small_config(encoder={"d_z": 8}))
        with torch.no_grad():
            system.sender.encoder.weight.mul_(size)  # type: ignore[operator]
        prepared = [system.prepare(p) for p in small_passages(20)]
        fit_generators(system.sender, system.receivers, prepared, held_out=4, ridge=0.5)
        with torch.no_grad():
            z, counts = system.sender.latents_of([sent for sent, _ in prepared[:4]])
            made.append(system.receivers["b"].reader.generate(z, counts))
    torch.testing.assert_close(made[0], made[1], atol=1e-3, rtol=1e-3)


def test_heads_are_ranked_with_the_lora_tuned_on_text() -> None:
    config = small_config(deep_prefix={"ranked": {"a": 2}}, features={"use_lora": True})
    system = small_system(config, ("llama",))
    receiver = system.receivers["a"]
    texts = [system.prepare(p)[1]["a"] for p in small_passages(4)]
    shares = [rank_heads(receiver, texts)]
    for name in (LATENT, TEXT):
        shake(receiver, name)
        shares.append(rank_heads(receiver, texts))
    assert torch.equal(shares[0], shares[1]) and not torch.allclose(shares[1], shares[2], rtol=0.01)


def test_what_is_too_long_for_sender_receiver_or_option_is_not_trained_on() -> None:
    """A passage fits with its longest question and answer, or not by one token."""
    passages = small_passages(4)
    passages[2] = replace(passages[2], context=f"{passages[2].context} {passages[3].context}")
    system = small_system(small_config(), ("llama",))
    receiver, prepared = system.receivers["a"], [system.prepare(p) for p in passages]
    tokens = [sent.tokens for sent, _ in prepared]
    needed = [len(t["a"].ids) + max(len(q) + len(a) for q, a in t["a"].questions) for _, t in prepared]
    for limit in (sorted(tokens)[2], sorted(tokens)[2] - 1):
        config = small_config(data={"max_context_tokens": limit})
        found = Material(system, config, passages, []).passages
        assert found == [p for p, n in zip(passages, tokens, strict=True) if n <= limit] and len(found) < 4
    anatomy = receiver.lm.anatomy
    for limit in (sorted(needed)[2], sorted(needed)[2] - 1):
        receiver.lm.anatomy = replace(anatomy, max_positions=limit)
        found = Material(system, small_config(), passages, []).passages
        assert found == [p for p, n in zip(passages, needed, strict=True) if n <= limit] and len(found) < 4
