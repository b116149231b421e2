"""Every feature of a receiver on every family: gradients, detachment, save and load, caches, padding; and pairs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from latentwire.backbone.context import Context
from latentwire.config import Config
from latentwire.config.load import config_from_dict
from latentwire.core.errors import CheckpointError, ConfigError
from latentwire.core.names import LATENT
from latentwire.features import FEATURES
from latentwire.model.receiver import Receiver
from latentwire.model.system import LatentWire
from latentwire.training.stages.end_to_end import EndToEnd
from tests.systems import small_config, small_passages, small_system
from tests.tiny import FAMILIES

SMALL = {
    "prefix": {"len": 3, "hidden": 8},
    "latent_adapters": {"heads": 2, "width": 8},
    "coprocessor": {"len": 3, "heads": 2, "width": 8},
    "gist_head": {"heads": 2, "width": 8, "target_len": 12, "mask_ratio": 0.5},
    "lora": {"r": 2, "alpha": 4},
    "sender_lora": {},
    "latent_refiner": {"width": 8, "heads": 2, "ff": 8},
}
TRAIN_ONLY = {name for name, kind in FEATURES.items() if kind.train_only}
WITHOUT_SLOTS = {"coprocessor"}
"""Features that exclude the slot reader."""
OPTIONS = {"prefix": [{}, {"projection": True}], "gist_head": [{}, {"mask_ratio": 1.0}]}
"""Forms of a feature that are built differently."""
CASES = [(name, options) for name in [*FEATURES, "lora"] for options in OPTIONS.get(name, [{}])]
ids = [name + "".join(f"-{key}" for key in options) for name, options in CASES]


def config_with(*names: str, lora: bool = False, slots: bool | None = None, **options: object) -> Config:
    slots = not WITHOUT_SLOTS & set(names) if slots is None else slots
    sections = {n: SMALL[n] | options for n in names if n != "sender_lora"}
    on = {"use_lora": lora, "use_deep_prefix": slots} | {f"use_{n}": True for n in names}
    return small_config(model={"dtype": "float32", "receivers": {"a": "x"}}, features=on, **sections)


def system_with(family: str, *names: str, **kwargs: object) -> LatentWire:
    config = config_with(*names, **kwargs)  # type: ignore[arg-type]
    system = small_system(config, (family,))
    if config.features.use_lora:
        system.receivers["a"].add_adapter(LATENT)
    return system


def latents(system: LatentWire, count: int = 2, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Latents of different numbers of windows, right-padded."""
    torch.manual_seed(seed)
    counts = torch.tensor([5, 3, 4][:count])
    return torch.randn(count, 5, system.config.encoder.d_z), counts


def module_of(system: LatentWire) -> EndToEnd:
    return EndToEnd(system, [system.prepare(p) for p in small_passages(4)], system.config)


def shake(receiver: Receiver) -> None:
    """Move every feature parameter off its start, layers that begin at zero included."""
    torch.manual_seed(5)
    with torch.no_grad():
        for feature in (*receiver.features.values(), *receiver.adapters.values()):
            for p in feature.trainable_parameters():
                p.add_(torch.randn_like(p) * 0.2)


def nll(receiver: Receiver, z: Tensor, counts: Tensor) -> Tensor:
    tail = receiver.prompt.tail("Where?")
    with receiver.using(LATENT):
        return receiver.score(receiver.read_latents(z, counts), [(tail, [5, 6, 7])] * len(z)).nll


def dead_parameters(system: LatentWire, steps: int = 2) -> Iterator[str]:
    """Names of trained tensors that got no gradient within some steps of end-to-end training."""
    module = module_of(system)
    groups = module.parameter_groups()
    dead = {f"{g.name}.{i}" for g in groups for i, p in enumerate(g.parameters) if p.numel()}
    optimizer = torch.optim.AdamW([p for g in groups for p in g.parameters], lr=1e-2)
    for step in range(steps):
        module.forward(module.batch(step)).loss.backward()
        for group in groups:
            for i, p in enumerate(group.parameters):
                if p.grad is not None and p.grad.abs().sum() > 0:
                    dead.discard(f"{group.name}.{i}")
        optimizer.step()
        optimizer.zero_grad()
    return iter(sorted(dead))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("name", "options"), CASES, ids=ids)
