"""Every encoder: what it makes of a text, what it learns, and what it refuses."""

from __future__ import annotations

import random
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from latentwire.config.load import config_from_dict
from latentwire.core.errors import ConfigError, ModelError
from latentwire.encoder.blocks import sinusoids
from latentwire.encoder.registry import ENCODERS, build_encoder
from latentwire.model.sender import Sender
from latentwire.model.system import LatentWire
from latentwire.training.loop import Trainer
from latentwire.training.stages.end_to_end import EndToEnd
from latentwire.training.stages.scratch import standardise
from tests.features.test_matrix import dead_parameters
from tests.systems import end_to_end, small_config, small_passages, small_system
from tests.tiny import save_tiny, save_tiny_bert
from tests.training.test_loop import Record

FROM_QUERIES = ["byte", "simple-st", "stq"]
TEXTS = [
    "Mira Voss founded the workshop in Talden and sold red lamps there. The keeper of the boat lives in Orlin.",
    "The green door is in Brannock.",
    "Eine Brücke über den Fluß: 橋.",
]


def system_of(kind: str, **encoder: object) -> LatentWire:
    return small_system(small_config(encoder={"type": kind} | encoder))


def encode(system: LatentWire, texts: list[str]) -> tuple[Tensor, Tensor]:
    return system.sender.latents_of([system.sender.prepare(text) for text in texts])


def test_every_type_of_the_schema_has_an_encoder() -> None:
    config = small_config()
    for kind in ENCODERS:
        assert config_from_dict({"encoder": {"type": kind}}, "x", {}).encoder.type == kind
    with pytest.raises(ConfigError, match=r"encoder\.type"):
        config_from_dict({"encoder": {"type": "other"}}, "x", {})
    assert config.encoder.type == "backbone"


