"""The scripts: dry runs of those in shell, in an environment that counts as installed, and what needs no model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT
from tests.tiny import save_tiny

SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))
HERO = {"llama": "meta-llama/Llama-3.1-8B-Instruct", "qwen": "Qwen/Qwen2.5-7B-Instruct"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which setup_env has nothing to do."""
    folder = tmp_path_factory.mktemp("venv")
    files = "pyproject.toml requirements.txt requirements-models.txt"
    want = subprocess.run(f"cat {files} | sha256sum | cut -c1-16", shell=True, cwd=ROOT, capture_output=True, text=True)
    for part in ("base", "models", "dev"):
        (folder / f".latentwire-{part}").write_text(want.stdout)
    (folder / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')  # a link would lose its environment
    (folder / "python").chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    return dict(os.environ) | {"VIRTUAL_ENV": str(folder), "PATH": path, "PYTHONPATH": str(ROOT)}


def run(name: str, *words: str, env: dict[str, str], **more: str) -> str:
    command = ["bash", str(ROOT / "scripts" / name), *words, "--dry-run"]
    done = subprocess.run(command, cwd="/", env=env | more, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("name", "slots", "modes"),
    [
        ("run_scoped_softprompt_multi.sh", False, {"latent", "text"}),
        ("run_embedding_baselines.sh", False, {"text", "embedding_replay", "embedding_anchor", "latent"}),
        ("run_pipeline.sh", None, {"latent", "text"}),
    ],
)
def test_scripts_that_train(name: str, slots: bool | None, modes: set[str], installed: dict[str, str]) -> None:
    plain = json.loads(run(name, "--samples", "5", env=installed))
    hero = json.loads(run(name, "--hero", env=installed))
    assert plain["data"]["dataset"] == "facts" and plain["data"]["samples"] == 5
    assert all("/" not in model for model in plain["model"]["receivers"].values())  # built-in models, no Hub
    assert len(plain["model"]["receivers"]) == 2
    assert hero["data"]["dataset"] == "squad" and hero["model"]["receivers"] == HERO
    assert hero["system"]["require_cuda"]
    for config in (plain, hero):
        assert slots is None or config["features"]["use_deep_prefix"] is slots
        assert modes <= set(config["evaluation"]["modes"])


def test_soft_prompts_are_scoped_to_the_first_layers_attention(installed: dict[str, str]) -> None:
    for words, layers in (((), 8), (("--hero",), 12)):
        lora = json.loads(run("run_scoped_softprompt_multi.sh", *words, env=installed))["lora"]
        assert lora["first_n"] == layers and set(lora["targets"]) == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_llama_alone_is_swept_over_the_lists(installed: dict[str, str]) -> None:
    lists = {"LATENT_LEN_LIST": "16  32", "D_Z_LIST": "64,128"}
    plain = run("run_llama_single.sh", env=installed, **lists).splitlines()
    names = [f"latent_len={m}_d_z={d}" for m in (16, 32) for d in (64, 128)]
    assert [line.split(":")[0] for line in plain] == names
    assert all('model.receivers={"llama": "smollm2-135m"}' in line for line in plain)
    (hero,) = run("run_llama_single.sh", "--hero", env=installed).splitlines()
    assert hero.startswith("base: ") and HERO["llama"] in hero
    (part,) = run("run_llama_single.sh", "--shard", "3/4", env=installed, **lists).splitlines()
    assert part.startswith(f"{names[2]}: ")


def test_all_smokes_go_on_after_a_failure_and_tell(installed: dict[str, str], tmp_path: Path) -> None:
    """A checkout with one bad configuration among good ones."""
    for name in ("scripts", "latentwire", "pyproject.toml", "requirements.txt", "requirements-models.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "configs" / "smoke", tmp_path / "configs" / "smoke")
    (tmp_path / "configs" / "smoke" / "bad.json").write_text('{"lora": {"rank": 2}}')
    (tmp_path / "configs" / "smoke" / "lora.json").unlink()
    command = ["bash", str(tmp_path / "scripts" / "run_all_smokes.sh"), "--dry-run"]
    done = subprocess.run(command, env=installed, capture_output=True, text=True)
    assert done.returncode == 1 and "lora.rank: unknown key" in done.stderr
    summary = done.stdout.splitlines()[-len(list((tmp_path / "configs" / "smoke").iterdir())) :]
    assert [line.split(",")[0] for line in summary if "bad" in line] == ["FAILED configs/smoke/bad.json"]
    assert sum(line.startswith("passed configs/smoke/") for line in summary) == len(summary) - 1


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_strict_and_parse(path: Path) -> None:
    assert subprocess.run(["bash", "-n", str(path)]).returncode == 0
    assert path.name == "setup_env.sh" or "\nset -euo pipefail\n" in path.read_text()


def test_shellcheck_finds_nothing() -> None:
    tool = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert tool, "shellcheck is one of the development requirements"
    done = subprocess.run([tool, "-x", *map(str, SCRIPTS)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_pipeline_ends_in_a_checkpoint_with_its_own_results(installed: dict[str, str], tmp_path: Path) -> None:
    """The whole script, with tiny models in the cache where the built-in ones would be, and one in a folder."""
    for alias, family in (("smollm2-135m", "llama"), ("gemma3-270m", "gemma3")):
        save_tiny(family, tmp_path / "cache" / "models" / alias)
    save_tiny("llama", tmp_path / "local")
    small = {
        "extends": str(ROOT / "configs" / "smoke" / "base.json"),
        "data": {"samples": 48, "max_context_tokens": 400},
        "model": {"receivers": {"smollm2-135m": str(tmp_path / "local"), "gemma3-270m": "gemma3-270m"}},
        "encoder": {"layers": [0, 2], "d_z": 16},
        "curriculum": {"closed_form": {"passages": 6, "held_out": 2}, "end_to_end": {"max_steps": 2}},
        "evaluation": {"samples": 6, "max_new_tokens": 3, "modes": ["text", "latent"], "latency_samples": 0},
    }
    (tmp_path / "small.json").write_text(json.dumps(small))
    more = {
        "LATENTWIRE_CACHE": str(tmp_path / "cache"),
        "CONFIG": str(tmp_path / "small.json"),
        "RUN": str(tmp_path / "run"),
    }
    command = ["bash", str(ROOT / "scripts" / "run_pipeline.sh"), "--dtype", "float32"]
    done = subprocess.run(command, cwd="/", env=installed | more, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "run" / "export"
    exported = json.loads((out / "eval.json").read_text())
    assert exported["manifest"]["checkpoint"] == json.loads((out / "checkpoint.json").read_text())["files"]
    assert exported["samples"] == 6 and (tmp_path / "run" / "eval.json").is_file()
    assert "| smollm2-135m | latent (no LoRA) |" in (out / "README.md").read_text()
    assert "| gemma3-270m | text |" in done.stdout  # the comparison with the text at the end


def test_joined_paragraphs_keep_their_answers(tmp_path: Path) -> None:
    def paragraph(number: int) -> dict[str, Any]:
        context = f"Mira{number} lives in Orlin{number}."
        qas = [{"id": f"{number}", "question": "Where?", "answers": [{"text": f"Orlin{number}", "answer_start": 15}]}]
        return {"context": context, "qas": [*qas, {"id": "none", "question": "When?", "answers": []}]}

    source, out = tmp_path / "in.json", tmp_path / "out.json"
    source.write_text(json.dumps({"data": [{"title": "Mira", "paragraphs": [paragraph(n) for n in range(5)]}]}))
    words = [sys.executable, str(ROOT / "scripts" / "join_paragraphs.py"), str(source), str(out), "--paragraphs", "2"]
    subprocess.run(words, check=True)
    (article,) = json.loads(out.read_text())["data"]
    assert [len(p["qas"]) for p in article["paragraphs"]] == [2, 2]
    for passage in article["paragraphs"]:
        for question in passage["qas"]:
            (answer,) = question["answers"]
            assert passage["context"][answer["answer_start"] :].startswith(answer["text"])
    picked = set()
    for seed in range(6):
        subprocess.run([*words, "--questions", "1", "--seed", str(seed)], check=True)
        (article,) = json.loads(out.read_text())["data"]
        assert [len(p["qas"]) for p in article["paragraphs"]] == [1, 1]
        picked.add(tuple(p["qas"][0]["id"] for p in article["paragraphs"]))
    assert len(picked) > 1
    source.write_text("[]")
    failed = subprocess.run(words, capture_output=True, text=True, check=False)
    assert failed.returncode == 1 and failed.stderr.startswith("error: not in the format of SQuAD")
