"""The gist head: what it hides, what it asks of the latents, and that it leaves reading alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from latentwire.features.gist_head import GistHead
from latentwire.model.system import LatentWire
from latentwire.train import main as train_main
from tests.commands import arguments
from tests.features.test_matrix import latents, module_of, system_with
from tests.tiny import FAMILIES


def head_of(system: LatentWire) -> GistHead:
    head = system.receivers["a"].features["gist_head"]
    assert isinstance(head, GistHead)
    return head


def loss_of(system: LatentWire, texts: list[list[int]], seed: int = 0) -> Tensor:
    receiver = system.receivers["a"]
    context = receiver.read_latents(*latents(system, len(texts)))
    torch.manual_seed(seed)
    loss = head_of(system).loss(receiver.lm, context, texts)
    assert loss is not None
    return loss


@pytest.mark.parametrize("family", FAMILIES)
def test_it_learns_to_rebuild_embeddings(family: str) -> None:
    system = system_with(family, "gist_head", mask_ratio=1.0)
    module, head = module_of(system), head_of(system)
    optimizer = torch.optim.AdamW([*head.trainable_parameters(), system.sender.encoder.weight], lr=1e-2)
    batch = module.batch(0)
    seen = []
    for _ in range(30):
        out = module.forward(batch)
        seen.append(out.metrics["gist_head"])
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert seen[-1] < 0.6 * seen[0]


def test_an_untrained_head_that_predicts_nothing_costs_one() -> None:
    """The loss is a share of the embeddings' mean square, so that 1 is what predicting zero gives."""
    system = system_with("llama", "gist_head", mask_ratio=1.0, weight=0.25)
    out = module_of(system).forward(module_of(system).batch(0))
    assert out.terms["gist_head"].item() == pytest.approx(0.25 * out.metrics["gist_head"])
    with torch.no_grad():
        head_of(system).out.weight.zero_()
        head_of(system).out.bias.zero_()
    assert loss_of(system, [[3, 7, 9], [4, 5]]).item() == pytest.approx(1.0)


def test_only_the_first_tokens_are_rebuilt_and_padding_is_none_of_them() -> None:
    system = system_with("llama", "gist_head", mask_ratio=1.0, target_len=4)
    long, short = [3, 7, 9, 4, 12, 5, 8], [6, 2]
    both = loss_of(system, [long, short])
    torch.testing.assert_close(both, loss_of(system, [[*long[:4], 1, 1, 1], short]))
    assert not torch.allclose(both, loss_of(system, [[*long[:3], 11], short]))


def test_a_longer_text_beside_it_does_not_change_what_is_rebuilt() -> None:
    system, made = system_with("llama", "gist_head", mask_ratio=1.0), []
    receiver, head = system.receivers["a"], head_of(system)
    head.out.register_forward_pre_hook(lambda _, args: made.append(args[0]))
    z, counts = latents(system)
    for texts, rows in (([[3, 7, 9, 4, 12, 5], [6, 2]], slice(None)), ([[6, 2]], slice(1, None))):
        head.loss(receiver.lm, receiver.read_latents(z[rows], counts[rows]), texts)
    torch.testing.assert_close(made[0][1, :2], made[1][0])


def test_in_training_it_rebuilds_the_text_and_not_its_head(monkeypatch: pytest.MonkeyPatch) -> None:
    system, given = system_with("llama", "gist_head"), []
    module, head = module_of(system), head_of(system)
    rebuild = head.loss
    monkeypatch.setattr(head, "loss", lambda lm, context, ids: (given.extend(ids), rebuild(lm, context, ids))[1])
    batch = module.batch(0)
    module.forward(batch)
    texts = [module.passages[i][1]["a"] for i in batch.chosen]
    assert all(text.head_len for text in texts)
    assert given == [text.ids[text.head_len :] for text in texts]


def test_what_is_shown_helps_and_at_least_one_token_is_hidden() -> None:
    system = system_with("llama", "gist_head", mask_ratio=1e-9)
    texts = [[3, 7, 9, 4]]
    assert loss_of(system, texts).item() > 0  # all the same, something is asked
    shown = head_of(system).shown.weight
    loss_of(system, [[3], [7]]).backward()
    assert shown.grad is None or not shown.grad.any()  # nothing is left to show where the only token is hidden
    shown.grad = None
    system = system_with("llama", "gist_head", mask_ratio=0.5)
    shown = head_of(system).shown.weight
    loss_of(system, [[3, 7, 9, 4, 12, 5], [4, 5, 6, 7, 8, 9]]).backward()
    assert shown.grad is not None and shown.grad.abs().sum() > 0


@pytest.mark.parametrize("ratio", [1e-9, 0.25, 0.75])
def test_a_share_of_a_text_is_hidden_and_where_that_is_nothing_one_token(ratio: float) -> None:
    system = system_with("llama", "gist_head", mask_ratio=ratio, target_len=100)
    given: list[Tensor] = []
    head_of(system).shown.register_forward_pre_hook(lambda _, args: given.append(args[0]))  # type: ignore[union-attr]
    loss_of(system, [list(range(5, 105)), [5, 6, 7]])
    hidden = (given[0] == 0).all(-1)
    if ratio < 1e-6:
        assert hidden[0].sum() == 1 == hidden[1, :3].sum()
    else:
        assert hidden[0].float().mean().item() == pytest.approx(ratio, abs=0.15)


def test_gradients_reach_the_sender_through_the_latents() -> None:
    system = system_with("llama", "gist_head")
    receiver = system.receivers["a"]
    z, counts = latents(system)
    z.requires_grad_(True)
    loss = head_of(system).loss(receiver.lm, receiver.read_latents(z, counts), [[3, 7, 9], [4, 5]])
    assert loss is not None
    loss.backward()
    assert z.grad is not None and (z.grad[0].abs().sum(-1) > 0).all()
    assert not z.grad[1, counts[1] :].any()  # latents that are not there


def test_the_flags_reach_training_and_the_checkpoint_does_without_it(models: Path, tmp_path: Path) -> None:
    words = arguments(models, out_dir=tmp_path / "run", gist_weight=0.1, gist_target_len=16)
    train_main([*words, "--use_gist_head", "--eval_samples", "2"])
    rows = [json.loads(line) for line in (tmp_path / "run" / "diagnostics.jsonl").read_text().splitlines()]
    assert all("gist_head" in row for row in rows if row["stage"] == "end_to_end")
    kept = json.loads((tmp_path / "run" / "last" / "checkpoint.json").read_text())
    assert kept["config"]["gist_head"]["target_len"] == 16
    from latentwire.checkpoint.tensors import load_folder

    state = load_folder(tmp_path / "run" / "last")
    assert not any("gist_head" in key for group in state.values() for key in group)


def test_what_is_trained_and_not_needed_later_is_in_a_resumable_state() -> None:
    module = module_of(system_with("llama", "gist_head"))
    assert any(key.startswith("gist_head.") for key in module.state_dict()["receivers/a"])
