"""What the two readers hand to a receiver."""

from __future__ import annotations

import math

import pytest
import torch

from latentwire.backbone.anatomy import describe
from latentwire.backbone.rotary import rotate
from latentwire.core.errors import ModelError
from latentwire.model.system import LatentWire
from latentwire.reader.base import behind_head
from latentwire.reader.color import Color
from latentwire.reader.generator import Generator
from latentwire.reader.slots import phase_table
from latentwire.training.stages.closed_form import fit
from latentwire.training.stages.end_to_end import EndToEnd
from tests.systems import small_config, small_passages, small_system
from tests.tiny import FAMILIES, tiny_lm


def test_interleaved_heads_take_every_phase_and_strided_heads_the_last() -> None:
    anatomy = tiny_lm("llama").anatomy
    assert phase_table(anatomy, 4, "interleaved").tolist() == [[0, 1], [2, 3], [0, 1]]
    assert phase_table(anatomy, 4, "strided").unique().tolist() == [3]


def test_what_is_not_finite_leaves_no_trace_in_the_colour() -> None:
    color = Color(torch.randn(64, 4), full=True)
    before = {name: buffer.clone() for name, buffer in color.named_buffers()}
    rows = torch.randn(2, 3, 4)
    color(torch.full_like(rows, float("nan")), torch.ones(2, 3, dtype=torch.bool))
    assert all(torch.equal(buffer, before[name]) for name, buffer in color.named_buffers())
    rows[0, 0] = float("inf")
    color(rows, torch.ones(2, 3, dtype=torch.bool))
    assert color.mean.isfinite().all() and not torch.equal(color.mean, before["mean"])


def test_behind_head_puts_the_head_before_the_body_and_pads_on_the_left() -> None:
    head = torch.tensor([[9.0]])
    body = torch.tensor([[[1.0], [2.0], [3.0]], [[4.0], [0.0], [0.0]]])
    rows, mask = behind_head(head, body, torch.tensor([3, 1]))
    assert mask.tolist() == [[True] * 4, [False, False, True, True]]
    assert rows[0, :, 0].tolist() == [9, 1, 2, 3] and rows[1, 2:, 0].tolist() == [9, 4]


