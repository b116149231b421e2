"""Prefix tuning: real keys and values to start from, in every layer, behind the message."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latentwire.core.errors import ModelError
from latentwire.core.names import LATENT
from latentwire.features.prefix import Prefix
from latentwire.features.prefix.feature import START, starting_slots
from latentwire.train import main as train_main
from tests.commands import arguments
from tests.features.test_matrix import latents, module_of, nll, system_with
from tests.systems import small_passages
from tests.tiny import FAMILIES, tiny_lm


@pytest.mark.parametrize("family", FAMILIES)
def test_it_starts_as_the_words_it_is_made_from(family: str) -> None:
    """A prefix that was never trained is what the model itself keeps of the words, repeated to its length."""
    lm = tiny_lm(family)
    ids = lm.tokenizer(START, add_special_tokens=False)["input_ids"]
    slots = starting_slots(lm, len(ids) + 3)
    with torch.no_grad():
        cache = lm.model(torch.tensor([ids + ids[:3]], device=lm.device), use_cache=True).past_key_values
    values = torch.stack([layer.values[0].transpose(0, 1) for layer in cache.layers], 1)  # (length, layers, heads, dim)
    assert slots.dtype == torch.float32 and values.abs().sum() > 0
    torch.testing.assert_close(slots[:, :, :, 1], values.float())


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_of_the_cache_is_longer_by_it(family: str, projection: bool) -> None:
    plain = system_with(family).receivers["a"]
    receiver = system_with(family, "prefix", projection=projection).receivers["a"]
    receiver.reader.load_state_dict(plain.reader.state_dict())
    z, counts = latents(system_with(family))
    own, longer = plain.read_latents(z, counts), receiver.read_latents(z, counts)
    assert receiver.extra_positions == 3
    assert longer.mask.shape[1] == own.mask.shape[1] + 3
    for short, long in zip(own.cache.layers, longer.cache.layers, strict=True):
        assert long.keys.shape[2] == short.keys.shape[2] + 3 and long.values.shape[2] == short.values.shape[2] + 3
        assert torch.equal(long.values[..., -3:, :][0], long.values[..., -3:, :][1])  # the same for every message


@pytest.mark.parametrize("projection", [False, True])
def test_it_learns_where_nothing_else_does(projection: bool) -> None:
    system = system_with("llama", "prefix", projection=projection, len=6)
    receiver, module = system.receivers["a"], module_of(system)
    prefix = receiver.features["prefix"]
    assert isinstance(prefix, Prefix)
    optimizer = torch.optim.AdamW(prefix.trainable_parameters(), lr=3e-2)
    batch, losses = module.batch(0), []
    for _ in range(40):
        loss = module.forward(batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5


def test_text_is_read_without_it() -> None:
    plain, receiver = system_with("llama").receivers["a"], system_with("llama", "prefix").receivers["a"]
    tail = receiver.prompt.tail("Where?")
    with torch.no_grad(), receiver.using(LATENT):
        scores = [r.score(r.read_text([[3, 7, 9, 4]]), [(tail, [5, 6])]).nll for r in (plain, receiver)]
    assert torch.equal(*scores)
    z, counts = latents(system_with("llama"))
    assert not torch.allclose(nll(receiver, z, counts), nll(plain, z, counts))


@pytest.mark.slow
def test_the_flag_sets_its_length_and_it_counts_as_positions(models: Path, tmp_path: Path) -> None:
    results = {}
    for length in (2, 12):
        words = arguments(models, out_dir=tmp_path / str(length), prefix_len=length)
        results[length] = train_main([*words, "--use_prefix", "--eval_samples", "2"])["evaluation"]
        config = json.loads((tmp_path / str(length) / "config.json").read_text())
        assert config["features"]["use_prefix"] and config["prefix"]["len"] == length
    short, long = (results[n]["receivers"]["llama"]["positions"]["latent"] for n in (2, 12))
    assert long == pytest.approx(short + 10)


def test_what_it_adds_is_part_of_what_has_to_fit() -> None:
    """Also behind text that comes before a message: all that is read is as long as the window, or one too many."""
    system = system_with("llama", "prefix")
    receiver, wire = system.receivers["a"], system.sender.encode(small_passages(1)[0].context)
    opening, question = [5, 6, 7], "Where?"
    tail, anatomy = len(receiver.prompt.tail(question)), receiver.lm.anatomy
    read = int(receiver.read_messages([[wire]], "latents", [0]).mask.sum())
    for left, fits in ((0, nullcontext()), (-1, pytest.raises(ModelError, match="longer than the model's window"))):
        receiver.lm.anatomy = replace(anatomy, max_positions=read + tail + left)
        with fits:
            receiver.check([wire], [question])
        receiver.lm.anatomy = replace(anatomy, max_positions=read + tail + len(opening) + left)
        with fits:
            receiver.read_messages([[wire]], "latents", [tail], opening)
