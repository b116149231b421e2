"""The terms of section `losses` in training: what each is, what it moves, and that none is there unasked."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from latentwire.config.load import config_from_dict
from latentwire.core.errors import ConfigError
from latentwire.core.names import LATENT, TEXT, TOKEN_BUDGET
from latentwire.losses.distillation import logit_kd, state_kd
from latentwire.losses.manifold import scale_deviation, statistics_distance
from latentwire.model.encoding import QuestionBlock, ReceiverText, pack_questions
from latentwire.model.objective import _mean_answers
from latentwire.model.receiver import Receiver
from latentwire.training.loop import Trainer
from latentwire.training.stages.closed_form import fit
from latentwire.training.stages.end_to_end import EndToEnd
from latentwire.training.stages.slot_tuning import SlotTuning
from tests.systems import end_to_end, small_config, small_system
from tests.tiny import FAMILIES


def stage(
    losses: dict[str, Any] | None = None, family: str = "llama", slots: bool = True, **sections: dict[str, Any]
) -> EndToEnd:
    """End-to-end training of one receiver that carries LoRA."""
    config = small_config(
        model={"dtype": "float32", "receivers": {"a": "x"}},
        features={"use_lora": True, "use_deep_prefix": slots},
        losses=losses or {},
        **sections,
    )
    return end_to_end(small_system(config, (family,)), 4)


def first_batch(module: EndToEnd) -> tuple[Receiver, list[ReceiverText], QuestionBlock]:
    batch = module.batch(0)
    receiver = module.system.receivers["a"]
    return receiver, [module.passages[i][1]["a"] for i in batch.chosen], batch.block


def shake(receiver: Receiver, adapter: str, seed: int = 1) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in receiver.add_adapter(adapter).trainable_parameters():
            p.add_(torch.randn_like(p) * 0.3)


@pytest.mark.parametrize("copy_weight", [0.0, 0.5])
@pytest.mark.parametrize("slots", [True, False])
def test_without_options_the_loss_is_the_plain_one_bit_by_bit(slots: bool, copy_weight: float) -> None:
    module = stage({"copy_weight": copy_weight}, slots=slots)
    receiver, _, block = first_batch(module)
    batch = module.batch(0)
    out = module.forward(batch)
    features = module.features(batch.chosen)
    z, counts = module.system.sender.latents(features, [len(row) for row in features])
    values = receiver.reader.generator(z, counts)
    with receiver.using(LATENT):
        context = receiver.reader.context(receiver.lm, values, counts)
        hidden = receiver.lm.continue_from(context, block.ids, block.mask, block.segments)
    labels = block.labels[:, 1:]
    chosen, spans = labels != -100, block.spans[:, 1:]
    logits = receiver.lm.logits(hidden[:, :-1][chosen])
    answers = ~spans[chosen]
    expected = F.cross_entropy(logits[answers], labels[chosen][answers])
    if copy_weight:
        expected = expected + copy_weight * F.cross_entropy(logits[~answers], labels[chosen][~answers])
    assert torch.equal(out.loss, expected)
    assert set(out.terms) == ({"answer_ce", "copy_ce"} if copy_weight else {"answer_ce"})
    assert torch.equal(torch.stack(list(out.terms.values())).sum(), out.loss)


def test_dropout_of_the_sender_is_the_round_s_whether_receivers_share_an_encoding_or_not() -> None:
    def latents(norms_every: int) -> list[Tensor]:
        options = {"features": {"use_latent_refiner": True}, "latent_refiner": {"dropout": 0.5}}
        config = small_config(optimizer={"accumulation": 2}, diagnostics={"grad_norms_every": norms_every}, **options)
        system = small_system(config)
        refiner = system.sender.parts["latent_refiner"].train()
        with torch.no_grad():
            for p in refiner.parameters():
                p.add_(torch.randn_like(p) * 0.1)
        module = end_to_end(system)
        batches = [module.batch(index) for index in range(2)]  # of the same passages in two rounds
        batches += [batch._replace(round=1) for batch in batches]
        return [module.latents(batch)[0] for batch in batches]

    together, apart = latents(0), latents(1)
    assert all(torch.equal(one, other) for one, other in zip(together, apart, strict=True))
    assert torch.equal(apart[0], apart[1]) and not torch.equal(apart[0], apart[2])


NORMS = {"grad_norms_every": 1}
TERMS: list[tuple[str, dict[str, Any], float]] = [
    ("first_token_ce", {"first_token_weight": 0.5}, 0.5),
    ("first_token_entropy", {"first_token_entropy": 0.1}, -0.1),
    ("k_token_ce", {"k_token_weight": 0.3, "k_tokens": 2}, 0.3),
    ("kd", {"kd_weight": 2.0, "kd_temperature": 2.0}, 2.0),
    ("state_kd", {"state_kd_weight": 0.7}, 0.7),
    ("state_kd", {"state_kd_weight": 0.7, "state_kd_kind": "cosine", "state_kd_layers": [1, 3]}, 0.7),
    ("align", {"align_weight": 0.4}, 0.4),
    ("manifold", {"manifold_weight": 0.2}, 0.2),
    ("latent_scale", {"latent_scale_weight": 0.6}, 0.6),
    ("output_rms", {"output_rms_weight": 0.6}, 0.6),
]


@pytest.mark.parametrize(("family", "slots"), [("llama", True), ("llama", False), ("gemma3", True), ("qwen2", False)])
@pytest.mark.parametrize(("name", "losses", "weight"), TERMS, ids=[f"{n}-{len(o)}" for n, o, _ in TERMS])
def test_each_term_adds_what_it_says_and_teaches_what_makes_the_message(
    name: str, losses: dict[str, Any], weight: float, family: str, slots: bool
) -> None:
    adapter = {} if slots else {"calibration": "none"}
    plain = stage(None, family, slots, adapter=adapter).forward(stage(None, family, slots, adapter=adapter).batch(0))
    module = stage(losses, family, slots, adapter=adapter)
    out = module.forward(module.batch(0))
    assert set(out.terms) == {"answer_ce", name}
    assert out.terms["answer_ce"].item() == pytest.approx(plain.loss.item(), rel=1e-5)
    assert out.metrics[name] > 0
    assert out.loss.item() == pytest.approx(plain.loss.item() + weight * out.metrics[name], rel=1e-5)
    trained = [module.system.sender.encoder.weight]
    if name != "latent_scale":
        trained.append(module.system.receivers["a"].reader.generator.linear)
    for grad in torch.autograd.grad(out.terms[name], trained):
        assert torch.isfinite(grad).all() and grad.abs().sum() > 0


def test_all_terms_together_sum_to_the_loss() -> None:
    losses = {key: value for _, options, _ in TERMS for key, value in options.items()}
    module = stage(losses, slots=False, adapter={"calibration": "none"})
    out = module.forward(module.batch(0))
    assert set(out.terms) == {"answer_ce", *(name for name, _, _ in TERMS)}
    assert out.loss.item() == pytest.approx(sum(t.item() for t in out.terms.values()), rel=1e-6)
    assert set(out.terms) <= set(out.metrics)  # each is logged under its own name


def test_every_term_s_gradient_is_logged_and_recomputation_changes_nothing(tmp_path: Path) -> None:
    everything = {key: value for _, options, _ in TERMS for key, value in options.items()}
    records = []
    for again in (False, True):
        system = {"grad_ckpt": again}
        module = stage(everything, slots=False, adapter={"calibration": "none"}, system=system, diagnostics=NORMS)
        shake(module.system.receivers["a"], LATENT)
        records.append(Trainer(module, module.config, tmp_path / str(again), 2).take_step())
    plain, recomputed = records
    norms = {key for key in plain if key.startswith("loss_grad_norm/")}
    assert norms == {f"loss_grad_norm/{name}" for name in ("answer_ce", *(name for name, _, _ in TERMS))}
    for key in ("loss", "grad_norm", *norms):
        assert recomputed[key] == pytest.approx(plain[key], rel=1e-3) and plain[key] > 0


@pytest.mark.parametrize("k", [1, 2, 50])
def test_first_tokens_are_those_of_every_answer(k: int) -> None:
    """Against answers that are scored one by one and cut to k tokens."""
    module = stage({"first_token_weight": 1.0, "k_token_weight": 1.0, "k_tokens": k})
    receiver, texts, block = first_batch(module)
    with torch.no_grad():
        metrics = receiver.loss(receiver.read_own(texts), block, 0.0).metrics
        cut = [(t, [(tail, answer[:k]) for tail, answer in t.questions]) for t in texts]
        scores = [receiver.score(receiver.read_own([t] * len(pairs)), pairs) for t, pairs in cut]
        ones = [receiver.score(receiver.read_own([t] * 2), [(q, a[:1]) for q, a in t.questions]) for t in texts]
    nll, tokens = (torch.cat([getattr(s, key) for s in scores]).sum() for key in ("nll", "tokens"))
    assert metrics["k_token_ce"] == pytest.approx(float(nll / tokens), rel=1e-4)
    assert metrics["first_token_ce"] == pytest.approx(float(torch.cat([s.nll for s in ones]).mean()), rel=1e-4)
    if k == 50:
        assert metrics["k_token_ce"] == pytest.approx(metrics["answer_ce"], rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_teacher_is_the_receiver_reading_the_text(family: str) -> None:
    """KD of packed questions against both readings of each question alone, the teacher's by Transformers itself."""
    module = stage({"kd_weight": 1.0, "k_tokens": 2}, family)
    receiver, texts, block = first_batch(module)
    shake(receiver, LATENT)
    with torch.no_grad(), receiver.using(LATENT):
        found = receiver.loss(receiver.read_own(texts), block, 0.0, receiver.teach(texts, block, 0.0)).metrics["kd"]
    divergences: list[Tensor] = []
    for text in texts:
        for tail, answer in text.questions:
            n = min(2, len(answer))
            single = pack_questions([[(tail, answer)]], receiver.lm.pad_id)
            with torch.no_grad():
                with receiver.using(LATENT):
                    hidden = receiver.lm.continue_from(receiver.read_own([text]), single.ids, single.mask)
                    own = receiver.lm.logits(hidden)[0, len(tail) - 1 : len(tail) - 1 + n].log_softmax(-1)
                with receiver.using(None):
                    whole = receiver.lm.model(torch.tensor([text.ids + tail + answer])).logits[0].float()
            other = whole[len(text.ids) + len(tail) - 1 :][:n].log_softmax(-1)
            divergences.append((other.exp() * (other - own)).sum(-1))
    assert found == pytest.approx(float(torch.cat(divergences).mean()), rel=1e-3) and found > 1e-3


