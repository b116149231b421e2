"""Results as an evaluation writes them, with made-up figures, for what reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from latentwire.core.json_files import write_json, write_jsonl


def measured(f1: float, tuned: bool = False) -> dict[str, Any]:
    """One mode's measures."""
    return {
        "f1": f1,
        "f1_ci": [f1 - 0.05, f1 + 0.05],
        "em": f1 / 2,
        "em_ci": [f1 / 2 - 0.05, f1 / 2 + 0.05],
        "first_token_acc": f1 / 3,
        "nll_per_token": 2 - f1,
        "latency_s": None,
        "tuned": tuned,
    }


def results(config: dict[str, Any] | None = None, **receivers: dict[str, Any]) -> dict[str, Any]:
    """What eval.json holds; receivers: name -> its measured modes."""
    modes = ("text", "text_tuned", "latent", "token_budget", "no_context", "embedding_replay", "embedding_anchor")
    cost = {
        "positions": {"text": 100.0, "latent": 40.0},
        "compression": 2.5,
        "bytes": {"wire": 900.0, "utf8": 600.0, "zstd": 350.0, "packed_ids": 250.0},
    }
    return {
        "schema": 1,
        "manifest": {"config": config, "git": {"commit": "0123456789", "dirty": False}, "cpu": "a processor"},
        "dataset": "facts",
        "samples": 12,
        "passages": 2,
        "receivers": {name: dict.fromkeys(modes) | own | cost for name, own in receivers.items()},
        "joint": None,
    }


CONTEXT = "Mira lives in Orlin near the river. She sells <b>red</b> lamps 🏮 on the hill | every day."
SPANS = [[0, 14], [14, 36], [36, 59], [59, len(CONTEXT)]]
ANSWERS = {
    "Where does Mira live?": ("Orlin", 0.0, 1.0),
    "What colour are the lamps?": ("</script><b>blue", 1.0, 0.0),
    "Where does she sell?": ("on the hill", 1.0, 1.0),
    "How often?": ("", 0.0, 0.0),
}
"""What the latents said, with the F1 of the text and of the latents."""


def log(receivers: tuple[str, ...] = ("a", "b"), steps: int = 40) -> list[dict[str, Any]]:
    """A training log: each receiver tuned alone, the closed form, then all in turn, with a skipped step."""
    rows: list[dict[str, Any]] = []
    for stage in (*(f"slot_tuning/{name}" for name in receivers), "end_to_end"):
        turns = receivers if stage == "end_to_end" else (stage.split("/")[1],)
        for step in range(1, steps + 1):
            name = turns[step % len(turns)]
            row = {"stage": stage, "step": step, "receiver": name, "loss": 4 / step**0.5, "first_acc": step / 50}
            rows.append(row | {f"smooth_loss/{n}": 5 / step**0.5 for n in turns} | {"seconds": 0.5})
    rows.insert(2 * steps, {"stage": "closed_form", "r2": dict.fromkeys(receivers, 0.5), "seconds": 9.0})
    return [*rows, rows[-1] | {"step": steps + 1, "loss": None, "skipped": True}]


def run_folder(folder: Path, f1: float = 0.4, attention: bool = True) -> Path:
    """A run with every artifact: trained, and evaluated on two receivers, of which one has LoRA."""
    both = {"text": measured(0.6), "latent": measured(f1, tuned=True), "token_budget": measured(0.2, tuned=True)}
    times = {"encode": 0.1, "prefill": 0.02, "first_token": 0.05, "answer": 0.2}
    both["latent"]["latency_s"] = times
    both["text"]["latency_s"] = times | {"encode": 0.0, "prefill": 0.3, "first_token": 0.4, "answer": 0.5}
    frozen = both | {mode: both[mode] | {"tuned": False} for mode in ("latent", "token_budget")}
    measures = results({"encoder": {"d_z": 8}}, a=both | {"text_tuned": measured(0.7, tuned=True)}, b=frozen)
    measures["manifest"] |= {"date": "2026-01-02T03:04:05+00:00", "command": ["python", "-m", "x"], "cpus": 2}
    rows = []
    for number, (question, (said, text, latent)) in enumerate(ANSWERS.items()):
        own = {"prediction": said, "f1": latent, "em": latent}
        if attention and number < 2:
            own["attention"] = [0.01, 0.2, 0.05, 0.04]
        modes = {"text": {"prediction": "as in the text", "f1": text, "em": text}, "latent": own}
        row = {"id": str(number), "question": question, "answers": ["gold", "also gold"], "passage": 0}
        rows.append(row | {"a": modes | {"text_tuned": modes["text"]}, "b": modes, "joint": said})
    write_json(folder / "eval.json", measures)
    write_json(folder / "config.json", measures["manifest"]["config"])
    write_json(folder / "manifest.json", measures["manifest"])
    write_jsonl(folder / "diagnostics.jsonl", log())
    write_jsonl(folder / "predictions.jsonl", rows)
    write_jsonl(folder / "passages.jsonl", [{"id": "0-0", "context": CONTEXT, "windows": SPANS}])
    return folder
