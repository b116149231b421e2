"""Latent adapters: behind which layers they stand, and what they add there."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from latentwire.features.latent_adapters import LatentAdapters
from latentwire.model.receiver import Receiver
from tests.features.test_matrix import latents, shake, system_with
from tests.systems import small_config
from tests.tiny import tiny_lm


def receiver_with(layers: list[int]) -> tuple[Receiver, LatentAdapters, Tensor, Tensor]:
    system = system_with("llama", "latent_adapters", layers=layers)
    receiver = system.receivers["a"]
    shake(receiver)
    feature = receiver.features["latent_adapters"]
    assert isinstance(feature, LatentAdapters)
    return receiver, feature, *latents(system)


@torch.no_grad()
def outputs(receiver: Receiver, z: Tensor, counts: Tensor, reading: bool) -> list[Tensor]:
    """What each layer hands on of a question, while the latents are read or not."""
    context, ids = receiver.read_latents(z, counts), torch.tensor([[5, 6, 7]] * len(z))
    if not reading:
        context.latents = None
    with receiver.reading(context), receiver.lm.outputs_of([1, 2, 3]) as seen:
        receiver.lm.continue_from(context, ids, torch.ones_like(ids))
    return [seen[k] for k in (1, 2, 3)]


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_it_adds_to_what_its_layer_hands_on(layer: int) -> None:
    receiver, feature, z, counts = receiver_with([layer])
    plain, read = (outputs(receiver, z, counts, reading) for reading in (False, True))
    for before in range(layer - 1):
        assert torch.equal(read[before], plain[before])
    mask = torch.arange(z.shape[1])[None] < counts[:, None]
    with torch.no_grad():
        torch.testing.assert_close(read[layer - 1], feature.adapters[0](plain[layer - 1], z, mask))
    assert not torch.allclose(read[layer - 1], plain[layer - 1])


def test_what_it_adds_goes_through_a_bounded_gate() -> None:
    receiver, feature, z, counts = receiver_with([3])
    plain, added = outputs(receiver, z, counts, False)[-1], []
    for gate in (0.5, 4.0):
        feature.adapters[0].gate.data.fill_(gate)  # type: ignore[union-attr, operator]
        added.append(outputs(receiver, z, counts, True)[-1] - plain)
    torch.testing.assert_close(added[1], added[0] * (math.tanh(4.0) / math.tanh(0.5)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("there", "chosen"), [(3, [1, 2, 3]), (4, [1, 2, 3, 4]), (6, [1, 3, 4, 6]), (8, [2, 4, 6, 8])])
def test_unless_told_otherwise_there_are_four_evenly_spaced_and_the_last_is_behind_all_layers(
    there: int, chosen: list[int]
) -> None:
    config = small_config(features={"use_latent_adapters": True})
    assert LatentAdapters(config, tiny_lm("llama", num_hidden_layers=there)).layers == chosen
