"""system.*: what saves memory changes no result, and what a machine cannot do is said before anything is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from latentwire.backbone.anatomy import decoder_layers, describe
from latentwire.backbone.devices import check_devices
from latentwire.backbone.lm import LanguageModel
from latentwire.backbone.load import load_model
from latentwire.backbone.turns import Turns
from latentwire.config import Config, load_config
from latentwire.core.errors import ConfigError, ModelError
from latentwire.core.names import LATENT, TEXT
from latentwire.encoder.backbone import BackboneEncoder
from latentwire.model.system import LatentWire
from latentwire.train import main as train_main
from latentwire.training.module import TrainModule
from latentwire.training.stages.end_to_end import EndToEnd
from latentwire.training.stages.slot_tuning import SlotTuning
from tests import ROOT
from tests.systems import small_config, small_passages, small_system
from tests.tiny import FAMILIES, save_tiny, tiny_model, tiny_tokenizer

# ---- gradient checkpointing ---------------------------------------------------------------------------------------


def system_of(family: str, slots: bool, grad_ckpt: bool) -> LatentWire:
    config = small_config(
        model={"dtype": "float32", "receivers": {"a": "x"}},
        features={"use_lora": True, "use_deep_prefix": slots, "use_latent_adapters": True, "use_prefix": True},
        latent_adapters={"heads": 2, "width": 8},
        prefix={"len": 2},
        lora={"r": 4, "alpha": 8, "dropout": 0.2},
        system={"grad_ckpt": grad_ckpt},
    )
    return small_system(config, (family,))


def module_of(system: LatentWire, kind: str) -> TrainModule:
    prepared = [system.prepare(p) for p in small_passages(4)]
    if kind != "end_to_end":
        return SlotTuning(system.receivers["a"], [texts["a"] for _, texts in prepared], system.config, kind)
    torch.manual_seed(0)
    system.receivers["a"].add_adapter(LATENT)
    return EndToEnd(system, prepared, system.config)


def gradients(module: TrainModule, blocks: nn.ModuleList) -> tuple[list[Tensor], int]:
    """Gradients of one step, and how often a block's MLP was computed for them."""
    parameters = [p for g in module.parameter_groups() for p in g.parameters]
    torch.manual_seed(1)
    with torch.no_grad():
        for p in parameters:
            p.add_(torch.randn_like(p) * 0.05)  # LoRA's B and the MLPs' last layers start at zero
    calls: list[int] = []
    hook = blocks[1].mlp.register_forward_pre_hook(lambda *args: calls.append(1))  # type: ignore[union-attr]
    torch.manual_seed(2)  # of LoRA's dropout
    module.forward(module.batch(0)).loss.backward()
    hook.remove()
    return [p.grad for p in parameters], len(calls)  # type: ignore[misc]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("kind", "slots"), [("end_to_end", True), ("end_to_end", False), (LATENT, True), (TEXT, True)])
def test_checkpointed_gradients_are_the_same(family: str, kind: str, slots: bool) -> None:
    found = {}
    for on in (False, True):
        system = system_of(family, slots, on)
        blocks = decoder_layers(system.receivers["a"].lm.model)
        found[on] = gradients(module_of(system, kind), blocks)
        system.receivers["a"].close()
        assert not any("forward" in block.__dict__ for block in blocks)
    plain, computed = found[False]
    assert found[True][1] > computed  # again in the backward pass
    assert any(g.abs().sum() > 0 for g in plain)
    torch.testing.assert_close(found[True][0], plain, atol=1e-6, rtol=1e-5)


