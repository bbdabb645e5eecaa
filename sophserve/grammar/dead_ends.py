"""Finds places in a grammar from which there is no way on, before an answer gets into one."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

from llguidance import LLMatcher, LLParserLimits

from sophserve.grammar.patterns import byte_tokens

# Places that are looked at.
MOST_PLACES = 600
# Of two places where the same may follow, those are one that have so many forced texts before them in common.
_HISTORY = 2
# Ways on that are followed from a place that has more, those that end something or begin it first.
_MOST_WAYS = 12
_PREFERRED = b'"}]),:;{[(1a <\n'
_BYTES = 256


@dataclass(frozen=True)
class _Place:
    """Where an answer can go on in more ways than one. mask: what could follow the place before; run: how many before
    that had the same, of which it is the next if `repeats`; history: the forced texts on the way here, each with the
    choice that led to it."""

    matcher: LLMatcher
    text: bytes = b""
    mask: bytes = b""
    run: int = 0
    history: tuple[bytes, ...] = ()
    repeats: bool = False


def dead_end(grammar: str, limits: LLParserLimits, most: int = MOST_PLACES) -> bytes | None:
    """The beginning of an answer that nothing can follow; None if there is none among the places looked at, `most` of
    the nearest ones."""
    start = LLMatcher(byte_tokens(), grammar, log_level=0, limits=limits)
    if start.is_error():  # it needs tokens that a vocabulary of bytes has not
        return None
    places, repeating = deque([_Place(start)]), deque[_Place]()
    seen: set[tuple[object, ...]] = set()
    for _ in range(most):
        if not places and not repeating:
            break
        place = (places or repeating).popleft()
        forced = place.matcher.compute_ff_bytes()
        place.matcher.consume_tokens(list(forced))
        mask = place.matcher.compute_bitmask()
        text, run, history = place.text + forced, 0, place.history
        if place.matcher.is_error():
            return text if "NoExtension" in place.matcher.get_error() else None
        if forced:
            history = (*history[1 - _HISTORY :], place.text[-1:] + forced)
        elif mask == place.mask:  # within a text, or a number: what ends it comes first
            run = place.run + 1
            if not place.repeats:
                repeating.append(replace(place, repeats=True))
                continue
        key = (mask, run, history)
        if key not in seen:
            seen.add(key)
            for way in _ways(mask):
                following = place.matcher.deep_copy()
                if following.consume_token(way):
                    places.append(_Place(following, text + bytes([way]), mask, run, history))
    return None


def _ways(mask: bytes) -> Iterator[int]:
    allowed = [way for way in range(_BYTES) if mask[way >> 3] >> (way & 7) & 1]
    if len(allowed) > _MOST_WAYS:
        allowed = sorted(allowed, key=lambda way: _PREFERRED.find(way) % _BYTES)[:_MOST_WAYS]
    yield from allowed
