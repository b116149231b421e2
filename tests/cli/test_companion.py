"""A run whose sender gets a companion: from the start, or later, from a checkpoint that has none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from latentwire.checkpoint.index import sender_fingerprint
from latentwire.checkpoint.tensors import load_folder
from latentwire.cli.main import main as latentwire
from latentwire.eval import main as eval_main
from latentwire.train import main as train_main
from tests.commands import add_receiver_main, arguments, fails


def words(models: Path, out: Path, **more: object) -> list[str]:
    """A run with Qwen's kind of model as the companion."""
    companion: dict[str, object] = {
        "companion_id": models / "qwen3", "companion_layers": "1,2", "companion_d_z": 6, "d_z": 22,
    }  # fmt: skip
    return arguments(models, out_dir=out, **(companion | {"eval_samples": 0, "baselines_max_steps": 0} | more))


def stages_of(run: Path) -> list[str]:
    rows = [json.loads(line) for line in (run / "diagnostics.jsonl").read_text().splitlines()]
    return list(dict.fromkeys(row["stage"] for row in rows))


def receivers(models: Path, *names: str) -> list[str]:
    return [
        "--override",
        f"model.receivers={json.dumps({name: str(models / kind) for name, kind in KINDS.items() if name in names})}",
    ]


KINDS = {"llama": "llama", "qwen": "qwen3", "gemma": "gemma3"}


def test_from_the_start(
    models: Path, trained: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = words(models, tmp_path / "run")
    train_main([*flags, "--stages", "slot_tuning,closed_form"])
    assert stages_of(tmp_path / "run")[-2:] == ["closed_form", "closed_form/companion"]
    done = tmp_path / "run" / "stages"
    first, second = (load_folder(done / name / "done") for name in ("closed_form", "closed_form-companion"))
    assert not first["sender"]["encoder.companion.weight"].any() and second["sender"]["encoder.companion.weight"].any()
    for name in ("llama", "qwen"):  # fitted to both, and nothing that was there is another
        one, other = (state[f"receivers/{name}"]["reader.generator.linear"] for state in (first, second))
        assert one[:16].equal(other[:16]) and not one[16:].any() and other[16:].any()
    capsys.readouterr()
    train_main(flags)
    assert "closed_form/companion: done before" in capsys.readouterr().out
    results = eval_main(
        ["--ckpt", str(tmp_path / "run"), "--samples", "6", "--override", "evaluation.latency_samples=1"]
    )
    assert results["receivers"]["llama"]["bytes"]["wire"] > 2 * 22
    (tmp_path / "story.txt").write_text("Mira lives in Orlin near the river.")
    latentwire(["encode", str(tmp_path / "story.txt"), "--ckpt", str(tmp_path / "run"), "-o", str(tmp_path / "m.lw")])
    rows = latentwire(
        ["decode", str(tmp_path / "m.lw"), "--ckpt", str(tmp_path / "run"), "--receiver", "llama", "--question", "Who?"]
    )
    assert [answer["source"] for answer in rows[0]["answers"]] == ["latents"]


def test_later_beside_a_new_receiver(
    models: Path, trained: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The companion is fitted to receivers that were there; then the new one to all of the latents."""
    flags = words(models, tmp_path / "run", init_from=models / "run", end_to_end_max_steps=2)
    for key in ("llama_id", "qwen_id"):
        place = flags.index(f"--{key}")
        del flags[place : place + 2]
    train_main([*flags, *receivers(models, "llama", "gemma")])
    found = stages_of(tmp_path / "run")
    assert found.index("closed_form/companion") < found.index("closed_form") < found.index("end_to_end")
    before, after = (load_folder(models / "run" / "last"), load_folder(tmp_path / "run" / "last"))
    assert after["sender"]["encoder.companion.weight"].any()
    assert after["receivers/gemma"]["reader.generator.linear"][16:].any()
    assert after["receivers/llama"]["reader.generator.linear"].shape[0] == 22
    assert before["receivers/llama"]["reader.generator.linear"].shape[0] == 16
    add_receiver_main(  # and a checkpoint that has one is a sender as any other
        [
            *("--ckpt", str(tmp_path / "run"), "--name", "qwen", "--model", str(models / "qwen3")),
            *("--steps", "1", "--out_dir", str(tmp_path / "more")),
        ]
    )
    assert sender_fingerprint(tmp_path / "more" / "last") == sender_fingerprint(tmp_path / "run" / "last")


def test_it_is_fitted_to_whom_it_is_asked_for(models: Path, trained: dict[str, Any], tmp_path: Path) -> None:
    more = {"closed_form_companion_for": "qwen", "end_to_end_max_steps": 0}
    train_main(words(models, tmp_path / "run", init_from=models / "run", **more))
    state = load_folder(tmp_path / "run" / "stages" / "closed_form-companion" / "done")
    assert state["receivers/qwen"]["reader.generator.linear"][16:].any()
    assert not state["receivers/llama"]["reader.generator.linear"][16:].any()
    new = ["--name", "gemma", "--model", str(models / "gemma3"), "--steps", "1", "--out_dir", str(tmp_path / "more")]
    add_receiver_main(["--ckpt", str(tmp_path / "run"), *new])  # which reads all of them
    assert load_folder(tmp_path / "more" / "last")["receivers/gemma"]["reader.generator.linear"][16:].any()


@pytest.mark.parametrize(
    ("names", "more", "refusal"),
    [
        (("llama", "gemma"), {"closed_form_companion_for": "gemma"}, "companion_for: 'gemma' is not in"),
        (
            ("llama", "qwen"),
            {"closed_form_companion_for": "nobody"},
            "companion_for: 'nobody' is not in model.receivers",
        ),
        (("gemma",), {}, "encoder.companion: no receiver of"),
        (("llama", "qwen"), {"d_z": 20}, "encoder.d_z: 20 without the companion's 6 is not the 16"),
        (("llama", "qwen"), {"stages": "end_to_end"}, "end_to_end needs closed_form"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    models: Path,
    trained: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    names: tuple[str, ...],
    more: dict[str, object],
    refusal: str,
) -> None:
    flags = words(models, tmp_path / "run", init_from=models / "run", **more)
    for key in ("llama_id", "qwen_id"):
        place = flags.index(f"--{key}")
        del flags[place : place + 2]
    assert refusal in fails(train_main, [*flags, *receivers(models, *names)], capsys)
