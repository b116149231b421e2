"""Whether two names are of different models."""

from __future__ import annotations

from pathlib import Path

import torch

from latentwire.checkpoint.models import differ
from tests.tiny import tiny_model


def test_folders_differ_by_the_weights_in_them_and_not_by_their_files(tmp_path: Path) -> None:
    def saved(name: str, seed: int = 0, dtype: torch.dtype = torch.float32, family: str = "llama", **how: str) -> str:
        tiny_model(family, seed).to(dtype).save_pretrained(tmp_path / name, **how)
        return str(tmp_path / name)

    one, shards = saved("one"), saved("shards", max_shard_size="40KB")
    assert len(list(Path(shards).glob("*.safetensors"))) > 1
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"\0" * 20)
    same = [shards, saved("half", dtype=torch.bfloat16), str(tmp_path / "damaged"), str(tmp_path / "gone")]
    others = [saved("seed", 1), saved("seed_in_shards", 1, max_shard_size="40KB"), saved("gemma", family="gemma3")]
    for known, expected in ((same, False), (others, True)):
        assert [differ(one, name) for name in known] == [differ(name, one) for name in known] == [expected] * len(known)
    assert not differ(one, f"{one}/.")


def test_gguf_files_differ_by_what_is_in_them(tmp_path: Path) -> None:
    names = [str(tmp_path / f"{name}.gguf") for name in "abc"]
    for name, content in zip(names, (b"x", b"x", b"y"), strict=True):
        Path(name).write_bytes(content)
    assert [differ(names[0], name) for name in (*names, str(tmp_path))] == [False, False, True, False]