def test_checkpointing_keeps_less_for_the_backward_pass() -> None:
    kept = {}
    for on in (False, True):
        module = module_of(system_of("llama", True, on), "end_to_end")
        sizes: list[int] = []

        def pack(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            module.forward(module.batch(0))
        kept[on] = sum(sizes)
    assert kept[True] < 0.6 * kept[False]


def test_answers_are_the_same_with_checkpointing_on() -> None:
    answers = []
    for on in (False, True):
        system = system_of("qwen3", True, on)
        message = system.sender.encode(small_passages(1)[0].context)
        answers.append(system.receivers["a"].answer_batch([message], [["Where?", "Who?"]], 6))
    assert answers[0] == answers[1]


# ---- models that take turns ---------------------------------------------------------------------------------------


def test_only_one_model_holds_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """On two stand-in devices: the holder's weights are on one of them, everybody else's on the other."""
    from latentwire.backbone import turns as module

    places: dict[int, str] = {}
    monkeypatch.setattr(module, "_move", lambda model, device: places.__setitem__(id(model), device.type))
    shared = Turns()
    lms = [LanguageModel(f, tiny_model(f), tiny_tokenizer(f), shared) for f in ("llama", "gemma3", "qwen2")]
    for lm in lms:
        lm.device = torch.device("meta")  # stands for the accelerator; nothing is moved
    for lm in (lms[0], lms[1], lms[1], lms[2], lms[0]):
        lm.take_turn()
        here = [id(x.model) for x in lms if places.get(id(x.model)) == "meta"]
        assert here == [id(lm.model)]
    shared.release()
    assert set(places.values()) == {"cpu"}


class Movable(nn.Parameter):
    """Remembers that it was given other data."""

    moved = False

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        self.moved = True


def test_frozen_weights_move_and_trained_ones_stay() -> None:
    model = nn.Module()
    model.frozen = Movable(torch.zeros(2), requires_grad=False)
    model.trained = Movable(torch.zeros(2))
    Turns().take(model, torch.device("cpu"))
    assert model.frozen.moved and not model.trained.moved


def test_every_use_of_a_model_takes_its_turn() -> None:
    """Whatever computes with a receiver's weights first brings them in: each entry point, one by one."""
    config = small_config(system={"sequential_models": True})
    system = small_system(config, ("llama",))
    receiver = system.receivers["a"]
    lm, turns = receiver.lm, Turns()
    lm.turns = turns
    ids = torch.tensor([[5, 6, 7]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    uses: dict[str, Any] = {
        "prefill": lambda: lm.prefill(mask, ids=ids),
        "embed": lambda: lm.embed(ids),
        "logits": lambda: lm.logits(torch.zeros(1, 1, lm.anatomy.hidden_size)),
        "keys_values": lambda: lm.keys_values(ids, mask),
        "final_states": lambda: lm.final_states(ids, mask),
        "add_adapter": lambda: receiver.add_adapter(TEXT),
        "generate": lambda: lm.generate(lm.prefill(mask[:, :0]), ids, mask, 1, [0]),
    }
    for name, use in uses.items():
        turns.release()
        use()
        assert turns.holder is lm.model, name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_turns_change_no_result_on_cuda(tmp_path: Path) -> None:
    losses, loaded = {}, {}
    for on in (False, True):
        system = LatentWire.build(file_config(tmp_path, device="cuda", sequential_models=on))
        module = EndToEnd(system, [system.prepare(p) for p in small_passages(4)], system.config)
        losses[on] = [module.forward(module.batch(i)).loss.item() for i in range(4)]
        loaded[on] = [r.lm.model.get_input_embeddings().weight.device.type for r in system.receivers.values()]
    assert losses[True] == losses[False]
    assert loaded == {False: ["cuda", "cuda"], True: ["cpu", "cuda"]}


def file_config(folder: Path, **system: Any) -> Config:
    """Two receivers in local folders, and a sender."""
    for family in ("llama", "gemma3"):
        if not (folder / family).exists():
            save_tiny(family, folder / family)
    receivers = {"a": str(folder / "llama"), "b": str(folder / "gemma3")}
    return small_config(
        model={"dtype": "float32", "receivers": receivers},
        encoder={"model": str(folder / "llama")},
        system={"device": "cpu"} | system,
    )


def test_turns_change_no_result(tmp_path: Path) -> None:
    losses = {}
    for on in (False, True):
        torch.manual_seed(0)
        system = LatentWire.build(file_config(tmp_path, sequential_models=on))
        assert (system.receivers["a"].lm.turns is not None) is on
        assert system.receivers["a"].lm.turns is system.receivers["b"].lm.turns
        module = EndToEnd(system, [system.prepare(p) for p in small_passages(4)], system.config)
        losses[on] = [module.forward(module.batch(i)).loss.item() for i in range(4)]
    assert losses[True] == losses[False]
    assert system.receivers["a"].lm.turns.holder is system.receivers["b"].lm.model  # type: ignore[union-attr]


# ---- where models are placed --------------------------------------------------------------------------------------


def test_a_device_map_reaches_from_pretrained_for_receivers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[str, object]] = []
    load = AutoModelForCausalLM.from_pretrained

    def spy(folder: Path, **kwargs: Any) -> Any:
        given.append((folder.name, kwargs.get("device_map")))
        return load(folder, **kwargs)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", spy)
    answers = []
    for place in (None, {"": "cpu"}, "auto"):
        torch.manual_seed(0)
        system = LatentWire.build(file_config(tmp_path, device_map=place))
        assert given == [("llama", None), ("llama", place), ("gemma3", place)]
        given.clear()
        message = system.sender.encode(small_passages(1)[0].context)
        answers.append([r.answer(message, "Where?", 4) for r in system.receivers.values()])
    assert answers[0] == answers[1] == answers[2]


def test_slots_are_put_where_their_layer_computes() -> None:
    receiver = small_system(small_config(), ("llama",)).receivers["a"]
    hook = AlignDevicesHook(execution_device=torch.device("meta"))  # as a model spread over devices has them
    add_hook_to_module(decoder_layers(receiver.lm.model)[1], hook)
    context = receiver.read_latents(torch.randn(2, 3, 16), torch.tensor([3, 2]))
    assert [layer.keys.device.type for layer in context.cache.layers] == ["cpu", "meta", "cpu"]
    assert [layer.values.device.type for layer in context.repeat([2, 1]).cache.layers] == ["cpu", "meta", "cpu"]


def test_the_first_layer_s_values_are_made_where_it_computes() -> None:
    lm, seen = small_system(small_config(), ("llama",)).receivers["a"].lm, []
    block: Any = decoder_layers(lm.model)[0]
    add_hook_to_module(block, AlignDevicesHook(execution_device=torch.device("meta")))  # the embedding is elsewhere

    def norm(module: nn.Module, args: Any) -> Any:
        seen.append(args[0].device.type)
        return torch.zeros(args[0].shape)

    block.input_layernorm.register_forward_pre_hook(norm)
    assert lm.first_values(torch.tensor([5, 6])).shape == (2, 2, 16) and seen == ["meta"]


def test_a_device_map_that_cannot_be_met_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"system\.device_map: 'disk' is no device"):
        LatentWire.build(file_config(tmp_path, device_map={"": "disk"}))
    there = ("model.embed_tokens", "model.layers.0", "model.layers.2", "model.norm", "model.rotary_emb", "lm_head")
    away = dict.fromkeys(there, "cpu") | {"model.layers.1": "disk"}  # as "auto" does where a GPU is too small
    for places, refusal in (
        (away, r"leaves weights outside of the devices.*: model\.layers\.1\.\S+ and \d+ more"),
        ({"": "cpu", "model.layers.1": "disk"}, r"cannot be loaded from .* with system\.device_map = .*disk"),
    ):
        with pytest.raises(ModelError, match=refusal) as caught:
            load_model(str(tmp_path / "llama"), dtype=torch.float32, attn_implementation="eager", device_map=places)
        assert "\n" not in str(caught.value)


def test_rotary_embeddings_and_first_values_are_where_the_model_is_asked(tmp_path: Path) -> None:
    receiver = small_system(small_config(), ("llama",)).receivers["a"]
    moved: list[torch.device] = []

    class Elsewhere(torch.Tensor):
        def to(self, *args: Any, **kwargs: Any) -> Any:
            moved.append(args[0])
            return super().to(*args, **kwargs)

    decoder = receiver.lm.model.get_decoder()
    own = decoder.rotary_emb

    class Rotary(torch.nn.Module):
        rope_type = "default"

        def forward(self, *given: Any) -> Any:
            return tuple(part.as_subclass(Elsewhere) for part in own(*given))

    decoder.rotary_emb = Rotary()
    receiver.lm.rope(torch.arange(3)[None])
    assert moved == [torch.device("cpu")] * 2
    value = receiver.lm.model.get_decoder().layers[0].self_attn.v_proj
    value.register_forward_hook(lambda module, given, out: out.as_subclass(Elsewhere))
    receiver.lm.first_values(torch.tensor([1, 2]))
    assert len(moved) == 3


def test_what_is_not_supported_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = file_config(tmp_path)
    described = json.loads((tmp_path / "gemma3" / "config.json").read_text())
    (tmp_path / "gemma3" / "config.json").write_text(json.dumps(described | {"model_type": "gpt2"}))
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *args, **kwargs: pytest.fail("loaded"))
    with pytest.raises(ModelError, match="architecture 'gpt2' is not supported"):
        LatentWire.build(config)


