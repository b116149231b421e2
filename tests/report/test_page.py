"""`latentwire report`: what the page and the Markdown say, from files alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from latentwire.cli.main import main as latentwire
from latentwire.core.errors import LatentWireError
from latentwire.core.json_files import read_json, write_json, write_jsonl
from latentwire.report import card, view
from latentwire.report.artifacts import read_runs
from latentwire.report.page import content, write_report
from tests import ROOT
from tests.artifacts import ANSWERS, CONTEXT, log, measured, results, run_folder


class Page(HTMLParser):
    """The elements of a page, its visible text, and the data in it."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.scripts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.text += data


def page(*folders: Path, out: Path) -> Page:
    latentwire(["report", *map(str, folders), "-o", str(out)])
    return Page((out / "report.html").read_text(encoding="utf-8"))


def test_json_names_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = latentwire(["report", str(run_folder(tmp_path / "one")), "--json"])
    assert json.loads(capsys.readouterr().out) == written and Path(written["html"]).is_file()


def test_every_section_is_there_and_holds_the_figures(tmp_path: Path) -> None:
    made = page(run_folder(tmp_path / "one"), out=tmp_path)
    assert not made.open
    for title in ("Scores", "Compression and bytes", "Latency", "Training", "Examples", "How it was made"):
        assert title in made.text
    for figure in ("0.400 [0.350, 0.450]", "57%", "67%", "2.50x", "40 of 100", "0.30 s", "end_to_end", "0.500"):
        assert figure in made.text, figure
    assert "0123456789" in made.text and '"d_z": 8' in made.text and "Left out" not in made.text
    drawn = [attributes for tag, attributes in made.tags if tag == "svg" and attributes.get("role") == "img"]
    assert len(drawn) == 2 + 2 * 2 and all(a["aria-label"] for a in drawn)
    bars = {a["class"] for _, a in made.tags if (a.get("class") or "").startswith("bar ")}
    assert bars == {"bar text", "bar text_tuned", "bar latent", "bar token_budget"}


