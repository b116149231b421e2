"""The loop on a real stage of tiny models: it learns, resumes to the identical step, and survives bad losses."""

from __future__ import annotations

import json
import math
import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from latentwire.checkpoint.training_state import TrainingState, all_states, latest_state, prune_states, save_state
from latentwire.core.errors import Interrupted, TrainingError
from latentwire.core.json_files import append_jsonl
from latentwire.core.names import LATENT, TEXT
from latentwire.diagnostics.progress import StepLog
from latentwire.training.loop import Callback, Trainer
from latentwire.training.module import StepOutput, shuffled
from latentwire.training.schedule import lr_factor
from latentwire.training.stages.end_to_end import EndToEnd
from latentwire.training.stages.slot_tuning import SlotTuning, begin_adapter
from latentwire.training.tuning import tuning_key
from tests.systems import end_to_end, small_config, small_passages, small_system


class Record(Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []
        self.records: list[dict] = []

    def on_step(self, record: dict) -> None:
        self.losses.append(record["loss"])
        self.records.append(record)


def stage(
    lora: bool = True, norms_every: int = 0, train_only: list[str] | None = None, **optimizer: object
) -> EndToEnd:
    config = small_config(
        features={"use_lora": lora},
        curriculum={"train_only": train_only},
        optimizer={"batch_size": 2, **optimizer},
        checkpoint={"every_steps": 3, "keep": 2},
        diagnostics={"grad_norms_every": norms_every},
    )
    return end_to_end(small_system(config))


def trainer(module: EndToEnd, folder: Path, steps: int, **more: object) -> tuple[Trainer, Record]:
    record = Record()
    return Trainer(module, module.config, folder, steps, callbacks=[record], **more), record


def test_a_resumed_run_takes_the_same_steps(tmp_path: Path) -> None:
    whole, expected = trainer(stage(), tmp_path / "whole", 8)
    whole.fit()
    first, _ = trainer(stage(), tmp_path / "cut", 8)
    first.callbacks.append(Stopper(first, at=6))
    with pytest.raises(Interrupted, match=r"stopped at step 6 and saved to .*The same command goes on from there"):
        first.fit()
    second, rest = trainer(stage(), tmp_path / "cut", 8)
    second.fit()
    assert rest.losses == expected.losses[6:]
    assert len(all_states(tmp_path / "whole")) == 2


class Stopper(Callback):
    def __init__(self, trainer: Trainer, at: int) -> None:
        self.trainer, self.at = trainer, at

    def on_step(self, record: dict) -> None:
        if record["step"] == self.at:
            os.kill(os.getpid(), signal.SIGINT)


def test_every_group_gets_gradients_and_the_loss_falls(tmp_path: Path) -> None:
    run, record = trainer(stage(lr=3e-3, lr_generator=3e-3, lr_encoder=1e-3), tmp_path, 40)
    run.fit()
    last = {}
    for r in record.records:
        last |= {k: v for k, v in r.items() if k.startswith("grad_norm/") and v > 0}
    assert {k.split("/", 1)[1] for k in last} == {
        "encoder",
        *(f"{group}/{name}" for group in ("generator", "generator_mlp", "head", "lora") for name in "ab"),
    }
    assert sum(record.losses[-4:]) < 0.7 * sum(record.losses[:4])


def test_accumulated_micro_batches_equal_one_large_batch(tmp_path: Path) -> None:
    run, _ = trainer(stage(accumulation=2), tmp_path, 1)
    record = run.take_step()
    assert record["receiver"] == "a+b"  # who read the two micro-batches
    assert {k for k in record if k.startswith("grad_norm/generator/")} == {
        "grad_norm/generator/a",
        "grad_norm/generator/b",
    }
    module = stage(accumulation=2)  # the same weights, one backward pass through the mean of both losses
    losses = [module.forward(module.batch(part)).loss for part in range(2)]
    (sum(losses) / 2).backward()
    assert record["loss"] == pytest.approx(float(sum(losses) / 2), rel=1e-5)
    assert_gradients(record, module)


def test_micro_batches_of_a_receiver_count_by_their_answer_tokens(tmp_path: Path) -> None:
    """As if they were one batch, whose loss is the mean over all its answer tokens."""
    run, _ = trainer(uneven(), tmp_path, 1)
    record = run.take_step()
    module = uneven()
    batches = [module.batch(part) for part in range(4)]
    counts = [int((b.block.labels >= 0).sum()) for b in batches]
    means = [module.forward(b).loss for b in batches]
    assert [b.receiver for b in batches] == ["a", "b", "a", "b"] and max(counts) > 2 * min(counts)
    of_two = [sum(means[i] * counts[i] for i in (k, k + 2)) / (counts[k] + counts[k + 2]) for k in range(2)]
    (sum(of_two) / 2).backward()
    assert record["loss"] == pytest.approx(float(sum(of_two) / 2), rel=1e-5)
    assert abs(record["loss"] - float(sum(means) / 4)) > 1e-3
    assert record["answer_ce"] == pytest.approx(record["loss"])  # the only term
    assert_gradients(record, module)


def uneven() -> EndToEnd:
    """Two rounds a step, of passages with short answers and with long ones."""
    module = stage(lora=False, accumulation=4)
    long = " ".join(["red lamps on the hill"] * 4)
    short, others = small_passages(4)[:2], small_passages(4)[2:]
    longer = [replace(p, questions=tuple(replace(q, answers=(long,)) for q in p.questions)) for p in others]
    module.passages = [module.system.prepare(p) for p in short + longer]
    module.lengths = [1, 1, 9, 9]  # alike in length, and so in the same batch
    return module


def assert_gradients(record: dict, module: EndToEnd) -> None:
    """A step's record has the norms of the gradients that a module's generators have."""
    for name, receiver in module.system.receivers.items():
        linear = [p.grad for n, p in receiver.reader.generator.named_parameters() if not n.startswith("mlp.")]
        norm = torch.nn.utils.get_total_norm(linear)
        assert record[f"grad_norm/generator/{name}"] == pytest.approx(float(norm), rel=1e-4) and norm > 0


def test_receivers_of_one_step_share_one_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gradient is that of an encoding for each; taking norms loss by loss asks for the latter."""
    norms, calls = [], []
    encode = EndToEnd._encode
    monkeypatch.setattr(EndToEnd, "_encode", lambda self, chosen: calls.append(chosen) or encode(self, chosen))
    for every in (0, 1):
        run, _ = trainer(stage(norms_every=every, accumulation=4), tmp_path / str(every), 2)
        norms.append([run.take_step()["grad_norm/encoder"] for _ in range(2)])
        assert len(calls) == (8 if every else 4)
        calls.clear()
    assert norms[0] == pytest.approx(norms[1], rel=1e-4) and min(norms[0]) > 0


class Poisoned(EndToEnd):
    """Receiver b gives NaN from some step on."""

    bad_from = 2

    def forward(self, batch: object) -> StepOutput:
        out = super().forward(batch)
        if out.receiver == "b" and self.seen >= self.bad_from:
            out.loss = out.loss * float("nan")
        self.seen += 1
        return out

    seen = 0


def test_a_bad_loss_is_skipped_and_logged_then_stops_the_run(tmp_path: Path) -> None:
    module = stage(max_bad_steps=2)
    module.__class__ = Poisoned
    run, record = trainer(module, tmp_path / "states", 12)
    run.callbacks.append(StepLog(partial(append_jsonl, tmp_path / "d.jsonl"), 1, 12, 0, "test"))
    run.step = 0
    before = None
    with pytest.raises(TrainingError, match=r"2 steps in a row were skipped, .* the loss of receiver 'b'") as caught:
        while True:
            before = [p.detach().clone() for g in run.groups for p in g.parameters]
            run._one_step()
            if "skipped" in record.records[-1]:
                after = [p for g in run.groups for p in g.parameters]
                assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
                module.names = ["b", "b"]  # from here on, nothing but bad steps
    assert f"last good checkpoint is {all_states(tmp_path / 'states')[-1]}" in str(caught.value)
    assert "NaN" not in (tmp_path / "d.jsonl").read_text()  # which is no JSON
    lines = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text().splitlines()]
    assert [line["receiver"] for line in lines if line.get("skipped")] == ["b", "b"]


def test_states_are_in_the_order_of_their_steps(tmp_path: Path) -> None:
    for step in (999_900, 1_000_000):
        save_state(tmp_path, TrainingState(step, {"a": {"w": torch.ones(1)}}, {"m": torch.ones(1)}))
    assert latest_state(tmp_path) == tmp_path / "step_1000000"
    prune_states(tmp_path, keep=1)
    assert [path.name for path in all_states(tmp_path)] == ["step_1000000"]
    prune_states(tmp_path, keep=0)
    assert all_states(tmp_path) == []


def test_a_fresh_adapter_is_the_same_whatever_ran_before() -> None:
    found = []
    for before in (1, 2):
        receiver = small_system(small_config()).receivers["a"]
        torch.manual_seed(before)
        found.append(begin_adapter(receiver, "latent", 0).state_dict())
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_settings_of_accelerate_do_not_scale_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = trainer(stage(), tmp_path / "plain", 1)[0].take_step()
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert trainer(stage(), tmp_path / "set", 1)[0].take_step()["grad_norm"] == plain["grad_norm"]


def test_batches_hold_similar_lengths_and_cover_an_epoch() -> None:
    lengths = list(range(100))
    epoch = [shuffled(lengths, 4, i, seed="0")[0] for i in range(25)]
    assert sorted(i for batch in epoch for i in batch) == lengths
    assert sum(max(b) - min(b) for b in epoch) / 25 < 20
    assert epoch != [shuffled(lengths, 4, i, seed="0")[0] for i in range(25, 50)]
    assert epoch == [shuffled(lengths, 4, i, seed="0")[0] for i in range(25)]


def test_weight_decay_shrinks_what_gets_no_gradient(tmp_path: Path) -> None:
    """The MLP behind a zero output layer has no gradient in the first step, so only decay can move it."""
    for decay, moved in ((0.0, False), (0.5, True)):
        module = stage(weight_decay=decay)
        first = module.system.receivers["a"].reader.generator.mlp[0].weight
        before = first.detach().clone()
        trainer(module, tmp_path / str(decay), 1)[0].take_step()
        assert bool((first.detach().norm() < before.norm()).item()) is moved


@pytest.mark.parametrize(
    ("schedule", "low"),
    [("linear", 0.25), ("cosine", 0.25), ("linear", 0.0), ("constant", 0.25), ("wsd", 0.25)],
)
def test_the_rate_ends_at_its_floor(schedule: str, low: float) -> None:
    config = small_config(optimizer={"schedule": schedule, "min_lr_ratio": low, "warmup_steps": 4}).optimizer
    rates = [lr_factor(config, step, 100) for step in range(101)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[100] == pytest.approx(1.0 if schedule == "constant" else low)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_the_rate_stays_and_then_falls_or_rises_again() -> None:
    changes = {"min_lr_ratio": 0.1, "warmup_steps": 4, "decay_share": 0.25}
    config = small_config(optimizer={"schedule": "wsd", **changes}).optimizer
    rates = [lr_factor(config, step, 100) for step in range(101)]
    assert rates[4:76] == [1.0] * 72 and rates[88] == pytest.approx(0.55) and rates[100] == pytest.approx(0.1)
    config = small_config(optimizer={"schedule": "restarts", "cycles": 2, **changes}).optimizer
    rates = [lr_factor(config, step, 100) for step in range(101)]
    once = small_config(optimizer={"schedule": "cosine", **changes}).optimizer
    assert rates[4:52] == pytest.approx([lr_factor(once, 4 + 2 * i, 100) for i in range(48)])
    assert rates[52:100] == pytest.approx(rates[4:52]) and rates[51] < 0.12 and rates[100] == pytest.approx(0.1)


def test_every_nth_step_is_written(tmp_path: Path) -> None:
    run, _ = trainer(stage(), tmp_path / "states", 7)
    run.callbacks.append(StepLog(partial(append_jsonl, tmp_path / "d.jsonl"), 3, 7, 0, "test"))
    run.fit()
    rows = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text().splitlines()]
    assert [(r["step"], r["receiver"]) for r in rows] == [(1, "a"), (2, "b"), (5, "a"), (6, "b")]


@pytest.mark.parametrize("kept", [True, False])
def test_features_are_computed_once_where_they_are_kept(kept: bool) -> None:
    module = stage()
    module.config = small_config(system={"cache_features": kept})
    calls: list[int] = []
    compute = module.system.sender.features
    module.system.sender.features = lambda texts: calls.append(len(texts)) or compute(texts)  # type: ignore
    first = [f.float() for f in module.features([0, 1])]
    second = [f.float() for f in module.features([1, 0])]
    assert len(calls) == (2 if kept else 4)
    torch.testing.assert_close(first, second[::-1], atol=0, rtol=0)


def test_a_fixed_sender_reads_in_batches_and_a_resumed_run_in_the_same_ones() -> None:
    calls: list[int] = []

    def fixed() -> EndToEnd:
        module = stage(train_only=["a"], batch_size=4)
        latents_of = module.system.sender.latents_of
        module.system.sender.latents_of = lambda texts: calls.append(len(texts)) or latents_of(texts)  # type: ignore
        return module

    module, later = fixed(), fixed()
    first, second = (module.batch(index).chosen for index in (0, len(module.names)))  # one epoch each: 4 of 6
    [left] = [i for i in second if i not in first][:1]
    whole = module.features(first)
    alone = module.features([left])
    assert calls == [4, 1]
    for expected, i in [*zip(whole, first, strict=True), (alone[0], left)]:  # as after a resumption, in the second
        torch.testing.assert_close(later.features([i])[0], expected, atol=0, rtol=0)
    assert calls == [4, 1, 4, 1]


def test_what_was_tuned_on_four_bits_is_not_taken_for_the_whole_model() -> None:
    receiver = small_system(small_config()).receivers["a"]
    plain, packed = (
        tuning_key(receiver, small_config(model={"load_4bit": on}), "text", "data", 1) for on in (False, True)
    )
    assert plain != packed


def test_the_text_baseline_is_kept_whatever_the_windows_are_and_not_when_a_file_of_weights_changes(
    tmp_path: Path,
) -> None:
    receiver = small_system(small_config()).receivers["a"]

    def key(reads: str, window: int) -> dict:
        return tuning_key(receiver, small_config(encoder={"window": window}), reads, "data", 1)

    assert key("text", 4) == key("text", 2)
    assert key("token_budget", 4) != key("token_budget", 2) and key("latent", 4) != key("latent", 2)
    file = tmp_path / "tiny.gguf"
    receiver.lm.name = str(file)
    seen = []
    for weights in (b"one", b"two"):
        file.write_bytes(weights)
        seen.append(key("text", 4))
    assert seen[0]["model"] == seen[1]["model"] and seen[0] != seen[1]


def test_every_part_learns_at_its_own_rate(tmp_path: Path) -> None:
    rates = {"lr": 1e-3, "lr_encoder": 2e-3, "lr_sender": 3e-3, "lr_generator": 4e-3, "lr_generator_mlp": 5e-3}
    module = stage(**rates, lr_tuning=6e-3)
    found = {group.name: group.lr for group in module.parameter_groups() if group.parameters}
    each = {"generator": 4e-3, "generator_mlp": 5e-3, "head": 1e-3, "lora": 1e-3}
    assert found == {"encoder": 2e-3} | {f"{part}/{name}": rate for part, rate in each.items() for name in "ab"}
    texts = [texts["a"] for _, texts in module.passages]
    tuning = SlotTuning(module.system.receivers["a"], texts, module.config)
    assert [(group.name, group.lr) for group in tuning.parameter_groups()] == [("lora", 6e-3)]
    run, _ = trainer(module, tmp_path, 100, lr_scale=0.5)
    run.step = 30  # behind the warm-up
    record, factor = run.take_step(), lr_factor(module.config.optimizer, 30, 100)
    assert record["lr/encoder"] == pytest.approx(0.5 * factor * 2e-3) and 0 < factor < 1


def test_gradients_are_clipped(tmp_path: Path) -> None:
    run, _ = trainer(stage(grad_clip=0.01), tmp_path, 2)
    norms: list[float] = []
    parameters = [p for group in run.groups for p in group.parameters]
    run.optimizer.register_step_pre_hook(
        lambda *_: norms.append(
            float(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        )
    )
    assert run.take_step()["grad_norm"] > 0.1 and norms == [pytest.approx(0.01, rel=1e-3)]


def test_the_next_stage_does_not_begin_with_the_same_passages() -> None:
    module = stage()
    texts = [texts["a"] for _, texts in module.passages]
    tuning = SlotTuning(module.system.receivers["a"], texts, module.config)
    first = [[module.passages[i][1]["a"] for i in module.batch(2 * n).chosen] for n in range(12)]
    assert first != [tuning.batch(n).texts for n in range(12)]


def test_betas_are_those_of_the_configuration(tmp_path: Path) -> None:
    run, _ = trainer(stage(betas=(0.5, 0.7)), tmp_path, 1)
    assert {group["betas"] for group in run.optimizer.param_groups} == {(0.5, 0.7)}


def test_each_micro_batch_has_a_seed_of_its_own_and_a_resumed_run_the_same(tmp_path: Path) -> None:
    def seeds(begin: int) -> list[int]:
        run, found = trainer(stage(accumulation=2), tmp_path, 4)[0], []
        forward, run.step = run.module.forward, begin
        run.module.forward = lambda batch: (found.append(torch.initial_seed()), forward(batch))[1]  # type: ignore
        for _ in range(begin, 4):
            run.take_step()
        return found

    whole = seeds(0)
    assert len(set(whole)) == 8 and seeds(2) == whole[4:]


def test_bad_steps_count_in_a_row_and_are_not_saved(tmp_path: Path) -> None:
    module = stage(max_bad_steps=2)
    module.__class__, module.bad_from = Poisoned, 0  # every second step is bad
    run, record = trainer(module, tmp_path, 6)
    run.fit()
    assert ["skipped" in r for r in record.records] == [False, True] * 3
    assert [path.name for path in all_states(tmp_path)] == ["step_000003"]  # not the sixth


def test_a_gradient_that_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    run, _ = trainer(stage(), tmp_path, 1)
    run.module.system.sender.encoder.weight.register_hook(lambda grad: grad * float("inf"))
    parameters = [p for group in run.groups for p in group.parameters]
    before = [p.detach().clone() for p in parameters]
    record = run.take_step()
    assert record["skipped"] and math.isfinite(record["loss"]) and record["not_finite"] == "gradient"
    assert all(torch.equal(x, y) for x, y in zip(before, parameters, strict=True))


def test_warm_up_takes_a_tenth_of_a_short_run_at_most() -> None:
    config = small_config(optimizer={"warmup_steps": 20}).optimizer
    assert [lr_factor(config, step, 50) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize(
    "change",
    [
        {"system": {"seed": 5}},
        {"anchor": {"text": " So:"}},
        {"lora": {"r": 2}},
        {"lora": {"dropout": 0.1}},
        {"optimizer": {"lr_tuning": 5e-3}},
        {"optimizer": {"batch_size": 3}},
        {"data": {"questions_per_passage": 1}},
        {"losses": {"copy_weight": 0.5}},
        {"deep_prefix": {"pattern": "strided"}},
    ],
    ids=str,
)
def test_what_decides_a_tuning_is_in_its_key(change: dict[str, Any]) -> None:
    receiver = small_system(small_config()).receivers["a"]
    plain, changed = (tuning_key(receiver, small_config(**sections), LATENT, "data", 1) for sections in ({}, change))
    assert plain != changed
    others = [tuning_key(receiver, small_config(), LATENT, data, steps) for data, steps in (("other", 1), ("data", 2))]
    assert plain not in others and others[0] != others[1]


def drawn(seed: int, folder: Path) -> list[Any]:
    """The order of passages, fresh adapters, the noise of a step, and when texts are read."""
    curriculum, noise = {"end_to_end": {"tail_text_prob": 0.5}}, list[int]()
    config = small_config(system={"seed": seed}, features={"use_lora": True}, curriculum=curriculum)
    system = small_system(config)
    receiver, prepared = system.receivers["a"], [system.prepare(p) for p in small_passages()]
    module, texts = EndToEnd(system, prepared, config), [texts["a"] for _, texts in prepared]
    tuning = SlotTuning(receiver, texts, config)
    fresh = [[p.tolist() for p in begin_adapter(receiver, r, seed).trainable_parameters()] for r in (LATENT, TEXT)]
    forward = module.forward
    module.forward = lambda batch: (noise.append(torch.initial_seed()), forward(batch))[1]  # type: ignore
    Trainer(module, config, folder, 1).take_step()
    orders = (
        [module.batch(2 * n).chosen for n in range(12)],
        [[t.text for t in tuning.batch(n).texts] for n in range(12)],
    )
    return [*orders, *fresh, noise, [module.reads_text(2 * n) for n in range(40)]]


def test_another_seed_draws_everything_anew(tmp_path: Path) -> None:
    one, again, other = (drawn(seed, tmp_path / str(number)) for number, seed in enumerate((0, 0, 1)))
    assert one == again and not any(a == b for a, b in zip(one, other, strict=True))
    assert one[2] != one[3]  # nor do adapters of two kinds begin alike
