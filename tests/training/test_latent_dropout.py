"""Latent dropout: the share that is kept follows its schedule, a resumed run drops the same, and off is off."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from latentwire.config import load_config
from latentwire.config.sections.latents import LatentsConfig
from latentwire.core.errors import Interrupted
from latentwire.training.dropout import keep_latents, keep_share
from latentwire.training.loop import Trainer
from latentwire.training.stages.end_to_end import EndToEnd
from tests.systems import end_to_end, small_config, small_system
from tests.training.test_loop import Record, Stopper


def section(**values: object) -> LatentsConfig:
    return LatentsConfig.model_validate(values)


def stage(**latents: object) -> EndToEnd:
    return end_to_end(small_system(small_config(latents=latents, checkpoint={"every_steps": 3})))


def test_the_share_goes_from_start_to_end() -> None:
    linear, late = section(keep_start=0.25), section(keep_start=0.25, keep_power=2.0)
    assert [keep_share(linear, t) for t in (0.0, 0.5, 1.0)] == [0.25, 0.625, 1.0]
    assert keep_share(late, 0.5) == pytest.approx(0.25 + 0.75 / 4)
    assert keep_share(section(keep_start=1.0, keep_end=0.5), 1.0) == 0.5


def test_a_prefix_has_at_least_the_share_and_a_subset_exactly() -> None:
    rng = random.Random(0)
    prefixes = [keep_latents(8, 0.0, section(keep_start=0.5), rng) for _ in range(200)]
    assert all(kept == list(range(len(kept))) for kept in prefixes)
    assert {len(kept) for kept in prefixes} == {4, 5, 6, 7, 8}
    subsets = [keep_latents(8, 0.0, section(keep_start=0.5, keep_which="subset"), rng) for _ in range(200)]
    assert all(len(set(kept)) == 4 and kept == sorted(kept) for kept in subsets)
    assert {i for kept in subsets for i in kept} == set(range(8))
    assert keep_latents(3, 0.0, section(keep_start=0.01, keep_which="subset"), rng)  # never nothing


@pytest.mark.parametrize("which", ["prefix", "subset"])
def test_dropped_latents_are_not_there_and_get_no_gradient(which: str) -> None:
    module = stage(keep_start=0.3, keep_end=0.3, keep_which=which)
    receiver = module.system.receivers["a"]
    z = torch.randn(2, 6, 16, requires_grad=True)
    kept = [[0, 1], [0, 3, 4]]
    context = receiver.read_latents(z, torch.tensor([6, 5]), kept)
    assert (context.mask.sum(1) - len(receiver.prompt.head)).tolist() == [2, 3]
    direct = receiver.read_latents(z[1:, [0, 3, 4]], torch.tensor([3]))
    tail = receiver.prompt.tail("Where?")
    both = receiver.score(context, [(tail, [5])] * 2).nll
    torch.testing.assert_close(both[1:], receiver.score(direct, [(tail, [5])]).nll, atol=1e-5, rtol=1e-5)
    block = receiver.pack([texts["a"] for _, texts in module.passages[:2]], random.Random(0))
    receiver.loss(receiver.read_latents(z, torch.tensor([6, 5]), kept), block).total.backward()
    assert z.grad is not None
    assert [row.abs().sum(1).nonzero()[:, 0].tolist() for row in z.grad] == kept


def test_training_follows_the_schedule_and_a_resumed_run_drops_the_same(tmp_path: Path) -> None:
    options = {"keep_start": 0.2, "keep_which": "subset"}
    module, record = stage(**options), Record()
    Trainer(module, module.config, tmp_path / "whole", 8, callbacks=[record]).fit()
    sizes = [[len(kept) for kept in module.batch(i).kept or []] for i in (0, 7)]
    counts = [[module.passages[p][0].latents for p in module.batch(i).chosen] for i in (0, 7)]
    assert all(kept < count for kept, count in zip(sizes[0], counts[0], strict=True)) and sizes[1] == counts[1]
    cut = stage(**options)
    trainer = Trainer(cut, cut.config, tmp_path / "cut", 8)
    trainer.callbacks.append(Stopper(trainer, at=5))
    with pytest.raises(Interrupted):
        trainer.fit()
    resumed, rest = stage(**options), Record()
    Trainer(resumed, resumed.config, tmp_path / "cut", 8, callbacks=[rest]).fit()
    assert rest.losses == record.losses[5:]
    assert resumed.batch(6).kept == module.batch(6).kept


def test_it_is_off_unless_asked_for_and_has_flags() -> None:
    module = stage()
    assert module.batch(0).kept is None
    assert not load_config().latents.drops
    assert load_config(flags={"latents.keep_start": "0.5"}).latents.drops
