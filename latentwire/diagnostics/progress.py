"""Live progress, and what of it is written to diagnostics.jsonl."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

LOSS_GRAD_NORM = "loss_grad_norm"
"""Beginning of a record's keys for the gradient norm of each loss term; what was measured is always written."""


class StepLog:
    """Show every step in a progress bar; `write` one of each receiver in `every` steps, and skipped ones."""

    def __init__(self, write: Callable[[dict[str, Any]], None], every: int, total: int, start: int, title: str):
        self.write = write
        self.every = every
        self.total = total
        self.title = title
        self.smooth: dict[str, float] = {}
        self.due: dict[str, int] = {}
        live = sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=start, desc=title, unit="step", disable=not live, dynamic_ncols=True)
        self.live = live

    def on_step(self, record: dict[str, Any]) -> None:
        name, loss = record["receiver"], record["loss"]
        if "skipped" in record:
            wrong = record["not_finite"]
            tqdm.write(f"step {record['step']}: NaN or inf in the {wrong} of {name}: step skipped", file=sys.stderr)
        else:
            self.smooth[name] = 0.95 * self.smooth.get(name, loss) + 0.05 * loss
        measured = any(key.startswith(LOSS_GRAD_NORM) for key in record)
        if record["step"] >= self.due.get(name, 0) or "skipped" in record or measured:
            self.due[name] = record["step"] + self.every
            self.write(record | {f"smooth_loss/{n}": round(v, 4) for n, v in self.smooth.items()})
            if not self.live:
                losses = ", ".join(f"{n} {v:.3f}" for n, v in self.smooth.items())
                print(
                    f"{self.title}: step {record['step']}/{self.total}: loss {losses}, "
                    f"{record['tokens_per_s']:.0f} tokens/s",
                    flush=True,
                )
        self.bar.set_postfix({"loss": f"{self.smooth.get(name, loss):.3f}", "tok/s": record["tokens_per_s"]})
        self.bar.update()

    def on_epoch(self, epoch: int) -> None:
        pass

    def on_end(self) -> None:
        self.bar.close()
