"""Which pages are asked for: ``anon and not lru``, and the bits-spec of page-types -b."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memlens.pages.bits import KPAGE_BITS
from memlens.pages.flags import COMPOUND

Words = NDArray[np.uint64]
Mask = NDArray[np.bool_]
_TOKEN = re.compile(r"\s*(?:(?P<name>\w+)|(?P<sign>[()!&|]+?))")
_ALL_BITS = (1 << 64) - 1
_SIGNS = {"!": "not", "&": "and", "|": "or"}

# Parentheses nest on Python's stack.
_DEPTH_AT_MOST = 50


@dataclass(frozen=True, slots=True)
class Filter:
    """
    Which words are asked for; called with words, ``(n,)`` uint64, it gives ``(n,)`` bool.

    :param keeps: does that.
    :param mask: the bits that it looks at: where one is not known, neither is the answer.
    """

    keeps: Callable[[Words], Mask]
    mask: int

    def __call__(self, words: Words) -> Mask:
        """Return which words are asked for."""
        return self.keeps(words)

    def __and__(self, other: "Filter") -> "Filter":
        return Filter(lambda words: self(words) & other(words), self.mask | other.mask)

    def __or__(self, other: "Filter") -> "Filter":
        return Filter(lambda words: self(words) | other(words), self.mask | other.mask)

    def __invert__(self) -> "Filter":
        return Filter(lambda words: ~self(words), self.mask)


class FilterError(ValueError):
    """
    An expression that cannot be understood.

    :param text: the expression.
    :param position: of the character where it fails, from 0.

    >>> print(FilterError("no such flag", "anon and lru2", 9))
    no such flag at character 10: anon and ▸lru2
    """

    def __init__(self, message: str, text: str, position: int) -> None:
        pointed = f"{text[:position]}▸{text[position:]}"
        super().__init__(f"{message} at character {position + 1}: {pointed}")
        self.text = text
        self.position = position


class _Token(NamedTuple):
    word: str
    position: int


def parse_where(text: str) -> Filter:
    """
    Return the filter of an expression of flag names, and, or, not and parentheses.

    >>> wanted = parse_where("anon and not (lru or dirty)")
    >>> wanted(np.array([1 << 12, 1 << 12 | 1 << 5, 0], dtype=np.uint64)).tolist()
    [True, False, False]

    :param text: names are long names, symbols with or without ``KPF_``, beginnings of
        only one name, or ``bit29``; ``!``, ``&`` and ``|`` do as well.
    :return: takes words as ``expand_words`` gives them.
    :raises FilterError: with the place in the text.
    """
    parser = _Parser(text)
    found = parser.either()
    parser.end()
    return found


def find_mask(name: str) -> int | None:
    """
    Return the bits that a name stands for; None if there is no such name.

    >>> find_mask("anon") == find_mask("KPF_ANON") == find_mask("anonymous") == 1 << 12
    True
    """
    wanted = name.lower()
    if wanted == "compound":
        return int(COMPOUND)
    if match := re.fullmatch(r"bit_?(\d{1,2})", wanted):
        return 1 << int(match[1]) if int(match[1]) < 64 else None
    begins = []
    for row in KPAGE_BITS:
        spellings = (row.name, row.symbol.lower(), row.symbol.lower().removeprefix("kpf_"))
        if wanted in spellings:
            return 1 << row.bit
        if any(spelling.startswith(wanted) for spelling in spellings):
            begins.append(1 << row.bit)
    return begins[0] if len(begins) == 1 else None


def parse_bits(text: str) -> Filter:
    """
    Return the filter of a bits-spec as the kernel's ``page-types -b`` takes it.

    >>> parse_bits("lru,~active")(np.array([1 << 5, 1 << 5 | 1 << 6], np.uint64)).tolist()
    [True, False]

    ``a,b`` any of them, ``a,b=a`` these two bits are so, ``a,~b`` a and not b,
    ``=a,b`` exactly these.  A name may be cut short, then the lowest bit that begins so is
    meant; numbers are bits too: ``0x10``.

    :raises FilterError: with the place in the text.
    """
    left, equals, right = text.partition("=")
    after = len(left) + 1
    if equals and not left:
        mask, bits = _ALL_BITS, _sum_bits(text, right, after, has_negated=False)
    elif equals:
        mask = _sum_bits(text, left, 0, has_negated=False)
        bits = _sum_bits(text, right, after, has_negated=False)
    elif "~" in text:
        mask = _sum_bits(text, text, 0, has_negated=True)
        bits = _sum_bits(text, text, 0, has_negated=False)
    else:
        return _any_of(_sum_bits(text, text, 0, has_negated=False))
    return Filter(lambda words: (words & np.uint64(mask)) == np.uint64(bits), mask)


def all_of(filters: Sequence[Filter]) -> Filter:
    """Return the filter that keeps what every one of these keeps."""
    return reduce(and_, filters, Filter(lambda words: np.ones(len(words), bool), 0))


def _sum_bits(text: str, part: str, offset: int, has_negated: bool) -> int:
    bits = 0
    for name in part.split(","):
        is_negated = name.startswith("~")
        if has_negated or not is_negated:
            bits |= _bit_of(text, name.removeprefix("~"), offset + is_negated)
        offset += len(name) + 1
    return bits


def _bit_of(text: str, name: str, position: int) -> int:
    if not name:
        return 0
    if "compound".startswith(name):
        return int(COMPOUND)
    for row in KPAGE_BITS:
        if row.name.startswith(name):
            return 1 << row.bit
    try:
        number = int(name, 0)
    except ValueError:
        raise FilterError(f"no flag {name!r}{_suggest(name)}", text, position) from None
    if not 0 <= number <= _ALL_BITS:
        raise FilterError("a word has 64 bits", text, position)
    return number


def _suggest(name: str) -> str:
    import difflib

    names = [row.name for row in KPAGE_BITS]
    close = difflib.get_close_matches(name.lower(), names, 1)
    return f" (did you mean {close[0]}?)" if close else ""


class _Parser:
    """Recursive descent: or binds weaker than and, and weaker than not."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(self._split())
        self.next = 0
        self.depth = 0

    def _split(self) -> list[_Token]:
        tokens, position, stop = [], 0, len(self.text.rstrip())
        while position < stop:
            match = _TOKEN.match(self.text, position)
            if match is None:
                blank = len(self.text) - len(self.text[position:].lstrip())
                raise FilterError("unexpected character", self.text, blank)
            group = "name" if match["name"] else "sign"
            word = match[group]
            tokens.append(_Token(_SIGNS.get(word, word), match.start(group)))
            position = match.end()
        return tokens

    def peek(self) -> str:
        """Return the next word, lower case, "" at the end."""
        return self.tokens[self.next].word.lower() if self.next < len(self.tokens) else ""

    def place(self) -> int:
        """Return where the next word stands."""
        at_end = self.next >= len(self.tokens)
        return len(self.text) if at_end else self.tokens[self.next].position

    def take(self, word: str) -> bool:
        """Skip the next word if it is this one."""
        is_next = self.peek() == word
        self.next += is_next
        return is_next

    def end(self) -> None:
        """Raise unless all is read."""
        if self.next < len(self.tokens):
            raise FilterError("expected and, or, or the end", self.text, self.place())

    def either(self) -> Filter:
        """Read ``a or b or ...``."""
        found = self.both()
        while self.take("or"):
            found |= self.both()
        return found

    def both(self) -> Filter:
        """Read ``a and b and ...``."""
        found = self.negated()
        while self.take("and"):
            found &= self.negated()
        return found

    def negated(self) -> Filter:
        """Read ``not a``, ``(a)``, or a name."""
        is_negated = False
        while self.take("not"):
            is_negated = not is_negated
        found = self.group() if self.peek() == "(" else self.name()
        return ~found if is_negated else found

    def group(self) -> Filter:
        """Read ``(a)``."""
        opened = self.place()
        self.take("(")
        self.depth += 1
        if self.depth > _DEPTH_AT_MOST:
            raise FilterError("too many parentheses", self.text, opened)
        found = self.either()
        self.depth -= 1
        if not self.take(")"):
            raise FilterError("expected )", self.text, self.place())
        return found

    def name(self) -> Filter:
        """Read a name."""
        word, position = self.peek(), self.place()
        if not word or word in ("and", "or", ")"):
            raise FilterError("expected a flag", self.text, position)
        mask = find_mask(word)
        if mask is None:
            message = f"no flag, or more than one, is {word!r}{_suggest(word)}"
            raise FilterError(message, self.text, position)
        self.next += 1
        return _any_of(mask)


def _any_of(mask: int) -> Filter:
    bits = np.uint64(mask)
    return Filter(lambda words: (words & bits) != 0, mask)