def test_every_tensor_is_trained(name: str, options: dict, family: str) -> None:
    assert not list(dead_parameters(system_with(family, name, lora=True, **options)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("name", "options"), CASES, ids=ids)
def test_detached_it_leaves_no_trace(name: str, options: dict, family: str) -> None:
    plain = system_with(family, slots=name not in WITHOUT_SLOTS).receivers["a"]
    system = system_with(family, name, **options)
    receiver = system.receivers["a"]
    receiver.reader.load_state_dict(plain.reader.state_dict())
    shake(receiver)
    z, counts = latents(system)
    ids = torch.tensor([[3, 7, 9, 4, 12, 5]])
    # A text that is read without latents does not see the feature, attached or not.
    assert torch.equal(receiver.lm.model(ids).logits, plain.lm.model(ids).logits)
    if name not in TRAIN_ONLY:
        assert not torch.allclose(nll(receiver, z, counts), nll(plain, z, counts))
    receiver.close()
    assert torch.equal(nll(receiver, z, counts), nll(plain, z, counts))
    assert torch.equal(receiver.lm.model(ids).logits, plain.lm.model(ids).logits)
    assert [type(m) for m in receiver.lm.model.modules()] == [type(m) for m in plain.lm.model.modules()]
    assert not any(m._forward_hooks for m in receiver.lm.model.modules())


@pytest.mark.parametrize(("name", "options"), CASES, ids=ids)
def test_a_zero_layer_starts_it_off_gently(name: str, options: dict) -> None:
    """A feature that adds slots starts from those of the free prefix; the others change nothing at first."""
    system = system_with("llama", name, **options)
    adds_slots = name in ("prefix", "coprocessor")
    like = system_with("llama", *(["prefix"] if adds_slots else []), slots=name not in WITHOUT_SLOTS).receivers["a"]
    like.reader.load_state_dict(system.receivers["a"].reader.state_dict())
    z, counts = latents(system)
    assert torch.equal(nll(system.receivers["a"], z, counts), nll(like, z, counts))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("name", "options"), CASES, ids=ids)
def test_saved_and_loaded_it_reads_the_same(name: str, options: dict, family: str) -> None:
    system, other = (system_with(family, name, **options) for _ in range(2))
    receiver = system.receivers["a"]
    shake(receiver)
    state = system.state_dict()
    stem = f"{name}."
    assert any(key.startswith(stem) for key in state["receivers/a"]) != (name in TRAIN_ONLY)
    assert any(key.startswith(stem) for key in system.state_dict(training=True)["receivers/a"])
    other.load_state_dict(state)
    z, counts = latents(system)
    assert torch.equal(nll(receiver, z, counts), nll(other.receivers["a"], z, counts))
    if name not in (*TRAIN_ONLY, "lora"):  # a receiver may stay frozen beside others that have LoRA
        lacking = {k: v for k, v in state["receivers/a"].items() if not k.startswith(stem)}
        with pytest.raises(CheckpointError, match=name):
            other.load_state_dict(state | {"receivers/a": lacking})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("name", "options"), CASES, ids=ids)
