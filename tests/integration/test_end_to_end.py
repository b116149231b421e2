"""Train tiny models through all stages until they answer from the wire what nobody can know without it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from latentwire.core.names import LATENT
from latentwire.data.example import Passage, Question
from latentwire.evaluation.evaluate import evaluate
from latentwire.training.loop import Trainer
from latentwire.training.stages.closed_form import fit
from latentwire.training.stages.end_to_end import EndToEnd
from latentwire.training.stages.slot_tuning import SlotTuning
from tests.systems import small_config, small_system

WORDS = ["red", "blue", "green", "black"]


def colour_passages(count: int, seed: str) -> list[Passage]:
    """One word decides the answer; it stands anywhere in the passage."""
    rng = random.Random(seed)
    out = []
    for i in range(count):
        colour = rng.choice(WORDS)
        words = [rng.choice(["the", "old", "boat", "house", "river", "door"]) for _ in range(7)]
        words.insert(rng.randrange(8), colour)
        out.append(Passage(str(i), " ".join(words), (Question(str(i), "What colour?", (colour,)),)))
    return out


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_training_carries_answers_through_the_wire(tmp_path: Path, family: str) -> None:
    torch.manual_seed(0)
    config = small_config(
        model={"dtype": "float32", "receivers": {"a": "x"}},
        features={"use_lora": True},
        encoder={"d_z": 64, "layers": [0, 1]},
        lora={"r": 16, "alpha": 32},
        optimizer={
            "batch_size": 16,
            "lr": 5e-3,
            "lr_tuning": 1e-2,
            "lr_generator": 2e-3,
            "lr_encoder": 1e-3,
            "warmup_steps": 5,
        },
        evaluation={"latency_samples": 0, "max_new_tokens": 6, "bootstrap": 100, "batch_size": 64},
    )
    system = small_system(config, (family,))
    train = [system.prepare(p) for p in colour_passages(256, "train")]
    held_out = colour_passages(64, "held out")
    receiver = system.receivers["a"]

    tuning = SlotTuning(receiver, [texts["a"] for _, texts in train], config, LATENT)
    Trainer(tuning, config, tmp_path / "tuning", 80).fit()
    fit(system, train, held_out=16, ridge=0.01)
    Trainer(EndToEnd(system, train, config), config, tmp_path / "end", 200).fit()

    measured = evaluate(system, held_out, config, quiet=True)[0]["receivers"]["a"]
    assert measured["latent"]["f1"] > 0.8, measured["latent"]
    assert measured["no_context"]["f1"] < 0.45
    # A wire of another passage must not give this passage's answers.
    shuffled = [Passage(p.id, held_out[i - 1].context, p.questions) for i, p in enumerate(held_out)]
    assert evaluate(system, shuffled, config, quiet=True)[0]["receivers"]["a"]["latent"]["f1"] < 0.5
