"""EleutherAI's harness on tiny models, offline: as its own model where text is read, through the wire elsewhere."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install -e '.[lm-eval]'")

from lm_eval import tasks
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.utils import apply_template

from latentwire.cli.main import main as latentwire
from latentwire.config import Config
from latentwire.core.errors import ConfigError, DataError, LatentWireError, WireError
from latentwire.core.names import LATENT
from latentwire.eval import main as eval_main
from latentwire.evaluation import suite
from latentwire.evaluation.harness import HarnessLM, Messages, Prompt, split_prompt
from latentwire.model.system import LatentWire
from tests import ROOT
from tests.systems import saved_run, small_config, small_passages, small_system
from tests.tiny import tiny_model, tiny_tokenizer

PASSAGES = [passage.context for passage in small_passages(3)]
TASKS = {
    "lamps.yaml": """
task: lamps
custom_dataset: !function lamps.lamps
validation_split: validation
output_type: multiple_choice
doc_to_text: "{{passage}}\\nQuestion: {{question}}?\\nAnswer:"
doc_to_target: label
doc_to_choice: ["no", "yes"]
""",
    "whole.yaml": """
task: whole
custom_dataset: !function lamps.lamps
validation_split: validation
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{passage}}"
""",
    "drawn.yaml": """
task: drawn
include: lamps.yaml
output_type: generate_until
doc_to_choice: null
doc_to_target: question
generation_kwargs: {until: ["."], do_sample: true, temperature: 0.7}
""",
    "lamps.py": f"""
from datasets import Dataset

def lamps(**_):
    rows = [dict(passage=" " + text, question="Is it", label=n % 2) for n, text in enumerate({PASSAGES!r})]
    return {{"validation": Dataset.from_list(rows)}}
