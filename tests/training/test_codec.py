"""Codebooks from latents, and training with the codes in the loop."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from latentwire.checkpoint.parts import register_codebooks
from latentwire.checkpoint.tensors import PACK_FROM, load_folder, save_folder
from latentwire.core.errors import CheckpointError, WireError
from latentwire.core.names import LATENT
from latentwire.encoder.backbone import BackboneEncoder
from latentwire.model.pretrained import save_checkpoint
from latentwire.model.receiver import Receiver
from latentwire.model.sender import Sender
from latentwire.model.system import LatentWire
from latentwire.training.codebooks import (
    Rotation,
    Vocabulary,
    build_codebook,
    counted,
    fit_aq,
    fit_fsq,
    fit_rvq,
    principal_rotation,
)
from latentwire.training.loop import Trainer
from latentwire.training.stages import codec
from latentwire.training.stages.codec import CodecTuning
from latentwire.wire.codebook import Codebook
from latentwire.wire.codecs import CODECS, LearnedCodec
from latentwire.wire.codecs.fsq import FiniteScalarCodec
from latentwire.wire.samples import sample_codebook
from tests.systems import small_config, small_passages, small_system

FSQ = {"learned": ["fsq"], "bits": 12.0, "layers": 3, "width": 8, "passages": 12}
OWN = FSQ | {"learned": ["rvq", "fsq", "aq"], "index_bits": 4, "rank": 8}


def fitted(**sections: dict) -> tuple[LatentWire, list]:
    config = small_config(codec=OWN, **sections)
    system = small_system(config)
    prepared = [system.prepare(passage) for passage in small_passages(12)]
    system.scores = codec.fit(system, prepared, config)  # type: ignore[attr-defined]
    return system, prepared


def latents(rows: int = 3000, d_z: int = 10) -> tuple[torch.Tensor, np.ndarray]:
    """Latents of very different variances, each like the one before it; messages of 20."""
    torch.manual_seed(0)
    z = torch.randn(rows, d_z)
    for row in range(1, rows):
        z[row] = 0.9 * z[row - 1] + 0.44 * z[row]
    mixed = z * torch.logspace(0.5, -1.5, d_z) @ torch.linalg.qr(torch.randn(d_z, d_z))[0] + 3.0
    return mixed, np.arange(rows) % 20 == 0


def test_the_rotation_ranks_dimensions_by_what_their_errors_cost() -> None:
    z, _ = latents()
    torch.manual_seed(1)
    root = torch.randn(10, 10)
    metric = root @ root.T
    rotation = principal_rotation(z, metric, 10)
    y = (z - rotation.mean) @ rotation.into
    covariance = y.T @ y / len(y)
    torch.testing.assert_close(covariance, torch.diag(covariance.diagonal()), atol=1e-3, rtol=1e-3)
    assert (covariance.diagonal().diff() <= 0).all()
    torch.testing.assert_close(rotation.mean + y @ rotation.back, z, atol=1e-3, rtol=1e-3)
    # The cost of leaving out the last dimensions is their variance.
    error = z - (rotation.mean + y[:, :4] @ rotation.back[:4])
    cost = ((error @ metric) * error).sum() / len(z)
    torch.testing.assert_close(cost, covariance.diagonal()[4:].sum(), atol=1e-3, rtol=1e-2)


def scalar_book(bits: float, **sections: float) -> tuple[FiniteScalarCodec, torch.Tensor, np.ndarray]:
    """Finite scalar quantisation of latents, all of whose dimensions weigh alike."""
    z, starts = latents()
    rotation, arrays = principal_rotation(z, torch.eye(10), 10).stored()
    config = small_config(codec=OWN | {"bits": bits} | sections).codec
    found = fit_fsq((z - rotation.mean) @ rotation.into, starts, config)
    writer = CODECS["fsq"]
    assert isinstance(writer, FiniteScalarCodec)
    return writer.with_book(build_codebook(writer, arrays | found.arrays, z, starts)), z, starts  # type: ignore[return-value]


def error(codec: FiniteScalarCodec, z: torch.Tensor, layers: int | None = None) -> float:
    return float(np.square(codec.quantized(z.numpy(), layers) - z.numpy()).sum(1).mean())


def test_a_stored_rotation_leads_back_to_the_same_latents() -> None:
    z, _ = latents()
    for width in (10, 4):
        exact = principal_rotation(z, torch.eye(10), width)
        rotation, arrays = exact.stored()
        assert arrays["back"].dtype == torch.int8 and ("into" in arrays) == (width < 10)
        torch.testing.assert_close(rotation.back, arrays["back"].float() * arrays["scale"].float()[:, None])
        torch.testing.assert_close(rotation.back, exact.back, atol=float(exact.back.abs().max()) / 250, rtol=0)
        there_and_back = rotation.mean + (z - rotation.mean) @ rotation.into @ rotation.back
        wanted = exact.mean + (z - exact.mean) @ exact.into @ exact.back
        torch.testing.assert_close(there_and_back, wanted, atol=1e-5 if width == 10 else 0.2, rtol=0)
        torch.testing.assert_close(rotation.back @ rotation.into, torch.eye(width), atol=2e-3, rtol=0)


def test_components_of_what_is_there_several_times_are_those_of_all_of_it() -> None:
    z, metric = latents()[0][:50], torch.diag(torch.rand(10) + 0.1)
    times = torch.arange(50) % 4 + 1
    once, each = principal_rotation(z, metric, 6, times), principal_rotation(z.repeat_interleave(times, 0), metric, 6)
    torch.testing.assert_close(once.mean, each.mean)
    torch.testing.assert_close(once.into @ once.back, each.into @ each.back, atol=1e-4, rtol=1e-4)
    for found in (once, each):
        y = (z.repeat_interleave(times, 0) - found.mean) @ found.into
        covariance = y.T @ y / len(y)
        torch.testing.assert_close(covariance, covariance.diagonal().diag(), atol=1e-4, rtol=0)


def test_the_vocabulary_of_many_texts_takes_no_memory_for_each_token_that_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_at: list[int] = []

    def rotation_of(z: torch.Tensor, metric: torch.Tensor, width: int, *more: torch.Tensor) -> Rotation:
        looked_at.append(len(z))
        return principal_rotation(z, metric, width, *more)

    torch.manual_seed(0)
    read = torch.randint(20, (500, 2))
    vocabulary = Vocabulary(torch.randn(40, 6), torch.randn(2, 6, 12), read)
    z = sum((vocabulary.features[read[:, p]] @ vocabulary.maps[p] for p in range(2)), torch.zeros(12))
    rotation, _ = principal_rotation(z, torch.eye(12), 12).stored()
    monkeypatch.setattr("latentwire.training.codebooks.aq.principal_rotation", rotation_of)
    fit_aq(z, vocabulary, rotation, small_config(codec={"learned": ["aq"], "layers": 2}).codec)
    assert looked_at == [20]


@pytest.mark.parametrize("bits", [4.0, 10.0, 24.0])
def test_scalar_levels_take_the_bits_that_were_asked_for(bits: float) -> None:
    codec, z, starts = scalar_book(bits)
    book = codec.book
    assert book is not None
    codes = codec.codes(book, codec.rotated(z.numpy()))
    taken = [column.bits(c, starts) / len(c) for column, c in zip(book.columns, codes.T, strict=True)]
    assert 0.75 * bits < sum(taken) < 1.01 * bits
    most = dict(zip(book.dims, book.cells, strict=True))  # the last column of a dimension has the most
    assert [most[dim] for dim in sorted(most)] == sorted(most.values(), reverse=True)
    assert book.layers[-1] == len(book.sizes)
    for layer, part in enumerate(np.split(np.array(taken), book.layers[:-1])):
        assert part.sum() == pytest.approx(bits / len(book.layers), abs=2), layer
    for size, by, column in zip(book.sizes, book.refines, book.columns, strict=True):
        assert size <= 7 and (by is None or size == 3)
        assert column.ordered or size == 3  # latents are like the one before


def test_more_bits_are_closer() -> None:
    errors = [error(*scalar_book(bits)[:2]) for bits in (4.0, 10.0, 24.0)]
    assert all(after < 0.6 * before for before, after in pairwise(errors))


def test_where_in_a_cell_a_level_lies_depends_on_the_cell() -> None:
    """Far out, the part towards the middle is the likelier one, on either side."""
    book = scalar_book(24.0)[0].book
    assert book is not None
    finer = [column.counts for column in book.columns if column.refines is not None and len(column.counts) <= 7]
    assert finer
    for counts in finer:
        below, above = np.split(counts, [len(counts) // 2, len(counts) // 2 + 1])[::2]
        assert below[:, 2].sum() > 1.2 * below[:, 0].sum() and above[:, 0].sum() > 1.2 * above[:, 2].sum()


def test_what_a_cell_stands_for_is_the_mean_of_what_lies_in_it() -> None:
    codec, z, _ = scalar_book(24.0)
    book = codec.book
    assert book is not None
    y = codec.rotated(z.numpy())
    codes = codec.codes(book, y)
    assert any(book.refines)
    for number, (dim, words) in enumerate(zip(book.dims, book.codewords, strict=True)):
        counts = np.bincount(codes[:, number], minlength=len(words))
        means = np.bincount(codes[:, number], weights=y[:, dim], minlength=len(words)) / np.maximum(1, counts)
        step = np.diff(words[:, 0]).mean()
        finest = number not in book.refines  # whose levels are means of equal shares of the range
        np.testing.assert_allclose(words[counts > 9, 0], means[counts > 9], atol=(0.5 if finest else 0.05) * step)


def test_a_dimension_with_a_far_outlier_is_told_coarse_to_fine_too() -> None:
    """There what is worth most comes late: three cells tell little more than where the outlier is."""
    torch.manual_seed(0)
    y = torch.randn(2000, 2)
    y[7, 0] = 200.0
    starts = np.arange(2000) % 20 == 0
    found = fit_fsq(y, starts, small_config(codec=OWN | {"bits": 8.0}).codec)
    sizes = [[len(w) for w, own in zip(found.words, found.dims or [], strict=True) if own == dim] for dim in (0, 1)]
    assert len(sizes[0]) > 1 and all(own == sorted(own) for own in sizes)


def test_some_of_the_layers_are_as_good_as_a_codebook_of_their_bits() -> None:
    """Which layers of fine steps in the first dimensions, one after the other, would not be."""
    codec, z, _ = scalar_book(24.0, layers=4)
    for layers in (1, 2, 3):
        other, _, _ = scalar_book(6.0 * layers, layers=1)
        assert error(codec, z, layers) < 1.25 * error(other, z)


def test_no_codeword_is_dead_and_more_codebooks_are_closer() -> None:
    z, _ = latents()
    y = z - z.mean(0)
    torch.manual_seed(0)
    assert fit_rvq(y[:500], small_config(codec=OWN | {"bits": 8.0, "epochs": 1}).codec).layers == [1, 2]
    found = fit_rvq(y, small_config(codec=OWN | {"bits": 16.0}).codec)
    assert found.layers == [1, 2, 4] and [w.shape for w in found.words] == [(16, 10)] * 4
    rest, errors = y, [float(y.pow(2).sum())]
    for column in found.words:
        codes = torch.cdist(rest, column).argmin(1)
        assert torch.bincount(codes, minlength=16).min() > 0
        rest = rest - column[codes]
        errors.append(float(rest.pow(2).sum()))
    assert errors[4] < errors[3] < errors[2] < errors[1] < 0.5 * errors[0]


def test_information_is_what_a_small_error_costs() -> None:
    """Along some directions d, the squared slope of the answer loss at each latent, measured by moving it."""
    system, prepared = fitted()
    passages, step = prepared[:2], 1e-2
    z, counts = system.sender.latents_of([sent for sent, _ in passages])
    information = codec.Information(system, seed=0)
    information.add(passages, z, counts)

    def loss(name: str, moved: torch.Tensor) -> float:
        receiver = system.receivers[name]
        block = receiver.pack([texts[name] for _, texts in passages], information.rng)
        with torch.no_grad(), receiver.using(LATENT, dropout=False):
            return float(receiver.loss(receiver.read_latents(moved, counts), block).total) * block.answer_tokens

    torch.manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(3, z.shape[2]), dim=1)
    for name, total in information.sums.items():
        assert total.shape == (z.shape[2], z.shape[2]) and torch.equal(total, total.T)
        for direction in directions:
            squares = 0.0
            for row, count in enumerate(counts.tolist()):
                for place in range(count):
                    shift = torch.zeros_like(z)
                    shift[row, place] = step * direction
                    squares += ((loss(name, z + shift) - loss(name, z - shift)) / (2 * step)) ** 2
            told = float(direction.double() @ total @ direction.double())
            assert told == pytest.approx(squares, rel=0.05)


@pytest.mark.parametrize(
    "sections",
    [
        {"deep_prefix": {"dropout": 0.5}},
        {"adapter": {"color": "full"}, "features": {"use_deep_prefix": False}},
    ],
    ids=["dropout", "statistics that follow what is read"],
)
def test_what_an_error_costs_is_measured_as_readers_are(sections: dict) -> None:
    system, prepared = fitted(**sections)
    before = {name: tensor.clone() for name, tensor in system.receivers["a"].reader.state_dict().items()}
    made = [codec.Information(system, seed=0) for _ in range(2)]
    for information in made:
        codec.collect_latents(system, prepared[:4], information.add)
    for name, tensor in made[0].sums.items():
        assert torch.equal(tensor, made[1].sums[name])
    after = system.receivers["a"].reader.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert all(module.training for module in system.receivers["a"].reader.modules())


def test_a_share_of_the_metric_is_what_changes_anything_at_all() -> None:
    system, prepared = fitted()
    information = codec.Information(system, seed=0)
    codec.collect_latents(system, prepared, information.add)
    told, both, made = (information.metric(floor) for floor in (0.0, 0.25, 1.0))
    torch.testing.assert_close(both, 0.75 * told + 0.25 * made)
    linear = [receiver.reader.generator.linear.detach() for receiver in system.receivers.values()]
    wanted = [w @ w.T / (w @ w.T).diagonal().mean() for w in linear]
    torch.testing.assert_close(made, torch.stack(wanted).mean(0))
    assert told.diagonal().mean() == pytest.approx(1.0) and not torch.allclose(told, made, rtol=0.1)
    fisher = torch.stack([total / total.diagonal().mean() for total in information.sums.values()]).mean(0).float()
    squared = told @ told
    torch.testing.assert_close(squared / squared.diagonal().mean(), fisher, rtol=1e-3, atol=1e-3)


def test_codebooks_travel_with_the_checkpoint(tmp_path: Path) -> None:
    system, prepared = fitted()
    for kind in ("rvq", "fsq", "aq"):
        assert 0.2 < system.scores["kept"][kind] < 1 and system.scores["bits_per_latent"][kind] > 4  # type: ignore[attr-defined]
    save_checkpoint(tmp_path / "ckpt", system)
    save_folder(tmp_path / "packed", load_folder(tmp_path / "ckpt"), {"config": {}}, dtype=torch.bfloat16, pack=True)
    for folder in ("ckpt", "packed"):
        other = small_system(system.config)
        with pytest.raises(WireError, match="the checkpoint has no codebook of it"):
            other.sender.ready("rvq")
        other.load_state_dict(load_folder(tmp_path / folder))
        assert {k: b.id for k, b in other.sender.codebooks.items()} == {
            k: b.id for k, b in system.sender.codebooks.items()
        }
    (wire,) = system.sender.messages([prepared[0][0]], "rvq:layers=2")
    section = wire.frame.latents
    assert section is not None and len(section.layers) == 2 and wire.frame.codebook == system.sender.codebooks["rvq"].id


def test_codes_are_counted_again_where_latents_have_changed() -> None:
    system, prepared = fitted()
    before = dict(system.sender.codebooks)
    with torch.no_grad():
        system.sender.encoder.weight.mul_(0.3)  # type: ignore[operator]
    z, starts = codec.collect_latents(system, prepared)

    def bits() -> dict[str, float]:
        messages = np.split(z.numpy(), np.flatnonzero(starts)[1:])
        writers = {kind: system.sender.ready(kind) for kind in before}
        return {k: sum(len(layer) for one in messages for layer in w.encode(one)) for k, w in writers.items()}

    stale = bits()
    scores = codec.recount(system, prepared, system.config)
    assert scores["bits_per_latent"].keys() == before.keys()
    for kind, now in bits().items():
        assert now < stale[kind]
        arrays, others = system.sender.codebooks[kind].arrays, before[kind].arrays
        assert all(np.array_equal(arrays[k], others[k]) for k in arrays if k not in ("orders", "counts"))


@pytest.mark.parametrize("kind", ["rvq", "fsq", "aq"])
def test_the_loop_reads_what_a_message_would_bring(kind: str) -> None:
    system, prepared = fitted()
    own = {"rvq": ("bits", "index_bits"), "fsq": ("bits",), "aq": ("rank",)}[kind]
    given = {key: value for key, value in OWN.items() if key in (*own, "layers", "width", "passages")}
    config = small_config(codec=given | {"learned": [kind], "float_share": 0.0, "drop_layers": 0.0})
    module = CodecTuning(system, prepared, config)
    batch = module.batch(0)
    z, counts = system.sender.latents_of([prepared[i][0] for i in batch.chosen])
    sent = module.sent(z, batch)
    for row, i, count in zip(sent, batch.chosen, counts.tolist(), strict=True):
        (wire,) = system.sender.messages([prepared[i][0]], kind)
        torch.testing.assert_close(row[:count].detach(), torch.as_tensor(wire.latents), atol=1e-5, rtol=1e-5)
    gradient = torch.randn_like(z)
    (through,) = torch.autograd.grad((sent * gradient).sum(), z)  # straight through
    torch.testing.assert_close(through, gradient)


def test_large_arrays_of_a_codebook_are_not_packed(tmp_path: Path) -> None:
    book = sample_codebook("rvq", 256, 64, [64] * 4)
    _, rotation = Rotation(torch.zeros(64), torch.eye(64), torch.randn(64, 64)).stored()
    columns = {name: book.arrays[name] for name in ("layers", "sizes", "orders", "codewords", "counts")}
    whole = Codebook("rvq", columns | {name: tensor.numpy() for name, tensor in rotation.items()})
    for own, name in ((book, "into"), (whole, "back")):
        assert own.arrays[name].size >= PACK_FROM
        tensors = {key: torch.from_numpy(array) for key, array in own.arrays.items()}
        save_folder(tmp_path / name, {"codecs/rvq": tensors}, {"config": {}}, dtype=torch.bfloat16, pack=True)
        assert register_codebooks(load_folder(tmp_path / name))["rvq"].same_as(own)
    tensors = {name: torch.from_numpy(array) for name, array in book.arrays.items()}
    save_folder(tmp_path / "bad", {"codecs/rvq": tensors | {"mean": tensors["mean"].bfloat16()}}, {"config": {}})
    with pytest.raises(CheckpointError, match=r"mean is torch\.bfloat16"):
        register_codebooks(load_folder(tmp_path / "bad"))
    save_folder(tmp_path / "more", {"codecs/rvq": tensors | {"x": tensors["mean"].bfloat16()}}, {"config": {}})
    assert register_codebooks(load_folder(tmp_path / "more"))["rvq"].same_as(book)


def test_a_stage_that_was_stopped_goes_on_to_the_same(tmp_path: Path) -> None:
    def trainer(folder: Path) -> Trainer:
        system, prepared = fitted()
        return Trainer(CodecTuning(system, prepared, system.config), system.config, folder, 4)

    whole = trainer(tmp_path / "whole")
    losses = [whole.take_step()["loss"] for _ in range(4)]
    first = trainer(tmp_path / "cut")
    assert [first.take_step()["loss"] for _ in range(2)] == losses[:2]
    first.save()
    second = trainer(tmp_path / "cut")
    second.restore()
    assert [second.take_step()["loss"] for _ in range(2)] == losses[2:]


def test_rounds_differ_in_what_arrives_and_receivers_share_it() -> None:
    system, prepared = fitted()
    module = CodecTuning(system, prepared, system.config)
    drawn = [module.sending(module.batch(index)) for index in range(80)]
    assert drawn[0::2] == drawn[1::2]
    assert None in drawn and {(s.codec.name, s.layers) for s in drawn if s} == {
        (kind, layers) for kind in ("rvq", "fsq", "aq") for layers in (1, 2, 3)
    }


def test_training_brings_the_loss_of_coded_latents_down(tmp_path: Path) -> None:
    system, prepared = fitted(optimizer={"lr": 3e-3, "lr_generator": 1e-2, "lr_encoder": 1e-3})
    module = CodecTuning(system, prepared, system.config)

    def loss() -> float:
        with torch.no_grad():
            return sum(float(module.forward(module.batch(index)).loss) for index in range(1000, 1012))

    before = loss()
    Trainer(module, system.config, tmp_path, 80).fit()
    assert loss() < 0.8 * before


def test_either_end_alone_knows_the_codebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that loads only the receiver decodes what one that loads only the sender wrote."""
    from latentwire.model import pretrained
    from tests.systems import small_encoder
    from tests.tiny import tiny_lm

    system, _ = fitted()
    save_checkpoint(tmp_path / "ckpt", system)
    monkeypatch.setattr(pretrained, "build_encoder", lambda config, device: small_encoder(config))
    monkeypatch.setattr(pretrained, "load_lm", lambda model, *_: tiny_lm(model.removeprefix("tiny-")))
    monkeypatch.setattr("latentwire.wire.codebook._KNOWN", {})
    wire = Sender.from_pretrained(tmp_path / "ckpt").encode("Mira lives in Orlin.", "fsq")
    monkeypatch.setattr("latentwire.wire.codebook._KNOWN", {})
    reply = Receiver.from_pretrained(tmp_path / "ckpt", "b").answer(type(wire).from_bytes(wire.to_bytes()), "Where?")
    assert reply.source == "latents"
    assert CODECS["fsq"].codebook is None


