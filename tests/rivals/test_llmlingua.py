"""The package llmlingua on a tiny model, offline."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from latentwire.core.errors import ModelError
from latentwire.data.example import Passage
from tests.systems import small_config, small_passages, small_system
from tests.tiny import SENTENCES, save_tiny, tiny_lm

pytest.importorskip("llmlingua", reason="the package llmlingua is not installed")
from latentwire.rivals.llmlingua import Compressor, compressor_of, select


def is_part(short: str, long: str) -> bool:
    """Whether the characters of one text are found in the other, in order."""
    rest = iter(long)
    return all(character in rest for character in short)


def test_the_longest_selection_that_fits_is_read(tmp_path: Path) -> None:
    passages = [*small_passages(2), Passage("long", " ".join(SENTENCES * 2), ())]  # the last: more than 200 tokens
    chosen: dict[int, list[str]] = {}
    for seed in (0, 1):
        model = save_tiny("llama", tmp_path / str(seed), seed)
        system = small_system(small_config(evaluation={"llmlingua_model": str(model)}))
        for passage in passages:
            texts = system.prepare(passage)[1]
            for name, receiver in system.receivers.items():
                text = texts[name]
                ids = select(receiver, text)
                assert ids[: text.head_len] == receiver.prompt.head
                read = receiver.lm.tokenizer.decode(ids[text.head_len :])
                assert 0.8 * text.latents < len(ids) - text.head_len <= text.latents
                assert is_part(read.replace("\ufffd", ""), passage.context)
                chosen.setdefault(seed, []).append(read)
        assert compressor_of(str(model), "cpu") is compressor_of(str(model), "cpu")
    assert all(a != b for a, b in zip(*chosen.values(), strict=True))  # another model finds other tokens hard


def test_a_text_that_fits_stays_whole() -> None:
    system = small_system(small_config(encoder={"window": 1}, evaluation={"llmlingua_model": "no such model"}))
    text = system.prepare(small_passages(1)[0])[1]["a"]
    assert select(system.receivers["a"], text) == text.ids


def test_the_package_chooses_by_the_surprisal_of_what_follows() -> None:
    """As docs/rivals.md says: each token is kept or not by how surprising the next one is."""
    lm = tiny_lm("llama")
    ids, offsets = lm.tokenize_with_offsets(SENTENCES[0] + SENTENCES[1])
    text = SENTENCES[0] + SENTENCES[1]
    with torch.no_grad():
        logits = lm.model(torch.tensor([ids])).logits[0, :-1]
    following = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
    compressor = Compressor(lm)
    found = compressor.compress_prompt(text, target_token=12, iterative_size=len(ids))["compressed_prompt"]
    expected = []
    for count in range(1, len(ids)):
        best = set(following.topk(count).indices.tolist()) | {len(ids) - 1}
        expected.append("".join(text[slice(*offsets[i])] for i in sorted(best)))
    assert found in expected and len(found) < len(text) / 2


def test_a_passage_longer_than_the_window_of_the_model_that_chooses() -> None:
    lm = tiny_lm("llama", max_position_embeddings=16)
    with pytest.raises(ModelError, match=r"evaluation.llmlingua_model: \d+ tokens .* window of 16"):
        Compressor(lm).longest(" ".join(SENTENCES), lm, 8)
