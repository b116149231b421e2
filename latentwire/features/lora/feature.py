"""One named LoRA adapter on one model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from weakref import WeakKeyDictionary

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from latentwire.backbone.anatomy import decoder_layers
from latentwire.config.sections.features import LoraConfig
from latentwire.core.errors import CheckpointError, ConfigError, one_line
from latentwire.core.names import LATENT


class LoRA:
    """LoRA under an adapter name; `active()` switches it on for a while, and every other adapter off."""

    def __init__(self, config: LoraConfig, adapter: str = LATENT):
        self.config = config
        self.adapter = adapter
        self.model: nn.Module | None = None

    @contextmanager
    def attach(self, model: nn.Module) -> Iterator[None]:
        """Inject the adapter (B = 0, so that outputs stay as they were), switched off."""
        targets = self.config.targets
        names = linear_names(model) if targets == "all-linear" else list(targets)
        there = [f".{name}" for name, _ in model.named_modules()]
        for name in names:  # PEFT minds only if none is there
            if not any(path.endswith(f".{name}") for path in there):
                raise ConfigError(f"lora.targets: no layer of the model is called {name!r}")
        peft_config = PeftLoraConfig(
            r=self.config.r,
            lora_alpha=self.config.alpha,
            lora_dropout=self.config.dropout,
            target_modules=names,
            layers_to_transform=None if self.config.first_n is None else list(range(self.config.first_n)),
        )
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several adapters are meant
                inject_adapter_in_model(peft_config, model, self.adapter)
        except ValueError as error:
            raise ConfigError(f"lora.targets: {one_line(error)}") from error
        self.model = model
        _remember_layers(model)
        for layer in self._layers():
            layer.cast_input_dtype_enabled = False  # autocast does it, without a copy of the input in fp32
            for part in (layer.lora_A[self.adapter], layer.lora_B[self.adapter]):
                part.float()
            if self.config.merge and "forward" not in vars(layer):
                layer.forward = partial(_merged, layer, layer.forward)
        _switch(model, None)
        try:
            yield
        finally:
            self._detach(model)

    def _detach(self, model: nn.Module) -> None:
        for name, layer in _lora_layers(model):
            if self.adapter in layer.lora_A:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message="Adapter .* was active which is now deleted")
                    layer.delete_adapter(self.adapter)
            if not layer.lora_A:
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, layer.get_base_layer())
        _remember_layers(model)
        self.model = None

    @contextmanager
    def active(self, dropout: bool = True) -> Iterator[None]:
        """Switch this adapter on; what was active before is active again afterwards.

        Its dropout works where gradients are on, unless it is asked not to.
        """
        model = self.model
        assert model is not None, "attach first"
        for layer in self._layers():  # the models themselves stay in eval mode
            layer.lora_dropout[self.adapter].train(dropout and torch.is_grad_enabled())
        with _switched(model, self.adapter):
            yield

    def _layers(self) -> Iterator[LoraLayer]:
        if self.model is not None:
            for _, layer in _lora_layers(self.model):
                if self.adapter in layer.lora_A:
                    yield layer

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        assert self.model is not None, "attach first"
        for name, layer in _lora_layers(self.model):
            if self.adapter in layer.lora_A:
                yield f"{name}.lora_A", layer.lora_A[self.adapter].weight
                yield f"{name}.lora_B", layer.lora_B[self.adapter].weight

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """Of each layer A (r, in) and B (out, r), fp32."""
        return (p for _, p in self._named())

    def state_dict(self) -> dict[str, Tensor]:
        """Each layer's lora_A (r, in) and lora_B (out, r), under the layer's name in the model."""
        return {name: p.detach() for name, p in self._named()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up what `state_dict` gave; CheckpointError where layers or shapes are others."""
        own = dict(self._named())
        if set(own) != set(state):
            odd = min(set(own) ^ set(state))
            raise CheckpointError(f"LoRA {self.adapter!r}: the tensors do not fit the model (first difference: {odd})")
        with torch.no_grad():
            for name, p in own.items():
                if p.shape != state[name].shape:
                    raise CheckpointError(
                        f"LoRA {self.adapter!r}: {name} has shape {tuple(state[name].shape)}, not {tuple(p.shape)}"
                    )
                p.copy_(state[name])


def _merged(layer: LoraLayer, apart: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What a LoRA layer makes of x (..., d_in), its update added to the weights first where gradients are on.

    In bf16 the sum is rounded like any other weight.
    """
    if layer.disable_adapters or not torch.is_grad_enabled():
        return apart(x)
    base, adapter = layer.get_base_layer(), layer.active_adapters[0]
    update = layer.lora_B[adapter].weight @ layer.lora_A[adapter].weight * layer.scaling[adapter]
    return nn.functional.linear(x, base.weight + update.to(base.weight.dtype), base.bias)


def base_model(model: nn.Module) -> AbstractContextManager[None]:
    """Switch every adapter of a model off for a while: the untouched receiver."""
    return _switched(model, None)


def keep_active(model: nn.Module) -> Callable[[], AbstractContextManager[None]]:
    """What brings the adapter that is on now back later, for a while."""
    return partial(_switched, model, _active(model))


def linear_names(model: nn.Module) -> list[str]:
    """Names of all linear layers inside the decoder blocks (q_proj, ..., down_proj), also under LoRA."""
    blocks = decoder_layers(model)  # type: ignore[arg-type]
    found = {
        name.rpartition(".")[2]
        for name, module in blocks.named_modules()
        if isinstance(module, nn.Linear | LoraLayer) and "lora_" not in name and "base_layer" not in name
    }
    return sorted(found)


_LAYERS: WeakKeyDictionary[nn.Module, list[tuple[str, LoraLayer]]] = WeakKeyDictionary()
"""The LoRA layers of each model, by name: adapters are switched several times a step."""


def _remember_layers(model: nn.Module) -> None:
    """To be called when adapters have come or gone. PEFT leaves only the newest one trainable; here all of them are."""
    _LAYERS[model] = [(name, m) for name, m in model.named_modules() if isinstance(m, LoraLayer)]
    for _, layer in _LAYERS[model]:
        layer.lora_A.requires_grad_(True)
        layer.lora_B.requires_grad_(True)


def _lora_layers(model: nn.Module) -> list[tuple[str, LoraLayer]]:
    return _LAYERS.get(model, [])


def _active(model: nn.Module) -> str | None:
    for _, layer in _lora_layers(model):
        return None if layer.disable_adapters else layer.active_adapters[0]
    return None


@contextmanager
def _switched(model: nn.Module, adapter: str | None) -> Iterator[None]:
    before = _active(model)
    if before == adapter:
        yield
        return
    _switch(model, adapter)
    try:
        yield
    finally:
        _switch(model, before)


def _switch(model: nn.Module, adapter: str | None) -> None:
    """Not by PEFT's `enable_adapters` and `set_adapter`: they also take gradients off what they switch off, while a
    backward pass may still be due, and going through all tensors for it takes a tenth of a second."""
    for _, layer in _lora_layers(model):
        layer._disable_adapters = adapter is None
        if adapter is not None:
            layer._active_adapter = [adapter]