def test_where_codes_are_trained_schedules_are_at_their_end() -> None:
    system, prepared = fitted()
    module = CodecTuning(system, prepared, system.config)
    module.total_batches = 100
    assert {module.batch(index).progress for index in range(4)} == {1.0}


def test_codewords_that_nothing_is_near_are_moved_to_where_there_is_something() -> None:
    torch.manual_seed(0)  # nine of ten latents are the same, and so are most codewords at first
    y = torch.cat([torch.zeros(2700, 4), (5 * torch.randn(15, 4)).repeat(20, 1)])
    (words,) = fit_rvq(y, small_config(codec=OWN | {"bits": 4.0, "layers": 1}).codec).words
    used = torch.cdist(y, words).argmin(1).unique().numel()
    assert used > 8


def test_a_codebook_is_found_with_its_options_and_judged_on_what_it_was_not_found_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = small_config(
        codec=FSQ | {"passages": 20, "width": 5},
        curriculum={"closed_form": {"importance_floor": 0.7}},
    )
    system = small_system(config)
    prepared = [system.prepare(passage) for passage in small_passages(24)]
    read, floors, collect, metric = [], [], codec.collect_latents, codec.Information.metric
    monkeypatch.setattr(
        codec,
        "collect_latents",
        lambda system, passages, *look: (read.append(passages), collect(system, passages, *look))[1],
    )
    monkeypatch.setattr(codec.Information, "metric", lambda self, floor: (floors.append(floor), metric(self, floor))[1])
    codec.fit(system, prepared, config)
    codec.recount(system, prepared, config)
    assert read == [prepared[:18], prepared[18:20]] * 2 and floors == [0.7]
    assert len(system.sender.codebooks["fsq"].back) == 5