""",
}


def scored(context: str, continuation: str, doc: Any = None) -> Instance:
    return Instance("loglikelihood", doc or {}, (context, continuation), 0, metadata=("scored", 0, 1))


def asked(context: str, doc: Any = None, **settings: Any) -> Instance:
    return Instance("generate_until", doc or {}, (context, settings), 0, metadata=("asked", 0, 1))


def system_of(slots: bool = True) -> LatentWire:
    config = small_config(
        model={"dtype": "float32", "receivers": {"a": "x"}}, features={"use_lora": True, "use_deep_prefix": slots}
    )
    return small_system(config, ("llama",))


def test_the_last_place_of_the_first_field_that_is_there_is_the_passage() -> None:
    doc = {"context": ["not a text"], "passage": " A hill. ", "story": "Answer"}
    shown = "Read: A hill.\nYes\n\nRead: A hill.\nAnswer:"
    assert split_prompt(shown, doc) == Prompt("Read: A hill.\nYes\n\nRead:", "A hill.", "\nAnswer:")
    assert split_prompt(shown, doc, ["story"]) == Prompt("Read: A hill.\nYes\n\nRead: A hill.\n", "Answer", ":")
    for nothing in ({}, {"passage": "A dale."}, {"passage": " "}, "a document that is a string"):
        assert split_prompt(shown, nothing) == Prompt("", "", shown)
    assert not split_prompt("Sum up: A hill. ", doc).passage  # there would be nothing behind the message


@pytest.mark.parametrize(
    ("file", "doc", "opening", "rest"),
    [
        ("super_glue/boolq/default.yaml", {"passage": PASSAGES[0], "question": "is it red"}, "", "\nQuestion: is it"),
        ("drop/default.yaml", {"passage": PASSAGES[0], "question": "How many?"}, "", " How many?"),
        ("sciq/sciq.yaml", {"support": f" {PASSAGES[0]}", "question": "Who?"}, "", "\nQuestion: Who?"),
        ("race/race.yaml", {"article": PASSAGES[0], "problems": "[{'question': 'Who?'}]"}, "Article:", "\n\nWho?"),
    ],
)
def test_the_harness_s_own_tasks_are_taken_apart(file: str, doc: dict[str, Any], opening: str, rest: str) -> None:
    show = load_yaml(Path(tasks.__file__).parent / file)["doc_to_text"]
    found = split_prompt(show(doc) if callable(show) else apply_template(show, doc), doc)
    assert (found.opening, found.passage, found.rest[: len(rest)]) == (opening, PASSAGES[0], rest)


def test_text_is_read_as_the_harness_s_own_model_reads_it() -> None:
    receiver = system_of().receivers["a"]
    lm = HarnessLM(receiver, "text", Messages(small_system(small_config()).sender), batch_size=3, quiet=True)
    theirs = HFLM(tiny_model("llama"), tokenizer=tiny_tokenizer("llama"), device="cpu", batch_size=2)
    prompt = f"{PASSAGES[0]}\nQuestion: Where does Mira live?\nAnswer:"
    doc = {"context": PASSAGES[0]}
    requests = [
        scored(prompt, " in Talden", doc),
        scored(prompt, " no", doc),
        scored("The keeper of the ", "green boat"),
        scored("", "The door"),
        scored(f"{prompt} red\n", "lamps"),
    ]
    starts = ["The", "The keeper", "Answer:", "A long message", "red lamps", "Mira", "in the year", "house"]
    greedy = theirs.generate_until([asked(start, until=[], max_gen_toks=1) for start in starts], disable_tqdm=True)
    requests += [scored(start, text) for start, text in zip(starts, greedy, strict=True) if text]
    own, wanted = lm.loglikelihood(requests), theirs.loglikelihood(requests, disable_tqdm=True)
    assert [value for value, _ in own] == pytest.approx([value for value, _ in wanted], abs=1e-3)
    assert [best for _, best in own] == [best for _, best in wanted]
    assert any(best for _, best in own[5:]) and not own[0][1]  # a token may be half a character, and then not come back
    free = theirs.generate_until([asked(prompt, until=[], max_gen_toks=8)], disable_tqdm=True)[0]
    questions = [
        asked(prompt, until=[], max_gen_toks=8),
        asked(prompt, until=[free[3:5]], max_gen_toks=8),
        asked("The keeper", until="e", max_gen_toks=5),
    ]
    assert lm.generate_until(questions) == theirs.generate_until(questions, disable_tqdm=True)
    cost = lm.cost()["scored"]
    assert (cost["requests"], cost["with_passage"], cost["compressed"]) == (len(requests), 2, 0)
    assert cost["cut"] == 0 and cost["compression"] is None and cost["bytes"] is None


@pytest.mark.parametrize("slots", [True, False])
def test_a_passage_is_read_from_the_bytes_of_its_message(slots: bool) -> None:
    system = system_of(slots)
    receiver = system.receivers["a"]
    receiver.add_adapter(LATENT)
    messages = Messages(system.sender, "int8")
    lm = HarnessLM(receiver, "latent", messages, batch_size=2, quiet=True)
    tail, settings = "\nQuestion: How many lamps?\nAnswer:", {"until": ["\n"], "max_gen_toks": 6}
    plain = [asked(text + tail, {"context": text}, **settings) for text in PASSAGES]
    answers = lm.generate_until([*plain, asked("No passage" + tail, **settings)])
    wires = system.sender.encode_batch(PASSAGES, "int8")
    for text, wire in zip(answers, wires, strict=False):
        assert text.split("\n")[0].strip() == receiver.answer(wire, "How many lamps?", 6).text
    cost = lm.cost()["asked"]
    assert (cost["requests"], cost["compressed"], cost["cut"]) == (4, 3, 0)
    assert cost["bytes"]["wire"] == pytest.approx(sum(len(wire.to_bytes()) for wire in wires) / 3)
    assert cost["positions"]["latent"] < cost["positions"]["text"] and cost["compression"] > 1.5
    # What stands before the passage is read before it, and changes what is read.
    opened = [scored(f"{title}{PASSAGES[0]}{tail}", " 2", {"context": PASSAGES[0]}) for title in ("", "Title: Orlin\n")]
    (bare, _), (titled, _) = lm.loglikelihood(opened)
    opening = receiver.prompt.opening("Title: Orlin\n")
    pair = receiver.prompt.rest_and(tail, " 2")
    with receiver.using(LATENT):
        for value, ids in ((bare, []), (titled, opening)):
            context = receiver.read_messages([[wires[0]]], "latents", [0], ids)
            assert value == pytest.approx(-float(receiver.score(context, [pair]).nll.detach()), abs=1e-4)
    assert abs(bare - titled) > 1e-3
    # Worked examples that do not fit are cut off at their beginning; all that fits is kept.
    limit = receiver.lm.anatomy.max_positions
    lm.loglikelihood([scored("red lamps " * limit + PASSAGES[0] + tail, " 2", {"context": PASSAGES[0]})])
    first, last = lm.reads["scored"][0], lm.reads["scored"][-1]
    assert lm.cost()["scored"]["cut"] == 1 and last.positions == limit - len(pair[1])
    saved = last.text_positions - last.positions  # what was cut off is not among it
    assert saved == pytest.approx(first.text_positions - first.positions, abs=2)
    with pytest.raises(ConfigError, match="mode 'token_budget': the harness can measure text, "):
        HarnessLM(receiver, "token_budget", messages)
    receiver.sender, system.sender.fingerprint = b"receiver", b"sender's"
    other = HarnessLM(receiver, "latent", Messages(system.sender), quiet=True)
    with pytest.raises(WireError, match="the message comes from sender"):
        other.loglikelihood(opened)


def test_no_context_leaves_only_the_passage_out() -> None:
    receiver = system_of().receivers["a"]
    lm, text = (HarnessLM(receiver, mode, Messages(system_of().sender), quiet=True) for mode in ("no_context", "text"))
    given = scored(f"Title: Orlin\n{PASSAGES[0]}\nAnswer:", " 2", {"context": PASSAGES[0]})
    assert lm.loglikelihood([given]) == text.loglikelihood([scored("Title: Orlin\n\nAnswer:", " 2")])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("harness")
    for name, text in TASKS.items():
        (folder / "tasks").mkdir(exist_ok=True)
        (folder / "tasks" / name).write_text(text)
    return saved_run(folder, evaluation={"batch_size": 4, "bootstrap": 20, "codec": "int8"})


def test_the_page_s_command_measures_every_mode_once(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "lm_eval.md").read_text()
    (line,) = re.findall(r"^    (latentwire eval .*)$", page.replace("\\\n", ""), re.MULTILINE)
    data = Path(shutil.copy(ROOT / "examples" / "questions.json", tmp_path))
    here = {"checkpoints/default": str(run), "squad_dev.json": str(data)}
    words = [here.get(word, word) for word in shlex.split(line)[1:]]
    words[words.index("--limit") + 1] = "2"
    words[words.index("--receiver") + 1] = "a"
    words[words.index("--out") + 1] = str(tmp_path)
    monkeypatch.chdir(ROOT)
    results = latentwire(words)
    shown = capsys.readouterr().out
    own = results["receivers"]["a"]
    assert set(own) == {"text", "text_tuned", "latent", "no_context"}
    assert json.loads((tmp_path / "lm_eval.json").read_text())["receivers"]["a"] == own
    assert results["manifest"]["versions"]["lm_eval"] == results["settings"]["lm_eval"]
    for mode, given in own.items():
        assert given["n-samples"]["squad_file"]["effective"] == 2 and given["versions"] == {"squad_file": 1.0}
        rows = [json.loads(text) for text in (tmp_path / "lm_eval" / f"a-{mode}.jsonl").read_text().splitlines()]
        measured = given["results"]["squad_file"]
        assert len(rows) == 2 and measured["f1,none"] == pytest.approx(sum(row["f1"] for row in rows) / 2)
        assert given["requests"]["squad_file"]["compressed"] == (2 if mode == "latent" else 0)
    assert "2 of 2 requests had their passage sent" in shown and "squad_file" in shown and "f1" in shown

    def loads_nothing(*_: Any) -> None:
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(suite, "load_checkpoint", loads_nothing)
        assert latentwire(words)["receivers"] == results["receivers"]
        with pytest.raises(AssertionError):
            latentwire([*words, "--fresh_eval"])
        data.write_text(data.read_text() + "\n")
        with pytest.raises(AssertionError):
            latentwire(words)
    assert "holds these results already" in capsys.readouterr().out


def test_a_receiver_without_any_of_the_modes_has_no_rows(capsys: pytest.CaptureFixture[str]) -> None:
    suite.print_table({"receivers": {"a": {"text_tuned": None}}, "settings": {"lm_eval": "0", "codec": "int8"}})
    assert "measure" in capsys.readouterr().out


def test_worked_examples_stay_text(run: Path, tmp_path: Path) -> None:
    modes = ["--override", 'evaluation.modes=["text", "latent"]', "--receivers", "b", "--out", str(tmp_path), "--quiet"]
    task = ["--ckpt", str(run), "--suite", "lm-eval", "--tasks", "lamps", "--include_path", str(run.parent / "tasks")]
    costs = []
    for shots in ("0", "1"):
        own = eval_main([*task, *modes, "--num_fewshot", shots])["receivers"]["b"]
        assert set(own) == {"text", "latent"} and own["latent"]["n-shot"] == {"lamps": int(shots)}
        assert 0 <= own["latent"]["results"]["lamps"]["acc,none"] <= 1
        costs.append(own["latent"]["requests"]["lamps"])
    assert [cost["compressed"] for cost in costs] == [6, 6]  # two choices for each of three documents
    assert costs[1]["bytes"] == costs[0]["bytes"] and costs[1]["compression"] < costs[0]["compression"]
    longer = [costs[1]["positions"][key] - costs[0]["positions"][key] for key in ("text", "latent")]
    assert longer[0] == pytest.approx(longer[1], abs=2) and longer[0] > 20  # the example costs the same in both


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--suite", "lm-eval"], "--suite: needs --tasks"),
        (
            ["--suite", "lm-eval", "--tasks", "lamps", "--samples", "3"],
            "--samples: does nothing with --suite; --limit takes so many documents",
        ),
        (["--tasks", "lamps"], "--tasks: does nothing without --suite"),
        (["--suite", "lm-eval", "--tasks", "lamps,nothing"], "--tasks: 'nothing' is neither a task of the harness"),
        (["--suite", "lm-eval", "--tasks", "whole"], "--tasks: whole scores whole texts"),
        (["--suite", "lm-eval", "--tasks", "drawn", "--receivers", "a"], "--tasks: drawn asks for sampled answers"),
        (["--suite", "lm-eval", "--tasks", "lamps", "--override", 'evaluation.modes=["token_budget"]'], "none of text"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(
    words: list[str], said: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The harness's own index of thousands of tasks takes seconds to read, and is not needed here.
    monkeypatch.setattr(suite, "TaskManager", partial(TaskManager, include_defaults=False))
    include = ["--include_path", str(run.parent / "tasks")] if "--suite" in words else []
    with pytest.raises(LatentWireError, match=re.escape(said)):
        eval_main(["--ckpt", str(run), "--out", str(tmp_path), "--quiet", *words, *include])


def test_a_task_that_cannot_be_loaded_and_a_missing_harness(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--ckpt", str(run), "--suite", "lm-eval", "--tasks", "squad_file", "--out", str(tmp_path)]
    words += ["--include_path", str(ROOT / "examples" / "lm_eval")]
    with pytest.raises(DataError, match=r"nowhere\.json: no such file"):
        eval_main([*words, "--data_path", "nowhere.json"])
    with pytest.raises(ConfigError, match="--include_path: nowhere: no such folder"):
        eval_main([*words[:-1], "nowhere"])
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, suite.__name__)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[lm-eval\]'"):
        eval_main(words)


@pytest.mark.parametrize("made", [None, [], {"config": [1]}])
def test_results_of_a_suite_of_another_form_are_none(tmp_path: Path, made: object) -> None:
    file, now = tmp_path / "suite.json", {"checkpoint": None, "versions": None, "config": {"evaluation": {}}}
    file.write_text(json.dumps({"settings": 1, "manifest": made, "receivers": {"a": {}}}))
    assert suite.measured_before(file, {"settings": 1, "manifest": now}, Config()) == {}
