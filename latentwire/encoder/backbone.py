"""Window features of a pretrained LM, then one linear map.

Pooling contiguous windows of a pretrained LM's hidden states, rather than learned queries, follows ARC-Encoder
(arXiv 2510.20535). A window's features are the RMS-normalised hidden states of its tokens, or of the few that are
chosen (`encoder.keep`), at several depths, concatenated; the map to d_z comes from the closed-form fit and is then
trained on answers, and with it, where that is asked for, LoRA on the model. A companion (`encoder.companion`), where
there is one, makes the last dimensions of each latent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from latentwire.backbone.lm import LanguageModel
from latentwire.backbone.padding import pad_right
from latentwire.config.schema import Config
from latentwire.core.batches import batched
from latentwire.encoder.base import Encoder, deepest_layer, rms_normalised, states_in_windows, too_many_tokens
from latentwire.encoder.companion import Companion
from latentwire.encoder.salience import Salience
from latentwire.encoder.text import SenderText, by_window
from latentwire.encoder.windows import best_of_text, best_of_windows

TOGETHER = 64
"""Texts of one batch, where choices are made ahead."""
VOCABULARY = 512
"""Tokens that are read at once, each by itself."""


class BackboneEncoder(Encoder):
    """Window features (M, phases * len(layers) * hidden_size) to latents (M, d_z), those of a companion behind.

    `adapted` switches on what is trained of the model; without it the model is frozen. Which tokens are read is for the
    untouched model to say.
    """

    from_scratch = False
    mean: Tensor

    def __init__(self, lm: LanguageModel, config: Config, companion: LanguageModel | None = None):
        super().__init__()
        self.layers = config.encoder.layers
        self.deepest = deepest_layer(self.layers, lm, "encoder.layers")
        self.keep, self.across = config.encoder.keep, config.encoder.keep_from == "text"
        self.best_first = config.encoder.keep_order == "score"
        self.bidirectional = config.encoder.bidirectional
        if self.keep is None:  # else the whole model is needed, to tell what is hard to predict
            lm.truncate(self.deepest)
        self.adapted: Callable[[], AbstractContextManager[None]] | None = None
        self.lm = self.source = lm
        self.device = lm.device
        self.phases = config.encoder.read
        self.d_features = self.phases * len(self.layers) * lm.anatomy.hidden_size
        self.weight = nn.Parameter(torch.randn(self.d_features, config.encoder.own_d_z) / self.d_features**0.5)
        self.register_buffer("mean", torch.zeros(self.d_features))
        self.companion = None if companion is None else Companion(companion, config)
        by_salience = config.encoder.keep_by == "salience"
        self.salience = Salience(len(self.layers) * lm.anatomy.hidden_size) if by_salience else None

    @classmethod
    def load(cls, config: Config, device: str) -> BackboneEncoder:
        def lm(name: str) -> LanguageModel:
            how = config.model
            return LanguageModel.load(name, dtype=how.dtype, attn_implementation=how.attn_implementation, device=device)

        companion = config.encoder.companion
        return cls(lm(config.encoder.model), config, None if companion is None else lm(companion))

    def too_long(self, text: SenderText) -> str | None:
        refusal = too_many_tokens(text, self.lm.anatomy.max_positions)
        return refusal or (self.companion.too_long(text) if self.companion else None)

    def features(self, texts: Sequence[SenderText]) -> list[Tensor]:
        """Window features of each text, a companion's behind them; for an adapted model what is going to be read, as
        its states will change: its tokens and the places of those in the windows, then a companion's, as one row of
        integers (`_packed`)."""
        if self.adapted is None:
            features = self.window_features(texts)
            if self.companion is None:
                return features
            return [torch.cat(both, 1) for both in zip(features, self.companion.window_features(texts), strict=True)]
        rows = [_packed(text.ids, _places(text)) for text in texts]
        if self.companion is not None:
            rows = [row + _packed(*self.companion.read(text)) for row, text in zip(rows, texts, strict=True)]
        return [torch.tensor(row, device=self.device) for row in rows]

    @torch.no_grad()
    def window_features(self, texts: Sequence[SenderText]) -> list[Tensor]:
        """What the untouched model makes of each text: (M_i, d_features), fp32. It reads behind the sender's BOS.

        Texts whose tokens are still to be chosen are read one at a time, as `choose` would: once for both.
        """
        if len(texts) > 1 and not all(text.is_chosen for text in texts):
            return [self.window_features([text])[0] for text in texts]
        seen, final, ids = self._read(texts, self.bidirectional)
        if self.keep is not None and len(texts) == 1 and not self.bidirectional:
            texts[0].remember(self._choices(texts, seen, final, ids)[0])
        return states_in_windows([seen[k] for k in self.layers], [_places(text) for text in texts], self.phases)

    def choose(self, text: SenderText) -> list[list[int]]:
        return self._choices([text], *self._read([text]))[0]

    def choose_ahead(self, texts: Sequence[SenderText]) -> None:
        if self.keep is None:
            return
        for batch in batched(sorted(texts, key=lambda text: len(text.ids)), TOGETHER):
            for text, chosen in zip(batch, self._choices(batch, *self._read(batch)), strict=True):
                text.remember(chosen)

    def tokens_read(self, text: SenderText) -> list[list[int]]:
        """(N, phases) the tokens that are read for each window, in their order."""
        ids = [text.ids[place] for place in _places(text)]
        return [ids[start : start + self.phases] for start in range(0, len(ids), self.phases)]

    @torch.no_grad()
    def vocabulary(self) -> tuple[Tensor, Tensor]:
        """What the encoder makes of every token of its model, read by itself behind what stands before a text: features
        (V, F), with a companion's behind them, and what these add to a latent in each phase: (phases, F, d_z)."""
        tokens = self.lm.model.get_input_embeddings().num_embeddings
        rows = [self._alone(part) for part in batched(range(tokens), VOCABULARY)]
        maps = self.weight.view(self.phases, -1, self.weight.shape[1])
        if self.companion is not None:
            theirs = self.companion.weight.view(self.phases, -1, self.companion.weight.shape[1])
            maps = torch.stack([torch.block_diag(a, b) for a, b in zip(maps, theirs, strict=True)])
        return torch.cat(rows), maps.detach()

    def _alone(self, tokens: Sequence[int]) -> Tensor:
        """Features (tokens, F) of single tokens."""
        before, behind = self.lm.frame
        texts = []
        for token in tokens:
            string = self.lm.tokenizer.decode([token]) or " "
            ids, offsets = [*before, token, *behind], [(0, 0)] * len(before) + [(0, len(string))]
            place = [[len(before)]] * self.phases
            texts.append(SenderText(string, ids, offsets, 1, (0,), place, 1, before=len(before)))
            texts[-1].remember(place)
        rows = self.features(texts)
        if self.adapted is not None:
            rows = self._adapted_features(rows, [1] * len(rows), self.adapted)
        own, theirs = torch.stack(rows)[:, 0].split([self.d_features, rows[0].shape[1] - self.d_features], 1)
        return torch.cat([part[:, : part.shape[1] // self.phases] for part in (own, theirs)], 1)

    def salience_inputs(self, texts: Sequence[SenderText]) -> list[Tensor]:
        """What salience looks at of each text's tokens, special ones left out: (T_i, d_states + 1)."""
        seen, final, ids = self._read(texts)
        surprisal = self.lm.surprisal(final, ids)
        return [self._salience_inputs(seen, surprisal, row)[list(text.own_tokens)] for row, text in enumerate(texts)]

    @torch.no_grad()
    def _read(
        self, texts: Sequence[SenderText], bidirectional: bool = False
    ) -> tuple[Mapping[int, Tensor], Tensor, Tensor]:
        """The untouched model's hidden states at the layers that are taken, its final ones, which tell what is hard to
        predict unless it reads in both directions, and the tokens."""
        ids, mask = pad_right([text.ids for text in texts], self.lm.pad_id, self.device)
        needed = self.lm.first_layers(self.deepest) if bidirectional else nullcontext()
        with needed, self.lm.outputs_of(self.layers) as seen:
            final = self.lm.final_states(ids, mask, bidirectional=bidirectional)
        return seen, final, ids

    def _salience_inputs(self, seen: Mapping[int, Tensor], surprisal: Tensor, row: int) -> Tensor:
        """Of one text of a batch, at all places: (T, d_states + 1)."""
        states = rms_normalised(torch.stack([seen[k][row] for k in self.layers], 1).float())
        return Salience.inputs(states.flatten(1), surprisal[row])

    @torch.no_grad()
    def _choices(
        self, texts: Sequence[SenderText], seen: Mapping[int, Tensor], final: Tensor, ids: Tensor
    ) -> list[list[list[int]]]:
        """For each text the tokens that are read of it: (keep, N) indices."""
        every, out = self.lm.surprisal(final, ids), []
        for row, text in enumerate(texts):
            surprisal = scores = every[row].tolist()
            if self.salience is not None:
                scores = self.salience(self._salience_inputs(seen, every, row)).tolist()
            order = scores if self.best_first else surprisal
            if self.across:
                out.append(best_of_text(text.own_tokens, scores, order, self.phases, len(text.starts)))
            else:
                out.append(best_of_windows(text.phase_tokens, scores, order, self.phases))
        return out

    def forward(self, features: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
        """One row of features becomes one latent."""
        if self.adapted is not None:
            features = self._adapted_features(features, counts, self.adapted)
        rows = torch.cat(list(features)).float()
        z = (rows[:, : self.d_features] - self.mean) @ self.weight  # one product: its gradient is as large as the map
        if self.companion is not None:
            z = torch.cat([z, self.companion(rows[:, self.d_features :])], 1)
        return nn.utils.rnn.pad_sequence(list(z.split(list(counts))), batch_first=True)

    def _adapted_features(
        self, read: Sequence[Tensor], counts: Sequence[int], adapted: Callable[[], AbstractContextManager[None]]
    ) -> list[Tensor]:
        """`features` with gradients, of texts given by what is read of them."""
        sizes = [count * self.phases for count in counts]
        texts = [_unpacked(row.tolist(), size) for row, size in zip(read, sizes, strict=True)]
        own, places, behind = zip(*texts, strict=True)
        ids, mask = pad_right(own, self.lm.pad_id, self.device)
        with adapted(), self.lm.first_layers(self.deepest), self.lm.outputs_of(self.layers) as seen:
            self.lm.final_states(ids, mask, bidirectional=self.bidirectional)
        features = states_in_windows([seen[k] for k in self.layers], places, self.phases)
        if self.companion is None:
            return features
        theirs, places, _ = zip(*map(_unpacked, behind, sizes), strict=True)
        return [torch.cat(both, 1) for both in zip(features, self.companion.features(theirs, places), strict=True)]


def _places(text: SenderText) -> list[int]:
    """Indices (M * phases) of the tokens that are read, window by window."""
    return by_window(text.chosen or text.phase_tokens)


def _packed(ids: list[int], places: list[int]) -> list[int]:
    """What a model reads of a text, and where in it, as one row."""
    return [len(ids), *ids, *places]


def _unpacked(row: list[int], places: int) -> tuple[list[int], list[int], list[int]]:
    """The ids and so many places of a row that `_packed` made, and what stands behind."""
    ids = row[0] + 1
    return row[1:ids], row[ids : ids + places], row[ids + places :]
