"""Learned codecs through the commands: trained, kept in the checkpoint, sent with, measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from latentwire.checkpoint.tensors import load_folder, read_info
from latentwire.cli.main import main as latentwire
from latentwire.core.errors import ConfigError, DataError, WireError
from latentwire.evaluation import rates as evaluated
from latentwire.train import main as train_main
from latentwire.training import pipeline
from tests.commands import STORY, arguments

OWN = {
    "learned_codecs": "rvq,fsq,aq",
    "codec_max_steps": 2,
    "codec_bits": 8,
    "codec_layers": 2,
    "codec_index_bits": 4,
    "codec_rank": 8,
    "codec_passages": 12,
    "closed_form_importance_passages": 2,
}


ANSWER = {"text": "Talden", "answer_start": 14}
QUESTION = {"id": "q", "question": "Where does Mira live?", "answers": [ANSWER]}
ONE_QUESTION = {"data": [{"paragraphs": [{"context": "Mira lives in Talden.", "qas": [QUESTION]}]}]}


@pytest.fixture(scope="module")
def coded(models: Path) -> Path:
    """A run with learned codecs, evaluated through one of them."""
    words = [*arguments(models, out_dir=models / "coded", **OWN), "--codec", "rvq:layers=1"]
    results = train_main(words)
    assert results["evaluation"]["receivers"]["llama"]["bits_per_dimension"] > 0
    return models / "coded"


def test_a_run_with_learned_codecs(coded: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) for line in (coded / "diagnostics.jsonl").read_text().splitlines()]
    stages = list(dict.fromkeys(row["stage"].split("/")[0] for row in rows))
    assert stages == ["slot_tuning", "closed_form", "end_to_end", "codebooks", "codec", "frequencies", "baseline"]
    found = next(row for row in rows if row["stage"] == "codebooks")
    assert set(found["kept"]) == {"rvq", "fsq", "aq"} and all(bits > 0 for bits in found["bits_per_latent"].values())
    files = read_info(coded / "last")["files"]
    assert {f"codecs/{kind}.safetensors" for kind in ("rvq", "fsq", "aq")} <= set(files)
    # Codebooks are kept as they are, but for frequencies after the training; the same command finds them done.
    folders = coded / "last", *(coded / "stages" / name / "done" for name in ("codebooks", "frequencies"))
    kept, first, recounted = (load_folder(folder)["codecs/fsq"] for folder in folders)
    assert all(kept[key].equal(recounted[key]) for key in kept)
    assert all(kept[key].equal(first[key]) for key in kept.keys() - {"orders", "counts"})
    counted = next(row for row in rows if row["stage"] == "frequencies")
    assert set(counted["bits_per_latent"]) == {"rvq", "fsq", "aq"}
    before = files["codecs/rvq.safetensors"]["sha256"]
    train_main([*arguments(models, out_dir=coded, **OWN), "--codec", "rvq:layers=1"])
    assert "codec: done before" in capsys.readouterr().out
    assert read_info(coded / "last")["files"]["codecs/rvq.safetensors"]["sha256"] == before


def test_rates_are_written_and_gone_on_with(
    coded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rates.json"
    words = ["rates", "--ckpt", str(coded), "--samples", "4", "-o", str(out)]
    few = latentwire([*words, "--codec", "int8"])
    assert [(row["codec"], row["receiver"]) for row in few] == [
        (codec, name) for codec in ("fp32", "int8") for name in ("llama", "qwen")
    ]
    capsys.readouterr()
    rows = latentwire(words)
    assert "int8" not in capsys.readouterr().out.split() and rows[: len(few)] == few
    assert json.loads(out.read_text()) == rows and out.with_suffix(".png").stat().st_size > 5000
    size = {row["codec"]: row["bytes"] for row in rows}
    assert {"fp16", "int4", "rvq:layers=1", "rvq:layers=2", "fsq:layers=1"} <= set(size)
    assert size["fp32"] > size["fp16"] > size["int8"] > size["rvq:layers=2"] > size["rvq:layers=1"]
    keys = {"codec", "receiver", "bytes", "utf8_bytes", "zstd_bytes", "f1", "f1_ci", "float_f1", "samples", "command"}
    assert all(keys | {"commit", "lm_bytes"} <= set(row) for row in rows)
    other = latentwire([*words[:3], "--samples", "2", "-o", str(out), "--codec", "fp16"])
    assert len(other) == 4 and {row["samples"] for row in other} == {2}
    assert json.loads(out.read_text()) == rows + other
    asked = [*words[:3], "-o", str(tmp_path / "few.json"), "--codec", "fp16", "--data_path", str(tmp_path / "one.json")]
    (tmp_path / "one.json").write_text(json.dumps(ONE_QUESTION))
    all_of_it = latentwire([*asked, "--samples", "9", "--override", "data.dataset=squad"])
    assert {row["samples"] for row in all_of_it} == {1}
    limits = latentwire([*words, "--codec", "fp16", "--lm_bytes"])
    assert all(row["lm_bytes"] > 0 for row in limits)
    frozen = latentwire([*words, "--codec", "fp16", "--override", "features.use_lora=false"])
    assert frozen[0]["made_with"] != rows[0]["made_with"] and frozen[0]["nll_per_token"] != rows[0]["nll_per_token"]
    assert frozen[-1]["command"].endswith("--override features.use_lora=false --codec fp16")
    assert all("--lm_bytes" in row["command"].split() for row in limits)
    monkeypatch.setattr(evaluated, "load_checkpoint", None)  # what is known needs no model
    capsys.readouterr()
    assert latentwire([*words, "--json"]) == rows == json.loads(capsys.readouterr().out)
    with pytest.raises(ConfigError, match=r"evaluation\.samples: --samples says that here"):
        latentwire([*words, "--override", "evaluation.samples=3"])
    out.write_text('{"schema": 1}')
    with pytest.raises(DataError, match="not a list of rows"):
        latentwire(words)


def test_messages_of_a_learned_codec_go_through_files(
    coded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "story.txt").write_text(STORY)
    message = str(tmp_path / "story.lw")
    latentwire(["encode", str(tmp_path / "story.txt"), "--ckpt", str(coded), "--codec", "fsq", "-o", message])
    (row,) = latentwire(["inspect", message])
    assert row["latents"]["codec"] == "fsq" and row["latents"]["codebook"]
    with pytest.raises(WireError, match=r"layers is at most \d+, not 99"):
        latentwire(
            ["encode", str(tmp_path / "story.txt"), "--ckpt", str(coded), "--codec", "fsq:layers=99", "-o", message]
        )
    d_z = str(row["latents"]["d_z"])
    measured = latentwire(["codecs", "--ckpt", str(coded), "--d_z", d_z, "--latents", "2", "--seconds", "0"])["codecs"]
    assert {"int8", "rvq", "fsq"} <= {one["codec"].split(":")[0] for one in measured}
    with pytest.raises(ConfigError, match=rf"the codebook of '\w+' in .* is for latents of {d_z}"):
        latentwire(["codecs", "--ckpt", str(coded), "--d_z", "3"])
    monkeypatch.setattr("latentwire.wire.codebook._KNOWN", {})  # as in a process of its own
    (text,) = latentwire(["decode", message, "--ckpt", str(coded), "--receiver", "qwen", "--question", "Who?"])
    assert text["answers"][0]["source"] == "latents"


def test_codebooks_that_are_to_be_removed_do_not_count(coded: Path, models: Path) -> None:
    words = [*arguments(models, out_dir=coded, **OWN), "--codec", "rvq:layers=1"]
    with pytest.raises(ConfigError, match="needs a codebook, and there will be none here"):
        train_main([*words, "--fresh", "--stages", "slot_tuning,closed_form,end_to_end"])
    assert (coded / "stages" / "codebooks" / "done").is_dir()


def test_what_is_missing_is_said(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = arguments(models, out_dir=tmp_path / "run", learned_codecs="rvq", end_to_end_max_steps=0)
    with pytest.raises(ConfigError, match="codec needs end_to_end, which was not done"):
        train_main([*words, "--stages", "slot_tuning,closed_form,codec"])
    words = arguments(models, out_dir=tmp_path / "other")
    with pytest.raises(ConfigError, match=r"codec\.learned names, and that is empty"):
        train_main([*words, "--stages", "codec"])
    with pytest.raises(ConfigError, match="needs a codebook, and there will be none here"):
        train_main([*words, "--codec", "fsq"])
    with pytest.raises(ConfigError, match=r"fsq:layers=5 has more than the 4 layers of its codebook"):
        train_main([*words, "--learned_codecs", "fsq", "--codec", "fsq:layers=5"])
    few = ["--codec_bits", "6", "--codec_index_bits", "3", "--codec", "rvq:layers=3"]  # two indices
    with pytest.raises(ConfigError, match=r"rvq:layers=3 has more than the 2 layers of its codebook"):
        train_main([*words, "--learned_codecs", "rvq", *few])
    with monkeypatch.context() as patched:  # as if as many as were asked for might still be found
        patched.setattr(pipeline, "most_layers", lambda *_: 3)
        with pytest.raises(ConfigError, match=r"rvq:layers=3 has more than the 2 layers of its codebook"):
            train_main([*words, "--learned_codecs", "rvq", *few])
    stages = tmp_path / "other" / "stages"
    assert (stages / "codebooks" / "done").is_dir() and not (stages / "codec").exists()
    shutil.rmtree(stages / "end_to_end")  # with which the codebooks are begun anew, if it comes to that
    with pytest.raises(ConfigError, match=r"rvq:layers=3 has more than the 2 layers of its codebook"):
        train_main([*words, "--learned_codecs", "rvq", *few])
    with pytest.raises(ConfigError, match="names a codec twice"):
        train_main([*words, "--learned_codecs", "fsq,fsq"])
    with pytest.raises(WireError, match="unknown"):
        latentwire(["rates", "--codec", "zip"])