def test_rotary_embeddings_that_hang_on_the_length_of_a_call_are_refused() -> None:
    scaled = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 6, "long_factor": [2.0] * 6}
    config = LlamaConfig(hidden_size=48, num_attention_heads=4, num_hidden_layers=2)
    describe(config, "x")
    for ropes in (scaled, {"full_attention": scaled}):
        config.rope_parameters = ropes
        with pytest.raises(ModelError, match="'longrope' are not supported"):
            describe(config, "x")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["system.require_cuda=true"], "system.require_cuda: no CUDA device was found"),
        (["system.require_cuda=true", "system.device=cpu"], "system.require_cuda: system.device is 'cpu'"),
        (['system.device_map={"": "cuda:0"}'], "system.device_map: 'cuda:0' cannot be used: "),
        (['system.device_map={"": 0}'], "system.device_map: 0 cannot be used: "),
        (["model.load_4bit=true"], "model.load_4bit: 4-bit loading needs a CUDA device"),
    ],
)
def test_a_missing_device_is_said_before_anything_is_loaded(overrides: list[str], message: str) -> None:
    with pytest.raises((ConfigError, ModelError)) as caught:
        check_devices(load_config(None, overrides))
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
    words = [word for o in overrides for word in ("--override", o)]
    # Not even the data is looked for.
    with pytest.raises((ConfigError, ModelError), match=message.split(":")[0]):
        train_main([*words, "--dataset", "squad", "--data_path", "gone.json", "--tag", "x"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["system.sequential_models=true", "model.load_4bit=true"],
            "system.sequential_models: excludes model.load_4bit",
        ),
        (["system.sequential_models=true", "system.device_map=auto"], "excludes system.device_map"),
        (["system.device_map=everywhere"], "system.device_map"),
    ],
)
def test_options_that_exclude_each_other_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_on_a_mac_the_cpu_does_what_mps_cannot() -> None:
    code = (
        "import os, sys; sys.platform = {!r}; import latentwire; print(os.environ.get('PYTORCH_ENABLE_MPS_FALLBACK'))"
    )
    for platform, expected in (("darwin", "1"), ("linux", "None")):
        done = subprocess.run([sys.executable, "-c", code.format(platform)], cwd=ROOT, capture_output=True, text=True)
        assert done.stdout.strip() == expected


@pytest.mark.parametrize(("dtype", "attention"), [("float32", "sdpa"), ("bfloat16", "eager")])
def test_every_model_computes_as_it_is_asked_to(dtype: str, attention: str, tmp_path: Path) -> None:
    config = file_config(tmp_path)
    how = config.model.model_copy(update={"dtype": dtype, "attn_implementation": attention})
    system = LatentWire.build(config.model_copy(update={"model": how}))
    encoder = system.sender.encoder
    assert isinstance(encoder, BackboneEncoder)
    for lm in (encoder.lm, *(receiver.lm for receiver in system.receivers.values())):
        assert (lm.dtype, lm.model.config._attn_implementation) == (getattr(torch, dtype), attention)
