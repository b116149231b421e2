"""Windows of which only the tokens that are hardest to predict are read (encoder.keep)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from latentwire.core.errors import ConfigError
from latentwire.encoder import backbone
from latentwire.encoder.windows import best_of_windows, follow
from latentwire.model.system import LatentWire
from latentwire.training.loop import Trainer
from latentwire.training.stages.closed_form import TargetOptions, fit
from latentwire.training.stages.end_to_end import EndToEnd
from latentwire.training.stages.slot_tuning import SlotTuning
from tests.systems import small_config, small_passages, small_system
from tests.tiny import tiny_lm


def system_with(**encoder: object) -> LatentWire:
    return small_system(small_config(encoder={"window": 4, "keep": 2} | encoder))


def test_the_best_of_windows_come_first_and_repeats_last() -> None:
    surprisal = [9.0, 1.0, 5.0, 3.0, 2.0, 7.0]
    assert best_of_windows([[1, 5], [2, 5], [3, 5], [4, 5]], surprisal, surprisal, 2) == [[2, 5], [3, 5]]
    assert best_of_windows([[1, 4], [1, 4], [2, 5], [2, 5]], surprisal, surprisal, 3) == [[2, 5], [1, 4], [2, 5]]


def test_tokens_of_another_tokenizer_are_found_by_their_centres() -> None:
    other = [(0, 3), (3, 4), (4, 9), (9, 12)]
    assert follow([[(0, 2), (5, 7)], [(3, 4), (11, 30)]], other) == [[0, 2], [1, 3]]


def test_surprisal_is_what_the_model_itself_says() -> None:
    lm = tiny_lm("llama")
    ids = torch.tensor([[1, 7, 9, 4, 12]])
    final = lm.final_states(ids, torch.ones_like(ids))
    found = lm.surprisal(final[0], ids[0])
    log_p = F.log_softmax(lm.model(ids).logits[0, :-1].float(), -1)
    torch.testing.assert_close(found[1:], -log_p.gather(1, ids[0, 1:, None])[:, 0], atol=1e-5, rtol=1e-5)
    assert found[0] == float("inf")


@torch.no_grad()
def test_sender_and_receivers_read_the_same_words() -> None:
    system = system_with()
    for passage in small_passages(3):
        sent, texts = system.prepare(passage)
        assert sent.chosen is not None and len(sent.chosen) == 2 and len(sent.chosen[0]) == sent.latents
        for window in zip(*sent.phase_tokens, *sent.chosen, strict=True):
            assert set(window[4:]) <= set(window[:4])
        # The first receiver has the sender's tokenizer, so it reads the very same tokens.
        head, frame = texts["a"].head_len, len(sent.ids) - sent.tokens
        assert texts["a"].phase_tokens == [[i - frame + head for i in row] for row in sent.chosen]
        own = system.receivers["b"].lm.tokenize_with_offsets(passage.context)[1]
        for mine, theirs in zip(texts["b"].phase_tokens, sent.chosen, strict=True):
            for token, chosen in zip(mine, theirs, strict=True):
                (a, b), (first, end) = sent.offsets[chosen], own[token - texts["b"].head_len]
                assert first <= (a + b - 1) / 2 < end


@torch.no_grad()
def test_features_are_those_of_the_chosen_tokens_alone_or_in_a_batch() -> None:
    system = system_with()
    texts = [system.sender.prepare(passage.context) for passage in small_passages(3)]
    together = system.sender.features(texts)
    for text, features in zip(texts, together, strict=True):
        torch.testing.assert_close(system.sender.features([text])[0], features, atol=1e-4, rtol=1e-4)
        assert text.chosen is not None
        encoder = system.sender.encoder
        ids = torch.tensor([text.ids])
        with encoder.lm.outputs_of(encoder.layers) as seen:  # type: ignore[attr-defined]
            encoder.lm.final_states(ids, torch.ones_like(ids))  # type: ignore[attr-defined]
        states = torch.stack([seen[k] for k in encoder.layers], 2)[0]  # type: ignore[attr-defined]
        first = states[text.chosen[0]]
        first = first * torch.rsqrt(first.pow(2).mean(-1, keepdim=True) + 1e-6)
        torch.testing.assert_close(features[:, : first[0].numel()], first.flatten(1), atol=1e-4, rtol=1e-4)


def test_texts_are_read_once_for_the_choice_and_the_features_of_what_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    system, read = system_with(), []
    lm = system.sender.encoder.lm  # type: ignore[attr-defined]
    final_states = lm.final_states

    def counted(ids: Tensor, mask: Tensor, **how: bool) -> Tensor:
        read.append(len(ids))
        return final_states(ids, mask, **how)

    monkeypatch.setattr(lm, "final_states", counted)
    texts = [system.sender.prepare(passage.context) for passage in small_passages(3)]
    system.sender.features(texts)
    assert read == [1, 1, 1]  # each by itself, as a choice must not depend on other texts
    system.sender.features(texts)
    assert read == [1, 1, 1, 3]


@pytest.mark.parametrize("together", [2, 64])
def test_choices_made_ahead_are_those_of_each_text_by_itself(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone, "TOGETHER", together)
    system, texts = system_with(), [passage.context for passage in small_passages(5)]
    ahead, alone = ([system.sender.prepare(text) for text in texts] for _ in range(2))
    system.sender.encoder.choose_ahead(ahead)
    assert all("chosen" in vars(text) for text in ahead)
    assert [text.chosen for text in ahead] == [text.chosen for text in alone]


def test_slots_stand_in_the_middle_of_their_window() -> None:
    """A window's slots are as far from the question as its tokens are on average."""
    whole, chosen = system_with(keep=None, window=4), system_with(keep=1, window=4)
    a, b = whole.receivers["a"], chosen.receivers["a"]
    b.reader.head.data.copy_(a.reader.head)
    values = torch.randn(1, 3, *a.reader.shape).flatten(2)  # type: ignore[attr-defined]
    far, near = (r.reader.context(r.lm, values, torch.tensor([3])).cache.layers for r in (a, b))
    torch.testing.assert_close(near[0].values, far[0].values)
    heads = [head for head in range(a.reader.shape[1]) if int(a.reader.phases_of[0, head]) == 2]  # type: ignore[attr-defined, index]
    layer = 1 if not heads else 0
    heads = heads or [h for h in range(a.reader.shape[1]) if int(a.reader.phases_of[1, h]) == 2]  # type: ignore[attr-defined, index]
    body = a.reader.head.shape[0]
    torch.testing.assert_close(near[layer].keys[:, heads, body:], far[layer].keys[:, heads, body:])


