from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch

from latentwire.checkpoint import tensors
from latentwire.checkpoint.export import portable
from latentwire.checkpoint.index import find_checkpoint, load_config_of, sender_fingerprint
from latentwire.checkpoint.tensors import SCALE, load_folder, read_info, save_folder
from latentwire.core.errors import CheckpointError, LatentWireError
from latentwire.core.names import INDEX
from latentwire.model.pretrained import load_checkpoint, save_checkpoint
from tests.systems import saved_run, small_config, small_system


def save(folder: Path) -> Path:
    save_folder(folder, {"a": {"x": torch.arange(6.0)}, "sub/b": {"y": torch.ones(2, 2)}}, {"note": 1})
    return folder


def test_round_trip(tmp_path: Path) -> None:
    folder = save(tmp_path / "c")
    loaded = load_folder(folder)
    assert set(loaded) == {"a", "sub/b"} and torch.equal(loaded["a"]["x"], torch.arange(6.0))
    assert read_info(folder)["note"] == 1
    assert {p.stat().st_mode & 0o777 for p in folder.rglob("*") if p.is_file()} == {0o644}
    assert set(load_folder(folder, ["a"])) == {"a"}


def test_what_lies_beside_a_checkpoint_stays_while_its_files_do(tmp_path: Path) -> None:
    folder = save(tmp_path / "c")
    (folder / "eval.json").write_text("{}")
    save(folder)
    assert (folder / "eval.json").is_file()
    save_folder(folder, {"a": {"x": torch.arange(6.0)}, "more": {"y": torch.ones(2)}}, {})
    assert (folder / "eval.json").is_file() and not (folder / "sub").exists()
    save_folder(folder, {"a": {"x": torch.arange(6.0) + 1}}, {})
    assert not (folder / "eval.json").exists()  # of other weights


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: (f / "a.safetensors").unlink(), "missing"),
        (lambda f: (f / "a.safetensors").write_bytes((f / "a.safetensors").read_bytes()[:-3]), "truncated or changed"),
        (lambda f: _flip(f / "a.safetensors"), "SHA-256"),
        (lambda f: (f / INDEX).write_text("{"), "not valid JSON"),
        (lambda f: (f / INDEX).write_text("[]"), "not a JSON object"),
        (lambda f: (f / INDEX).unlink(), "not a checkpoint"),
        (lambda f: _rename(f, "../a.safetensors"), "not within the checkpoint"),
        (lambda f: _rename(f, "/a.safetensors"), "not within the checkpoint"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path: Path, harm: object, message: str) -> None:
    folder = save(tmp_path / "c")
    harm(folder)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=message) as caught:
        load_folder(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def _rename(folder: Path, name: str) -> None:
    info = read_info(folder)
    info["files"][name] = info["files"].pop("a.safetensors")
    (folder / INDEX).write_text(json.dumps(info))


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path / "c")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensors, "save_file", full)
    with pytest.raises(LatentWireError, match="No space left"):
        save(folder)
    monkeypatch.undo()
    assert torch.equal(load_folder(folder)["a"]["x"], torch.arange(6.0))
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_a_system_comes_back_with_its_adapters(tmp_path: Path) -> None:
    config = small_config(features={"use_lora": True})
    system = small_system(config)
    for adapter in ("latent", "text"):
        system.receivers["a"].add_adapter(adapter)
    save_checkpoint(tmp_path / "run" / "last", system)
    folder = find_checkpoint(tmp_path / "run")
    assert load_config_of(folder) == config
    twin = small_system(load_config_of(folder), seed=5)
    twin.load_state_dict(load_folder(folder))
    assert set(twin.receivers["a"].adapters) == {"latent", "text"} and not twin.receivers["b"].adapters
    for stem, group in system.state_dict().items():
        for key, value in group.items():
            assert torch.equal(twin.state_dict()[stem][key], value.to(torch.bfloat16).float()), key


def test_one_receiver_needs_no_other_one_s_files(tmp_path: Path) -> None:
    last = saved_run(tmp_path) / "last"
    for path in last.glob("*/b*.safetensors"):
        path.unlink()
    system = load_checkpoint(last, only=["a"])
    assert list(system.receivers) == ["a"] and set(system.receivers["a"].adapters) == {"latent", "text"}
    with pytest.raises(CheckpointError, match=r"b.*\.safetensors: missing"):
        load_checkpoint(last)


def test_a_checkpoint_for_other_receivers_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", small_system(small_config()))
    other = small_system(small_config(), ("llama", "gemma3", "qwen2"))
    with pytest.raises(CheckpointError, match=r"not trained for 'c' .it has: a, b"):
        other.load_state_dict(load_folder(tmp_path / "c"))


