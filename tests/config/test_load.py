from __future__ import annotations

import json
import subprocess
import sys
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest

from latentwire.config import Config, config_from_dict, load_config
from latentwire.config.ablation import load_ablation
from latentwire.config.flags import options
from latentwire.config.load import changed_in
from latentwire.config.reference import markdown
from latentwire.core.errors import ConfigError
from tests import ROOT


def write(path: Path, values: object) -> Path:
    path.write_text(json.dumps(values))
    return path


def test_a_flag_wins_over_an_override_and_that_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "c.json", {"data": {"samples": 1, "seed": 5}, "lora": {"r": 2}})
    config = load_config(path, ["data.samples=2", "lora.r=3"], {"data.samples": 4})
    assert (config.data.samples, config.data.seed, config.lora.r) == (4, 5, 3)


def test_receivers_are_not_changed_in_vain_beside_a_shorthand(tmp_path: Path) -> None:
    path = write(tmp_path / "c.json", {"model": {"llama_id": "x"}})
    with pytest.raises(
        ConfigError, match=r"c\.json: model\.receivers: does nothing beside model\.llama_id, which is set"
    ):
        load_config(path, ["model.receivers.llama=y"])
    changed = ["model.receivers.llama=y", "model.llama_id=null"]
    assert load_config(path, changed).model.chosen == {"llama": "y"}
    assert load_config(None, ["model.receivers.a=y"], {"model.llama_id": "z"}).model.chosen == {"llama": "z"}


def test_a_file_extends_another_and_replaces_its_receivers(tmp_path: Path) -> None:
    write(tmp_path / "base.json", {"data": {"samples": 1, "seed": 5}, "model": {"receivers": {"a": "x"}}})
    path = write(
        tmp_path / "c.json", {"extends": "base.json", "data": {"samples": 2}, "model": {"receivers": {"b": "y"}}}
    )
    config = load_config(path)
    assert (config.data.samples, config.data.seed, config.model.receivers) == (2, 5, {"b": "y"})