@pytest.mark.parametrize("tuned", [False, True])
def test_a_student_that_reads_what_the_teacher_reads_has_nothing_to_learn(tuned: bool) -> None:
    module = stage({"kd_weight": 1.0, "state_kd_weight": 1.0, "state_kd_layers": [1, 2, 3]})
    receiver, texts, block = first_batch(module)
    if tuned:
        shake(receiver, TEXT)
    teacher = receiver.teach(texts, block, 0.0)
    with torch.no_grad(), receiver.using(TEXT):
        terms = receiver.loss(receiver.read_text([t.ids for t in texts]), block, 0.0, teacher)
    assert terms.metrics["kd"] == pytest.approx(0.0, abs=1e-6)
    assert terms.metrics["state_kd"] == pytest.approx(0.0, abs=1e-6)
    assert float(terms.total) == pytest.approx(terms.metrics["answer_ce"])


def test_the_teacher_is_tuned_on_text_costs_little_and_leaves_no_trace() -> None:
    module = stage({"kd_weight": 1.0, "k_tokens": 2})
    receiver, texts, block = first_batch(module)
    shake(receiver, LATENT)
    bare = receiver.teach(texts, block, 0.0)
    with receiver.using(LATENT):  # its adapter must not be the student's
        again = receiver.teach(texts, block, 0.0)
        before = receiver.loss(receiver.read_own(texts), block).total
        receiver.teach(texts, block, 0.0)
        after = receiver.loss(receiver.read_own(texts), block).total
    assert bare is not None and bare.logits is not None and again is not None and again.logits is not None
    torch.testing.assert_close(bare.logits, again.logits)
    assert torch.equal(before, after) and after.requires_grad and not bare.logits.requires_grad
    # Logits at supervised positions only: two tokens of every answer that has two.
    assert len(bare.logits) == sum(min(2, len(answer)) for text in texts for _, answer in text.questions)
    shake(receiver, TEXT)
    tuned = receiver.teach(texts, block, 0.0)
    assert tuned is not None and tuned.logits is not None and not torch.allclose(tuned.logits, bare.logits)


