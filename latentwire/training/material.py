"""What a run trains on, as token ids: passages with their questions, and plain text for the closed form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat, zip_longest
from typing import Any, TypeVar

from latentwire.backbone.load import files_digest
from latentwire.config import Config
from latentwire.core.errors import TrainingError
from latentwire.core.hashing import stable_hash
from latentwire.data.cloze import CLOZE
from latentwire.data.example import Passage, data_fingerprint
from latentwire.data.renamed import RENAMED
from latentwire.model.encoding import Prepared, ReceiverText
from latentwire.model.receiver import Receiver
from latentwire.model.system import LatentWire
from latentwire.training.stages.salience import SentPassage

T = TypeVar("T")
END: Any = object()
TOO_SHORT = 32
"""Plain texts of so few tokens say little of how latents are spread."""


class Material:
    """Passages and texts, without those that are too long for data.max_context_tokens, the sender or a receiver.

    TrainingError where no passage is left.
    """

    def __init__(self, system: LatentWire, config: Config, passages: Sequence[Passage], texts: Sequence[str]):
        self.system = system
        self.config = config
        self.texts = texts
        fitting = [(passage, prepare_fitting(system, config, passage)) for passage in passages]
        asked = [(passage, prepared) for passage, prepared in fitting if prepared is not None and passage.questions]
        print(
            f"data: {len(asked)} of {len(passages)} training passages have at most "
            f"{config.data.max_context_tokens} tokens and fit sender and receivers",
            flush=True,
        )
        if not asked:
            refusals = (system.sender.refusal(system.sender.tokenize(passage.context)) for passage in passages)
            reason = next((f" (the first one: {refusal})" for refusal in refusals if refusal), "")
            raise TrainingError(
                f"data: no training passage is short enough for data.max_context_tokens, sender and receivers{reason}"
            )
        self.passages = [passage for passage, _ in asked]
        self.prepared: list[Prepared] = [prepared for _, prepared in asked]
        self.fingerprint = data_fingerprint(self.passages)

    def inputs(self) -> dict[str, str]:
        """Hashes of what a run reads: of passages, of plain text, and of models that lie in folders or files here."""
        hashes = {"data: what it trains on": self.fingerprint}
        if self.texts:
            hashes["data.text_path: its text"] = stable_hash(list(self.texts))
        encoder, models = self.config.encoder, self.config.model.chosen
        for model in (encoder.model, encoder.companion, *(models[name] for name in self.system.receivers)):
            if model and (digest := files_digest(model)):
                hashes[f"the model {model}"] = digest
        return hashes

    def choose_ahead(self) -> None:
        """Choose the tokens that are read of all passages, on a GPU, which one text at a time would leave idle."""
        if self.system.sender.device.type != "cpu":
            self.system.sender.encoder.choose_ahead([sent for sent, _ in self.prepared])

    def check_salience(self) -> None:
        """TrainingError where there are too few passages to learn from what is asked."""
        found, aside = len(self.for_salience()), self.config.curriculum.closed_form.held_out
        if found <= aside:
            raise TrainingError(
                f"encoder.keep_by: salience is learned from passages with questions, and of {found} (without those of "
                f"data.cloze and data.renamed) curriculum.closed_form.held_out = {aside} are set aside"
            )

    def for_salience(self) -> list[SentPassage]:
        """Passages as the sender reads them, with questions that were asked of them, up to
        closed_form.salience_passages."""
        stage, every = self.config.curriculum.closed_form, zip(self.prepared, self.passages, strict=True)
        asked = [(sent, passage) for (sent, _), passage in every if not passage.id.startswith((CLOZE, RENAMED))]
        return asked[: stage.held_out + stage.salience_passages]

    def for_codebooks(self) -> list[Prepared]:
        """The first codec.passages. Of the last tenth, which codebooks are judged on, none comes once more under other
        names (data.renamed)."""
        origins = list(map(_origin, self.passages[: self.config.codec.passages]))
        cut = len(origins) - max(1, len(origins) // 10)
        aside = {origin: cut + i for i, origin in reversed(list(enumerate(origins[cut:])))}
        return [self.prepared[i] for i, origin in enumerate(origins) if aside.get(origin, i) == i]

    def of(self, receiver: Receiver) -> list[ReceiverText]:
        """The passages as a receiver gets them."""
        return [texts[receiver.name] for _, texts in self.prepared]

    def for_closed_form(self) -> Iterator[Prepared]:
        """Training passages and plain text in turn, up to closed_form.passages behind the closed_form.held_out that the
        fit sets aside. Of these no passage comes once more under other names (data.renamed)."""
        stage, number, aside = self.config.curriculum.closed_form, 0, set()
        origins = map(_origin, self.passages)
        plain = zip(repeat(None), self._plain())
        for origin, prepared in _in_turn(zip(origins, self.prepared, strict=True), plain):
            if number == stage.held_out + stage.passages:
                return
            if origin in aside:
                continue
            if number < stage.held_out and origin is not None:
                aside.add(origin)
            number += 1
            yield prepared

    def _plain(self) -> Iterator[Prepared]:
        asked = {sent.text for sent, _ in self.prepared}  # with data.cloze the same texts may be both
        for text in self.texts:
            prepared = None if text in asked else prepare_fitting(self.system, self.config, Passage("", text, ()))
            if prepared is not None and len(prepared[0].ids) > TOO_SHORT:
                yield prepared


def prepare_fitting(system: LatentWire, config: Config, passage: Passage) -> Prepared | None:
    """A passage as token ids, or None where it is longer than what is trained on, or than a receiver's window."""
    sent = system.sender.tokenize(passage.context)
    if sent.tokens > config.data.max_context_tokens or system.sender.refusal(sent):
        return None
    _, texts = prepared = system.prepare(passage, sent)
    fits = all(texts[name].positions <= r.lm.anatomy.max_positions for name, r in system.receivers.items())
    return prepared if fits else None


def _origin(passage: Passage) -> str:
    """The same text for a passage and for what it is under other names."""
    return passage.origin or passage.context


def _in_turn(*sources: Iterable[T]) -> Iterator[T]:
    """The first of each, the second of each, and so on; of what ends early there are fewer."""
    for turn in zip_longest(*sources, fillvalue=END):
        yield from (one for one in turn if one is not END)
