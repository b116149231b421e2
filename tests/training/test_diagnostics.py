"""What diagnostics.* adds to the log: gradient norms by loss, memory by phase, shapes and sizes of tensors."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from latentwire.backbone import devices
from latentwire.core.json_files import append_jsonl
from latentwire.diagnostics import memory
from latentwire.diagnostics.memory import peak_memory_mb
from latentwire.diagnostics.progress import StepLog
from latentwire.diagnostics.tensors import TensorWatch, hand_over
from latentwire.training.loop import Trainer
from latentwire.training.stages.end_to_end import EndToEnd
from latentwire.training.stages.slot_tuning import SlotTuning
from tests.systems import end_to_end, small_config, small_passages, small_system


def module(slots: bool = True, **diagnostics: object) -> EndToEnd:
    config = small_config(
        features={"use_lora": True, "use_gist_head": True, "use_deep_prefix": slots},
        gist_head={"heads": 2, "width": 8, "target_len": 12},
        losses={"copy_weight": 0.5, "copy_spans": 1},
        diagnostics=diagnostics,
    )
    return end_to_end(small_system(config))


def run(stage: EndToEnd | SlotTuning, folder: Path, steps: int, log_every: int = 1) -> list[dict]:
    trainer = Trainer(stage, stage.config, folder / "states", steps)
    trainer.callbacks.append(StepLog(partial(append_jsonl, folder / "d.jsonl"), log_every, steps, 0, stage.name))
    trainer.fit()
    return [json.loads(line) for line in (folder / "d.jsonl").read_text().splitlines()]


def test_gradient_norms_by_loss_are_those_of_each_term_alone(tmp_path: Path) -> None:
    stage = module(grad_norms_every=4)
    output = stage.forward(stage.batch(0))
    torch.testing.assert_close(sum(output.terms.values()), output.loss)
    assert set(output.terms) == {"answer_ce", "copy_ce", "gist_head"}
    parameters = [p for g in stage.parameter_groups() for p in g.parameters]
    grads = torch.autograd.grad(output.terms["gist_head"], parameters, allow_unused=True)
    expected = float(torch.nn.utils.get_total_norm([g for g in grads if g is not None]))

    rows = run(stage, tmp_path, 8, log_every=100)
    measured = [r for r in rows if "loss_grad_norm/answer_ce" in r]
    # Every fourth step of each receiver is measured, and written although log_every is 100.
    assert [(r["step"], r["receiver"]) for r in measured] == [(1, "a"), (2, "b"), (5, "a"), (6, "b")]
    assert measured[0]["loss_grad_norm/gist_head"] == pytest.approx(expected, rel=1e-4) and expected > 0
    # By feature, every step is measured, under the names of the parameter groups.
    assert {"grad_norm/gist_head/a", "grad_norm/lora/a", "grad_norm/generator/a", "grad_norm/encoder"} <= set(rows[0])


def test_measuring_changes_no_step(tmp_path: Path) -> None:
    losses = [
        [r["loss"] for r in run(module(**options), tmp_path / str(n), 5)]
        for n, options in enumerate(({}, {"grad_norms_every": 1, "profile_memory": True, "log_shapes": True}))
    ]
    assert losses[0] == losses[1]


def test_memory_is_measured_by_phase(tmp_path: Path) -> None:
    stage = module(profile_memory=True)
    forward = stage.forward
    stage.forward = lambda batch: (torch.ones(40_000_000), forward(batch))[1]  # type: ignore[method-assign]
    for row in run(stage, tmp_path, 2):
        phases = {name: row[f"memory_mb/{name}"] for name in ("forward", "backward", "optimizer")}
        assert row["memory_mb"] == max(phases.values())
        # 160 MB were there in the forward pass alone.
        assert phases["forward"] > phases["backward"] + 100 and phases["forward"] > phases["optimizer"] + 100


def test_memory_is_the_process_s_where_cuda_is_there_and_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert peak_memory_mb() > 0


def test_time_and_memory_are_those_of_the_device_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "set_device_index", measured.append)
    monkeypatch.setattr(devices, "check_devices", lambda config: config.system.device)
    for device in ("cpu", "cuda:1"):
        assert devices.prepare_device(small_config(system={"device": device})) == device
    assert measured == [1]


def test_without_a_profile_a_step_has_the_peak_so_far(tmp_path: Path) -> None:
    (row,) = run(module(), tmp_path, 1)
    assert row["memory_mb"] > 50 and not any(key.startswith("memory_mb/") for key in row)
    assert memory.MemoryProfile(True).step() == {"memory_mb": 0.0}


@pytest.mark.parametrize(("slots", "what"), [(True, "slots"), (False, "embeds")])
def test_shapes_are_said_once_each(tmp_path: Path, slots: bool, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    stage = module(slots, log_shapes=True)
    rows = run(stage, tmp_path, 4)
    lines = [line for line in capsys.readouterr().out.splitlines() if " on cpu" in line]
    assert len(lines) == len(set(lines))
    d_features = stage.system.sender.encoder.d_features
    chosen = stage.batch(0).chosen
    z = stage.system.sender.latents(stage.features(chosen), [stage.passages[i][0].latents for i in chosen])[0]
    for name in ("features", "z", what, "questions"):
        assert any(line.startswith(f"end_to_end: {name} (") for line in lines), name
    assert f"end_to_end: z {tuple(z.shape)} float32 on cpu" in lines
    assert any(f", {d_features}) bfloat16" in line for line in lines)
    assert rows[0]["z_rms"] > 0 and rows[0][f"{what}_rms"] > 0
    watch = TensorWatch("test", shapes=False)
    with watch.watching():
        hand_over("z", torch.ones(2, 3, 4).cumsum(1), torch.tensor([[True, False, False], [True, True, False]]))
        hand_over("z", torch.full((1, 4), 5.0))
    assert watch.rms["z_rms"] == pytest.approx(((1 + 1 + 4 + 25) / 4) ** 0.5)  # no padding
    hand_over("later", torch.zeros(3))  # nobody watches any more
    assert "later" not in capsys.readouterr().out


def test_slot_tuning_is_watched_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small_config(features={"use_lora": True}, diagnostics={"log_shapes": True, "grad_norms_every": 1})
    system = small_system(config, ("llama",))
    texts = [system.prepare(p)[1]["a"] for p in small_passages(4)]
    (row,) = run(SlotTuning(system.receivers["a"], texts, config), tmp_path, 1)
    assert "slot_tuning/a: slots (" in capsys.readouterr().out
    assert row["loss_grad_norm/answer_ce"] == pytest.approx(row["grad_norm"], rel=1e-4)