def test_what_is_sent_when_hangs_on_the_seed_and_the_text_is_never_read() -> None:
    drawn, (system, prepared) = [], fitted()
    curriculum = {"end_to_end": {"tail_text_prob": 1.0}}
    for seed in (0, 0, 1):
        config = small_config(codec=OWN, system={"seed": seed}, features={"use_lora": True}, curriculum=curriculum)
        module = CodecTuning(system, prepared, config)
        batches = [module.batch(2 * number) for number in range(20)]
        assert not any(batch.from_text for batch in batches)
        drawn.append([sent and (sent.codec.name, sent.layers) for sent in map(module.sending, batches)])
    assert drawn[0] == drawn[1] != drawn[2]


def test_codebooks_do_not_hang_on_what_ran_before() -> None:
    system, prepared = fitted()
    before = {kind: book.id for kind, book in system.sender.codebooks.items()}
    torch.manual_seed(7)
    codec.fit(system, prepared, system.config)
    assert {kind: book.id for kind, book in system.sender.codebooks.items()} == before


def test_k_means_makes_the_passes_that_are_asked_for() -> None:
    made, z = [], latents(600)[0]
    for epochs in (1, 1, 3):
        torch.manual_seed(0)
        made.append(torch.cat(fit_rvq(z - z.mean(0), small_config(codec=OWN | {"epochs": epochs}).codec).words))
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def test_what_tokens_add_is_found_from_their_features_and_from_latents() -> None:
    """Latents that are sums over tokens, of which features know half: what latents tell of the rest is learned."""
    torch.manual_seed(0)
    tokens, phases, d_z = 40, 2, 12
    features, told, rest = torch.randn(tokens, 6), torch.randn(phases, 6, d_z), torch.randn(phases, 6, d_z)
    features[tokens // 2 :] += 1.0
    read = torch.stack([torch.randint(0, tokens // 2 + 5, (2000,)), torch.randint(tokens // 2 - 5, tokens, (2000,))], 1)
    true = told + 0.7 * rest  # in a text
    z = 5.0 + sum(features[read[:, p]] @ true[p] for p in range(phases)) + 0.5 * torch.randn(2000, d_z)
    starts = np.arange(len(z)) % 20 == 0
    rotation, arrays = principal_rotation(z, torch.eye(d_z), d_z).stored()
    config = small_config(codec={"learned": ["aq"], "rank": 6, "layers": 2}).codec
    vocabulary = Vocabulary(features, told, read)
    writer = CODECS["aq"]
    assert isinstance(writer, LearnedCodec)
    made = fit_aq(z, vocabulary, rotation, config)
    writer = writer.with_book(build_codebook(writer, arrays | made, z, starts))
    book = writer.book
    assert book is not None and (book.layers, book.sizes) == ([1, 2], [tokens, tokens])
    codes = writer.codes(book, writer.rotated(z.numpy()))
    assert (codes == read.numpy()).mean() > 0.9
    arrived = torch.from_numpy(writer.quantized(z.numpy()))
    assert (arrived - z).square().mean() < 0.05 * z.var()
    first = torch.from_numpy(writer.quantized(z.numpy(), 1))
    torch.testing.assert_close(first.mean(0), z.mean(0), atol=0.2, rtol=0.0)  # what is missing is at its mean
    # What arrives varies as latents do, whichever part of it was known.
    assert float((arrived.var(0).sum() / z.var(0).sum()).sqrt()) == pytest.approx(1.0, abs=0.03)
    weak = fit_aq(z, Vocabulary(features, 0.01 * told, read), rotation, config)
    torch.testing.assert_close(weak["maps"].norm(), made["maps"].norm(), rtol=0.05, atol=0.0)
    narrow = fit_aq(z, vocabulary, rotation, config.model_copy(update={"rank": 2}))
    assert narrow["codewords"].shape == (tokens, 3) and narrow["maps"].shape == (phases * 3, d_z)


def test_a_writer_looks_for_tokens_in_latents_that_vary_as_much_as_what_they_add() -> None:
    torch.manual_seed(0)
    features, maps, read = torch.randn(40, 6), torch.randn(2, 6, 12), torch.randint(40, (1000, 2))
    z = sum((features[read[:, p]] @ maps[p] for p in range(2)), 2.0 * torch.randn(1000, 12))
    rotation, arrays = principal_rotation(z, torch.eye(12), 12).stored()
    config = small_config(codec={"learned": ["aq"], "rank": 6, "layers": 2}).codec
    made, found = fit_aq(z, Vocabulary(features, maps, read), rotation, config), []
    for into in (made["into"], rotation.into):
        writer = CODECS["aq"]
        assert isinstance(writer, LearnedCodec)
        book = build_codebook(writer, arrays | made | {"into": into}, z, np.arange(1000) % 20 == 0)
        found.append((writer.codes(book, writer.with_book(book).rotated(z.numpy())) == read.numpy()).mean())
    assert found[0] > 1.1 * found[1]


def test_codewords_of_tokens_that_were_never_read_stay_in_range() -> None:
    """Fewer tokens are read than features have dimensions, so that the others stand far out in some."""
    torch.manual_seed(0)
    features, maps = torch.randn(400, 64), torch.randn(2, 64, 32)
    read = torch.randint(30, (200, 2))
    z = sum((features[read[:, p]] @ maps[p] for p in range(2)), torch.zeros(32))
    rotation, arrays = principal_rotation(z, torch.eye(32), 32).stored()
    config = small_config(codec={"learned": ["aq"], "layers": 2}).codec
    writer = CODECS["aq"]
    assert isinstance(writer, LearnedCodec)
    found = fit_aq(z, Vocabulary(features, maps, read), rotation, config)
    writer = writer.with_book(build_codebook(writer, arrays | found, z, np.arange(200) % 10 == 0))
    assert (torch.from_numpy(writer.quantized(z.numpy())) - z).square().mean() < 0.05 * z.var()


def test_tokens_that_were_never_seen_share_what_those_have_that_were_seen_once() -> None:
    codes = np.array([[0, 0], [0, 1], [1, 0], [2, 1]], np.int32)
    z = torch.zeros(4, 12)
    book = sample_codebook("aq", 12, 12, [10, 10])
    writer = CODECS["aq"].with_book(book)  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(writer), "codes", lambda self, book, y: codes)
        counts = counted(writer, z, np.arange(4) == 0).arrays["counts"].reshape(2, 10)
    np.testing.assert_array_equal(counts[0], counts[1])
    shares = counts[0] / counts[0].sum()
    np.testing.assert_allclose(shares[:3], np.array([4, 3, 1]) / 8 * (7 / 9), rtol=1e-4)
    np.testing.assert_allclose(shares[3:], 2 / 9 / 7, rtol=1e-4)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("more", [{}, {"companion": "tiny-gemma3", "companion_layers": [1], "companion_d_z": 6}])
def test_the_parts_of_a_vocabulary_add_up_to_the_latent_of_a_token(lora: bool, more: dict) -> None:
    config = small_config(encoder=more | {"keep": 2}, features={"use_sender_lora": lora})
    system = small_system(config)
    encoder = system.sender.encoder
    assert isinstance(encoder, BackboneEncoder)
    with torch.no_grad():
        tensors = [encoder.mean, *encoder.parameters()]
        for tensor in [*tensors, *(system.sender.lora.trainable_parameters() if system.sender.lora else ())]:
            tensor.normal_(std=0.3)
        features, maps = encoder.vocabulary()
        texts = map(system.sender.prepare, ("a", "b", "?"))
        for text in texts:
            (token,) = set(encoder.tokens_read(text)[0])
            z, _ = system.sender.latents_of([text])
            made = (features[token] @ maps).sum(0)
            offset = encoder.mean @ encoder.weight
            if encoder.companion is not None:
                offset = torch.cat([offset, encoder.companion.mean @ encoder.companion.weight])
            assert len(z[0]) == 1
            torch.testing.assert_close(z[0, 0], made - offset, atol=1e-4, rtol=1e-4)