def test_hidden_states_alone_need_no_logits_of_the_teacher() -> None:
    module = stage({"state_kd_weight": 1.0, "state_kd_layers": [2]})
    receiver, texts, block = first_batch(module)
    teacher = receiver.teach(texts, block, 0.0)
    assert teacher is not None and teacher.logits is None and len(teacher.states) == 1
    assert not any(m._forward_hooks for m in receiver.lm.model.modules())
    assert stage().system.receivers["a"].teach(texts, block, 0.0) is None


def test_weights_and_k_go_over_the_stage() -> None:
    module = stage(
        {"first_token_weight": 1.0, "first_token_weight_end": 0.0, "k_token_weight": 1.0, "k_tokens": 1}
        | {"k_tokens_end": 3}
    )
    module.total_batches = 5
    outs = [module.forward(module.batch(i)) for i in range(5)]
    assert [out.metrics["k_tokens"] for out in outs] == [1, 1, 2, 3, 3]
    weights = [o.terms["first_token_ce"].item() / o.metrics["first_token_ce"] for o in outs[:4]]
    assert weights == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert "first_token_ce" not in outs[4].terms


def test_the_teacher_looks_at_as_many_first_tokens_as_the_receiver_does_by_then() -> None:
    module = stage({"kd_weight": 1.0, "state_kd_weight": 1.0, "k_tokens": 1, "k_tokens_end": 3})
    module.total_batches = 5
    receiver, batch = module.system.receivers["a"], module.batch(4)
    texts = [module.passages[i][1]["a"] for i in batch.chosen]
    teacher = receiver.teach(texts, batch.block, batch.progress)
    assert teacher is not None and teacher.logits is not None
    assert len(teacher.logits) == batch.block.early(3).sum() > batch.block.early(1).sum()
    assert module.forward(batch).metrics["kd"] > 0


