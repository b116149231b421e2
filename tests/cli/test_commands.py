"""The commands as a user calls them, on tiny models in local folders."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from latentwire.checkpoint.tensors import load_folder
from latentwire.cli.main import main as console
from latentwire.config import Config
from latentwire.core.errors import ConfigError, LatentWireError
from latentwire.encoder.backbone import BackboneEncoder
from latentwire.eval import main as eval_main
from latentwire.report.card import model_card
from latentwire.train import main as train_main
from tests import ROOT
from tests.commands import arguments, bench_main, demo_main, export_main, fails


def test_train_writes_a_run_and_evaluates_it(models: Path, trained: dict[str, Any]) -> None:
    run = models / "run"
    assert trained["run"] == str(run) and trained["checkpoint"] == str(run / "last")
    assert trained["evaluation"]["samples"] == 6
    rows = [json.loads(line) for line in (run / "diagnostics.jsonl").read_text().splitlines()]
    assert {r["stage"].split("/")[0] for r in rows} == {"slot_tuning", "closed_form", "end_to_end", "baseline"}
    last = rows[[r["stage"] for r in rows].index("end_to_end")]
    assert {"step", "loss", "first_acc", "grad_norm", "answer_ce", "tokens_per_s", "memory_mb"} <= set(last)
    assert {"lr/encoder", "grad_norm/encoder", "grad_norm/lora/llama"} <= set(last)
    for name in ("config.json", "manifest.json", "eval.json", "eval.csv", "predictions.jsonl", "last/checkpoint.json"):
        assert (run / name).is_file(), name
    own = json.loads((run / "eval.json").read_text())["receivers"]
    assert set(own) == {"llama", "qwen"} and own["llama"]["text_tuned"] is not None


def test_the_same_command_again_does_nothing_twice(
    models: Path, trained: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    again = train_main(arguments(models, out_dir=models / "run"))
    assert capsys.readouterr().out.count("done before") == 2
    figures = [{k: v for k, v in run["evaluation"]["latent"].items() if k != "latency_s"} for run in (again, trained)]
    assert figures[0] == figures[1]


def test_slot_tuning_is_shared_by_runs(
    models: Path, trained: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_main(arguments(models, out_dir=tmp_path / "other", end_to_end_max_steps=1, stages="slot_tuning"))
    assert capsys.readouterr().out.count("taken from") == 6


def test_slot_tuning_that_came_from_a_cache_is_not_missed_behind_the_end(
    models: Path, trained: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(models / "run", tmp_path / "moved")
    for tuned in (tmp_path / "moved" / "stages").glob("slot_tuning-*"):
        shutil.rmtree(tuned)
    flags = arguments(models, out_dir=tmp_path / "moved", tuned_cache=tmp_path / "none", eval_samples=0)
    before = (tmp_path / "moved" / "last" / "receivers" / "llama.safetensors").read_bytes()
    train_main([*flags, "--stages", "end_to_end"])
    assert (tmp_path / "moved" / "last" / "receivers" / "llama.safetensors").read_bytes() == before
    train_main(flags)
    assert not list((tmp_path / "moved" / "stages").glob("slot_tuning-*"))


def test_slot_tuning_of_a_folder_is_not_taken_for_that_of_other_weights_in_it(
    models: Path, trained: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = models / "llama" / "model.safetensors"
    before = kept.read_bytes()
    weights = load_file(kept)
    save_file({name: tensor * 1.01 for name, tensor in weights.items()}, kept, {"format": "pt"})
    try:
        train_main(arguments(models, out_dir=tmp_path / "other", stages="slot_tuning"))
    finally:
        kept.write_bytes(before)
    assert capsys.readouterr().out.count("taken from") == 3, "those of the other receiver"


def test_eval_gives_what_training_gave_and_keeps_it(
    models: Path, trained: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--ckpt", str(models / "run"), "--samples", "6", "--dataset", "facts", "--out_dir", str(tmp_path)]
    results = eval_main([*words, "--fresh_eval"])
    # The checkpoint is kept in bf16, so figures may differ a little from those at the end of training.
    assert results["latent"]["nll_per_token"] == pytest.approx(
        trained["evaluation"]["latent"]["nll_per_token"], rel=0.02
    )
    written = (tmp_path / "eval.json").stat().st_mtime_ns
    assert eval_main(words)["latent"]["f1"] == results["latent"]["f1"]
    assert "holds these results already" in capsys.readouterr().out
    assert (tmp_path / "eval.json").stat().st_mtime_ns == written
    del results["manifest"]["config"]["evaluation"]["candidates"]  # as it was written before there was such an option
    (tmp_path / "eval.json").write_text(json.dumps(results))
    written = (tmp_path / "eval.json").stat().st_mtime_ns
    eval_main(words)
    assert (tmp_path / "eval.json").stat().st_mtime_ns == written
    eval_main([*words, "--fresh_eval", "--quiet"])
    assert (tmp_path / "eval.json").stat().st_mtime_ns > written


def test_a_program_ends_without_a_word_on_stderr(models: Path, trained: dict[str, Any], tmp_path: Path) -> None:
    words = ["--ckpt", str(models / "run"), "--samples", "2", "--out_dir", str(tmp_path), "--quiet"]
    command = [sys.executable, "latentwire/eval.py", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_one_receiver_of_a_checkpoint(models: Path, trained: dict[str, Any], tmp_path: Path) -> None:
    words = [
        "--ckpt",
        str(models / "run" / "last"),
        "--receivers",
        "qwen",
        "--samples",
        "2",
        "--out_dir",
        str(tmp_path),
    ]
    results = eval_main([*words, "--quiet"])
    assert list(results["receivers"]) == ["qwen"] and results["joint"] is None


def test_another_configuration_in_the_same_folder_is_refused(models: Path, trained: dict[str, Any]) -> None:
    with pytest.raises(LatentWireError, match=r"config\.json: .*encoder\.d_z.*--fresh"):
        train_main(arguments(models, out_dir=models / "run", d_z=8))


def test_a_run_that_nobody_named_does_not_run_into_another(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = arguments(models, runs_dir=tmp_path, slot_tuning_max_steps=0, baselines_max_steps=0, eval_samples=0)
    first, second, again = (
        Path(train_main([*flags, *words])["run"]) for words in ([], ["--lr", "1e-3"], ["--lr", "1e-3", "--keep", "1"])
    )
    assert first == tmp_path / "lora" and second == again and second.name.startswith("lora-")
    assert f"{first} holds a run of another configuration; this one is in {second}" in capsys.readouterr().out
    assert json.loads((second / "config.json").read_text())["optimizer"]["lr"] == 1e-3
    assert train_main([*flags, "--lr", "1e-3", "--fresh"])["run"] == str(second)


def test_the_last_epoch_is_whole_whatever_the_accumulation(models: Path, tmp_path: Path) -> None:
    """More micro-batches a step than an epoch has."""
    flags = arguments(models, out_dir=tmp_path, samples=60, slot_tuning_max_steps=0, baselines_max_steps=0)
    del flags[flags.index("--end_to_end_max_steps") : flags.index("--end_to_end_max_steps") + 2]
    train_main([*flags, "--epochs", "2", "--accumulation", "16", "--eval_samples", "0"])
    rows = [json.loads(line) for line in (tmp_path / "diagnostics.jsonl").read_text().splitlines()]
    assert {path.name for path in tmp_path.glob("epoch*")} == {"epoch1", "epoch2"}, rows[-1]


def test_a_checkpoint_of_an_epoch_has_the_baselines_that_were_tuned_at_the_end(models: Path, tmp_path: Path) -> None:
    flags = arguments(models, out_dir=tmp_path, eval_samples=0, slot_tuning_max_steps=0)
    del flags[flags.index("--end_to_end_max_steps") : flags.index("--end_to_end_max_steps") + 2]
    shutil.copytree(ROOT / "configs", tmp_path / "epoch1-mine")
    train_main([*flags, "--epochs", "1"])
    (tmp_path / "epoch1" / "eval.json").write_text("{}")
    (tmp_path / "epoch1" / "baselines" / "llama-text.safetensors").unlink()
    before = json.loads((tmp_path / "epoch1" / "checkpoint.json").read_text())
    del before["files"]["baselines/llama-text.safetensors"]
    (tmp_path / "epoch1" / "checkpoint.json").write_text(json.dumps(before))
    train_main([*flags, "--epochs", "1"])
    assert (tmp_path / "epoch1" / "eval.json").read_text() == "{}" and (tmp_path / "epoch1-mine").is_dir()
    last = {path.name: path.read_bytes() for path in (tmp_path / "last" / "baselines").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "epoch1" / "baselines").iterdir()} == last
    own = ["--ckpt", str(tmp_path / "epoch1"), "--samples", "6", "--override", "evaluation.latency_samples=0"]
    for receiver in eval_main(own)["receivers"].values():
        assert receiver["kept"]["of"] == "text_tuned" and receiver["token_budget"]["tuned"]


def test_eval_asks_again_where_the_questions_have_changed(
    models: Path, trained: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def hold(answer: str) -> None:
        asked = {"context": "Mira lives in Orlin.", "qas": [{"question": "Who?", "answers": [{"text": answer}]}]}
        (tmp_path / "held.json").write_text(json.dumps({"data": [{"paragraphs": [asked]}]}))

    hold("Mira")
    words = ["--ckpt", str(models / "run"), "--dataset", "squad", "--data_path", str(tmp_path / "held.json")]
    words += ["--out_dir", str(tmp_path / "out")]
    first = eval_main(words)
    eval_main(words)
    assert "holds these results already" in capsys.readouterr().out
    hold("Orlin")
    second = eval_main(words)
    assert "holds these results already" not in capsys.readouterr().out
    assert first["manifest"]["data"] != second["manifest"]["data"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--override", "encoder.windw=4"], "encoder.windw: unknown key (did you mean encoder.window?)"),
        (["--window", "four"], "encoder.window"),
        (["--dataset", "nowhere"], "data.dataset"),
        (["--config", "gone.json"], "gone.json: no such file"),
        (["--dataset", "squad", "--data_path", "gone.json"], "data.data_path: gone.json: no such file"),
        (["--data_path", "gone.json"], "data.data_path: gone.json: the dataset is facts"),
        (["--stages", "baselines", "--no_use_lora"], "--stages: baselines trains LoRA, and features.use_lora is off"),
        (["--stages", "closed_from"], "--stages: unknown stage 'closed_from'"),
        (["--stages", ""], "--stages: names no stage (there are slot_tuning, "),
        (["--no_such_flag"], "No such option"),
        (["--override", "optimizer.betas=[1.5,0.9]"], "optimizer.betas"),
        (["--dataset", "squad", "--data_path", __file__], "not valid JSON"),
        (["--llama_id", "/no/such/folder", "--sender_id", "/no/such/folder"], "/no/such/folder"),
    ],
)
def test_a_mistake_ends_in_one_line(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in fails(train_main, words, capsys)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change", ["data.data_path=x.json", "data.samples=1", "data.renamed=0.5", "losses.kd_weight=3", "codec.bits=8"]
)
def test_what_training_alone_looks_at_is_refused(
    change: str, models: Path, trained: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--ckpt", str(models / "run"), "--override", change]
    assert f"--override {change.split('=')[0]}: does nothing here" in fails(eval_main, words, capsys)


def test_a_run_without_a_name_is_found_again_by_what_it_trains() -> None:
    def folder(*words: str) -> str:
        return str(train_main([*words, "--dry-run"])["run"])

    assert folder("--samples", "64") == folder("--samples", "64", "--threads", "2", "--eval_samples", "300")
    assert folder("--samples", "64") != folder("--samples", "65")


def test_a_stage_that_came_with_the_checkpoint_is_not_asked_for(
    models: Path, trained: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for stages, named in (("slot_tuning", "slot_tuning"), ("end_to_end,closed_form", "closed_form")):
        words = arguments(models, out_dir=tmp_path / "run", init_from=models / "run", stages=stages)
        assert f"--stages: {named}: all receivers have that from {models / 'run'}" in fails(train_main, words, capsys)
    assert not (tmp_path / "run").exists()


def test_a_mistake_that_shows_late_may_be_put_right_in_the_same_folder(
    models: Path, trained: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = arguments(models, out_dir=tmp_path / "run", stages="closed_form")
    assert "no passage is left" in fails(train_main, [*words, "--closed_form_held_out", "1000"], capsys)
    assert (tmp_path / "run" / "config.json").is_file()
    (tmp_path / "run" / "origin.json").write_text("{}")  # as a try that started from a checkpoint leaves it
    train_main(words)
    assert not (tmp_path / "run" / "origin.json").exists()
    kept = json.loads((tmp_path / "run" / "config.json").read_text())
    assert kept["curriculum"]["closed_form"]["held_out"] == 2
    assert "another value of curriculum.closed_form.held_out; choose another folder, or --fresh" in fails(
        train_main, [*words, "--closed_form_held_out", "3"], capsys
    )


@pytest.mark.parametrize("found", [[], {"manifest": 5}, {"manifest": {"config": 5}}])
def test_results_of_another_form_are_no_results(
    models: Path, trained: dict[str, Any], tmp_path: Path, found: object
) -> None:
    (tmp_path / "eval.json").write_text(json.dumps(found))
    words = ["--ckpt", str(models / "run"), "--samples", "2", "--dataset", "facts", "--out_dir", str(tmp_path)]
    results = eval_main([*words, "--override", 'evaluation.modes=["latent"]'])
    assert json.loads((tmp_path / "eval.json").read_text())["samples"] == results["samples"] == 2


def test_bad_checkpoints_end_in_one_line(
    models: Path, trained: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no checkpoint there" in fails(eval_main, ["--ckpt", str(tmp_path)], capsys)
    shutil.copytree(models / "run" / "last", tmp_path / "bad")
    file = tmp_path / "bad" / "sender.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    assert "sender.safetensors: truncated or changed" in fails(eval_main, ["--ckpt", str(tmp_path / "bad")], capsys)
    words = ["--ckpt", str(models / "run"), "--receivers", "gemma"]
    assert "has no receiver 'gemma' (it has: llama, qwen)" in fails(eval_main, words, capsys)
    words = ["--ckpt", str(models / "run"), "--receiver", "gemma", "--receiver", "llama"]
    assert "has no receiver 'gemma' (it has: llama, qwen)" in fails(eval_main, words, capsys)
    other = json.dumps({"llama": str(models / "llama"), "new": str(models / "qwen3")})
    words = ["--ckpt", str(models / "run"), "--override", f"model.receivers={other}"]
    words += ["--override", "model.llama_id=null", "--override", "model.qwen_id=null"]
    assert "was not trained for 'new'" in fails(eval_main, words, capsys)


def test_results_that_could_not_be_written_are_not_measured(
    models: Path,
    trained: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("latentwire.model.pretrained.load_checkpoint", None)
    (tmp_path / "file").touch()
    words = ["--ckpt", str(models / "run"), "--samples", "2"]
    wrong = fails(eval_main, [*words, "--out_dir", str(tmp_path / "file")], capsys)
    assert f"{tmp_path / 'file'}: could not be written: File exists" in wrong
    wrong = fails(console, ["rates", *words, "-o", str(tmp_path / "file" / "rows.json")], capsys)
    assert f"{tmp_path / 'file'}: could not be written: " in wrong


def test_a_passage_longer_than_the_window_is_named(
    models: Path, trained: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = {
        "data": [{"paragraphs": [{"context": "word " * 900, "qas": [{"question": "?", "answers": [{"text": "w"}]}]}]}]
    }
    (tmp_path / "long.json").write_text(json.dumps(long))
    words = ["--ckpt", str(models / "run"), "--dataset", "squad", "--data_path", str(tmp_path / "long.json")]
    wrong = fails(eval_main, [*words, "--out_dir", str(tmp_path)], capsys)
    assert "evaluation: passage '0-0': " in wrong and "longer than the sender's window of 512" in wrong
    assert not (tmp_path / "eval.json").exists()
    (tmp_path / "short.json").write_text(json.dumps(long).replace("word " * 900, "word " * 90))
    flags = arguments(models, dataset="squad", data_path=tmp_path / "short.json", eval_path=tmp_path / "long.json")
    wrong = fails(train_main, [*flags, "--out_dir", str(tmp_path / "run")], capsys)
    assert "evaluation: passage '0-0': " in wrong and not (tmp_path / "run").exists()


def test_debug_shows_the_traceback_and_files_run_as_scripts() -> None:
    for script, words in (("train.py", ["--config", "gone.json"]), ("eval.py", ["--ckpt", "gone"])):
        command = [sys.executable, f"latentwire/{script}", *words]
        plain = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert plain.returncode == 2 and "Traceback" not in plain.stderr and "gone" in plain.stderr
        debug = subprocess.run([*command, "--debug"], cwd=ROOT, capture_output=True, text=True)
        assert debug.returncode == 2 and "Traceback" in debug.stderr


def test_debug_logs_everything_unless_a_flag_says_otherwise() -> None:
    logged = train_main(["--debug", "--dry-run"])["config"]["diagnostics"]
    assert logged["log_every"] == 1 and logged["log_shapes"] and logged["profile_memory"]
    logged = train_main(["--debug", "--log_every", "7", "--no_log_shapes", "--dry-run"])["config"]["diagnostics"]
    assert logged["log_every"] == 7 and not logged["log_shapes"] and logged["profile_memory"]
    plain = train_main(["--dry-run"])["config"]["diagnostics"]
    assert not plain["log_shapes"] and not plain["profile_memory"]


def test_stages_tell_their_memory_and_what_they_trained(models: Path, tmp_path: Path) -> None:
    flags = arguments(models, out_dir=tmp_path, eval_samples=0, stages="slot_tuning,closed_form,end_to_end")
    train_main([*flags, "--profile_memory"])
    rows = [json.loads(line) for line in (tmp_path / "diagnostics.jsonl").read_text().splitlines()]
    peaks = {row["stage"]: row["memory_mb"] for row in rows if "step" not in row}
    assert {"load", "closed_form", "end_to_end"} <= set(peaks) and min(peaks.values()) > 50
    steps = [row["memory_mb"] for row in rows if row["stage"] == "end_to_end" and "step" in row]
    assert peaks["end_to_end"] >= max(steps)
    trained = json.loads((tmp_path / "stages" / "end_to_end" / "done" / "checkpoint.json").read_text())["parameters"]
    assert {"encoder", "generator/llama", "lora/qwen"} <= set(trained)
    assert trained["encoder"] == 4 * 2 * 48 * 16  # window, layers, hidden size, d_z


def test_importance_is_weighed_also_where_all_passages_are_set_aside(models: Path, tmp_path: Path) -> None:
    """As may be where the closed form is fitted to plain text."""
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"Paragraph {i} tells of lamp {i} on hill {i % 3} by the river." for i in range(40)))
    found = []
    for passages in (0, 2):
        more = {"text_path": text, "closed_form_held_out": 24, "closed_form_passages": 30, "slot_tuning_max_steps": 0}
        more |= {"closed_form_importance_passages": passages, "out_dir": tmp_path / str(passages)}
        train_main(arguments(models, stages="closed_form", **more))
        found.append(load_folder(tmp_path / str(passages) / "stages" / "closed_form" / "done")["sender"])
    assert not all(found[0][key].equal(tensor) for key, tensor in found[1].items())


def test_the_demo_shows_one_message_and_writes_its_results(
    models: Path, trained: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--ckpt", str(models / "run"), "--samples", "4", "--no_train", "--out_dir", str(tmp_path)]
    results = demo_main([*words, "--data_path", str(ROOT / "examples" / "questions.json")])
    shown = capsys.readouterr().out
    assert "one message:" in shown and "from the message" in shown and "from the text" in shown
    assert results["squad"]["samples"] == 4 and (tmp_path / "eval.json").is_file()
    words.remove("--no_train")
    assert "error: --train: " in fails(demo_main, [*words[:-1], str(tmp_path / "no")], capsys)  # tiny models cannot
    assert not (tmp_path / "no").exists()


def test_the_benchmark_measures_every_stage(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = arguments(models)
    encoded, forward = [], BackboneEncoder.forward

    def watched(self: BackboneEncoder, *args: Any) -> Any:
        z = forward(self, *args)
        z.register_hook(lambda grad: encoded.append(float(grad.abs().sum())))
        return z

    monkeypatch.setattr(BackboneEncoder, "forward", watched)
    result = bench_main([*flags, "--steps", "1", "--accumulation", "2", "--json"])
    assert json.loads(capsys.readouterr().out) == result
    assert len(encoded) == 2 * 3 and min(encoded) > 0, "two steps and the one that is counted, of each receiver"
    assert [row["stage"] for row in result["stages"]] == ["slot_tuning", "baseline"] * 2 + ["end_to_end"] * 2
    for row in result["stages"]:
        assert row["tokens_per_s"] > 0 and row["gemm_share"] > 0
        assert sum(row[part] for part in ("data", "forward", "backward", "optimizer")) == pytest.approx(1)


def test_the_benchmark_leaves_out_what_a_receiver_cannot_read(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(models / "qwen3", tmp_path / "short")
    file = tmp_path / "short" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_position_embeddings": 40}))
    reason = "error: data.max_context_tokens: no passage has at most 400 tokens and fits sender and receivers"
    assert reason in fails(bench_main, arguments(models, qwen_id=tmp_path / "short"), capsys)


def test_working_on_other_stages_keeps_the_trained_checkpoint(models: Path, trained: dict[str, Any]) -> None:
    index = models / "run" / "last" / "checkpoint.json"
    before = json.loads(index.read_text())["files"]
    train_main(arguments(models, out_dir=models / "run", stages="baselines"))
    assert json.loads(index.read_text())["files"] == before


def test_baselines_that_were_not_trained_are_not_reported(models: Path, tmp_path: Path) -> None:
    flags = arguments(models, out_dir=tmp_path, stages="slot_tuning,closed_form,end_to_end", baselines_max_steps=3)
    results = train_main(flags)["evaluation"]
    assert results["receivers"]["llama"]["text_tuned"] is None
    assert not (tmp_path / "last" / "baselines").exists()


def test_a_training_state_and_an_impossible_device_are_named(
    models: Path, trained: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = models / "run" / "stages" / "end_to_end" / "done"
    assert "a training state, not a checkpoint" in fails(eval_main, ["--ckpt", str(state)], capsys)
    assert "system.device: 'toaster'" in fails(
        train_main, arguments(models, device="toaster", out_dir=tmp_path), capsys
    )


def test_lora_is_trained_also_without_slot_tuning(models: Path, tmp_path: Path) -> None:
    flags = arguments(models, out_dir=tmp_path, slot_tuning_max_steps=0, baselines_max_steps=0, eval_samples=0)
    train_main(flags)
    rows = [json.loads(line) for line in (tmp_path / "diagnostics.jsonl").read_text().splitlines()]
    assert any("grad_norm/lora/llama" in row for row in rows)


def test_a_stage_whose_forerunner_is_missing_is_refused(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = arguments(models, out_dir=tmp_path / "run", tuned_cache=tmp_path / "cache")
    assert "--stages: end_to_end needs closed_form" in fails(
        train_main, [*flags, "--stages", "slot_tuning,end_to_end"], capsys
    )
    flags = arguments(models, out_dir=tmp_path / "other", tuned_cache=tmp_path / "none")
    message = fails(train_main, [*flags, "--stages", "closed_form"], capsys)
    assert "--stages: closed_form needs slot_tuning of 'llama'" in message
    assert not (tmp_path / "other" / "last").exists()


def test_starting_from_a_checkpoint_of_another_form_is_refused(
    models: Path, trained: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = {"init_from": models / "run", "out_dir": tmp_path}
    message = fails(train_main, arguments(models, **start, encoder_layers="0,1"), capsys)
    assert "checkpoint.init_from" in message and "encoder.layers = [0, 2], not [0, 1]" in message
    assert "lora.r = 8, not 4" in fails(train_main, arguments(models, **start, lora_r=4), capsys)
    off = [*arguments(models, **start), "--no_use_deep_prefix"]
    assert "features.use_deep_prefix = True, not False" in fails(train_main, off, capsys)
    assert not any(tmp_path.iterdir())
    # Features that it lacks come in addition, and start afresh.
    more = ["--use_prefix", "--prefix_len", "3", "--use_latent_refiner", "--use_gist_head", "--gist_weight", "0.5"]
    train_main([*arguments(models, **start, end_to_end_max_steps=2), *more, "--stages", "end_to_end"])
    kept = load_folder(tmp_path / "last")
    assert any(k.startswith("prefix.") for k in kept["receivers/llama"])
    assert any(k.startswith("latent_refiner.") for k in kept["sender"])


def test_training_passages_beyond_the_sender_s_window_are_left_out(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def paragraph(words: int) -> dict[str, Any]:
        return {"context": "word " * words, "qas": [{"question": "Which?", "answers": [{"text": "word"}]}]}

    (tmp_path / "mixed.json").write_text(json.dumps({"data": [{"paragraphs": [paragraph(n) for n in (9, 900, 9, 9)]}]}))
    more = {"dataset": "squad", "data_path": tmp_path / "mixed.json", "max_context_tokens": 5000, "eval_samples": 0}
    train_main(arguments(models, out_dir=tmp_path / "run", stages="slot_tuning", **more))
    assert "3 of 4 training passages" in capsys.readouterr().out


def test_an_exported_checkpoint_works_and_knows_no_path(
    models: Path, trained: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from latentwire.checkpoint.export import measured_on, portable

    (tmp_path / "held.json").write_text(
        json.dumps(
            {"data": [{"paragraphs": [{"context": "Red.", "qas": [{"question": "?", "answers": [{"text": "r"}]}]}]}]}
        )
    )
    out = tmp_path / "shipped"
    words = ["--ckpt", str(models / "run"), "--out_dir", str(out)]
    export_main(words)
    measure = ["--dataset", "squad", "--data_path", str(tmp_path / "held.json"), "--quiet", "--fresh_eval"]
    named = {"encoder.model": "llama", "model.receivers.llama": "llama", "model.receivers.qwen": "qwen3"}
    for key, model in named.items():
        measure += ["--override", f"{key}={models / model}"]
    eval_main(["--ckpt", str(out), *measure, "--out_dir", str(tmp_path / "measured")])
    export_main([*words, "--results", str(tmp_path / "measured" / "eval.json"), "--data_licence", "a story, CC0"])
    assert {"README.md", "training.jsonl", "eval.json", "checkpoint.json"} <= {p.name for p in out.iterdir()}
    info = json.loads((out / "checkpoint.json").read_text())
    info["config"]["data"]["data_path"] = "story.json"
    assert "Training data: story.json: a story, CC0." in model_card(info, None)
    card = (out / "README.md").read_text()
    assert "| llama | latent |" in card and "invented facts" in card and "latentwire train " in card
    for name in ("README.md", "eval.json", "checkpoint.json"):
        text = (out / name).read_text()
        assert str(tmp_path) not in text and str(models) not in text, name
    config = json.loads((out / "checkpoint.json").read_text())["config"]
    assert not {"device", "require_cuda"} & set(config["system"])
    assert "tuned_cache" not in config["checkpoint"] and config["model"]["llama_id"] is None
    assert config["model"]["receivers"] == {"llama": "llama", "qwen": "qwen3"}
    info["manifest"]["command"] = [
        'data.data_path=["/a/one.json", "/a/two.json"]',
        'model.receivers={"a": "/a/llama", "b": "org/name"}',
        "anchor.text=" + "x" * 300,
        '--override=model.receivers={"a": "/a/llama"}',
        "one.json,/a/two.json",
        "/a/one.json,/a/two.json",
        "curriculum.train_only=null",
        "anchor.text={not JSON}",
    ]
    assert portable(info)["manifest"]["command"] == [
        'data.data_path=["one.json", "two.json"]',
        'model.receivers={"a": "llama", "b": "org/name"}',
        "anchor.text=" + "x" * 300,
        '--override=model.receivers={"a": "llama"}',
        "one.json,two.json",
        "one.json,two.json",
        "curriculum.train_only=null",
        "anchor.text={not JSON}",
    ]
    info["config"]["anchor"] |= {"text": "/no_think", "question": "/ {question}"}
    info["config"]["evaluation"]["anchor_text"] = "/passage"
    assert portable(info)["config"]["anchor"] == info["config"]["anchor"]
    assert portable(info)["config"]["evaluation"]["anchor_text"] == "/passage"
    measured = json.loads((tmp_path / "measured" / "eval.json").read_text())
    files = measured["manifest"]["checkpoint"]
    later = files | {"codecs/fsq.safetensors": {"bytes": 1, "sha256": "1" * 64}}
    assert measured_on(files, later) and not measured_on(later, files) and not measured_on({}, files)
    assert not measured_on(files, files | {"receivers/third.safetensors": {"bytes": 1, "sha256": "1" * 64}})
    files["sender.safetensors"]["sha256"] = "0" * 64
    (tmp_path / "other.json").write_text(json.dumps(measured))
    wrong = fails(export_main, [*words, "--results", str(tmp_path / "other.json")], capsys)
    assert "the evaluation of another checkpoint" in wrong
    for text in (
        "[]",
        "{}",
        '{"schema": 1, "receivers": {}}',
        '{"schema": 1, "receivers": {}, "manifest": {"config": null}}',
    ):
        (tmp_path / "other.json").write_text(text)
        assert "other.json" in fails(export_main, [*words, "--results", str(tmp_path / "other.json")], capsys)
    assert (out / "README.md").read_text() == card  # and the export that was there is whole
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "README.md").write_text("mine")
    assert "which is no part of an export" in fails(export_main, [*words[:3], str(tmp_path / "notes")], capsys)
    assert (tmp_path / "notes" / "README.md").read_text() == "mine"


def test_an_export_of_some_receivers_is_a_checkpoint_of_its_own(
    models: Path, trained: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from latentwire.checkpoint.export import only_some

    words = ["--ckpt", str(models / "run"), "--out_dir", str(tmp_path / "one")]
    info = export_main([*words, "--receivers", "qwen"])
    own = {"sender", "receivers/qwen", "baselines/qwen-text", "baselines/qwen-token_budget"}
    assert set(info["files"]) == {f"{stem}.safetensors" for stem in own}
    assert info["config"]["model"]["receivers"] == {"qwen": "qwen3"} and info["config"]["features"]["use_lora"]
    model = ("--override", json.dumps({"qwen": str(models / "qwen3")}).join(["model.receivers=", ""]))
    sender = ("--override", f"encoder.model={models / 'llama'}")
    results = eval_main(
        ["--ckpt", str(tmp_path / "one"), "--samples", "6", *model, *sender, "--out_dir", str(tmp_path / "measured")]
    )
    whole = json.loads((models / "run" / "eval.json").read_text())["receivers"]["qwen"]
    assert set(results["receivers"]) == {"qwen"}
    assert results["receivers"]["qwen"]["text_tuned"]["f1"] == pytest.approx(whole["text_tuned"]["f1"])
    wrong = fails(export_main, [*words, "--receivers", "qwen,gemma"], capsys)
    assert f"--receivers: {models / 'run' / 'last'} has no receiver 'gemma' (it has: llama, qwen)" in wrong
    index = tmp_path / "one" / "checkpoint.json"
    aside = {"type": "byte", "latent_len": 6, "latent_private_len": 2}
    byte = {"model": {"receivers": {"a": "x", "b": "y"}}, "encoder": aside}
    with pytest.raises(ConfigError, match="--receivers: x sets latents aside for each of its receivers"):
        only_some({}, {"config": Config.model_validate(byte).model_dump(mode="json")}, ["a"], "--receivers: x")
    two = {"model": {"receivers": {"a": "x", "b": "y"}}, "deep_prefix": {"ranked": {"a": 1, "b": 2}}}
    two |= {"encoder": {"companion": "z"}, "curriculum": {"closed_form": {"companion_for": ["a"]}}}
    whole = Config.model_validate(two).model_dump(mode="json")
    _, some = only_some({"receivers/b": {}}, {"config": whole}, ["b"], "--receivers: x")
    config = Config.model_validate(some["config"])
    assert config.deep_prefix.ranked == {"b": 2} and config.curriculum.closed_form.companion_for is None
    index.write_text(json.dumps(json.loads(index.read_text()) | {"earlier": 3}))
    words = ["--ckpt", str(tmp_path / "one"), "--out_dir", str(tmp_path / "two")]
    assert f"{index}: not in the form that a run writes" in fails(export_main, words, capsys)
    index.write_text(json.dumps(json.loads(index.read_text()) | {"config": [1]}))
    assert f"{tmp_path / 'one'}: a configuration is a JSON object, got [1]" in fails(export_main, words, capsys)


def test_an_export_takes_the_place_of_an_earlier_one_alone(
    models: Path, trained: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(models / "run", run)
    for _ in range(2):
        export_main(["--ckpt", str(run), "--out_dir", str(out)])
    (out / "thesis").mkdir()
    (out / "thesis" / "one.txt").write_text("years")
    wrong = fails(export_main, ["--ckpt", str(run), "--out_dir", str(out)], capsys)
    assert "holds thesis/one.txt, which is no part of an export" in wrong and (out / "thesis" / "one.txt").is_file()
    for target in (run, run / "last", tmp_path):
        before = sorted(tmp_path.rglob("*"))
        wrong = fails(export_main, ["--ckpt", str(run), "--out_dir", str(target)], capsys)
        assert "holds the checkpoint that is read" in wrong and sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("changed", "refusal"),
    [("squad.json", "data: what it trains on has changed"), ("llama/tokenizer_config.json", "the model ")],
)
def test_a_run_does_not_go_on_with_other_data_or_models(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: str, refusal: str
) -> None:
    """Nor is what it tuned before filed as tuned on those, where other runs would take it from."""
    shutil.copytree(models / "llama", tmp_path / "llama")
    question = {"id": "1", "question": "Where does Mira live?", "answers": [{"text": "Orlin", "answer_start": 17}]}
    passages = [{"context": f"{i}. Mira lives in Orlin near the river.", "qas": [question]} for i in range(8)]
    (tmp_path / "squad.json").write_text(json.dumps({"data": [{"paragraphs": passages}]}))
    flags = {"out_dir": tmp_path / "run", "tuned_cache": tmp_path / "cache", "llama_id": tmp_path / "llama"}
    flags |= {"dataset": "squad", "data_path": tmp_path / "squad.json", "stages": "slot_tuning", "eval_samples": 0}
    words = arguments(models, **flags)
    train_main(words)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    assert any(path.is_relative_to(tmp_path / "cache") for path in before)
    train_main(words)
    (tmp_path / changed).write_text((tmp_path / changed).read_text().replace("Mira", "Edda").replace("{", "{ ", 1))
    wrong = fails(train_main, words, capsys)
    assert refusal in wrong and f"since the run in {tmp_path / 'run'} started" in wrong
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")} == before
    train_main(arguments(models, **flags | {"out_dir": tmp_path / "other"}))
    kept = [path for path in tmp_path.glob("cache/tuned/*latent*") if "llama" in path.name]
    assert len(kept) == 2, "of the old and of the new"


def test_stages_may_be_worked_on_one_by_one_also_where_one_has_no_steps(models: Path, tmp_path: Path) -> None:
    flags: dict[str, object] = {"out_dir": tmp_path, "end_to_end_max_steps": 0, "tuned_cache": tmp_path / "cache"}
    flags |= {"slot_tuning_max_steps": 0, "eval_samples": 0}
    train_main(arguments(models, **flags, stages="closed_form,end_to_end"))
    assert not any((tmp_path / "last").glob("baselines/*"))
    train_main(arguments(models, **flags, stages="baselines"))
    assert (tmp_path / "last" / "baselines" / "llama-text.safetensors").is_file()


def test_fresh_removes_an_old_run_only_when_the_new_one_can_start(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {"out_dir": tmp_path, "eval_samples": 0}
    short = arguments(models, **flags, slot_tuning_max_steps=0, baselines_max_steps=0, end_to_end_max_steps=1)
    train_main(short)
    before = (tmp_path / "last" / "checkpoint.json").read_text()
    fails(train_main, [*short, "--fresh", "--dataset", "squad", "--data_path", "gone.json"], capsys)
    fails(train_main, [*short, "--fresh", "--init_from", str(tmp_path)], capsys)
    assert (tmp_path / "last" / "checkpoint.json").read_text() == before
    link = tmp_path.with_name(f"{tmp_path.name}-link")
    link.symlink_to(tmp_path)
    (tmp_path / "mine" / "stages").mkdir(parents=True)
    (tmp_path / "mine.json").write_text("[]")
    train_main([*short, "--fresh", "--d_z", "8", "--out_dir", str(link)])
    assert (tmp_path / "mine.json").is_file() and (tmp_path / "mine" / "stages").is_dir()
    shutil.copytree(tmp_path / "last", tmp_path / "mine" / "ckpt")
    train_main([*short, "--fresh", "--d_z", "8", "--init_from", str(tmp_path / "mine" / "ckpt")])

    def cut_off(path: Path) -> None:
        if path.name == "last":
            raise RuntimeError("cut off")

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="cut off"):
        patched.setattr("latentwire.training.folder.shutil.rmtree", cut_off)
        train_main([*short, "--fresh", "--d_z", "8"])
    capsys.readouterr()
    train_main([*short, "--fresh", "--d_z", "8"])
    assert "done before" not in capsys.readouterr().out
    assert json.loads((tmp_path / "last" / "checkpoint.json").read_text())["config"]["encoder"]["d_z"] == 8


def test_a_finished_run_needs_no_cache(models: Path, trained: dict[str, Any], tmp_path: Path) -> None:
    before = json.loads((models / "run" / "last" / "checkpoint.json").read_text())["files"]
    shutil.copytree(models / "run", tmp_path / "run")
    for tuned in (tmp_path / "run" / "stages").glob("baseline-*"):  # as if they had come from the cache
        shutil.rmtree(tuned)
    train_main(arguments(models, out_dir=tmp_path / "run", tuned_cache=tmp_path / "empty", stages="end_to_end"))
    assert json.loads((tmp_path / "run" / "last" / "checkpoint.json").read_text())["files"] == before


def test_a_run_without_end_to_end_steps_is_a_checkpoint_too(models: Path, tmp_path: Path) -> None:
    flags = arguments(models, out_dir=tmp_path, slot_tuning_max_steps=0, baselines_max_steps=0, end_to_end_max_steps=0)
    results = train_main(flags)["evaluation"]
    assert (tmp_path / "last" / "checkpoint.json").is_file()
    assert (
        results["receivers"]["llama"]["latent"]["tuned"] and not results["receivers"]["llama"]["token_budget"]["tuned"]
    )
    assert results["manifest"]["command"][:3] == ["latentwire", "train", "--config"]


def test_frozen_and_lora_checkpoints_do_not_start_each_other(
    models: Path, trained: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*arguments(models, init_from=models / "run", out_dir=tmp_path), "--no_use_lora"]
    assert "features.use_lora = True, not False" in fails(train_main, flags, capsys)


def test_distillation_tunes_its_teacher_first(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    distil = {"kd_weight": 1, "eval_samples": 0, "tuned_cache": tmp_path / "cache"}
    flags = arguments(models, out_dir=tmp_path / "run", **distil)
    message = fails(train_main, [*flags, "--stages", "slot_tuning"], capsys)
    assert "--stages: distillation needs the text-tuned 'llama': do baselines first or as well" in message
    train_main(flags)
    rows = [json.loads(line) for line in (tmp_path / "run" / "diagnostics.jsonl").read_text().splitlines()]
    stages = list(dict.fromkeys(r["stage"] for r in rows))
    teachers, slots = ["baseline/llama/text", "baseline/qwen/text"], ["slot_tuning/llama", "slot_tuning/qwen"]
    budget = [name.replace("text", "token_budget") for name in teachers]
    assert stages == [*teachers, *slots, "closed_form", "end_to_end", *budget]
    taught = [r for r in rows if r["stage"].startswith(("slot", "end"))]
    assert taught and all(r["kd"] > 0 and r["loss"] == pytest.approx(r["answer_ce"] + r["kd"]) for r in taught)
    assert not any("kd" in r for r in rows if r["stage"].startswith("baseline"))
    teacher = tmp_path / "run" / "last" / "baselines" / "llama-text.safetensors"
    before = teacher.read_bytes()
    shutil.copytree(tmp_path / "run", tmp_path / "copied")
    for tuned in (tmp_path / "copied" / "stages").glob("baseline-*"):  # as if it had come from a cache that is gone
        shutil.rmtree(tuned)
    train_main(
        arguments(
            models, out_dir=tmp_path / "copied", stages="end_to_end", **distil | {"tuned_cache": tmp_path / "none"}
        )
    )
    assert (tmp_path / "copied" / "last" / "baselines" / "llama-text.safetensors").read_bytes() == before
    # Another teacher is another slot tuning; the same one is found again.
    capsys.readouterr()
    train_main(arguments(models, out_dir=tmp_path / "again", stages="slot_tuning,baselines", **distil))
    assert capsys.readouterr().out.count("taken from") == 6
    train_main(
        arguments(models, out_dir=tmp_path / "more", baselines_max_steps=2, stages="slot_tuning,baselines", **distil)
    )
    assert capsys.readouterr().out.count("taken from") == 0
