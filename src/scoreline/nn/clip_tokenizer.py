"""CLIP's tokenizer (Radford et al. 2021, 2103.00020): byte pair encoding (Sennrich et al. 2016, 1508.07909) of
lower-case text.

The table of merges is no part of this package; it is downloaded by the user like the weights.
"""

from __future__ import annotations

import gzip
import html
import itertools
import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from scoreline.core.errors import ArtefactError, InputError
from scoreline.nn.pretrained import checked_digest, find_pretrained

__all__ = ["CLIPTokenizer"]

START, END = "<|startoftext|>", "<|endoftext|>"
_LAST = "</w>"  # marks the last symbol of a word
_MERGES = 49152 - 256 - 2  # as many of the published table's lines as CLIP was trained with
_CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")


class CLIPTokenizer:
    """Texts to CLIP's tokens: start, byte pairs of each word, end, zeros.

    Text is composed (Unicode NFC), unescaped from HTML, put into lower case, its white space folded. Transformers does
    the same less the unescaping; OpenAI's code also sends it through ftfy first, which straightens curly quotes among
    other things: give `repair=ftfy.fix_text` for the very same tokens.

    Args:
        merges: pairs of symbols in the order in which they merge.
        repair: applied to every text first.
    """

    def __init__(self, merges: Sequence[tuple[str, str]], repair: Callable[[str], str] | None = None) -> None:
        self.repair = repair
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        symbols = list(_byte_symbols().values())
        words = symbols + [symbol + _LAST for symbol in symbols] + [a + b for a, b in merges] + [START, END]
        self.ids = {word: number for number, word in enumerate(words)}

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        repair: Callable[[str], str] | None = None,
        trusted: bool = False,
    ) -> CLIPTokenizer:
        """The tokenizer with the published merges.

        Args:
            path: `bpe_simple_vocab_16e6.txt.gz`; None searches for it (`scoreline.nn.pretrained.pretrained_folders`).
            repair: as for the class.
            trusted: read a file whose SHA-256 is not the known one.

        Raises:
            ArtefactError: no such file, an unknown checksum, or no such table inside.
        """
        file = find_pretrained("clip-merges", path)
        checked_digest("clip-merges", file, trusted)
        try:
            lines = gzip.decompress(file.read_bytes()).decode().split("\n")[1 : 1 + _MERGES]
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise ArtefactError(str(file), None, f"cannot be read as merges, corrupt or truncated ({error})") from None
        pairs = [tuple(line.split()) for line in lines]
        if not pairs or any(len(pair) != 2 for pair in pairs):
            raise ArtefactError(str(file), None, "two symbols a line are expected after the first line")
        return cls([(a, b) for a, b in pairs], repair)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without start and end."""
        text = unicodedata.normalize("NFC", text if self.repair is None else self.repair(text))
        text = " ".join(html.unescape(html.unescape(text)).split()).lower()
        table = _byte_symbols()
        found: list[int] = []
        for word in _words(text):
            if word in (START, END):
                found.append(self.ids[word])
            else:
                found += [self.ids[part] for part in self._merged("".join(table[b] for b in word.encode()))]
        return found

    def __call__(self, texts: Sequence[str], *, length: int = 77, truncate: bool = False) -> Tensor:
        """Tokens (N, length), int64, of N texts.

        Raises:
            InputError: a text of more tokens than fit, unless `truncate` cuts it.
        """
        if isinstance(texts, str):
            raise InputError("texts", texts, "a list of texts is expected; put one text into brackets")
        rows = torch.zeros(len(texts), length, dtype=torch.int64)
        for row, text in zip(rows, texts):
            tokens = [self.ids[START], *self.encode(text), self.ids[END]]
            if len(tokens) > length:
                if not truncate:
                    mend = f"has {len(tokens)} tokens, {length} fit; shorten it, or pass truncate=True"
                    raise InputError("text", text, mend)
                tokens = [*tokens[: length - 1], self.ids[END]]
            row[: len(tokens)] = torch.tensor(tokens)
        return rows

    def _merged(self, word: str) -> list[str]:
        """The symbols of a word after all merges: time and again the pair of lowest rank, wherever it stands."""
        parts = [*word[:-1], word[-1] + _LAST]
        while len(parts) > 1:
            best = min(itertools.pairwise(parts), key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if best not in self.ranks:
                break
            joined, i = [], 0
            while i < len(parts):
                pair = tuple(parts[i : i + 2]) == best
                joined.append(parts[i] + parts[i + 1] if pair else parts[i])
                i += 2 if pair else 1
            parts = joined
        return parts


@lru_cache(maxsize=1)
def _byte_symbols() -> dict[int, str]:
    """A printable character for each byte: itself where it is one, else one from 256 on; in CLIP's order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def _kind(character: str) -> str:
    """L of a letter, N of a number, space, or other."""
    if character.isspace():
        return "space"
    kind = unicodedata.category(character)[0]
    return kind if kind in "LN" else "other"


def _words(text: str) -> Iterator[str]:
    """Contractions, runs of letters, single numbers, runs of what is neither; the special tokens whole."""
    i = 0
    while i < len(text):
        whole = next((w for w in (START, END, *_CONTRACTIONS) if text.startswith(w, i)), None)
        kind, end = _kind(text[i]), i + 1
        if whole is not None:
            end = i + len(whole)
        elif kind != "N":
            while end < len(text) and _kind(text[end]) == kind:
                end += 1
        if kind != "space":
            yield text[i:end]
        i = end
