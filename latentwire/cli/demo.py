"""`latentwire demo`: one message, two models, and the figures behind it."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from latentwire.cli.options import DEFAULT_CHECKPOINT, ROOT, Checkpoint, output_folder
from latentwire.cli.run import command_line
from latentwire.core.errors import named

FACTS = ROOT / "configs" / "demo_facts.json"
"""The training run."""
QUESTIONS = str(ROOT / "examples" / "questions.json")
SHOWN = 3
"""Passages shown with their answers before the table."""


def command(
    context: typer.Context,
    ckpt: Checkpoint = DEFAULT_CHECKPOINT,
    data_path: Annotated[
        str, typer.Option("--data_path", metavar="FILE", help="Held-out SQuAD-format file.")
    ] = QUESTIONS,
    samples: Annotated[int, typer.Option(min=1, help="Questions in the table.")] = 100,
    out_dir: Annotated[str, output_folder("Where results go.")] = "runs/demo",
    train: Annotated[bool, typer.Option("--train/--no_train", help="Also train a short run on invented facts.")] = True,
) -> dict[str, Any]:
    """Two different language models answer questions from one compressed message.

    Example: latentwire demo --samples 50 --no_train
    """
    from latentwire.checkpoint.index import find_checkpoint, load_config_of
    from latentwire.checkpoint.tensors import read_info
    from latentwire.config import load_config
    from latentwire.data import load_passages
    from latentwire.evaluation.run import evaluate_system
    from latentwire.model.pretrained import load_checkpoint
    from latentwire.training.origin import Origin

    out = Path(out_dir)
    folder = find_checkpoint(ckpt)
    if train:  # before minutes of evaluation
        with named("--train"):
            Origin.of(load_config(FACTS, [], {"checkpoint.init_from": str(folder)}))
    config = load_config_of(
        folder,
        {
            "data.dataset": "squad",
            "data.eval_path": data_path,
            "evaluation.samples": samples,
            "evaluation.modes": ["text", "text_tuned", "latent", "token_budget", "no_context"],
            "evaluation.latency_samples": 3,
        },
    )
    print("loading the models (the first time, they are unpacked: about a minute)", flush=True)
    system = load_checkpoint(folder, config)
    passages = load_passages(config.data, "validation", samples)
    print("\n== One message, read by different models ==\n")
    for passage in passages[:SHOWN]:
        show(system, passage, config.evaluation)
    print(f"\n== {sum(len(p.questions) for p in passages)} held-out questions ==\n", flush=True)
    files = read_info(folder)["files"]
    results = {"squad": evaluate_system(system, config, out, command=command_line(context), checkpoint=files)}
    del system
    if train:
        print("\n== A short training run on invented facts, from the same checkpoint ==\n", flush=True)
        results["facts"] = train_on_facts(folder, out / "facts")
    print(f"\nwritten: {out / 'eval.json'}" + (f", {out / 'facts' / 'eval.json'}" if train else ""))
    return results


def show(system: Any, passage: Any, own: Any) -> None:
    """Compress one passage and print every receiver's answers from the message, next to those from the text."""
    from latentwire.evaluation.answering import answer_batch, encode_items
    from latentwire.evaluation.modes import MODES

    item = encode_items(system, [passage], own.codec)[0]
    print(textwrap.fill(passage.context, 110))
    print(
        f"\n  -> one message: {item.sent.latents} latents, {len(item.message)} bytes "
        f"(the text: {item.sent.tokens} tokens)\n"
    )
    answers = {}
    for name, receiver in system.receivers.items():
        text = "text_tuned" if "text" in receiver.adapters else "text"
        for mode in ("latent", text):
            answers[name, mode] = answer_batch(receiver, MODES[mode], [item], own.max_new_tokens, own.candidates)
    for i, question in enumerate(passage.questions):
        print(f"  {question.text}   (gold: {question.answers[0]})")
        for (name, mode), rows in answers.items():
            source = "message" if mode == "latent" else "text"
            print(f"    {name:14} from the {source:8} {json.dumps(rows[i].prediction, ensure_ascii=False)}")
    print()


def train_on_facts(checkpoint: Path, folder: Path) -> dict[str, Any]:
    """Go on from a checkpoint on the built-in facts, for minutes, and evaluate."""
    from latentwire.cli.train import main as train_main

    result = train_main(
        [
            "--config",
            str(FACTS),
            "--init_from",
            str(checkpoint),
            "--out_dir",
            str(folder),
            "--tuned_cache",
            str(folder.with_name("tuned")),
            "--fresh",
        ]
    )
    evaluation: dict[str, Any] = result["evaluation"]
    return evaluation