def test_a_single_token_or_the_content_of_an_answer_is_what_is_aligned() -> None:
    """Answers of 1 and 3 tokens: what ends the longer one does not count."""
    block = pack_questions([[([5, 6], [7]), ([5], [8, 9, 3])]], 0, spans=[[([4], [8, 8])]])
    assert block.labels[block.contents()].tolist() == [7, 8, 9]
    assert block.labels[block.early(2)].tolist() == [7, 8, 9] and block.labels[block.early(1)].tolist() == [7, 8]
    assert block.answer_tokens == 4  # by which micro-batches of a step are weighed: what is copied does not count


@pytest.mark.parametrize("slots", [True, False])
def test_a_message_that_holds_an_answer_is_aligned_with_it(slots: bool) -> None:
    """The generator is made to give, at each position, what one answer token is to the receiver."""
    module = stage({"align_weight": 1.0}, slots=slots)
    receiver = module.system.receivers["a"]
    block = pack_questions([[([5], [17])], [([6], [23])]], 0)
    z, counts = torch.randn(2, 3, 16), torch.tensor([3, 2])
    far = receiver.reader_loss(receiver.read_latents(z, counts), block).metrics["align"]
    context = receiver.read_latents(z, counts)
    tokens = receiver.reader.parts_of_tokens(receiver.lm, torch.tensor([17, 23]))
    assert context.generated is not None
    parts = receiver.reader.parts(context.generated)
    parts.data[:, 1] = tokens * 3.0  # a view into what was generated
    near = receiver.reader_loss(context, block).metrics["align"]
    assert near == pytest.approx(0.0, abs=1e-5) and far > 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_first_layer_values_are_those_of_a_token_in_any_text(family: str) -> None:
    receiver = stage(slots=True, family=family).system.receivers["a"]
    ids = torch.tensor([[2, 9, 40, 9]])
    in_text = receiver.lm.keys_values(ids, torch.ones_like(ids)).values[0][0]
    alone = receiver.reader.parts_of_tokens(receiver.lm, ids[0])
    torch.testing.assert_close(alone, in_text.float())


