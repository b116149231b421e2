"""`latentwire questions`: a model asks questions on plain text, to train on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from latentwire.cli.options import DEFAULT_CHECKPOINT, Checkpoint, Overrides, changes_of, names_of, output_folder
from latentwire.config.load import some_receivers
from latentwire.core.errors import ConfigError, DataError
from latentwire.core.json_files import append_jsonl, read_json, read_jsonl, write_json

ASKER, MADE, RESULT, SETTINGS = "asker", "asked.jsonl", "questions.json", "settings.json"


def questions(
    text_path: Annotated[
        str, typer.Option("--text_path", metavar="FILE", help="The text to ask about, one paragraph a line.")
    ],
    data_path: Annotated[
        str, typer.Option("--data_path", metavar="A,B", help="Files in SQuAD's format, to learn asking from.")
    ],
    out_dir: Annotated[str, output_folder("Where they go.")],
    ckpt: Checkpoint = DEFAULT_CHECKPOINT,
    receiver: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which receiver asks; default: the first one.")
    ] = None,
    most: Annotated[int, typer.Option("--questions", min=1, help="Most questions asked on a paragraph.")] = 9,
    steps: Annotated[int, typer.Option(min=1, help="Steps in which it learns to ask.")] = 150,
    worst: Annotated[
        float, typer.Option(min=0.0, help="Nats a token that an answer may have for who reads the text.")
    ] = 1.5,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask about so many paragraphs.")] = None,
    overrides: Overrides = None,
) -> dict[str, Any]:
    """Have a receiver ask questions on plain text, and keep those that it can answer from the text.

    DIR/questions.json is in SQuAD's format, for data.data_path. The same command again goes on where it was cut off;
    with more text it asks about what is new, and with another --worst it chooses anew from all that was asked.

    Example: latentwire questions --text_path paragraphs.txt --data_path squad_train.json --out_dir runs/asked
    """
    from latentwire.checkpoint.index import find_checkpoint, load_config_of
    from latentwire.checkpoint.tensors import read_info
    from latentwire.data import load_passages, load_texts
    from latentwire.data.squad import squad_file
    from latentwire.model.pretrained import load_receiver
    from latentwire.training.questioner import MadeQuestion, Questioner, kept

    folder, out = find_checkpoint(ckpt), Path(out_dir)
    if out.is_file():
        raise ConfigError(f"--out_dir: {out} is a file; questions go into a folder")
    of_data = {"data.dataset": "squad", "data.data_path": names_of(data_path), "data.text_path": None}
    changes: dict[str, Any] = of_data | {"data.cloze": 0, "data.renamed": 0.0, "data.samples": None}
    said = {"data.dataset": "--data_path", "data.data_path": "--data_path", "data.text_path": "--text_path"}
    changes |= changes_of(overrides, said)
    config = load_config_of(folder, changes)
    name = next(iter(some_receivers(config.model.chosen, [receiver] if receiver else [], f"--receiver: {folder}")))
    texts = list(dict.fromkeys(load_texts(text_path)))[:limit]
    passages = load_passages(config.data, "train", config.data.samples)
    decisive = config.model_dump(mode="json", include={"model", "data", "lora", "optimizer", "anchor"})
    settings = {"config": decisive | {"seed": config.system.seed}, "receiver": name, "questions": most, "steps": steps}
    settings["checkpoint"] = read_info(folder)["files"]
    begun = (out / ASKER).is_dir()  # else an earlier command ended before it had learned anything
    if begun and read_json(out / SETTINGS) != settings:
        raise ConfigError(f"--out_dir: {out} holds questions that were asked with other settings; name another folder")
    questioner = Questioner(load_receiver(folder, name, changes), config, out / ASKER)
    write_json(out / SETTINGS, settings)
    questioner.tune(passages, steps)
    before = read_jsonl(out / MADE) if (out / MADE).is_file() else []
    known = {row["context"] for row in before}
    for number, (text, asked) in enumerate(questioner.ask([t for t in texts if t not in known], most), len(before) + 1):
        append_jsonl(out / MADE, {"context": text, "asked": [one._asdict() for one in asked]})
        if number % 100 == 0:
            print(f"asked about {number} paragraphs", flush=True)
    if not (out / MADE).is_file():
        raise DataError(f"--text_path: {text_path}: no paragraph is short enough and names anything to ask for")
    rows = [(row["context"], [MadeQuestion(**one) for one in row["asked"]]) for row in read_jsonl(out / MADE)]
    good = kept(rows, worst)
    write_json(out / RESULT, squad_file(good, "asked by a model"))
    counts = {"asked": sum(len(asked) for _, asked in rows), "kept": sum(len(p.questions) for p in good)}
    print(f"{out / RESULT}: {counts['kept']} of {counts['asked']} questions on {len(rows)} paragraphs are kept")
    return {"file": str(out / RESULT)} | counts
