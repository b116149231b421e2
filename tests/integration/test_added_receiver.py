"""A receiver of another family joins a wire that it had no part in, and learns to answer from it."""

from __future__ import annotations

from pathlib import Path

import torch

from latentwire.core.names import LATENT
from latentwire.evaluation.evaluate import evaluate
from latentwire.model.system import LatentWire
from latentwire.training.loop import Trainer
from latentwire.training.stages.closed_form import fit
from latentwire.training.stages.end_to_end import EndToEnd
from latentwire.training.stages.fixed_encoder import fit_generators
from latentwire.training.stages.slot_tuning import SlotTuning
from tests.integration.test_end_to_end import colour_passages
from tests.systems import small_config, small_system


def test_an_added_receiver_answers_from_a_wire_made_without_it(tmp_path: Path) -> None:
    config = small_config(
        features={"use_lora": True},
        encoder={"d_z": 192, "layers": [0, 1]},
        lora={"r": 16, "alpha": 32},
        curriculum={"train_only": ["b"]},
        optimizer={"batch_size": 16, "lr": 5e-3, "lr_tuning": 1e-2, "lr_generator": 2e-3, "warmup_steps": 5},
        evaluation={"latency_samples": 0, "max_new_tokens": 6, "bootstrap": 100, "batch_size": 64, "modes": ["latent"]},
    )
    whole = small_system(config, ("llama", "gemma3"))
    train = [whole.prepare(p) for p in colour_passages(256, "train")]
    held_out = colour_passages(64, "held out")
    first, added = (LatentWire(config, whole.sender, {name: whole.receivers[name]}) for name in ("a", "b"))

    def f1() -> float:
        return evaluate(added, held_out, config, quiet=True)[0]["receivers"]["b"]["latent"]["f1"]

    fit(first, train, held_out=16, ridge=0.01)  # the sender serves receiver a alone
    sender = {name: tensor.clone() for name, tensor in whole.state_dict()["sender"].items()}
    start = f1()
    tuning = SlotTuning(added.receivers["b"], [texts["b"] for _, texts in train], config, LATENT)
    Trainer(tuning, config, tmp_path / "tuning", 80).fit()
    fit_generators(whole.sender, added.receivers, train, held_out=16, ridge=0.01)
    solved = f1()
    Trainer(EndToEnd(added, train, config), config, tmp_path / "end", 150).fit()
    trained = f1()
    assert trained > 0.8 and trained > solved > start + 0.1, (start, solved, trained)
    assert all(torch.equal(whole.state_dict()["sender"][name], tensor) for name, tensor in sender.items())
    assert all(p.grad is None for part in whole.sender.parts.values() for p in part.parameters())