def test_slot_tuning_learns_from_the_teacher_and_baselines_stay_plain() -> None:
    everything = {key: value for _, options, _ in TERMS for key, value in options.items()}
    module = stage(everything)
    receiver, texts, _ = first_batch(module)
    tuning = SlotTuning(receiver, texts, module.config)
    out = tuning.forward(tuning.batch(0))
    assert set(out.terms) == {"answer_ce", "first_token_ce", "first_token_entropy", "k_token_ce", "kd", "state_kd"}
    grads = torch.autograd.grad(out.terms["kd"], list(tuning.lora.trainable_parameters()), allow_unused=True)
    assert any(g is not None and g.abs().sum() > 0 for g in grads)
    baseline = SlotTuning(receiver, texts, module.config, TEXT)
    assert set(baseline.forward(baseline.batch(0)).terms) == {"answer_ce"}


def test_distillation_brings_the_student_to_the_teacher() -> None:
    module = stage({"kd_weight": 5.0}, optimizer={"batch_size": 2})
    groups = module.parameter_groups()
    optimizer = torch.optim.AdamW([p for g in groups for p in g.parameters], lr=3e-3)
    batch = module.batch(0)
    seen = []
    for _ in range(25):
        random.seed(0)
        out = module.forward(batch)
        seen.append(out.metrics["kd"])
        out.terms["kd"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert seen[-1] < 0.5 * seen[0]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"losses": {"kd_weight": -1}}, r"losses\.kd_weight: .*greater than or equal to 0"),
        ({"losses": {"kd_temperature": 0}}, r"losses\.kd_temperature"),
        ({"losses": {"state_kd_layers": [0]}}, r"losses\.state_kd_layers\.0"),
        (
            {"losses": {"output_rms_weight": 1}, "features": {"use_deep_prefix": False}},
            r"losses\.output_rms_weight: adapter\.calibration = 'embed_rms' fixes that RMS already",
        ),
        ({"adapter": {"gain": 2.0}}, r"adapter\.gain: only the embedding reader has it"),
        ({"adapter": {"color": "full"}}, r"adapter\.color: only the embedding reader"),
        ({"curriculum": {"end_to_end": {"tail_text_prob": 0.1}}}, r"curriculum\.end_to_end\.tail_text_prob: only LoRA"),
        ({"anchor": {"bos": "after", "chat_template": True}}, r"anchor\.bos: anchor\.chat_template places BOS itself"),
        ({"anchor": {"bos": "behind"}}, r"anchor\.bos: .*got 'behind'"),
    ],
)
def test_what_could_have_no_effect_is_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_from_dict(sections, "x.json", {})


def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"losses\.state_kd_layers: 4 is more than the 3 of 'tiny-llama'"):
        stage({"state_kd_weight": 1.0, "state_kd_layers": [4]})


def test_what_is_aligned_is_each_question_s_own_answer() -> None:
    receiver = stage().system.receivers["a"]
    block = pack_questions([[([5], [17]), ([6], [23])], [([7], [30])]], 0)
    means, asked = _mean_answers(receiver.reader, receiver.lm, block)
    assert asked.tolist() == [[True, True], [True, False]]
    own = receiver.reader.parts_of_tokens(receiver.lm, torch.tensor([17, 23, 30]))
    torch.testing.assert_close(means[asked], own)


def test_a_baseline_copies_nothing() -> None:
    module = stage({"copy_weight": 0.5})
    receiver, texts, _ = first_batch(module)
    for reads, copies in ((LATENT, True), (TEXT, False), (TOKEN_BUDGET, False)):
        assert bool(SlotTuning(receiver, texts, module.config, reads).batch(0).block.spans.any()) is copies


def test_the_options_of_distillation_reach_it() -> None:
    module = stage(
        {"kd_weight": 1.0, "kd_temperature": 2.0, "k_tokens": 2, "state_kd_weight": 1.0, "state_kd_kind": "cosine"}
    )
    receiver, texts, block = first_batch(module)
    shake(receiver, LATENT)
    teacher = receiver.teach(texts, block, 0.0)
    assert teacher is not None and teacher.logits is not None
    with torch.no_grad(), receiver.using(LATENT):
        own = receiver._predict(receiver.read_own(texts), block, block.early(2))
        metrics = receiver.loss(receiver.read_own(texts), block, 0.0, teacher).metrics
    assert metrics["kd"] == pytest.approx(float(logit_kd(own.logits, teacher.logits, 2.0)), rel=1e-4)
    assert metrics["state_kd"] == pytest.approx(float(state_kd(own.states, teacher.states, "cosine")), rel=1e-4)