@pytest.mark.parametrize("slots", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_latents_are_read_in_m_positions_with_gradients_to_everything(family: str, slots: bool) -> None:
    system = small_system(
        small_config(model={"dtype": "float32", "receivers": {"a": "t"}}, features={"use_deep_prefix": slots}),
        (family,),
    )
    receiver = system.receivers["a"]
    prepared = [system.prepare(p) for p in small_passages(2)]
    z, counts = system.sender.latents_of([sent for sent, _ in prepared])
    for step in range(2):  # the MLP's first layer wakes up once its zero-initialised output layer has moved
        context = receiver.read_latents(z, counts)
        assert context.mask.sum(1).tolist() == [len(receiver.prompt.head) + n for n in counts.tolist()]
        nll = receiver.lm.continue_from(context, torch.tensor([[5], [6]]), torch.ones(2, 1, dtype=torch.bool))
        parameters = [*receiver.reader.named_parameters(), ("encoder", system.sender.encoder.weight)]
        grads = torch.autograd.grad(
            nll.pow(2).sum(), [p for _, p in parameters], retain_graph=step == 0, allow_unused=True
        )
        if step == 0:
            with torch.no_grad():
                for (_, p), g in zip(parameters, grads, strict=True):
                    if g is not None and p is not system.sender.encoder.weight:
                        p.sub_(0.01 * g.sign())
    dead = [n for (n, p), g in zip(parameters, grads, strict=True) if p.numel() and (g is None or g.abs().sum() == 0)]
    assert not dead


@pytest.mark.parametrize("slots", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_text_between_head_and_latents_is_read_as_in_a_text(family: str, slots: bool) -> None:
    """Where the latents stand for a passage's tokens themselves, the whole is the text."""
    config = small_config(
        model={"dtype": "float32", "receivers": {"a": "t"}},
        encoder={"window": 1},
        features={"use_deep_prefix": slots},
        adapter={} if slots else {"calibration": "none"},
    )
    receiver = small_system(config, (family,)).receivers["a"]
    lm, head, reader = receiver.lm, receiver.prompt.head, receiver.reader
    opening, passage, tail = (
        receiver.prompt.opening(text) for text in ("Mira Voss:\n", "Red lamps on the hill.", "\nWho")
    )
    before = [*head, *opening]
    own = lm.own_slots([*before, *passage])[len(before) :].flatten(1)
    values = own if slots else lm.embed(torch.tensor(passage))
    known = receiver.read_text([[*before, *passage]])
    counts = torch.tensor([len(passage)])
    context = reader.context(lm, values[None], counts, reader.opening(lm, head, opening))
    without = reader.context(lm, values[None], counts)
    assert context.mask.sum() == known.mask.sum() == without.mask.sum() + len(opening)
    nll = [float(receiver.score(one, [(tail, passage[:3])]).nll) for one in (known, context, without)]
    assert nll[1] == pytest.approx(nll[0], rel=1e-4) and abs(nll[2] - nll[0]) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_slot_stands_as_far_from_the_question_as_its_token_did(family: str) -> None:
    """The text's own cache, moved back by the positions that windows of 4 save, is what the slots are cut from."""
    config = small_config(model={"dtype": "float32", "receivers": {"a": "t"}})
    receiver = small_system(config, (family,)).receivers["a"]
    lm, head = receiver.lm, receiver.prompt.head
    passage = receiver.prompt.opening("Mira Voss lives in Orlin and sells red lamps on the hill.")
    windows = len(passage) // 4
    passage = passage[: 4 * windows]
    ids = torch.tensor([[*head, *passage]])
    tokens = len(head) + torch.arange(4 * windows).view(windows, 4).T  # (phases, M)
    values = receiver.reader.targets(lm, ids, torch.ones_like(ids), tokens[None])
    context = receiver.reader.context(lm, values, torch.tensor([windows]))
    text = receiver.read_text([[*head, *passage]])
    back = torch.tensor([[windows - len(passage)]])
    assert windows > 2 and context.mask.sum() == len(head) + windows
    for layer, (cos, sin) in enumerate(lm.rope(back)):
        slots, whole = context.cache.layers[layer], text.cache.layers[layer]
        moved = rotate(whole.keys, cos[:, None], sin[:, None])
        for kv_head, phase in enumerate(receiver.reader.phases_of[layer]):
            chosen = torch.cat([torch.arange(len(head)), tokens[phase]])
            torch.testing.assert_close(slots.keys[:, kv_head], moved[:, kv_head, chosen], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(slots.values[:, kv_head], whole.values[:, kv_head, chosen], atol=1e-4, rtol=1e-4)


def test_with_windows_of_a_fraction_slots_stand_that_far_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = {"window": 2.5, "keep": 2}
    receiver = small_system(small_config(encoder=encoder, model={"receivers": {"a": "t"}})).receivers["a"]
    lm, reader, seen = receiver.lm, receiver.reader, []
    rope = lm.rope
    monkeypatch.setattr(lm, "rope", lambda positions: (seen.append(positions), rope(positions))[1])
    reader.context(lm, torch.randn(1, 4, math.prod(reader.shape)), torch.tensor([4]))
    after = reader.head.shape[0] + 4  # The question's first position, right behind the last slot.
    assert (seen[0].view(reader.phases, -1)[:, -4:] - after).tolist() == [[-9, -6.5, -4, -1.5]] * 2


def test_the_same_wire_is_read_by_receivers_with_other_tokenizers() -> None:
    system = small_system(small_config(), FAMILIES)
    sent, texts = system.prepare(small_passages(1)[0])
    assert {t.latents for t in texts.values()} == {len(sent.starts)}
    assert len({len(t.ids) for t in texts.values()}) > 1


@pytest.mark.parametrize("gain", [1.0, 3.0])
@pytest.mark.parametrize("calibration", ["embed_rms", "fixed", "train_stats", "none"])
def test_calibration_and_gain_set_the_size_of_what_is_read(calibration: str, gain: float) -> None:
    adapter = {"calibration": calibration, "hidden": 0, "gain": gain}
    adapter |= {"fixed_rms": 0.5} if calibration == "fixed" else {}
    system = small_system(small_config(features={"use_deep_prefix": False}, adapter=adapter), ("llama",))
    receiver = system.receivers["a"]
    prepared = [system.prepare(p) for p in small_passages(6)]
    fit(system, prepared, held_out=2, ridge=0.1)
    targets = torch.cat([receiver.targets([texts["a"]])[0] for _, texts in prepared[2:]], 1)
    seen = {}
    receiver.lm.prefill = lambda mask, embeds: seen.update(rms=embeds[:, 1:].pow(2).mean(-1).sqrt())  # type: ignore
    given = torch.randn(2, 5, 48) * 7
    with torch.no_grad():
        receiver.reader.context(receiver.lm, given, torch.tensor([5, 5]))
        of_table = receiver.lm.embed(torch.arange(len(receiver.lm.tokenizer))).pow(2).mean().sqrt()
    expected = {
        "none": given.pow(2).mean(-1).sqrt(),
        "embed_rms": of_table.expand(2, 5),
        "fixed": torch.full((2, 5), 0.5),
        "train_stats": targets.pow(2).mean().sqrt().expand(2, 5),
    }[calibration]
    torch.testing.assert_close(seen["rms"], gain * expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_a_generator_makes_its_mean_of_the_mean_latent() -> None:
    generator, counts = Generator(4, 6, hidden=3), torch.tensor([2])
    for tensor in (generator.centre, generator.shift, generator.scale):
        torch.nn.init.normal_(tensor)
    centre, away = generator.centre.expand(1, 2, 4), torch.randn(1, 2, 4)
    torch.testing.assert_close(generator(centre, counts), generator.shift.expand(1, 2, 6))
    made = (away @ generator.linear) * generator.scale + generator.shift
    torch.testing.assert_close(generator(centre + away, counts), made)


def embedding_system(**adapter: object) -> LatentWire:
    config = small_config(
        model={"dtype": "float32", "receivers": {"a": "x"}},
        features={"use_deep_prefix": False, "use_lora": True},
        adapter=adapter,
    )
    return small_system(config, ("llama",))


def test_a_learned_gain_is_trained_and_kept() -> None:
    system, other, fixed = (embedding_system(gain=2.0, learn_gain=learn) for learn in (True, True, False))
    module = EndToEnd(system, [system.prepare(p) for p in small_passages(4)], system.config)
    groups = {g.name: g.parameters for g in module.parameter_groups()}
    (gain,) = groups["gain/a"]
    module.forward(module.batch(0)).loss.backward()
    assert gain.item() == 2.0 and gain.grad is not None and gain.grad.abs() > 0
    with torch.no_grad():
        gain.mul_(1.5)
    z, counts = torch.randn(1, 4, 16), torch.tensor([4])
    with torch.no_grad():
        before = fixed.receivers["a"].reader.calibrate(z.new_ones(1, 4, 48))
        torch.testing.assert_close(system.receivers["a"].reader.calibrate(z.new_ones(1, 4, 48)), 1.5 * before)
        other.load_state_dict(system.state_dict())
        one, two = (s.receivers["a"].read_latents(z, counts).cache.layers[0].keys for s in (system, other))
    assert torch.equal(one, two)


@pytest.mark.parametrize("color", ["diagonal", "full"])
def test_colour_gives_generated_vectors_the_statistics_of_the_embeddings(color: str) -> None:
    system = embedding_system(color=color, calibration="none", hidden=0)
    receiver = system.receivers["a"]
    table = receiver.lm.embed(torch.arange(len(receiver.lm.tokenizer))).float()
    torch.manual_seed(0)
    z, counts = torch.randn(8, 400, 16) * torch.linspace(0.8, 1.5, 16) + 3.0, torch.full((8,), 400)
    counts[0] = 1  # what is padding must not count
    mask = torch.arange(400)[None] < counts[:, None]
    z[~mask] = 1e4
    for _ in range(150):
        receiver.reader.generate(z, counts)
    with torch.no_grad():
        before = {k: v.clone() for k, v in receiver.reader.color.state_dict().items()}
        found = receiver.reader.generate(z, counts)[mask]
        after = receiver.reader.color.state_dict()
    assert set(before) == {"mean", "root"} and all(torch.equal(before[k], after[k]) for k in before)
    torch.testing.assert_close(found.mean(0), table.mean(0), atol=5e-3, rtol=1e-2)
    if color == "diagonal":
        torch.testing.assert_close(found.var(0), table.var(0), rtol=2e-2, atol=1e-4)
        return
    # 16 latent dimensions cannot fill 48: in the 16 that are there, the covariance is that of whitened vectors.
    white = torch.linalg.solve_triangular(receiver.reader.color.table_root, (found - table.mean(0)).T, upper=False)
    spectrum = torch.linalg.eigvalsh(torch.cov(white)).flip(0)
    assert spectrum[15] > 0.5 and spectrum[0] < 1.1 and spectrum[16:].abs().max() < 1e-3


def test_full_colour_brings_one_covariance_to_another() -> None:
    torch.manual_seed(0)
    table, rows = (torch.randn(4000, 6) @ (torch.eye(6) + 0.3 * torch.randn(6, 6)) + torch.randn(6) for _ in range(2))
    color = Color(table, full=True)
    for _ in range(200):
        color(rows[None], torch.ones(1, len(rows), dtype=torch.bool))
    with torch.no_grad():
        found = color(rows[None], torch.ones(1, len(rows), dtype=torch.bool))[0]
    torch.testing.assert_close(found.mean(0), table.mean(0), atol=0.05, rtol=0.05)
    size = torch.cov(table.T).diagonal().mean()
    assert (torch.cov(rows.T) - torch.cov(table.T)).abs().max() / size > 0.5
    assert (torch.cov(found.T) - torch.cov(table.T)).abs().max() / size < 0.1  # what SHRINKAGE leaves


def test_colour_starts_from_what_the_closed_form_knows_and_is_not_for_own_embeddings() -> None:
    system = embedding_system(color="diagonal", calibration="none", hidden=0)
    receiver = system.receivers["a"]
    prepared = [system.prepare(p) for p in small_passages(6)]
    own = receiver.read_own([prepared[0][1]["a"]]).cache.layers[0].keys
    fit(system, prepared, held_out=2, ridge=0.1)
    color, generator = receiver.reader.color, receiver.reader.generator
    assert torch.equal(color.mean, generator.shift) and torch.equal(color.root, generator.scale)
    assert torch.equal(receiver.read_own([prepared[0][1]["a"]]).cache.layers[0].keys, own)
    assert torch.equal(color.mean, generator.shift)  # reading what is its own teaches it nothing either


def test_an_unsupported_architecture_is_refused_by_name() -> None:
    from transformers import GPT2Config

    with pytest.raises(ModelError, match=r"'gpt2' is not supported .supported: gemma3_text, llama, qwen2, qwen3"):
        describe(GPT2Config(), "some/gpt2")


def test_a_layer_s_keys_and_its_values_are_groups_of_their_own() -> None:
    reader = small_system(small_config(), ("llama",)).receivers["a"].reader
    groups = reader.target_groups().view(reader.shape)  # (layers, kv_heads, 2, head_dim)
    assert groups[:, 0, :, 0].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert torch.equal(groups, groups[:, :1, :, :1].expand(reader.shape))
