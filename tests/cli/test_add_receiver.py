"""A receiver joins a trained checkpoint, on tiny models in local folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from latentwire.checkpoint.export import rounded, training_log
from latentwire.checkpoint.index import find_checkpoint, load_config_of, sender_fingerprint
from latentwire.checkpoint.tensors import load_folder, read_info
from latentwire.cli.add_receiver import add_receiver
from latentwire.cli.main import main as latentwire
from latentwire.config import Config
from latentwire.eval import main as eval_main
from latentwire.model.sender import Sender
from latentwire.train import main as train_main
from latentwire.training.stages.end_to_end import EndToEnd
from tests.commands import STORY, add_receiver_main, arguments, export_main, fails


def words(models: Path, out: Path, **more: object) -> list[str]:
    flags = {"ckpt": models / "run", "name": "gemma", "model": models / "gemma3", "out_dir": out, "steps": 2} | more
    return [word for key, value in flags.items() for word in (f"--{key}", str(value))]


def files_of(folder: Path) -> dict[str, str]:
    return {name: file["sha256"] for name, file in read_info(find_checkpoint(folder))["files"].items()}


@pytest.fixture(scope="module")
def added(models: Path, trained: dict[str, Any]) -> dict[str, Any]:
    return add_receiver_main(words(models, models / "more"))


def test_the_sender_and_the_other_receivers_stay_as_they_are(models: Path, added: dict[str, Any]) -> None:
    before, after = files_of(models / "run"), files_of(models / "more")
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {
        "receivers/gemma.safetensors", "baselines/gemma-text.safetensors", "baselines/gemma-token_budget.safetensors",
    }  # fmt: skip
    for name in before:
        one, other = ((models / run / "last" / name).read_bytes() for run in ("run", "more"))
        assert one == other, name
    assert sender_fingerprint(models / "run" / "last") == sender_fingerprint(models / "more" / "last")
    wires = [Sender.from_pretrained(models / run).encode(STORY).to_bytes() for run in ("run", "more")]
    assert wires[0] == wires[1]


def test_it_reads_messages_that_were_sent_before_it_came(models: Path, added: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_text(STORY)
    message = str(tmp_path / "story.lw")
    latentwire(["encode", str(tmp_path / "story.txt"), "--ckpt", str(models / "run"), "-o", message])
    for name in ("gemma", "llama"):
        ask = ["--receiver", name, "--question", "Where does Mira live?"]
        rows = latentwire(["decode", message, "--ckpt", str(models / "more"), *ask])
        assert [answer["source"] for answer in rows[0]["answers"]] == ["latents"]
        if name == "llama":
            assert rows == latentwire(["decode", message, "--ckpt", str(models / "run"), *ask])


def test_other_data_come_without_the_texts_beside_the_checkpoints_own(
    models: Path, added: dict[str, Any], tmp_path: Path
) -> None:
    """Also from a run that left stages out and had texts that are not here."""
    old = tmp_path / "old"
    shutil.copytree(models / "run" / "last", old)
    info = json.loads((old / "checkpoint.json").read_text())
    info["config"]["data"] |= {"text_path": "gone.txt", "cloze": 4}
    for stage in ("slot_tuning", "baselines"):
        info["config"]["curriculum"][stage]["max_steps"] = 0
    info["config"]["evaluation"]["samples"] = 0
    (old / "checkpoint.json").write_text(json.dumps(info))
    run = add_receiver_main(words(models, tmp_path / "new", ckpt=old, dataset="facts", samples=30, steps=1))
    used = load_config_of(Path(run["checkpoint"]))
    assert used.data.samples == 30
    assert (used.data.text_path, used.data.cloze) == (None, 0)
    assert (used.curriculum.slot_tuning.max_steps, used.curriculum.baselines.max_steps) == (300, 200)
    assert run["evaluation"]["samples"] == used.evaluation.samples > 0
    epochs = ["--override", "curriculum.baselines.epochs=2", "--override", "evaluation.samples=0"]
    run = add_receiver_main(
        [*words(models, tmp_path / "epochs", ckpt=old, dataset="facts", samples=30, steps=1), *epochs]
    )
    used = load_config_of(Path(run["checkpoint"]))
    assert (used.curriculum.slot_tuning.max_steps, used.curriculum.baselines.max_steps) == (300, None)


def test_models_of_receivers_that_are_not_loaded_may_be_gone(
    models: Path, added: dict[str, Any], tmp_path: Path
) -> None:
    assert not any("llama" not in key and "gemma" not in key for key in inputs_of(models / "more"))
    assert any("gemma3" in key for key in inputs_of(models / "more"))


def inputs_of(run: Path) -> list[str]:
    return [key for key in json.loads((run / "inputs.json").read_text()) if key.startswith("the model ")]


def test_only_the_new_receiver_is_trained_and_measured(models: Path, added: dict[str, Any], tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (models / "more" / "diagnostics.jsonl").read_text().splitlines()]
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    tuned = ["baseline/gemma/text", "baseline/gemma/token_budget"]
    assert stages == ["slot_tuning/gemma", "closed_form", "end_to_end", *tuned]
    assert set(rows[[row["stage"] for row in rows].index("closed_form")]["r2"]) == {"gemma"}
    index = models / "more" / "stages" / "end_to_end" / "done" / "checkpoint.json"
    assert set(json.loads(index.read_text())["parameters"]) == {
        f"{part}/gemma" for part in ("generator", "generator_mlp", "head", "lora")
    }
    assert set(added["evaluation"]["receivers"]) == {"gemma"}
    assert added["evaluation"]["receivers"]["gemma"]["text_tuned"] is not None
    assert added["evaluation"]["manifest"]["command"][:4] == [
        "latentwire",
        "add-receiver",
        "--ckpt",
        str(models / "run"),
    ]
    both = eval_main(["--ckpt", str(models / "more"), "--samples", "2", "--out_dir", str(tmp_path), "--quiet"])
    assert set(both["receivers"]) == {"llama", "qwen", "gemma"} and both["joint"] is not None


def test_an_export_tells_of_both_runs(models: Path, added: dict[str, Any], tmp_path: Path) -> None:
    info = export_main(["--ckpt", str(models / "more"), "--out_dir", str(tmp_path / "out")])
    assert [one["command"][1] for one in info["earlier"]] == ["train"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.index("latentwire train") < card.index("latentwire add-receiver")
    log = [json.loads(line) for line in (tmp_path / "out" / "training.jsonl").read_text().splitlines()]
    own = [rounded(json.loads(line)) for line in (models / "more" / "diagnostics.jsonl").read_text().splitlines()]
    assert all(len(f"{row['loss']:.9g}".replace(".", "").strip("0")) <= 6 for row in own if "loss" in row)
    assert log[-len(own) :] == own and log[0]["stage"].startswith("run 1: slot_tuning/")

    again = export_main(["--ckpt", str(tmp_path / "out"), "--out_dir", str(tmp_path / "again")])
    assert again["earlier"] == info["earlier"] and training_log([tmp_path / "again"], tmp_path / "again") == log
    last = models / "more" / "last"
    went_on = training_log([tmp_path / "out", last], last)
    assert [row["stage"].split(":")[0] for row in went_on[len(log) - 1 : len(log) + 1]] == ["run 2", own[0]["stage"]]
    assert went_on[: len(log) - len(own)] == log[: -len(own)] and went_on[-len(own) :] == own


def test_a_killed_run_goes_on_to_the_same_result(
    models: Path, added: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in its second step end to end; the tuned model, the solved generator and the first step are there."""
    every = ["--override", "checkpoint.every_steps=1", "--override", f"checkpoint.tuned_cache={tmp_path / 'cache'}"]
    command = [*words(models, tmp_path / "run"), *every, "--override", "evaluation.samples=0"]
    forward = EndToEnd.forward
    seen: list[object] = []

    def killed(self: EndToEnd, batch: Any) -> Any:
        seen.append(batch)
        if len(seen) == 2:
            raise MemoryError("killed")
        return forward(self, batch)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(EndToEnd, "forward", killed)
        add_receiver_main(command)
    assert (tmp_path / "run" / "stages" / "end_to_end" / "step_000001").is_dir()
    assert not (tmp_path / "run" / "last").exists()
    add_receiver_main(command)
    assert files_of(tmp_path / "run") == files_of(models / "more")