def test_the_first_token_s_weight_follows_its_schedule() -> None:
    module = stage({"first_token_weight": 1.0, "first_token_weight_end": 0.0, "first_token_schedule": "cosine"})
    module.total_batches = 5
    out = module.forward(module.batch(1))
    weight = out.terms["first_token_ce"].item() / out.metrics["first_token_ce"]
    assert weight == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


@pytest.mark.parametrize("slots", [True, False])
def test_what_is_looked_at_of_a_reader_is_real_and_calibrated(slots: bool) -> None:
    adapter = {} if slots else {"calibration": "fixed", "fixed_rms": 3.0}
    module = stage(
        {"manifold_weight": 1.0, "latent_scale_weight": 1.0, "align_weight": 1.0}, slots=slots, adapter=adapter
    )
    receiver = module.system.receivers["a"]
    fit(module.system, module.passages, held_out=1, ridge=0.1)
    shake(receiver, LATENT)
    torch.manual_seed(0)
    z, counts = torch.randn(2, 4, 16), torch.tensor([4, 2])
    z[1, 2:] = 50.0  # padding
    block = pack_questions([[([5], [17])], [([6], [23])]], 0)
    with receiver.using(LATENT):
        found = receiver.reader_loss(receiver.read_latents(z, counts), block).metrics
    values = receiver.reader.calibrate(receiver.reader.generate(z, counts))
    z, values = (torch.cat([t[0], t[1, :2]]) for t in (z, values))
    if slots:
        known = receiver.reader.generator.shift, receiver.reader.generator.scale, receiver.reader.target_groups()
    else:
        table = receiver.lm.embed(torch.arange(len(receiver.lm.tokenizer)))
        known = table.mean(0), table.std(0), torch.arange(48)
    assert found["manifold"] == pytest.approx(float(statistics_distance(values, *known)), rel=1e-4)
    assert found["latent_scale"] == pytest.approx(float(scale_deviation(z)), rel=1e-4)
    receiver.close()  # the answers are those of the untouched model
    receiver.features = {}
    bare = receiver.reader_loss(receiver.read_latents(torch.stack([z[:4], torch.cat([z[4:], z[:2]])]), counts), block)
    assert found["align"] == pytest.approx(bare.metrics["align"], rel=1e-4)


def test_the_entropy_is_that_of_first_tokens_alone() -> None:
    module = stage({"first_token_entropy": 0.1})
    receiver, texts, block = first_batch(module)
    with torch.no_grad():
        found = receiver.loss(receiver.read_own(texts), block, 0.0).metrics["first_token_entropy"]
        logits = receiver._predict(receiver.read_own(texts), block, block.early(1)).logits
    assert logits is not None and len(logits) == sum(len(text.questions) for text in texts)
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean()
    assert found == pytest.approx(float(entropy), rel=1e-4)


def test_padding_has_no_size_that_counts() -> None:
    module = stage({"output_rms_weight": 1.0})
    receiver, block = module.system.receivers["a"], pack_questions([[([5], [17])], [([6], [23])]], 0)
    torch.manual_seed(0)
    z, counts, found = torch.randn(2, 4, 16), torch.tensor([4, 2]), []
    for padding in (0.0, 50.0):
        z[1, 2:] = padding
        found.append(receiver.reader_loss(receiver.read_latents(z, counts), block).metrics["output_rms"])
    assert found[0] == pytest.approx(found[1]) and found[0] > 0


def test_in_slot_tuning_weights_go_over_its_own_steps() -> None:
    module = stage({"first_token_weight": 1.0, "first_token_weight_end": 0.0})
    receiver, texts, _ = first_batch(module)
    tuning = SlotTuning(receiver, texts, module.config)
    tuning.total_batches = 5
    outs = [tuning.forward(tuning.batch(i)) for i in range(4)]
    weights = [out.terms["first_token_ce"].item() / out.metrics["first_token_ce"] for out in outs]
    assert weights == pytest.approx([1.0, 0.75, 0.5, 0.25])
