"""How a message's latents are dealt out among receivers."""

from __future__ import annotations

from typing import Any

import pytest

from latentwire.config import Config, config_from_dict
from latentwire.core.errors import ConfigError


def config(names: str = "ab", **encoder: Any) -> Config:
    values = {"encoder": {"type": "stq"} | encoder, "model": {"receivers": {name: "/no/such/model" for name in names}}}
    return config_from_dict(values, "x.json", {})


def test_every_receiver_reads_the_shared_latents_and_its_own() -> None:
    layout = config("ba", latent_shared_len=3, latent_private_len=2).latent_layout
    assert (layout.total, layout.read) == (7, 5)
    assert layout.own("a") == [0, 1, 2, 3, 4]  # by name, in whatever order they are listed
    assert layout.own("b") == [0, 1, 2, 5, 6]
    assert config("ab", latent_shared_len=3, latent_private_len=2).latent_layout == layout
    assert config("a", latent_shared_len=0, latent_private_len=2).latent_layout.own("a") == [0, 1]


def test_what_private_latents_leave_is_shared() -> None:
    assert config(latent_len=32, latent_private_len=4).latent_layout == (
        config(latent_shared_len=24, latent_private_len=4).latent_layout
    )
    assert config(latent_len=32, latent_private_len=4, latent_shared_len=24).latent_layout.read == 28


def test_without_private_latents_all_are_read() -> None:
    assert config(latent_len=32).latent_layout.own("a") is None and config(latent_len=32).latent_layout.read == 32
    assert config().latent_layout.total is None and config(type="backbone", latent_len=32).latent_layout.total is None


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (
            {"latent_private_len": 2},
            "encoder.latent_private_len: needs encoder.latent_shared_len or encoder.latent_len",
        ),
        (
            {"latent_len": 3, "latent_private_len": 2},
            "2 receivers x 2 private latents are more than encoder.latent_len",
        ),
        ({"latent_len": 9, "latent_shared_len": 3, "latent_private_len": 2}, r"encoder.latent_len: 9 is not .* = 7"),
        ({"latent_shared_len": 0}, "encoder.latent_shared_len: 0 shared and 0 private"),
        ({"type": "backbone", "latent_private_len": 2}, "encoder.latent_private_len: encoder.type = 'backbone'"),
        ({"type": "backbone", "latent_shared_len": 2}, "encoder.latent_shared_len: encoder.type = 'backbone'"),
    ],
)
def test_what_does_not_add_up_is_refused_before_anything_is_loaded(encoder: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        config(**encoder)
    assert "\n" not in str(caught.value)