def test_a_frozen_receiver_beside_others_with_lora(
    models: Path, added: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frozen = ["--override", "features.use_lora=false"]
    result = add_receiver_main([*words(models, tmp_path / "frozen"), *frozen])
    kept = load_folder(tmp_path / "frozen" / "last")
    assert not any("lora" in key for key in kept["receivers/gemma"])
    assert any("lora" in key for key in kept["receivers/llama"]) and "baselines/gemma-text" not in kept
    own = result["evaluation"]["receivers"]["gemma"]
    assert own["latent"]["tuned"] is False and own["text_tuned"] is None
    assert "latent (no LoRA)" in capsys.readouterr().out
    measure = ["--ckpt", str(tmp_path / "frozen"), "--samples", "2", "--quiet"]
    all_of_them = eval_main([*measure, "--out_dir", str(tmp_path / "a")])["receivers"]
    assert [all_of_them[name]["latent"]["tuned"] for name in ("llama", "gemma")] == [True, False]
    # And any of them can be measured without the LoRA that it was trained with.
    bare = eval_main([*measure, *frozen, "--out_dir", str(tmp_path / "b")])["receivers"]["llama"]
    assert bare["latent"]["tuned"] is False and bare["text_tuned"] is None
    assert bare["latent"]["nll_per_token"] != all_of_them["llama"]["latent"]["nll_per_token"]
    # Exported by itself it is a checkpoint without LoRA.
    info = export_main(
        ["--ckpt", str(tmp_path / "frozen"), "--out_dir", str(tmp_path / "alone"), "--receivers", "gemma"]
    )
    assert set(info["files"]) == {"sender.safetensors", "receivers/gemma.safetensors"}
    assert info["config"]["features"]["use_lora"] is False
    assert bare["text"]["nll_per_token"] == all_of_them["llama"]["text"]["nll_per_token"]


def test_a_receiver_with_lora_joins_frozen_ones_on_an_exported_checkpoint(
    models: Path, added: dict[str, Any], tmp_path: Path
) -> None:
    """Packed files are taken over as they are; the rank is free where no receiver has any."""
    short = {"end_to_end_max_steps": 1, "eval_samples": 0, "out_dir": tmp_path / "run"}
    train_main([*arguments(models, **short), "--no_use_lora"])
    export_main(["--ckpt", str(tmp_path / "run"), "--out_dir", str(tmp_path / "shipped")])
    sender = f"encoder.model={models / 'llama'}"  # a path, of which an export leaves the name
    changes = {"lora.r": 2, "evaluation.samples": 0, "checkpoint.tuned_cache": str(tmp_path / "cache")}
    overrides = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    run = add_receiver(
        ckpt=str(tmp_path / "shipped"),
        name="gemma",
        model=str(models / "gemma3"),
        out_dir=str(tmp_path / "more"),
        steps=1,
        overrides=[*overrides, "features.use_lora=true", sender],
    )
    before, after = files_of(tmp_path / "shipped"), files_of(tmp_path / "more")
    assert run["evaluation"] is None and {name: after[name] for name in before} == before
    assert sender_fingerprint(tmp_path / "shipped") == sender_fingerprint(tmp_path / "more" / "last")
    assert load_config_of(tmp_path / "more" / "last").lora.r == 2
    out = ["--samples", "2", "--dataset", "facts", "--out_dir", str(tmp_path / "eval"), "--quiet"]
    out += ["--override", sender]
    for name, folder in (("llama", "llama"), ("qwen", "qwen3")):
        out += ["--override", f"model.receivers.{name}={models / folder}"]
    results = eval_main(["--ckpt", str(tmp_path / "more"), *out])["receivers"]
    assert {name: own["latent"]["tuned"] for name, own in results.items()} == {
        "llama": False, "qwen": False, "gemma": True,
    }  # fmt: skip
    # Trained on together, those that had none have LoRA too.
    flags = arguments(models, **short | {"out_dir": tmp_path / "all"}, init_from=tmp_path / "more", lora_r=2)
    for key in ("llama_id", "qwen_id"):
        place = flags.index(f"--{key}")
        del flags[place : place + 2]
    receivers = {"llama": "llama", "qwen": "qwen3", "gemma": "gemma3"}
    receivers = {name: str(models / folder) for name, folder in receivers.items()}
    flags += ["--override", f"model.receivers={json.dumps(receivers)}", "--end_to_end_warmup_text_steps", "1"]
    train_main(flags)
    kept = load_folder(tmp_path / "all" / "last")
    assert all(any("lora" in key for key in kept[f"receivers/{name}"]) for name in receivers)


def test_mistakes_end_in_one_line_and_write_nothing(
    models: Path, added: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def message(*more: str, **changes: object) -> str:
        return fails(add_receiver_main, [*words(models, out, **changes), *more], capsys)

    assert "--name: " in (said := message(name="qwen"))
    assert "has a receiver 'qwen' already (it has: llama, qwen)" in said
    assert "--name: 'a/b' is not a plain name" in message(name="a/b")
    assert "--name: 'id' is what a line of predictions.jsonl has" in message(name="id")
    assert "/no/such/model" in message(model="/no/such/model")
    shutil.copytree(models / "gemma3", tmp_path / "odd")
    config = json.loads((tmp_path / "odd" / "config.json").read_text())
    (tmp_path / "odd" / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    assert "architecture 'gpt2' is not supported (supported: " in message(model=tmp_path / "odd")
    assert "data.data_path: gone.json: no such file" in message(dataset="squad", data_path=" gone.json, more.json")
    assert "no checkpoint there" in message(ckpt=tmp_path)
    shutil.copytree(models / "run" / "last", tmp_path / "half")
    index = tmp_path / "half" / "checkpoint.json"
    info = json.loads(index.read_text())
    del info["files"]["sender.safetensors"]
    index.write_text(json.dumps(info))
    assert "half: the checkpoint has no file sender.safetensors" in message(ckpt=tmp_path / "half")
    assert "encoder.window = 4, not 2" in message("--override", "encoder.window=2")
    assert "features.use_prefix = False, not True" in message("--override", "features.use_prefix=true")
    assert "lora.r = 8, not 4" in message("--override", "lora.r=4")
    assert "--override data.samples: --samples says that here" in message("--override", "data.samples=1", samples=2)
    assert ": --steps says that here" in message("--override", "curriculum.end_to_end.max_steps=1")
    assert not out.exists()


def test_what_is_a_matter_of_the_sender_is_left_out(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(models / "run" / "last", tmp_path / "gist")
    index = tmp_path / "gist" / "checkpoint.json"
    info = json.loads(index.read_text())
    info["config"]["features"]["use_gist_head"] = True
    info["config"]["losses"]["latent_scale_weight"] = 0.5
    index.write_text(json.dumps(info))
    asked: list[Config] = []
    monkeypatch.setattr("latentwire.cli.train.train", lambda config, *more, **options: asked.append(config))
    add_receiver_main(words(models, tmp_path / "out", ckpt=tmp_path / "gist"))
    (config,) = asked
    assert not config.features.use_gist_head and config.losses.latent_scale_weight == 0.0


def test_training_some_receivers_by_configuration(
    models: Path, added: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only = arguments(models, out_dir=tmp_path / "run", train_only="qwen", end_to_end_max_steps=2, eval_samples=0)
    assert "curriculum.train_only: needs checkpoint.init_from" in fails(train_main, only, capsys)
    start = ["--init_from", str(models / "more")]
    assert "model.receivers: 'gemma' is missing" in fails(train_main, [*only, *start], capsys)
    start = ["--init_from", str(models / "run")]
    unknown = [*only, *start, "--train_only", "gemma"]
    assert "curriculum.train_only: 'gemma' is not in model.receivers" in fails(train_main, unknown, capsys)
    assert not (tmp_path / "run").exists()
    train_main([*only, *start])  # one that is there goes on, without slot tuning and closed form
    before, after = files_of(models / "run"), files_of(tmp_path / "run")
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {
        f"{name}.safetensors" for name in ("receivers/qwen", "baselines/qwen-text", "baselines/qwen-token_budget")
    }
    rows = [json.loads(line) for line in (tmp_path / "run" / "diagnostics.jsonl").read_text().splitlines()]
    assert {row["stage"].split("/")[0] for row in rows} == {"end_to_end", "baseline"}
    assert {row["receiver"] for row in rows if row["stage"] == "end_to_end"} == {"qwen"}


def test_without_train_only_a_new_receiver_and_all_others_are_trained(
    models: Path, added: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = arguments(models, out_dir=tmp_path, init_from=models / "run", end_to_end_max_steps=2, eval_samples=0)
    for key in ("llama_id", "qwen_id"):
        place = flags.index(f"--{key}")
        del flags[place : place + 2]
    receivers = json.dumps({"llama": str(models / "llama"), "gemma": str(models / "gemma3")})
    train_main([*flags, "--override", f"model.receivers={receivers}"])
    assert "; new: gemma" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "diagnostics.jsonl").read_text().splitlines()]
    assert {row["receiver"] for row in rows if row["stage"] == "end_to_end"} == {"llama", "gemma"}
    assert any(row.get("grad_norm/encoder", 0) > 0 for row in rows)
    assert set(files_of(tmp_path)) >= {"receivers/llama.safetensors", "receivers/gemma.safetensors"}
    assert files_of(tmp_path)["sender.safetensors"] != files_of(models / "run")["sender.safetensors"]


def test_an_option_that_came_later_does_not_end_a_run_but_another_sender_does(
    models: Path, added: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(models / "more", tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    del config["data"]["hotpot_context"]
    path.write_text(json.dumps(config))
    assert add_receiver_main(words(models, tmp_path / "run"))["evaluation"]["samples"] == 6
    origin = json.loads((tmp_path / "run" / "origin.json").read_text())
    origin["sender.safetensors"]["sha256"] = "0" * 64
    (tmp_path / "run" / "origin.json").write_text(json.dumps(origin))
    assert "has changed since this run started from it" in fails(
        add_receiver_main, words(models, tmp_path / "run"), capsys
    )
