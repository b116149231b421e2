"""What stages are given: the options of the configuration, as a run hands them on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from latentwire.core.names import LATENT, TEXT, TOKEN_BUDGET
from latentwire.encoder.backbone import BackboneEncoder
from latentwire.model.system import LatentWire
from latentwire.reader.slots import SlotReader
from latentwire.training.fitting import fit
from latentwire.training.folder import RunFolder
from latentwire.training.loop import Callback
from latentwire.training.material import Material
from latentwire.training.processes import Processes
from latentwire.training.solving import solve_closed_form
from latentwire.training.stages import closed_form
from latentwire.training.stages.end_to_end import EndToEnd
from latentwire.training.tuning import _key_of, cached_folder
from latentwire.training.work import Work
from tests.systems import small_config, small_passages, small_system


def work_of(folder: Path, passages: int = 6, **sections: dict[str, Any]) -> Work:
    """A run on tiny models that was begun in a folder; all its stages may be worked on."""
    config, processes = small_config(**sections), Processes()
    system, stages = small_system(config), ("slot_tuning", "closed_form", "end_to_end", "codec", "baselines")
    material = Material(system, config, small_passages(passages), [])
    return Work(config, RunFolder(folder, config, processes), processes, stages, [], system, material, None, folder)


def test_the_closed_form_has_its_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def fitted(system: LatentWire, **options: Any) -> dict[str, float]:
        given.update(options)
        options["state"].mkdir(parents=True)
        return {}

    monkeypatch.setattr(closed_form, "fit", fitted)
    own = {"passages": 3, "held_out": 2, "ridge": 0.7, "band": None, "importance_passages": 3, "importance_floor": 0.4}
    work = work_of(tmp_path, curriculum={"closed_form": own})
    solve_closed_form(work, work.system.receivers)
    assert (given["held_out"], given["ridge"]) == (2, 0.7)
    assert len(list(given["passages"])) == 3 + 2
    assert not given["state"].exists()  # sums are for a fit that was stopped
    asked = [texts for _, texts in work.material.prepared[2:5]]  # none that is set aside
    assert given["options"] == closed_form.TargetOptions(band=None, asked=asked, importance_floor=0.4)


def test_a_stage_has_its_steps_its_rates_and_its_epochs(tmp_path: Path) -> None:
    """Six passages are three batches for either receiver; the last step of two epochs may go a little beyond."""
    seen: list[int] = []

    class Epochs(Callback):
        def on_epoch(self, epoch: int) -> None:
            seen.append(epoch)

    work = work_of(
        tmp_path,
        curriculum={"end_to_end": {"epochs": 2, "max_steps": None, "lr_scale": 0.5}},
        optimizer={"accumulation": 5, "lr_encoder": 4e-3, "schedule": "constant", "warmup_steps": 0},
        diagnostics={"log_every": 1},
    )
    stage = work.config.curriculum.end_to_end
    fit(work, EndToEnd(work.system, work.material.prepared, work.config), stage, [Epochs()])
    rows = [json.loads(line) for line in (tmp_path / "diagnostics.jsonl").read_text().splitlines()]
    assert max(row["step"] for row in rows) == 3 and seen == [1, 2]  # 15 micro-batches, of which 6 are an epoch
    assert {row["lr/encoder"] for row in rows} == {0.5 * 4e-3}


LORA = {"features": {"use_lora": True}}
VECTORS = {"features": {"use_lora": True, "use_deep_prefix": False}}
KEPT = {"encoder": {"keep": 2}}
TEACHER = {"losses": {"kd_weight": 1.0}}
QUERIES = {"encoder": {"type": "byte", "latent_len": 8}}


@pytest.mark.parametrize(
    ("reads", "before", "after"),
    [
        (LATENT, {}, {"curriculum": {"slot_tuning": {"lr_scale": 0.5}}}),
        (TEXT, {}, {"curriculum": {"baselines": {"lr_scale": 0.5}}}),
        (TEXT, {}, {"curriculum": {"baselines": {"max_steps": 1}}}),
        (LATENT, TEACHER, TEACHER | {"curriculum": {"baselines": {"lr_scale": 0.5}}}),
        (TOKEN_BUDGET, LORA, {"features": {"use_lora": True, "use_prefix": True}}),
        (LATENT, {}, KEPT),
        (LATENT, KEPT, {"encoder": {"keep": 2, "keep_from": "text"}}),
        (TOKEN_BUDGET, QUERIES, {"encoder": {"type": "byte", "latent_len": 8, "latent_private_len": 2}}),
        (LATENT, VECTORS, VECTORS | {"adapter": {"gain": 2.0}}),
    ],
    ids=str,
)
def test_what_was_tuned_otherwise_is_not_taken_from_the_cache(
    reads: str, before: dict[str, Any], after: dict[str, Any], tmp_path: Path
) -> None:
    keys = []
    for number, sections in enumerate((before, after, after)):
        work = work_of(tmp_path / str(number), **sections)
        receiver = work.system.receivers["a"]
        keys.append(_key_of(work, receiver, work.material.of(receiver), reads))
    assert cached_folder(tmp_path, keys[0]) != cached_folder(tmp_path, keys[1]) == cached_folder(tmp_path, keys[2])


def test_lora_that_read_other_tokens_is_not_taken_from_the_cache(tmp_path: Path) -> None:
    """What is found in a run, and stands in no configuration: by what tokens are chosen, and which heads show which."""
    choosing = {"keep": 2, "keep_by": "salience", "keep_from": "text"}
    work = work_of(tmp_path, encoder=choosing, deep_prefix={"ranked": {"a": 1}})
    encoder, receiver = work.system.sender.encoder, work.system.receivers["a"]
    assert isinstance(encoder, BackboneEncoder) and encoder.salience is not None
    assert isinstance(receiver.reader, SlotReader)

    def folder(reads: str) -> Path:
        return cached_folder(tmp_path, _key_of(work, receiver, work.material.of(receiver), reads))

    before, text = folder(LATENT), folder(TEXT)
    encoder.salience.bias += 1
    chosen_otherwise = folder(LATENT)
    receiver.reader.phases_of[0, 0] += 1
    assert len({before, chosen_otherwise, folder(LATENT)}) == 3 and folder(TEXT) == text
