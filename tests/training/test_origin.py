"""What a run may start from: a checkpoint whose tensors mean the same in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from latentwire.config.form import NOT_KEPT
from latentwire.core.errors import ConfigError
from latentwire.features import FEATURES
from latentwire.model.pretrained import save_checkpoint
from latentwire.training.origin import Origin
from tests.systems import small_config, small_system


@pytest.mark.parametrize(
    ("sections", "dotted", "value"),
    [
        ({"features": {"use_lora": True}}, "lora.alpha", 16.0),
        ({"features": {"use_lora": True}}, "lora.first_n", 2),
        ({"features": {"use_lora": True}}, "lora.targets", ["q_proj"]),
        ({"encoder": {"type": "stq"}}, "queries.heads", 4),
        ({"encoder": {"type": "byte"}}, "byte.layers", 2),
        ({"features": {"use_latent_refiner": True}}, "latent_refiner.heads", 4),
        ({"features": {"use_deep_prefix": False}}, "adapter.gain", 2.0),
        ({"features": {"use_prefix": True}}, "prefix.projection", True),
        ({"features": {"use_latent_adapters": True}}, "latent_adapters.heads", 2),
        ({"features": {"use_coprocessor": True, "use_deep_prefix": False}}, "coprocessor.heads", 2),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_checkpoint_was_trained_with_cannot_be_changed(
    sections: dict[str, Any], dotted: str, value: object, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path, small_system(small_config(**sections)))
    start, (section, key) = {"checkpoint": {"init_from": str(tmp_path)}}, dotted.split(".")
    assert Origin.of(small_config(**sections, **start)) is not None
    changed = sections | {section: sections.get(section, {}) | {key: value}}
    with pytest.raises(ConfigError, match=rf"{tmp_path} was trained with {dotted} = .*, not "):
        Origin.of(small_config(**changed, **start))


@pytest.mark.parametrize("on", [False, True])
def test_what_only_training_has_may_be_left_out_later(on: bool, tmp_path: Path) -> None:
    """A gist head is in no checkpoint: there is nothing to keep of it."""
    one, other = ({"features": {"use_gist_head": head}} for head in (on, not on))
    save_checkpoint(tmp_path, small_system(small_config(**one)))
    start = {"checkpoint": {"init_from": str(tmp_path)}}
    assert Origin.of(small_config(**other, **start)) is not None
    assert Origin.of(small_config(**other, **start, curriculum={"train_only": ["a"]})) is not None
    assert {f"features.use_{name}" for name, kind in FEATURES.items() if kind.train_only} == NOT_KEPT


def test_some_options_are_free_where_nothing_that_stays_hangs_on_them(tmp_path: Path) -> None:
    one, two = ({"receivers": {name: "tiny-llama" for name in names}} for names in ("a", "ab"))
    kept, lora = {"model": one, "encoder": {"keep": 2}}, {"model": two, "features": {"use_lora": True}}
    asked = {"model": one, "anchor": {"question": " {question}"}}
    for folder, sections in ((tmp_path / "all", {"model": one}), (tmp_path / "kept", kept)):
        save_checkpoint(folder, small_system(small_config(**sections), ("llama",)))

    def only(*names: str) -> dict[str, Any]:
        return {"curriculum": {"train_only": list(names)}}

    free: tuple[tuple[str, dict[str, Any]], ...] = (
        ("all", asked),
        ("all", lora | only("b")),
        ("kept", kept | {"encoder": {"keep": 2, "window": 8}}),
    )
    refused: tuple[tuple[str, dict[str, Any]], ...] = (
        ("anchor.question", asked | only("a")),
        ("features.use_lora", lora | only("a", "b")),
        ("encoder.window", {"model": one, "encoder": {"window": 8}}),
    )
    for name, sections in free:
        assert Origin.of(small_config(**sections, checkpoint={"init_from": str(tmp_path / name)})) is not None
    start = {"checkpoint": {"init_from": str(tmp_path / "all")}}
    for dotted, sections in refused:
        with pytest.raises(ConfigError, match=rf"all was trained with {dotted} = "):
            Origin.of(small_config(**sections, **start))
