"""Token ids that objectives insert into rows, and the tokens that end a sentence or a line.

Our tokenizers have 100 sentinels, as T5's. The last five replace tokens that other papers add, unless the tokenizer has them:
[CLS] and [SEP] (BERT), and UL2's three modes. The others mark spans; the first is also [MASK].
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from data_prep.tokenization.tokenizer import eos_id, num_ids, start_id

# in the order in which they replace sentinels, from the last sentinel on
_STANDING_IN = ("[CLS]", "[SEP]", "[NLU]", "[NLG]", "[S2S]")
_SENTENCE_ENDS = (".", "!", "?")


@dataclass(frozen=True, eq=False, kw_only=True)
class Vocabulary:
    """The token ids of one tokenizer that objectives use."""

    start: int
    """The start token of decoders."""
    end: int
    """The end token of documents."""
    sentinels: tuple[int, ...] = ()
    """Ids that mark spans, in order: the first id marks the first span."""
    named: dict[str, int] = field(default_factory=dict)
    """[MASK], [CLS], [SEP], [NLU], [NLG], [S2S]."""
    ordinary: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """Every id that can occur in text, ascending."""
    ends_sentence: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, dtype=bool))
    """(ids,) true if the token's text ends with a full stop, an exclamation or a question mark."""
    ends_line: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, dtype=bool))
    """(ids,) true if the token's text contains a line end."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Vocabulary:
        """Read a tokenizer. A missing token is an error only in the objective that needs it."""
        pieces = tokenizer.get_vocab(with_added_tokens=True)
        special = {token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special}
        sentinels: list[int] = []
        while (token := pieces.get(f"<extra_id_{len(sentinels)}>")) is not None:
            sentinels.append(token)
        named = {name: pieces[name] for name in (*_STANDING_IN, "[MASK]") if name in pieces}
        if len(sentinels) > len(_STANDING_IN):
            for number, name in enumerate(_STANDING_IN, start=1):
                named.setdefault(name, sentinels[-number])
            named.setdefault("[MASK]", sentinels[0])
            sentinels = sentinels[: -len(_STANDING_IN)]
        size = num_ids(tokenizer)
        ids = np.array(sorted(set(pieces.values()) - special - set(named.values())), dtype=np.int64)
        texts = tokenizer.decode_batch([[token] for token in ids.tolist()], skip_special_tokens=False)
        ends_sentence, ends_line = np.zeros(size, dtype=bool), np.zeros(size, dtype=bool)
        ends_sentence[ids] = [text.rstrip().endswith(_SENTENCE_ENDS) for text in texts]
        ends_line[ids] = ["\n" in text for text in texts]
        return cls(
            start=start_id(tokenizer),
            end=eos_id(tokenizer),
            sentinels=tuple(sentinels),
            named=named,
            ordinary=ids,
            ends_sentence=ends_sentence,
            ends_line=ends_line,
        )

    def span_ids(self, num_spans: int, repeat: bool, objective: str) -> NDArray[np.int64]:
        """The sentinels (num_spans,) of a row's spans. Raises ValueError if there are too few and they may not repeat."""
        if not self.sentinels:
            raise ValueError(
                f"{objective} marks spans by sentinels, and the tokenizer has none (<extra_id_0>, …): prepare the data with "
                "one made by `fnet-t5 tokenizer train`"
            )
        if num_spans > len(self.sentinels) and not repeat:
            raise ValueError(
                f"{objective} needs {num_spans} sentinels a row and the tokenizer leaves {len(self.sentinels)}: shorten "
                "data.encoder_length, raise mean_span_length, lower num_spans, or set repeat_sentinels to start again from the "
                "first"
            )
        return np.resize(np.array(self.sentinels, dtype=np.int64), num_spans)

    def token(self, name: str, objective: str) -> int:
        """The id of a named token. Raises ValueError if the tokenizer has neither it nor a sentinel that replaces it."""
        if name not in self.named:
            raise ValueError(
                f"{objective} needs the token {name}, and the tokenizer has neither it nor a sentinel that replaces it: "
                "prepare the data with one made by `fnet-t5 tokenizer train`"
            )
        return self.named[name]