def test_every_stage_runs_and_learns(tmp_path: Path) -> None:
    config = small_config(encoder={"window": 4, "keep": 2}, features={"use_lora": True}, optimizer={"lr": 1e-2})
    system = small_system(config)
    prepared = [system.prepare(passage) for passage in small_passages(12)]
    for name, receiver in system.receivers.items():
        tuning = SlotTuning(receiver, [texts[name] for _, texts in prepared], config, "latent")
        Trainer(tuning, config, tmp_path / name, 2).fit()
    options = TargetOptions(band=1, asked=[texts for _, texts in prepared[:2]])
    scores = fit(system, prepared, held_out=4, ridge=0.1, options=options)
    assert set(scores) == {"a", "b"} and system.sender.encoder.phases == 2  # type: ignore[attr-defined]
    module = EndToEnd(system, prepared, config)
    trainer = Trainer(module, config, tmp_path / "end", 40)
    losses = [trainer.take_step()["loss"] for _ in range(40)]
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])


def test_it_must_fit_the_window_and_the_encoder() -> None:
    from latentwire.config.load import config_from_dict

    for values, message in (
        ({"encoder": {"keep": 8, "window": 8}}, "encoder.keep: 8 is not less than encoder.window = 8"),
        ({"encoder": {"window": 7.5}}, "encoder.window: 7.5 is a fraction; only encoder.keep can read that"),
        ({"encoder": {"keep": 2, "type": "byte"}}, "encoder.keep: only encoder.type = 'backbone'"),
        ({"encoder": {"keep": 2}, "losses": {"copy_weight": 1.0}}, "losses.copy_weight: asks for all tokens"),
        ({"encoder": {"keep": 2}, "features": {"use_gist_head": True}}, "features.use_gist_head: asks for all tokens"),
        ({"encoder": {"keep": 2}, "deep_prefix": {"pattern": "strided"}}, "deep_prefix.pattern: asks for all tokens"),
    ):
        with pytest.raises(ConfigError, match=message):
            config_from_dict(values, "x.json", {})


@torch.no_grad()
def test_long_texts_are_judged_piece_by_piece() -> None:
    lm = tiny_lm("llama")
    torch.manual_seed(0)
    ids, final = torch.randint(3, 60, (600,)), torch.randn(600, lm.anatomy.hidden_size)
    expected = F.cross_entropy(lm.logits(final[:-1]), ids[1:], reduction="none")
    torch.testing.assert_close(lm.surprisal(final, ids)[1:], expected)