def test_a_checkpoint_of_another_shape_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", small_system(small_config()))
    with pytest.raises(CheckpointError, match="sender: encoder: size mismatch"):
        small_system(small_config(encoder={"d_z": 8})).load_state_dict(load_folder(tmp_path / "c"))


def test_no_checkpoint_holds_a_pickle(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", small_system(small_config()))
    names = {p.suffix for p in (tmp_path / "c").rglob("*") if p.is_file()}
    assert names == {".json", ".safetensors"}
    assert json.loads((tmp_path / "c" / INDEX).read_text())["manifest"]["versions"]["torch"]


@pytest.mark.parametrize("rest", [{}, {"w": torch.zeros(5, dtype=torch.int8)}])
def test_scales_without_what_they_scale_are_refused(rest: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_folder(tmp_path / "bad", {"a": rest | {f"w{SCALE}": torch.ones(2, dtype=torch.float16)}}, {})
    with pytest.raises(CheckpointError, match=r"a\.safetensors: w does not go with its scales"):
        load_folder(tmp_path / "bad")


def test_packed_matrices_take_half_the_room_and_stay_close(tmp_path: Path) -> None:
    torch.manual_seed(0)
    group = {"wide": torch.randn(512, 256) * torch.logspace(-2, 1, 512)[:, None], "small": torch.randn(4, 64)}
    group["lora_B"] = torch.randn(576, 8) * 1e-3  # rows shorter than what shares a scale, small numbers
    save_folder(tmp_path / "plain", {"a": group}, {}, dtype=torch.bfloat16)
    save_folder(tmp_path / "packed", {"a": group}, {}, dtype=torch.bfloat16, pack=True)
    sizes = [read_info(tmp_path / name)["files"]["a.safetensors"]["bytes"] for name in ("packed", "plain")]
    assert sizes[0] < 0.53 * sizes[1]
    loaded = load_folder(tmp_path / "packed")["a"]
    assert set(loaded) == set(group)
    assert torch.equal(loaded["small"].float(), group["small"].to(torch.bfloat16).float())
    assert (loaded["lora_B"] - group["lora_B"]).pow(2).mean() < 2e-4 * group["lora_B"].pow(2).mean()
    error = (loaded["wide"] - group["wide"]).pow(2).mean(1) / group["wide"].pow(2).mean(1)
    assert float(error.max()) < 2e-4  # of each row's own energy, large or small


def test_what_has_not_changed_keeps_its_file(tmp_path: Path) -> None:
    """Numbers in 8 bits are none of bf16's: written anew, they would be rounded, and the sender have another name."""
    first = small_system(small_config())
    save_checkpoint(tmp_path / "first", first)
    state, info = load_folder(tmp_path / "first"), read_info(tmp_path / "first")
    finer = {stem: {k: t.float() * 1.001 for k, t in group.items()} for stem, group in state.items()}
    save_folder(tmp_path / "before", finer, info)
    system = small_system(small_config())
    system.load_state_dict(load_folder(tmp_path / "before"))
    changed, kept = system.receivers
    with torch.no_grad():
        system.receivers[changed].reader.head.add_(1.0)  # type: ignore[operator]
    save_checkpoint(tmp_path / "after", system, before=tmp_path / "before")
    save_checkpoint(tmp_path / "anew", system)
    before, after, anew = (read_info(tmp_path / name)["files"] for name in ("before", "after", "anew"))
    names = {"sender.safetensors", f"receivers/{kept}.safetensors"}
    assert all(after[name] == before[name] != anew[name] for name in names)
    assert after[f"receivers/{changed}.safetensors"] == anew[f"receivers/{changed}.safetensors"]
    assert sender_fingerprint(tmp_path / "after") == sender_fingerprint(tmp_path / "before")
    assert read_info(tmp_path / "after")["files"].keys() == before.keys()


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["--anchor_text", "/x"], ["--anchor_text", "/x"]),
        (["--anchor_text=/x", "--eval_anchor_text", "/x/y"], ["--anchor_text=/x", "--eval_anchor_text", "/x/y"]),
        (["--override", "anchor.question=/a {question}"], ["--override", "anchor.question=/a {question}"]),
        (['--override=anchor={"text": "/x"}'], ['--override=anchor={"text": "/x"}']),
        (["--anchor_text", "/x", "/p/x.json"], ["--anchor_text", "/x", "x.json"]),
        (["--data_path", "/p/x.json", "--tag=/x"], ["--data_path", "x.json", "--tag=x"]),
    ],
)
def test_words_of_a_prompt_in_a_command_are_no_paths(words: list[str], kept: list[str]) -> None:
    info = {"config": small_config().model_dump(mode="json"), "earlier": [{"command": words, "git": None}]}
    info["manifest"] = {"command": words}
    assert portable(info)["manifest"]["command"] == portable(info)["earlier"][0]["command"] == kept
