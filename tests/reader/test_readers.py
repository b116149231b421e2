"""What the two readers hand to a receiver."""

from __future__ import annotations

import pytest
import torch

from latentwire.backbone.anatomy import describe
from latentwire.core.errors import ModelError
from latentwire.reader.base import left_align
from latentwire.reader.slots import phase_table
from latentwire.training.stages.closed_form import fit
from tests.systems import small_config, small_passages, small_system
from tests.tiny import FAMILIES, tiny_lm


def test_interleaved_heads_take_every_phase_and_strided_heads_the_last() -> None:
    anatomy = tiny_lm("llama").anatomy
    assert phase_table(anatomy, 4, "interleaved").tolist() == [[0, 1], [2, 3], [0, 1]]
    assert phase_table(anatomy, 4, "strided").unique().tolist() == [3]


def test_left_align_puts_the_head_before_the_body_and_pads_on_the_left() -> None:
    head = torch.tensor([[9.0]])
    body = torch.tensor([[[1.0], [2.0], [3.0]], [[4.0], [0.0], [0.0]]])
    rows, mask = left_align(head, body, torch.tensor([3, 1]))
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
    z, counts = system.sender.encode([sent for sent, _ in prepared])
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


def test_the_same_wire_is_read_by_receivers_with_other_tokenizers() -> None:
    system = small_system(small_config(), FAMILIES)
    sent, texts = system.prepare(small_passages(1)[0])
    assert {t.latents for t in texts.values()} == {len(sent.starts)}
    assert len({len(t.ids) for t in texts.values()}) > 1


@pytest.mark.parametrize("calibration", ["embed_rms", "fixed", "train_stats", "none"])
def test_calibration_sets_the_size_of_what_is_read(calibration: str) -> None:
    adapter = {"calibration": calibration, "fixed_rms": 0.5, "hidden": 0}
    system = small_system(small_config(features={"use_deep_prefix": False}, adapter=adapter), ("llama",))
    receiver = system.receivers["a"]
    prepared = [system.prepare(p) for p in small_passages(6)]
    fit(system, prepared, held_out=2, ridge=0.1)
    targets = torch.cat([receiver.targets([texts["a"]])[0] for _, texts in prepared[2:]], 1)
    seen = {}
    receiver.lm.prefill = lambda mask, embeds: seen.update(rms=embeds[:, 1:].pow(2).mean(-1).sqrt())  # type: ignore
    receiver.reader.context(receiver.lm, torch.randn(2, 5, 48) * 7, torch.tensor([5, 5]))
    of_targets = float(targets.pow(2).mean().sqrt())
    rms = {"fixed": 0.5, "none": None, "embed_rms": None, "train_stats": of_targets}[calibration]
    if calibration == "none":
        assert seen["rms"].mean() > 4
    else:
        assert seen["rms"].std() < 1e-3 and (rms is None or abs(float(seen["rms"].detach().mean()) - rms) < 1e-3)
        assert float(seen["rms"].detach().mean()) == pytest.approx(float(receiver.reader.rms), rel=1e-3)


def test_an_unsupported_architecture_is_refused_by_name() -> None:
    from transformers import GPT2Config

    with pytest.raises(ModelError, match=r"'gpt2' is not supported .supported: gemma3_text, llama, qwen2, qwen3"):
        describe(GPT2Config(), "some/gpt2")
