"""scripts/compare_baselines.py: what the latents keep of a text baseline."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from latentwire.cli.compare import main
from latentwire.core.errors import LatentWireError
from tests import ROOT
from tests.artifacts import measured, results


def write(path: Path, value: Any) -> str:
    path.write_text(json.dumps(value))
    return str(path)


def test_a_tuned_receiver_is_compared_with_tuned_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = results(
        a={"latent": measured(0.3, tuned=True)}, b={"latent": measured(0.2)}, only_here={"latent": measured(0)}
    )
    both = {"text": measured(0.4), "text_tuned": measured(0.6, tuned=True)}
    words = [
        "--latent",
        write(tmp_path / "a.json", ours),
        "--text",
        write(tmp_path / "b.json", results(a=both, b=both)),
    ]
    a, b = main(words)
    assert (a["receiver"], a["baseline"], b["baseline"]) == ("a", "text_tuned", "text")
    assert a["f1_kept"] == pytest.approx(0.5) and b["f1_kept"] == pytest.approx(0.5)
    shown = capsys.readouterr().out
    assert "| a | text_tuned | 0.600 [0.550, 0.650] | 0.300 [0.250, 0.350] | 50% |" in shown
    main([*words, "--json"])
    assert json.loads(capsys.readouterr().out) == [a, b]


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ({"schema": 2}, results(), r"a\.json: not an eval\.json of schema 1"),
        (
            results(a={"latent": measured(0.1)}) | {"samples": 9},
            results(),
            r"b\.json: samples is 12, but 9 in .*a\.json",
        ),
        (
            results(a={"latent": measured(0.1)}) | {"manifest": {"data": "1"}},
            results(a={"text": measured(0.1)}) | {"manifest": {"data": "2"}},
            r"b\.json: other questions were asked than in .*a\.json",
        ),
        (
            results(a={"latent": measured(0.1)}) | {"manifest": []},
            results(a={}),
            r"a\.json or .*b\.json: not in the form",
        ),
        (results(a={"latent": {}}), results(a={"text": measured(0.1)}), r"a\.json or .*: 'tuned' is missing in it"),
        (
            results(a={"latent": measured(0.1) | {"em": None}}),
            results(a={"text": measured(0.1)}),
            r"a\.json or .*b\.json: not in the form",
        ),
        (results(a={"latent": measured(0.1)}), results(b={}), r"b\.json: has none of the receivers of .*\(a\)"),
        (results(a={}), results(a={}), r"a\.json: receiver 'a' was not measured in mode 'latent'"),
        (results(a={"latent": measured(0.1)}), results(a={}), r"b\.json: receiver 'a' was not measured in mode 'text'"),
        (
            results(a={"latent": measured(0.1, tuned=True)}),
            results(a={"text": measured(0.1)}),
            r"b\.json: receiver 'a' was not measured in mode 'text_tuned'",
        ),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(tmp_path: Path, ours: Any, theirs: Any, message: str) -> None:
    words = ["--latent", write(tmp_path / "a.json", ours), "--text", write(tmp_path / "b.json", theirs)]
    with pytest.raises(LatentWireError, match=message) as caught:
        main(words)
    assert "\n" not in str(caught.value)


def test_the_script_runs_from_anywhere(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", results(a={"latent": measured(0.5), "text": measured(0.0)}))
    command = [sys.executable, str(ROOT / "scripts" / "compare_baselines.py"), "--latent", path, "--text", path]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "| a | text |" in done.stdout, done.stderr
    gone = subprocess.run([*command[:-1], "gone.json"], cwd=tmp_path, capture_output=True, text=True)
    assert gone.returncode == 2 and gone.stderr.startswith("error: gone.json: no such file")