def test_the_page_needs_nothing_else_and_nothing_in_it_can_escape(tmp_path: Path) -> None:
    made = page(run_folder(tmp_path / "one"), out=tmp_path)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(", html)
    assert not [a for _, a in made.tags if "src" in a or a.get("href", "#")[0] not in "#d"]
    assert "default-src 'none'" in html
    plain = run_folder(tmp_path / "plain" / "one")
    for path in plain.glob("*.jsonl"):
        path.write_text(path.read_text(encoding="utf-8").replace("<", "x").replace(">", "x"), encoding="utf-8")
    assert [tag for tag, _ in made.tags] == [tag for tag, _ in page(plain, out=tmp_path / "plain").tags]
    (run,) = json.loads(made.scripts[0])
    assert [e["question"] for e in run["examples"]] == list(ANSWERS)
    assert run["examples"][1]["answers"]["a"]["latent"] == ["</script><b>blue", 0.0]
    assert "".join(run["passages"][0]) == CONTEXT and run["passages"][0][2].startswith("She sells")
    assert run["examples"][0]["attention"]["b"] == [0.01, 0.2, 0.05, 0.04] and "attention" not in run["examples"][2]
    assert run["against"] == {"a": "text_tuned", "b": "text"}


def test_the_curves_are_those_of_the_log(tmp_path: Path) -> None:
    run_folder(tmp_path / "one")
    shown = content(read_runs([tmp_path / "one"]))
    assert [c["stage"] for c in shown["curves"]] == ["slot_tuning", "end_to_end"]
    rows = {(r["stage"], r["receiver"]): r for r in shown["training"]}
    assert set(rows) == {(stage, name) for stage in ("slot_tuning", "end_to_end") for name in "ab"}
    assert rows["slot_tuning", "a"]["first"] == 4.0 and rows["slot_tuning", "a"]["last"] == 5 / 40**0.5
    assert rows["end_to_end", "a"]["steps"] == 40 and rows["end_to_end", "b"]["steps"] == 39
    svg = shown["curves"][0]["charts"][0]
    (faint, line) = re.findall(r'<polyline class="line s0( faint)?"[^>]* points="([^"]+)"', svg)
    assert faint[0] and not line[0] and len(line[1].split()) == 40
    heights = [float(point.split(",")[1]) for point in line[1].split()]
    assert heights == sorted(heights) and heights[0] < heights[-1]  # losses fall, so pixels go down


def test_several_runs_share_the_charts_and_an_ablation_stands_for_its_runs(tmp_path: Path) -> None:
    for name, f1 in (("wide", 0.5), ("narrow", 0.3)):
        run_folder(tmp_path / "study" / name, f1)
    write_json(tmp_path / "study" / "broken" / "failed.json", {"error": "no memory", "traceback": "..."})
    plan = [{"name": name, "differs": {}} for name in ("wide", "narrow", "broken")]
    write_json(tmp_path / "study" / "ablation.json", {"name": "study", "runs": plan})
    made = page(tmp_path / "study", out=tmp_path)
    assert "the run failed: no memory" in made.text
    shown = content(read_runs([tmp_path / "study"]))
    dots = re.findall(r"<title>([^<]*)</title>", shown["tradeoffs"][0])
    assert "wide, a, latent: 0.500 [0.450, 0.550] at 2.5" in dots
    assert "narrow, b, text: 0.600 [0.550, 0.650] at 1" in dots
    dashes = set(re.findall(r'stroke-dasharray="([^"]*)"', shown["curves"][0]["charts"][0]))
    assert len(dashes) == 2 and len(json.loads(made.scripts[0])) == 2
    same = read_runs([run_folder(tmp_path / "x" / "wide"), tmp_path / "study" / "wide"])
    assert [run.name for run in same] == [str(tmp_path / "x" / "wide"), str(tmp_path / "study" / "wide")]


@pytest.mark.parametrize(
    ("kept", "said", "gone"),
    [
        (["diagnostics.jsonl", "config.json", "manifest.json"], "no eval.json", "Scores"),
        (["eval.json"], "no diagnostics.jsonl", "Examples"),
        (["eval.json", "predictions.jsonl"], "no passages.jsonl", "Training"),
        (["predictions.jsonl", "passages.jsonl"], "no eval.json", "Latency"),
    ],
)
def test_what_is_missing_is_left_out_and_said(tmp_path: Path, kept: list[str], said: str, gone: str) -> None:
    folder = run_folder(tmp_path / "run")
    for path in folder.iterdir():
        if path.name not in kept:
            path.unlink()
    made = page(folder, out=tmp_path)
    assert not made.open and said in made.text
    titles = re.findall(r"<h2[^>]*>([^<]*)", (tmp_path / "report.html").read_text())
    assert gone not in titles and "How it was made" in titles
    text = (tmp_path / "report.md").read_text()
    assert said in text and f"## {gone}" not in text


def test_evaluations_of_before_passages_and_attention_are_shown(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", attention=False)
    made = page(run, out=tmp_path)
    assert "no attention in predictions.jsonl" in made.text
    lines = (run / "predictions.jsonl").read_text()
    (run / "predictions.jsonl").write_text(lines.replace('"passage": 0, ', ""))
    (data,) = json.loads(page(run, out=tmp_path).scripts[0])
    assert len(data["examples"]) == 4 and "passage" not in data["examples"][0]


def test_the_markdown_says_the_same(tmp_path: Path) -> None:
    page(run_folder(tmp_path / "one"), out=tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| one | a | latent | 0.400 [0.350, 0.450] | 0.200 | 0.133 | 1.600 |" in text
    assert "| one | a | 57% | text\\_tuned | 2.50x | 40 | 100 | 900 |" in text
    assert "| one | b | latents better | Where does Mira live? | gold | as in the text | Orlin |" in text
    assert "| What colour are the lamps? | gold | as in the text | \\</script>\\<b>blue |" in text
    assert "- commit: 0123456789" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({re.sub(r"\\.", "", line).count("|") for line in block.splitlines()}) == 1, block


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("eval.json", "{", r"eval\.json: not valid JSON"),
        ("eval.json", '{"schema": 2}', r"eval\.json: not an eval\.json of schema 1"),
        ("eval.json", json.dumps(results(a={"latent": {}})), r"eval\.json: 'tuned' is missing in it"),
        ("predictions.jsonl", '{"question": "x"}\n', r"predictions\.jsonl: 'answers' is missing in it"),
        ("predictions.jsonl", "{}\nx\n{}\n", r"predictions\.jsonl: line 2: not valid JSON"),
        ("passages.jsonl", '{"context": 3, "windows": [[0, 1]]}\n', r"passages\.jsonl: not in the form"),
        ("passages.jsonl", "", None),
        ("diagnostics.jsonl", "[]\n", r"diagnostics\.jsonl: line 1: not a JSON object"),
        (
            "diagnostics.jsonl",
            '{"stage": "x", "step": "1"}\n',
            r"diagnostics\.jsonl: a line of x whose step is no number",
        ),
        ("training.jsonl", '{"stage": "closed_form", "r2": 1}\n', r"training\.jsonl: not in the form"),
        ("config.json", "[]", r"config\.json: not a JSON object"),
        ("eval.json", json.dumps(results(a={"latent": measured(0.1) | {"f1": None}})), r"run: not in the form"),
    ],
)
def test_what_is_broken_is_one_line_with_the_file_s_name(
    tmp_path: Path, file: str, content: str, message: str | None
) -> None:
    folder = run_folder(tmp_path / "run")
    (folder / file).write_text(content)
    if message is None:
        page(folder, out=tmp_path)
        return
    with pytest.raises(LatentWireError, match=message) as caught:
        latentwire(["report", str(folder), "-o", str(tmp_path / "out")])
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_log_that_is_being_written_and_a_folder_without_results(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    with open(folder / "diagnostics.jsonl", "a") as file:
        file.write('{"stage": "end_to')
    assert "end_to_end" in page(folder, out=tmp_path).text
    (tmp_path / "empty").mkdir()
    for name, message in (("empty", "empty: holds nothing that a run"), ("gone", "gone: no such folder")):
        with pytest.raises(LatentWireError, match=message):
            write_report([tmp_path / name], tmp_path)


def test_baselines_of_earlier_runs_have_curves_of_their_own(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    stages = [f"run 2: baseline/a/{reads}" for reads in ("text", "token_budget")]
    rows = [{"stage": stage, "step": step, "receiver": "a", "loss": 1.0} for stage in stages for step in (1, 2)]
    write_jsonl(folder / "diagnostics.jsonl", rows)
    curves = view.curves(read_runs([folder]))
    assert list(curves) == ["run 2: baseline text", "run 2: baseline token_budget"]
    assert [len(curve["loss"]) for (curve,) in curves.values()] == [2, 2]


def test_the_steps_that_a_resumed_run_did_again_are_shown_once(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    once = view.curves(read_runs([folder]))
    rows = [{"stage": "end_to_end", "step": n, "receiver": "ab"[n % 2], "loss": 9.0, "skipped": True} for n in (41, 42)]
    redone = [row for row in log() if row.get("stage") == "end_to_end" and row["step"] > 30]
    write_jsonl(folder / "diagnostics.jsonl", [*log()[:-1], *rows, *redone])
    again = view.curves(read_runs([folder]))
    assert again == once and [curve["skipped"] for curve in once["end_to_end"]] == [0, 1]


def test_runs_that_an_ablation_has_not_begun_are_named(tmp_path: Path) -> None:
    run_folder(tmp_path / "study" / "wide")
    (tmp_path / "study" / "next").mkdir()
    plan = [{"name": name, "differs": {}} for name in ("wide", "next", "last")]
    write_json(tmp_path / "study" / "ablation.json", {"name": "study", "runs": plan})
    page(tmp_path / "study", tmp_path / "study" / "wide", out=tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "# Report: wide, next, last\n" in text and "- next: not started\n- last: not started\n" in text
    assert len(read_runs([tmp_path / "study", tmp_path / "study" / "wide"])) == 3  # wide is there once


def test_an_evaluation_made_later_and_elsewhere_is_told_from_the_training(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    made = read_json(folder / "manifest.json") | {"cpu": "another processor", "date": "2025-12-31"}
    write_json(folder / "manifest.json", made)
    shown = content(read_runs([folder]))
    assert {row["machine"] for row in shown["latencies"]} == {"a processor"}
    rows = dict(shown["manifests"][0][1])
    assert (rows["machine"], rows["on machine"]) == ("another processor", "a processor")
    assert (rows["date"], rows["evaluated on"]) == ("2025-12-31", "2026-01-02T03:04:05+00:00")


def test_modes_without_a_chart_and_markup_in_names(tmp_path: Path) -> None:
    write_json(tmp_path / "run_[x](y)" / "eval.json", results(**{"a*b": {"no_context": measured(0.1)}}))
    made = page(tmp_path / "run_[x](y)", out=tmp_path)
    assert not made.open and content(read_runs([tmp_path / "run_[x](y)"]))["tradeoffs"] == []
    assert r"| run\_\[x\](y) | a\*b | no\_context (no LoRA) |" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_other_methods_are_shown_where_they_were_measured(tmp_path: Path) -> None:
    own = {"text": measured(0.6), "latent": measured(0.4, tuned=True), "kvpress": measured(0.3) | {"positions": 25.0}}
    own["llmlingua_tuned"] = measured(0.2, tuned=True) | {"positions": 40.0}
    write_json(tmp_path / "run" / "eval.json", results(a=own))
    page(tmp_path / "run", out=tmp_path)
    made = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "other methods" in made and "token budget</li>" not in made
    assert "run, a, kvpress: 0.300 [0.250, 0.350] at 4<" in made  # 100 positions of text by 25
    assert "| run | a | kvpress | 0.300 " in (tmp_path / "report.md").read_text(encoding="utf-8")
    rows = [row.split(" | ") for row in card._results(read_json(tmp_path / "run" / "eval.json")) if row[:3] == "| a"]
    assert [row[1] for row in rows] == ["text", "latent", "llmlingua_tuned", "kvpress"]


def test_an_attention_of_another_length_is_refused(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    text = (folder / "predictions.jsonl").read_text().replace("[0.01, 0.2, 0.05, 0.04]", "[0.01, 0.2]")
    (folder / "predictions.jsonl").write_text(text)
    with pytest.raises(LatentWireError, match=r"predictions\.jsonl: not in the form .*2 latents .* 4 windows"):
        write_report([folder], tmp_path)


def test_no_torch_is_needed_and_the_default_place_is_the_run(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    code = (
        "import sys; from pathlib import Path; from latentwire.report.page import write_report; "
        f"write_report([Path({str(folder)!r})], Path({str(folder)!r})); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    written: dict[str, Any] = latentwire(["report", str(folder)])
    assert written["html"] == str(folder / "report.html") and read_json(folder / "eval.json")["schema"] == 1


def test_untuned_latents_are_compared_with_the_bare_text(tmp_path: Path) -> None:
    own = {"text": measured(0.5), "text_tuned": measured(0.9, tuned=True), "latent": measured(0.25)}
    write_json(tmp_path / "run" / "eval.json", results(a=own))
    (row,) = content(read_runs([tmp_path / "run"]))["costs"]
    assert row["baseline"] == "text" and row["kept"] == 0.5
