"""Reading the text in between: when it happens, what it trains, and that a resumed run does the same."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from latentwire.config import config_from_dict
from latentwire.core.errors import Interrupted
from latentwire.core.json_files import append_jsonl
from latentwire.core.names import LATENT
from latentwire.diagnostics.progress import StepLog
from latentwire.training.loop import Trainer
from latentwire.training.stages.end_to_end import EndToEnd
from tests.systems import end_to_end, small_config, small_system
from tests.training.test_loop import Record, Stopper


def stage(curriculum: dict[str, Any], slots: bool = True, **sections: dict[str, Any]) -> EndToEnd:
    config = small_config(
        features={"use_lora": True, "use_deep_prefix": slots},
        curriculum={"end_to_end": curriculum},
        checkpoint={"every_steps": 100},
        **sections,
    )
    return end_to_end(small_system(config))


def test_the_warm_up_alternates_by_rounds_and_is_followed_by_chance() -> None:
    never = stage({})
    assert not any(never.reads_text(i) for i in range(100))
    warm = stage({"warmup_text_steps": 7})  # two receivers a round: steps 0 to 7, for a round is not cut
    assert [i for i in range(100) if warm.reads_text(i)] == [0, 1, 4, 5]
    tail = stage({"warmup_text_steps": 4, "tail_text_prob": 0.3})
    read = [tail.reads_text(i) for i in range(2004)]
    assert read[:4] == [True, True, False, False] and read[4::2] == read[5::2]
    assert 0.25 < sum(read[4:]) / 2000 < 0.35
    assert read == [tail.reads_text(i) for i in range(2004)]
    twice = stage({"warmup_text_steps": 4}, optimizer={"accumulation": 2})
    assert [i for i in range(40) if twice.reads_text(i)] == [0, 1, 4, 5]  # of 8 micro-batches
    kept = {"curriculum": {"end_to_end": {"warmup_text_steps": 4}}}  # of a checkpoint, to which one without LoRA comes
    twice.config = config_from_dict(kept, "kept", {"features.use_lora": False}, kept=True)
    assert not any(twice.reads_text(i) for i in range(40))


def test_a_text_step_is_the_plain_loss_on_the_text_and_trains_lora_alone() -> None:
    losses = {"copy_weight": 1.0, "kd_weight": 1.0, "first_token_weight": 1.0, "align_weight": 1.0}
    module = stage({"warmup_text_steps": 4}, losses=losses)
    batch = module.batch(0)
    receiver = module.system.receivers["a"]
    out = module.forward(batch)
    assert batch.from_text and out.receiver == "a:text" and set(out.terms) == {"answer_ce"}
    rows = [module.passages[i][1]["a"].ids for i in batch.chosen]
    with receiver.using(LATENT):
        expected = receiver.loss(receiver.read_text(rows), batch.block).total
    assert out.loss.item() == expected.item() and out.tokens == sum(map(len, rows)) + int(batch.block.mask.sum())
    out.loss.backward()
    moved = {g.name for g in module.parameter_groups() if any(p.grad is not None for p in g.parameters)}
    assert moved == {"lora/a"}
    latents = module.forward(module.batch(2))
    assert latents.receiver == "a" and {"answer_ce", "copy_ce", "kd", "align"} <= set(latents.terms)


def test_both_ways_of_reading_are_logged_apart(tmp_path: Path) -> None:
    module = stage({"warmup_text_steps": 100})
    run = Trainer(module, module.config, tmp_path / "states", 8)
    run.callbacks.append(StepLog(partial(append_jsonl, tmp_path / "d.jsonl"), 4, 8, 0, "test"))
    run.fit()
    rows = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text().splitlines()]
    assert [(r["step"], r["receiver"]) for r in rows] == [
        (1, "a:text"), (2, "b:text"), (3, "a"), (4, "b"), (5, "a:text"), (6, "b:text"), (7, "a"), (8, "b"),
    ]  # fmt: skip
    assert all(r["first_acc"] >= 0 for r in rows) and "smooth_loss/a:text" in rows[-1]


@pytest.mark.parametrize("slots", [True, False])
def test_a_resumed_run_reads_and_weighs_as_if_it_had_not_stopped(tmp_path: Path, slots: bool) -> None:
    """With everything that changes over a stage: text, weights, K, running colours, a learned gain."""
    losses = {"first_token_weight": 1.0, "first_token_weight_end": 0.0, "k_token_weight": 1.0, "k_tokens_end": 1}
    adapter = {} if slots else {"color": "full", "learn_gain": True}

    def trainer(folder: str) -> tuple[Trainer, Record]:
        curriculum = {"warmup_text_steps": 3, "tail_text_prob": 0.3}
        module, record = stage(curriculum, slots, losses=losses | {"kd_weight": 0.5}, adapter=adapter), Record()
        return Trainer(module, module.config, tmp_path / folder, 12, callbacks=[record]), record

    whole, expected = trainer("whole")
    whole.fit()
    first, _ = trainer("cut")
    first.callbacks.append(Stopper(first, at=7))
    with pytest.raises(Interrupted):
        first.fit()
    second, rest = trainer("cut")
    second.fit()
    assert rest.losses == expected.losses[7:]
    readers = [r["receiver"] for r in expected.records]
    assert readers[7:] == [r["receiver"] for r in rest.records] and "a:text" in readers[4:]