@pytest.mark.parametrize("kind", ENCODERS)
@torch.no_grad()
def test_a_text_becomes_as_many_latents_as_it_has_windows(kind: str) -> None:
    system = system_of(kind)
    z, counts = encode(system, TEXTS)
    tokens = [system.sender.tokenize(text).tokens for text in TEXTS]
    assert counts.tolist() == [-(-n // 4) for n in tokens]
    assert z.shape == (3, max(counts), 16) and z.dtype == torch.float32
    messages = [torch.from_numpy(wire.latents) for wire in system.sender.encode_batch(TEXTS, "fp32")]
    for row, count, message in zip(z, counts.tolist(), messages, strict=True):
        torch.testing.assert_close(message, row[:count], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", FROM_QUERIES)
@torch.no_grad()
def test_latent_len_is_met_exactly_and_receivers_read_as_many_slots(kind: str) -> None:
    system = system_of(kind, latent_len=40)  # more than the shortest text has tokens
    passage = small_passages(1)[0]
    sent, texts = system.prepare(passage)
    assert sent.latents == texts["a"].latents == texts["b"].latents == 40
    assert encode(system, TEXTS)[1].tolist() == [40, 40, 40]
    for table in (sent.phase_tokens, texts["b"].phase_tokens):
        assert all(x <= y for row in table for x, y in pairwise(row))  # windows in order, without a gap
    context = system.receivers["b"].read_own([texts["b"]])
    assert context.mask.sum() == len(system.receivers["b"].prompt.head) + 40


@pytest.mark.parametrize("kind", ENCODERS)
@torch.no_grad()
def test_padding_and_company_in_a_batch_do_not_matter(kind: str) -> None:
    system = system_of(kind)
    z, counts = encode(system, TEXTS)
    for i, text in enumerate(TEXTS):
        torch.testing.assert_close(encode(system, [text])[0][0], z[i, : counts[i]], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ENCODERS)
def test_every_tensor_is_trained(kind: str) -> None:
    assert not list(dead_parameters(system_of(kind), steps=4))  # two receivers, two steps each


@pytest.mark.parametrize("kind", ENCODERS)
@torch.no_grad()
def test_saved_and_loaded_it_sends_the_same(kind: str) -> None:
    config = small_config(encoder={"type": kind})
    system, other = small_system(config, seed=0), small_system(config, seed=0)
    torch.manual_seed(1)
    for p in system.sender.encoder.parameters():
        p.add_(torch.randn_like(p))
    assert other.sender.encode_batch(TEXTS) != system.sender.encode_batch(TEXTS)
    other.load_state_dict(system.state_dict())
    assert other.sender.encode_batch(TEXTS) == system.sender.encode_batch(TEXTS)


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_few_steps_of_training_lower_the_loss_by_what_is_in_the_message(kind: str, tmp_path: Path) -> None:
    rates = {"lr": 1e-2, "lr_sender": 1e-2, "lr_encoder": 1e-2, "lr_generator": 1e-2, "warmup_steps": 2}
    model = {"dtype": "float32", "receivers": {"a": "x"}}
    config = small_config(model=model, encoder={"type": kind}, optimizer=rates | {"batch_size": 6})
    system = small_system(config, ("llama",))
    prepared = [system.prepare(p) for p in small_passages(6)]
    standardise(system, prepared)
    record = Record()
    Trainer(EndToEnd(system, prepared, config), config, tmp_path, 60, callbacks=[record]).fit()
    assert record.losses[-1] < 0.75 * record.losses[0]
    receiver = system.receivers["a"]
    block = receiver.pack([texts["a"] for _, texts in prepared], random.Random(0))
    with torch.no_grad():
        z, counts = system.sender.latents_of([sent for sent, _ in prepared])
        own, other = (
            float(receiver.loss(receiver.read_latents(z.roll(by, 0), counts.roll(by, 0)), block).total) for by in (0, 1)
        )
    assert own < other - 0.05  # another text's message does not do


@pytest.mark.parametrize("kind", FROM_QUERIES)
def test_different_texts_become_different_latents(kind: str) -> None:
    """What the encoder saw of one word far back in the text must be in the message."""
    system = system_of(kind, latent_len=4)
    one, other = encode(system, [TEXTS[0], TEXTS[0].replace("Orlin", "Talden")])[0].detach()
    assert not torch.allclose(one, other, atol=1e-3)
    assert not torch.allclose(one[0], one[1], atol=1e-3)  # nor are the queries all alike


def test_readers_start_from_the_statistics_of_what_they_have_to_make() -> None:
    system = system_of("byte")
    prepared = [system.prepare(p) for p in small_passages(6)]
    standardise(system, prepared, batch_size=4)
    receiver = system.receivers["b"]
    values, counts = receiver.targets([texts["b"] for _, texts in prepared])
    rows = torch.cat([v[:n] for v, n in zip(values, counts.tolist(), strict=True)])
    generator, groups = receiver.reader.generator, receiver.reader.target_groups()
    torch.testing.assert_close(generator.shift, rows.mean(0), atol=1e-4, rtol=1e-3)
    expected = rows.var(0, unbiased=False)[groups == 2].mean().sqrt()
    torch.testing.assert_close(generator.scale[groups == 2], expected.expand(int((groups == 2).sum())))
    z, counts = encode(system, [p.context for p in small_passages(6)])
    latents = torch.cat([row[:n] for row, n in zip(z, counts.tolist(), strict=True)]).detach()
    torch.testing.assert_close(latents.mean(0), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.pow(2).mean(0), torch.ones(16), atol=1e-3, rtol=0)
    ratio = (generator(latents[None], torch.tensor([len(latents)])) - generator.shift).pow(2).mean() / rows.var(
        0, unbiased=False
    ).mean()
    assert 0.5 < ratio < 2.0  # of the size that the receiver is used to


@pytest.mark.parametrize("kind", ["simple-st", "stq"])
@pytest.mark.parametrize("family", ["bert", "llama", "qwen3"])
def test_a_pretrained_model_is_loaded_by_name(kind: str, family: str, tmp_path: Path) -> None:
    """An encoder, a causal LM with a BOS, and one without."""
    folder = save_tiny_bert(tmp_path) if family == "bert" else save_tiny(family, tmp_path)
    config = small_config(encoder={"type": kind, "model": str(folder)})
    sender = Sender(build_encoder(config, "cpu"), config)
    prepared = [sender.prepare(text) for text in TEXTS]
    features = sender.features(prepared)
    sizes = {"bert": 40, "llama": 48, "qwen3": 48}
    for text, feature in zip(prepared, features, strict=True):
        assert feature.shape == ((text.tokens, sizes[family]) if kind == "stq" else (sizes[family],))
        torch.testing.assert_close(feature.pow(2).mean(-1).sqrt(), torch.ones(feature.shape[:-1]), atol=1e-3, rtol=0)
    assert not any(p.requires_grad for p in sender.encoder.model.model.parameters())
    sender.encoder(features, [text.latents for text in prepared]).sum().backward()


@pytest.mark.parametrize("kind", FROM_QUERIES)
def test_texts_beyond_a_limit_are_refused_by_the_key_that_sets_it(kind: str) -> None:
    sender = system_of(kind).sender
    with pytest.raises(ModelError, match="nothing to send"):
        sender.prepare("")
    bank = small_system(small_config(encoder={"type": kind}, queries={"bank": 4, "width": 16}, data=SHORT)).sender
    with pytest.raises(ModelError, match=r"queries.bank: a text of \d+ latents has more than the 4 queries"):
        bank.prepare(TEXTS[0])
    long = " ".join([TEXTS[0]] * 30)
    key = "byte.max_len" if kind == "byte" else "encoder.model: a text of"
    with pytest.raises(ModelError, match=key):
        sender.prepare(long)


SHORT = {"max_context_tokens": 16}


def test_a_bank_too_small_for_the_data_is_refused_before_anything_is_loaded() -> None:
    values = {"encoder": {"type": "stq", "window": 4, "model": "/no/such/model"}, "data": {"max_context_tokens": 300}}
    with pytest.raises(ConfigError, match=r"queries.bank: data.max_context_tokens = 300 .* need 75 queries"):
        config_from_dict(values, "x.json", {})
    config_from_dict(values, "x.json", {"encoder.latent_len": 32})
    config_from_dict(values, "x.json", {"queries.bank": 75})
    with pytest.raises(ConfigError, match=r"queries.width: 30 is not a multiple of heads = 4"):
        config_from_dict({"queries": {"width": 30}}, "x.json", {})


def test_codes_of_places_tell_places_apart() -> None:
    codes = sinusoids(torch.arange(200), 15)
    assert codes.shape == (200, 15)
    distances = torch.cdist(codes, codes)
    assert distances[~torch.eye(200, dtype=torch.bool)].min() > 0.1


@pytest.mark.parametrize("kind", ENCODERS)
def test_what_starts_from_scratch_learns_at_a_rate_of_its_own(kind: str) -> None:
    config = small_config(encoder={"type": kind}, optimizer={"lr_encoder": 2e-3, "lr_sender": 3e-3})
    groups = end_to_end(small_system(config), 2).parameter_groups()
    assert {g.name: g.lr for g in groups}["encoder"] == (2e-3 if kind == "backbone" else 3e-3)


def test_an_encoder_has_the_layers_and_heads_that_are_asked_for() -> None:
    def found(kind: str, queries: dict, byte: dict) -> tuple[int, int, set[int]]:
        config = small_config(encoder={"type": kind}, queries=queries, **({"byte": byte} if byte else {}))
        encoder = small_system(config).sender.encoder
        heads = {m.num_heads for m in encoder.modules() if isinstance(m, torch.nn.MultiheadAttention)}
        return len(encoder.pooler.blocks), len(getattr(encoder, "blocks", [])), heads  # type: ignore[arg-type]

    assert found("stq", {"layers": 3, "heads": 4}, {}) == (3, 0, {4})
    assert found("byte", {"layers": 2, "heads": 1}, {"layers": 3}) == (2, 3, {1})


def test_a_tokenizer_may_allow_less_than_its_model() -> None:
    sender = system_of("stq").sender
    length = len(sender.prepare(TEXTS[1]).ids)
    for most in (length, length - 1):
        sender.encoder.source.tokenizer.model_max_length = most
        with nullcontext() if most == length else pytest.raises(ModelError, match=f"sender's window of {most}"):
            sender.prepare(TEXTS[1])


def test_a_query_leans_towards_its_window_in_each_head_less() -> None:
    pooler = system_of("stq").sender.encoder.pooler
    one, other = pooler._bias([8, 4], [4, 2]).unflatten(0, (2, 2))  # type: ignore[operator]
    assert one[0, :2, :4].tolist() == [[-1, -1, -3, -5], [-5, -3, -1, -1]]  # windows of two states
    assert torch.equal(one[1], one[0] / 2) and torch.equal(other[:, :2, :4], one[:, :2, :4])
    assert (other[:, :, 4:] == -torch.inf).all()