@torch.no_grad()
def test_padding_and_company_in_a_batch_do_not_matter(
    name: str, options: dict, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentwire.model.generation.TOGETHER", 2)
    system = system_with(family, name, **options)
    receiver = system.receivers["a"]
    shake(receiver)
    z, counts = latents(system, 3)
    together = nll(receiver, z, counts)
    alone = [nll(receiver, z[i : i + 1, : counts[i]], counts[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)
    tails = [receiver.prompt.tail("Where?"), receiver.prompt.tail("Who sold lamps there?"), receiver.prompt.tail("?")]
    with receiver.using(LATENT):
        for several in (1, 3):
            generated = receiver.generate(receiver.read_latents(z, counts), tails, 5, candidates=several)
            for i, tail in enumerate(tails):
                own = receiver.read_latents(z[i : i + 1, : counts[i]], counts[i : i + 1])
                assert receiver.generate(own, [tail], 5, candidates=several)[0] == generated[i]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("name", "options"), CASES, ids=ids)
@torch.no_grad()
def test_generation_with_a_cache_equals_recomputation(name: str, options: dict, family: str) -> None:
    system = system_with(family, name, **options)
    receiver = system.receivers["a"]
    shake(receiver)
    z, counts = latents(system, 1)
    tail = receiver.prompt.tail("Where is it?")
    ids, mask = torch.tensor([tail]), torch.ones(1, len(tail), dtype=torch.bool)
    context = receiver.read_latents(z, counts)
    with receiver.using(LATENT), receiver.reading(context):
        new = receiver.lm.generate(context, ids, mask, 6, stop=[])
    both = torch.cat([ids, new], 1)
    context = receiver.read_latents(z, counts)
    with receiver.using(LATENT), receiver.reading(context):
        hidden = receiver.lm.continue_from(context, both, torch.ones_like(both, dtype=torch.bool))
    assert receiver.lm.logits(hidden)[0, len(tail) - 1 : -1].argmax(-1).tolist() == new[0].tolist()


@pytest.mark.parametrize(("name", "options"), CASES, ids=ids)
def test_positions_are_counted(name: str, options: dict) -> None:
    system = system_with("llama", name, **options)
    receiver = system.receivers["a"]
    z, counts = latents(system)
    taken = receiver.read_latents(z, counts).mask.sum(1)
    assert taken.tolist() == (len(receiver.prompt.head) + counts + receiver.extra_positions).tolist()


PAIRS = [
    (one, other, slots)
    for one, other in itertools.combinations([*FEATURES, "lora", "sender_lora", "latent_refiner"], 2)
    for slots in (True, False)
    if not (slots and WITHOUT_SLOTS & {one, other})
]


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
@pytest.mark.parametrize(("one", "other", "slots"), PAIRS)
def test_compatible_pairs_train_together(one: str, other: str, slots: bool, family: str) -> None:
    assert not list(dead_parameters(system_with(family, one, other, slots=slots)))


def test_layers_of_a_coprocessor_begin_with_weights_of_their_own() -> None:
    (receiver,) = system_with("llama", "coprocessor", slots=False, layers=2).receivers.values()
    first, second = (block.state_dict() for block in receiver.features["coprocessor"].blocks.layers)
    assert next(iter(receiver.features["coprocessor"].blocks.state_dict())).startswith("layers.0.")  # as files have it
    random = [key for key, tensor in first.items() if tensor.ndim == 2]
    assert len(random) > 3 and not any(torch.equal(first[key], second[key]) for key in random)


def test_an_incompatible_pair_is_refused_before_anything_is_loaded() -> None:
    values = {"features": {"use_coprocessor": True}, "model": {"receivers": {"a": "/no/such/model"}}}
    with pytest.raises(ConfigError, match=r"features\.use_coprocessor: excludes features\.use_deep_prefix"):
        config_from_dict(values, "x.json", {})


def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"latent_adapters.layers: \[9\]"):
        system_with("llama", "latent_adapters", layers=[9])
    with pytest.raises(ConfigError, match=r"gist_head\.width: 10 is not a multiple of heads = 4"):
        config_from_dict({"gist_head": {"width": 10}}, "x.json", {})


def test_low_rank_generator_and_dropout() -> None:
    config = small_config(
        model={"dtype": "float32", "receivers": {"a": "x"}}, deep_prefix={"rank": 4, "dropout": 0.5, "hidden": 0}
    )
    system = small_system(config, ("llama",))
    generator = system.receivers["a"].reader.generator
    weight = torch.randn(16, 4) @ torch.randn(4, generator.linear.shape[1])
    generator.set_linear(weight)
    assert generator.down is not None
    torch.testing.assert_close(generator.down @ generator.linear, weight, atol=1e-4, rtol=1e-4)
    z = torch.randn(1, 3, 16), torch.tensor([3])
    with torch.no_grad():
        assert torch.equal(generator(*z), generator(*z))
    assert not torch.equal(generator(*z), generator(*z))
    assert not list(dead_parameters(system))


def test_a_generator_may_look_at_neighbours() -> None:
    system = small_system(small_config(deep_prefix={"neighbours": 1}), ("llama",))
    receiver, generator = system.receivers["a"], system.receivers["a"].reader.generator
    assert generator.mlp is not None
    torch.manual_seed(0)
    z, counts = torch.randn(2, 5, 16), torch.tensor([5, 3])
    torch.testing.assert_close(generator(z, counts), z @ generator.linear * generator.scale + generator.shift)
    nn.init.normal_(generator.mlp[2].weight)
    made = generator(z, counts)
    (reached,) = torch.autograd.grad(generator(z.requires_grad_(), counts)[0, 2].sum(), z)
    assert (reached.abs().sum(-1) > 0).tolist() == [[False, True, True, True, False], [False] * 5]
    with torch.no_grad():
        torch.testing.assert_close(generator(z[1:, :3], counts[1:]), made[1:, :3])  # alone or beside a longer one
        generated = receiver.read_latents(z, counts).generated
        z[1, 3:] = 7.0  # behind the end
        torch.testing.assert_close(generator(z, counts)[1, :3], made[1, :3])
        assert generated is not None
        torch.testing.assert_close(generated, made)
        generator.forget(4)
        kept = generator(z, counts)
        z[..., -4:] = 5.0
        torch.testing.assert_close(generator(z, counts), kept)
    assert not list(dead_parameters(system))
    with pytest.raises(ConfigError, match=r"deep_prefix\.neighbours: the MLP looks at them, and hidden is 0"):
        small_config(deep_prefix={"neighbours": 1, "hidden": 0})


@pytest.mark.parametrize(("name", "options"), CASES, ids=ids)
@torch.no_grad()
def test_every_way_to_answer_reads_with_it(name: str, options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the likeliest tokens, each found by reading the message and all before it anew."""
    monkeypatch.setattr("latentwire.model.generation.TOGETHER", 2)
    receiver = system_with("llama", name, **options).receivers["a"]
    shake(receiver)
    torch.manual_seed(3)
    z, counts = torch.randn(1, 5, 16), torch.tensor([5])
    receiver.prompt.stop, tail, tokens = [], receiver.prompt.tail("Where is it?"), []
    with receiver.using(LATENT):

        def read() -> Context:
            return receiver.read_latents(z, counts)

        while len(tokens) < 6:
            context, ids = read(), torch.tensor([tail + tokens])
            with receiver.reading(context):
                hidden = receiver.lm.continue_from(context, ids, torch.ones_like(ids))
            tokens.append(int(receiver.lm.logits(hidden[0, -1]).argmax()))
        nll = float(receiver.score(read(), [(tail, tokens)]).nll)
        answer, (best, *_) = receiver.prompt.read(tokens), receiver.candidates(read(), [tail], 6, 3)[0]
        assert (
            receiver.generate(read(), [tail], 6) == receiver.generate(read(), [tail], 6, lambda *_: False) == [answer]
        )
        assert best.text == answer and best.logp == pytest.approx(-nll, abs=1e-3)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("name", ["latent_adapters", "coprocessor", "gist_head", "latent_refiner"])
def test_attention_has_the_heads_that_are_asked_for(name: str, heads: int) -> None:
    """Which no tensor's shape tells."""
    system = system_with("llama", name, heads=heads)
    part = system.sender.refiner if name == "latent_refiner" else system.receivers["a"].features[name]
    assert {m.num_heads for m in part.modules() if isinstance(m, nn.MultiheadAttention)} == {heads}  # type: ignore