@pytest.mark.parametrize(
    ("values", "overrides", "message"),
    [
        ({"encoder": {"windw": 4}}, [], r"c\.json: encoder\.windw: unknown key \(did you mean encoder\.window\?\)"),
        ({"data.samples": 5}, [], r"c\.json: data\.samples: a key with dots; in a file each section is an object"),
        ({"encoder": {"window": "four"}}, [], r"c\.json: encoder\.window: .*got 'four'"),
        ({"encoder": {"window": 0}}, [], r"encoder\.window: .*greater than 0"),
        ({"data": 3}, [], r"c\.json: data: "),
        ({}, ["data.samples"], r"--override data\.samples: expected key=value"),
        ({}, ["data.samples.deep=3"], r"data\.samples"),
        ({"extends": "gone.json"}, [], r"gone\.json: no such file"),
        ({"extends": "c.json"}, [], r"c\.json: extends itself"),
        ([], [], r"c\.json: not a JSON object"),
        ({}, ["adapter.hidden=8"], r"adapter\.hidden: only the embedding reader has it"),
        ({"features": {"use_deep_prefix": False}}, ["deep_prefix.rank=8"], r"deep_prefix\.rank: does nothing, as"),
        (
            {},
            ["gist_head.weight=0.5"],
            r"gist_head\.weight: does nothing, as features\.use_gist_head is off; leave it at 0\.1",
        ),
        ({}, ["latent_refiner.layers=1"], r"latent_refiner\.layers: does nothing"),
        (
            {},
            ["curriculum.closed_form.salience_passages=20"],
            r"closed_form\.salience_passages: does nothing without encoder\.keep_by",
        ),
        (
            {},
            ['curriculum.closed_form.companion_for=["a"]'],
            r"closed_form\.companion_for: does nothing without encoder\.companion",
        ),
        ({"features": {"use_deep_prefix": False}}, ["adapter.fixed_rms=2"], r"adapter\.fixed_rms: "),
        (
            {},
            ['lora={"targets": "attn_firstN:12", "first_n": 3}'],
            r"attn_firstN:12 names another number of layers than first_n = 3",
        ),
        ({}, ['lora.targets=["all-linear", "q_proj"]'], "names all-linear and others"),
        ({}, ["lora.merge=true", "lora.dropout=0.1"], r"c\.json: lora\.merge: leaves no input of its own"),
        ({}, ["anchor.question=Why?"], r"c\.json: anchor\.question: \{question\} has to stand in it once$"),
        ({}, ["model.receivers={}"], r"c\.json: model\.receivers: at least one receiver is needed$"),
        ({}, ["queries.heads=3"], r"c\.json: queries\.width: 256 is not a multiple of heads = 3$"),
        ({}, ["queries.bank=80"], r"c\.json: queries\.bank: does nothing, as encoder\.type = 'backbone' has none"),
        ({"encoder": {"type": "stq"}}, ["byte.layers=3"], r"byte\.layers: does nothing, as encoder\.type is 'stq'"),
        ({"encoder": {"type": "stq"}}, ["encoder.layers=[4]"], r"encoder\.layers: .* leave it at \[0, 10, 20\]$"),
        (
            {},
            ["encoder.type=byte", "encoder.layers=[4]"],
            r"encoder\.layers: .*encoder\.type = 'byte' takes none; leave",
        ),
        ({"encoder": {"type": "simple-st", "layers": [4]}}, [], r"encoder\.layers: does nothing"),
        ({"encoder": {"type": "simple-st"}}, ["queries.heads=2"], r"queries\.heads: .* has no attention$"),
        ({"encoder": {"type": "simple-st"}}, ["queries.layers=2"], r"queries\.layers: .* has no attention$"),
        ({"encoder": {"type": "stq", "latent_len": 8}}, ["queries.bank=80"], r"queries\.bank: .*latent_len"),
        ({}, ["codec.width=64"], r"c\.json: codec\.width: does nothing without a codec in codec\.learned; leave it"),
        ({"codec": {"learned": ["fsq"]}}, ["codec.index_bits=6"], r"codec\.index_bits: does nothing without rvq in"),
        ({"codec": {"learned": ["fsq"]}}, ["codec.rank=6"], r"codec\.rank: does nothing without aq in codec\.learned"),
        ({"codec": {"learned": ["aq"]}}, ["codec.bits=6"], r"codec\.bits: does nothing without rvq or fsq in codec"),
        ({"codec": {"learned": ["aq"]}}, ["encoder.type=byte"], r"codec\.learned: aq is for latents to which each"),
        ({"codec": {"learned": ["aq"]}}, ["features.use_latent_refiner=true"], r"codec\.learned: aq is for latents"),
        ({"codec": {"learned": ["fsq"]}}, ["codec.epochs=6"], r"codec\.epochs: does nothing without rvq in"),
        ({}, ["lora.merge=true", "model.load_4bit=true"], r"lora\.merge: excludes model\.load_4bit"),
        ({}, ['lora.targets=["attn_firstN:12", "mlp"]'], "a group of the first layers stands alone"),
        ({}, ["lora.targets=attn", "lora.first_n=[3]"], r"lora\.first_n"),
        ({}, ["optimizer.lr=1e999"], r"optimizer\.lr: .*finite number, got inf"),
        ({}, ["optimizer.lr=NaN"], r"optimizer\.lr: .*finite number, got nan"),
        ({}, [f"system.seed={'9' * 5000}"], r"system\.seed: .*, got '9{199}\.\.\.$"),
        ({}, [f"data.samples={'[' * 100_000}"], r"data\.samples: .*, got '\[{199}\.\.\.$"),
        ({}, [f"system.seed={1 << 64}"], r"system\.seed: .*less than 4294967296"),
        ({}, [f"system.threads={1 << 64}"], r"system\.threads: .*less than or equal to 1024"),
    ],
)
def test_mistakes_are_named_in_one_line(tmp_path: Path, values: object, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(write(tmp_path / "c.json", values), overrides)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_json_and_one_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(ConfigError, match=r"c\.json: not valid JSON"):
        load_config(tmp_path / "c.json")
    (tmp_path / "c.json").write_text(f'{{"data": {{"samples": {"9" * 5000}}}}}')
    with pytest.raises(ConfigError, match=r"c\.json: not valid JSON: .*4300 digits"):
        load_config(tmp_path / "c.json")
    with pytest.raises(ConfigError, match=r"d\.json: no such file"):
        load_config(tmp_path / "d.json")


def test_layers_of_a_file_are_for_its_own_encoder() -> None:
    values = {"encoder": {"layers": [4, 18]}}
    assert config_from_dict(values, "file", {}).encoder.layers == [4, 18]
    assert config_from_dict(values, "file", {"encoder.type": "byte"}).encoder.layers == [0, 10, 20]


@pytest.mark.parametrize(
    ("section", "before", "now", "expected"),
    [
        ("encoder", {"layers": [4, 18], "d_z": 64}, {"type": "byte"}, {"layers": [0, 10, 20], "d_z": 64}),
        ("encoder", {"layers": [4, 18]}, {"window": 4}, {"layers": [4, 18]}),
        ("lora", {"first_n": 4, "r": 2}, {"targets": "mlp_firstN:2"}, {"first_n": 2, "r": 2}),
        ("lora", {"first_n": 4}, {"targets": "mlp"}, {"first_n": 4}),
        ("curriculum.slot_tuning", {"max_steps": 4}, {"epochs": 3}, {"max_steps": None}),
        ("curriculum.slot_tuning", {"max_steps": 4}, {"epochs": 3, "max_steps": 5}, {"max_steps": 5}),
    ],
)
def test_what_a_file_lifts_of_another_is_as_on_the_command_line(
    section: str, before: dict[str, Any], now: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    sections = section.split(".")
    one, other = (reduce(lambda inner, name: {name: inner}, reversed(sections), values) for values in (before, now))
    write(tmp_path / "a.json", one)
    found = [load_config(write(tmp_path / "b.json", {"extends": "a.json"} | other))]
    first, second = ({f"{section}.{key}": value for key, value in values.items()} for values in (before, now))
    found.append(load_config(tmp_path / "a.json", flags=second))
    for key, one, other in (("overrides", first, second), ("runs", {"v1.0": first}, {"v1.0": second})):
        write(tmp_path / "a.json", {key: one})
        study = write(tmp_path / "b.json", {"extends": "a.json", key: other})
        found.append(load_ablation(study).runs[0].config)
    for config in found:
        assert expected.items() <= reduce(getitem, sections, config.model_dump()).items()


def test_kept_layers_of_an_encoder_that_takes_none_are_none() -> None:
    old = {"encoder": {"type": "stq", "layers": [4, 18]}}
    with pytest.raises(ConfigError, match=r"encoder\.layers: does nothing"):
        config_from_dict(old, "new", {})
    kept, new = config_from_dict(old, "kept", {}, kept=True), config_from_dict({"encoder": {"type": "stq"}}, "new", {})
    assert kept == new and not changed_in(old, "kept", new)  # the run goes on, and another may start from it


def test_a_kept_configuration_may_hold_what_has_no_effect() -> None:
    values = {"codec": {"width": 64}, "queries": {"bank": 80}, "byte": {"layers": 3}}
    with pytest.raises(ConfigError, match="does nothing"):
        config_from_dict(values, "new", {})
    assert config_from_dict(values, "kept", {}, kept=True).codec.width == 64
    warm = {"curriculum": {"end_to_end": {"warmup_text_steps": 4}}, "features": {"use_lora": True}}
    with pytest.raises(ConfigError, match="only LoRA learns from the text"):
        config_from_dict(warm, "new", {"features.use_lora": False})
    assert not config_from_dict(warm, "kept", {"features.use_lora": False}, kept=True).features.use_lora
    with pytest.raises(ConfigError, match=r"old: adapter\.hidden: only the embedding reader has it"):
        config_from_dict({"adapter": {"hidden": 8}}, "old", {}, kept=True)
    assert changed_in(values, "kept", Config()) == ["byte.layers", "codec.width", "queries.bank"]


def test_receivers_by_shorthand_and_by_name() -> None:
    assert list(Config().model.chosen) == ["smollm2-135m", "gemma3-270m"]
    assert load_config(None, [], {"model.qwen_id": "Q"}).model.chosen == {"qwen": "Q"}
    with pytest.raises(ConfigError, match=r"model\.receivers: .*plain name"):
        load_config(None, ['model.receivers={"../x": "y"}'])
    with pytest.raises(ConfigError, match=r"model\.receivers: .*'question' is what a line of predictions\.jsonl has"):
        load_config(None, ['model.receivers={"question": "y"}'])


def test_a_receiver_s_name_in_a_key_may_have_dots() -> None:
    config = load_config(None, ['model.receivers={"a": "x"}', "model.receivers.q2.5=y", "deep_prefix.ranked.q2.5=2"])
    assert config.model.receivers == {"a": "x", "q2.5": "y"} and config.deep_prefix.ranked == {"q2.5": 2}


def test_every_key_has_one_flag_and_no_two_share_one() -> None:
    flags = [option.flag for option in options() if option.flag]
    assert len(flags) == len(set(flags))
    assert {"use_lora", "lora_r", "lora_alpha", "samples", "epochs", "batch_size", "latent_len", "d_z"} <= set(flags)


def test_the_reference_page_is_the_schema() -> None:
    assert (ROOT / "docs" / "config.md").read_text() == markdown()


def shipped(ablations: bool) -> list[Path]:
    return [p for p in sorted((ROOT / "configs").rglob("*.json")) if (p.parent.name == "ablation") is ablations]


@pytest.mark.parametrize("path", shipped(ablations=False), ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_shipped_configuration_is_valid(path: Path) -> None:
    load_config(path)


@pytest.mark.parametrize("path", shipped(ablations=True), ids=lambda p: p.name)
def test_every_shipped_ablation_is_valid(path: Path) -> None:
    assert load_ablation(path).runs


@pytest.mark.parametrize(
    ("stage", "limit"),
    [({}, 300), ({"lr_scale": 0.5}, 300), ({"epochs": 2}, None), ({"epochs": 2, "max_steps": 7}, 7)],
)
def test_a_stage_has_its_own_limit_unless_a_file_asks_for_epochs(
    stage: dict[str, float], limit: int | None, tmp_path: Path
) -> None:
    config = load_config(write(tmp_path / "c.json", {"curriculum": {"slot_tuning": stage}}))
    assert config.curriculum.slot_tuning.max_steps == limit
    assert load_config(None, ["curriculum.end_to_end.lr_scale=2"]).curriculum.end_to_end.max_steps == 1000
    assert (
        load_config(None, ["codec.epochs=5", 'codec.learned=["rvq"]']).codec.epochs == 5
    )  # no stage, and so without a limit


def test_a_flag_takes_a_name_or_a_mapping() -> None:
    from latentwire.train import main

    def placed(value: str) -> object:
        return main(["--dry-run", "--device_map", value])["config"]["system"]["device_map"]

    assert placed('{"model.layers.0": 0, "": "cpu"}') == {"model.layers.0": 0, "": "cpu"} and placed("auto") == "auto"
    with pytest.raises(ConfigError, match=r"system\.device_map"):
        placed('{"": ')


@pytest.mark.parametrize("words", [["--epochs", "3"], ["--override", "curriculum.end_to_end.epochs=3"]])
def test_epochs_that_are_asked_for_lift_the_limit_of_a_file(words: list[str], tmp_path: Path) -> None:
    from latentwire.train import main

    base = ["--config", str(ROOT / "configs" / "smoke" / "base.json"), "--dry-run"]
    assert main(base)["config"]["curriculum"]["end_to_end"]["max_steps"] == 8
    stages = main([*base, *words])["config"]["curriculum"]
    assert (stages["end_to_end"]["epochs"], stages["end_to_end"]["max_steps"]) == (3, None)
    assert stages["slot_tuning"]["max_steps"] == 3  # another stage's limit stays
    more = {"extends": base[1], "curriculum": {"end_to_end": {"epochs": 4}}}
    assert load_config(write(tmp_path / "more.json", more)).curriculum.end_to_end.max_steps is None
    both = main([*base, *words, "--end_to_end_max_steps", "5"])["config"]["curriculum"]["end_to_end"]
    assert (both["epochs"], both["max_steps"]) == (3, 5)


def test_help_and_dry_run_need_no_torch() -> None:
    code = (
        "import sys; from latentwire.train import main; "
        "main(['--config', 'configs/smoke/lora.json', '--dry-run']); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["features"]["use_lora"] is True


def test_one_lora_target_may_stand_alone(tmp_path: Path) -> None:
    from latentwire.train import main

    for text, expected in (
        ("q_proj", ["q_proj"]),
        ("q_proj,v_proj", ["q_proj", "v_proj"]),
        ("all-linear", "all-linear"),
        ("mlp", ["gate_proj", "up_proj", "down_proj"]),
    ):
        assert main(["--lora_targets", text, "--dry-run"])["config"]["lora"]["targets"] == expected
    several = str(ROOT / "configs" / "softprompt_multi.json")  # which names other layers
    for words in (
        ["--lora_targets", "attn_firstN:12"],
        ["--lora_targets", "attn", "--lora_firstN", "12"],
        ["--lora_targets", "attn_firstN:12", "--lora_firstN", "12"],
        ["--config", several, "--lora_targets", "attn_firstN:12"],
    ):
        lora = main([*words, "--dry-run"])["config"]["lora"]
        assert (lora["targets"], lora["first_n"]) == (["q_proj", "k_proj", "v_proj", "o_proj"], 12)
    assert main(["--data_path", "a.json", "--dry-run"])["config"]["data"]["data_path"] == "a.json"


@pytest.mark.parametrize("base", ["3", '"../x/loop.json"'])
def test_extends_that_is_no_file_name_or_goes_in_circles(tmp_path: Path, base: str) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "loop.json").write_text(f'{{"extends": {base}}}')
    with pytest.raises(ConfigError, match="extends"):
        load_config(tmp_path / "x" / "loop.json")
