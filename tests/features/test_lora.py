from __future__ import annotations

import pytest
import torch

from latentwire.config.sections.features import LoraConfig
from latentwire.core.errors import CheckpointError, ConfigError
from latentwire.features.lora import LoRA
from latentwire.features.lora.feature import base_model
from tests.tiny import FAMILIES, tiny_model

IDS = torch.tensor([[3, 7, 9, 4, 12, 5]])


def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(IDS).logits


def shake(lora: LoRA) -> None:
    with torch.no_grad():
        for p in lora.trainable_parameters():
            p.add_(torch.randn_like(p) * 0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_attach_changes_nothing_active_does_and_detach_restores(family: str) -> None:
    model = tiny_model(family)
    before, modules = logits(model), [type(m) for m in model.modules()]
    lora = LoRA(LoraConfig(r=2))
    with lora.attach(model):
        shake(lora)
        assert torch.equal(logits(model), before)
        with lora.active():
            assert not torch.allclose(logits(model), before)
        assert torch.equal(logits(model), before)
    assert torch.equal(logits(model), before)
    assert [type(m) for m in model.modules()] == modules


def test_detach_also_after_an_error() -> None:
    model = tiny_model("llama")
    before = [type(m) for m in model.modules()]
    with pytest.raises(RuntimeError), LoRA(LoraConfig()).attach(model):
        raise RuntimeError
    assert [type(m) for m in model.modules()] == before


def test_two_adapters_on_one_model_are_apart() -> None:
    model = tiny_model("qwen3")
    one, two = LoRA(LoraConfig(r=2), "one"), LoRA(LoraConfig(r=4), "two")
    with one.attach(model):
        shake(one)
        with one.active():
            with_one = logits(model)
        with two.attach(model):
            shake(two)
            with two.active():
                assert not torch.allclose(logits(model), with_one)
                with base_model(model):
                    without = logits(model)
            with one.active():
                assert torch.equal(logits(model), with_one)
        with one.active():
            assert torch.equal(logits(model), with_one)
    assert torch.equal(logits(model), without)


def test_gradients_reach_every_parameter_also_when_backward_comes_after_the_switch() -> None:
    model = tiny_model("gemma3")
    lora = LoRA(LoraConfig(r=2))
    with lora.attach(model):
        shake(lora)
        with lora.active():
            loss = logits(model).pow(2).mean()
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in lora.trainable_parameters())


def test_state_round_trip_and_misfits() -> None:
    first, second = LoRA(LoraConfig(r=2)), LoRA(LoraConfig(r=2))
    model, twin = tiny_model("llama"), tiny_model("llama")
    with first.attach(model), second.attach(twin):
        shake(first)
        second.load_state_dict(first.state_dict())
        with first.active(), second.active():
            assert torch.equal(logits(model), logits(twin))
        state = {k: v for k, v in list(first.state_dict().items())[1:]}
        with pytest.raises(CheckpointError, match="do not fit"):
            second.load_state_dict(state)
        state = {k: v[:1] if k.endswith("lora_A") else v[:, :1] for k, v in first.state_dict().items()}
        with pytest.raises(CheckpointError, match=r"lora_A has shape \(1, 48\), not \(2, 48\)"):
            second.load_state_dict(state)


def test_first_n_and_targets_limit_what_is_tuned() -> None:
    model = tiny_model("llama")
    lora = LoRA(LoraConfig(r=2, first_n=1, targets=["q_proj"]))
    with lora.attach(model):
        assert list(lora.state_dict()) == [
            "model.layers.0.self_attn.q_proj.lora_A",
            "model.layers.0.self_attn.q_proj.lora_B",
        ]


def test_unknown_target_is_a_config_error() -> None:
    with (
        pytest.raises(ConfigError, match=r"lora\.targets"),
        LoRA(LoraConfig(targets=["nope"])).attach(tiny_model("llama")),
    ):
        pass


def test_dropout_works_where_gradients_are_on_and_nowhere_else() -> None:
    model = tiny_model("llama")
    lora = LoRA(LoraConfig(r=2, dropout=0.5))
    with lora.attach(model):
        shake(lora)
        with lora.active():
            assert not torch.equal(logits(model), logits(model))
        with torch.no_grad(), lora.active():
            assert torch.equal(logits(model), logits(model))
        with lora.active(dropout=False):
            assert torch.equal(logits(model), logits(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_in_training_it_is_the_same_in_one_product_a_layer(family: str) -> None:
    model, found, products = tiny_model(family), [], []
    for merge in (False, True):
        lora, other = LoRA(LoraConfig(r=2, merge=merge)), LoRA(LoraConfig(r=3, merge=merge), "other")
        torch.manual_seed(0)
        with lora.attach(model), other.attach(model):
            shake(lora)
            shake(other)
            with torch.profiler.profile() as seen, lora.active():
                out = logits(model)
            products.append(sum(e.count for e in seen.key_averages() if e.key == "aten::linear"))
            out.pow(2).mean().backward()
            assert all(p.grad is None for p in other.trainable_parameters())
            with base_model(model):
                untouched = logits(model)
            with torch.no_grad(), lora.active():
                assert torch.allclose(logits(model), out, atol=1e-5)
            found.append([out.detach(), untouched.detach(), *(p.grad for p in lora.trainable_parameters())])
    for apart, merged in zip(*found, strict=True):
        assert torch.allclose(apart, merged, rtol=1e-3, atol=1e-5)
    layers = (products[0] - products[1]) / 2  # two products less in each
    assert layers == sum(isinstance(m, torch.nn.Linear) for m in model.get_decoder().layers.modules())


def test_a_layer_that_is_not_there_is_named() -> None:
    lora = LoRA(LoraConfig(targets=["q_proj", "v_projj"]))
    with (
        pytest.raises(ConfigError, match=r"lora\.targets: no layer of the model is called 'v_projj'"),
        lora.attach(tiny_model("llama")),
    ):
        pass


def test_merged_it_has_no_dropout() -> None:
    with pytest.raises(ValueError, match=r"merge: leaves no input of its own for dropout = 0\.1"):
        LoraConfig(merge=True, dropout=0.1)


@pytest.mark.parametrize("merge", [False, True])
def test_the_update_is_scaled_by_alpha_over_r(merge: bool) -> None:
    model, x = tiny_model("llama"), torch.randn(3, 48)
    lora = LoRA(LoraConfig(r=2, alpha=6, first_n=1, targets=["q_proj"], merge=merge))
    layer = model.model.layers[0].self_attn
    before = layer.q_proj(x)
    with lora.attach(model):
        shake(lora)
        a, b = lora.trainable_parameters()
        with lora.active():
            torch.testing.assert_close(layer.q_proj(x), before + 6 / 2 * x @ a.T @ b.T)


def test_it_is_trained_in_fp32_beside_a_model_in_bf16() -> None:
    model, lora = tiny_model("llama").bfloat16(), LoRA(LoraConfig(r=2))
    with lora.attach(model):
        assert {p.dtype for p in lora.trainable_parameters()} == {torch.float32}
