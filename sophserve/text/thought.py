"""Where a thought that may begin an answer ends, in text or bytes that come in parts."""

from __future__ import annotations

from typing import AnyStr, Generic, Literal


class ThoughtSplitter(Generic[AnyStr]):
    """Splits an answer into a thought, which its marks and the blanks behind it belong to, and what it says.

    inside: the answer begins within the thought; otherwise it begins with the opening mark, or there is no thought.
    place: where the end of what came so far is: `before` it is known whether there is a thought, `inside` it, `closed`
    behind its closing mark with nothing but blanks since, or `behind` it. tail: of what came before, what the opening
    mark may become; inside, what the closing mark may.
    """

    def __init__(self, opening: AnyStr, closing: AnyStr, inside: bool) -> None:
        self._opening: AnyStr = opening
        self._closing: AnyStr = closing
        self.place: Literal["before", "inside", "closed", "behind"] = "inside" if inside else "before"
        self.tail: AnyStr = opening[:0]

    def push(self, more: AnyStr) -> tuple[AnyStr, AnyStr]:
        """What became certain: more of the thought, and more of what is said."""
        nothing = more[:0]
        thought = nothing
        if self.place == "before":
            more, self.tail = self.tail + more, nothing
            begun = more.lstrip()
            if begun.startswith(self._opening):
                self.place = "inside"
                thought = more[: len(more) - len(begun) + len(self._opening)]
                more = more[len(thought) :]
            elif self._opening.startswith(begun):
                self.tail = more
                return nothing, nothing
            else:
                self.place = "behind"
        if self.place == "inside":
            seen = self.tail + more
            end = seen.find(self._closing)
            if end < 0:
                self.tail = seen[max(0, len(seen) - len(self._closing) + 1) :]
                return thought + more, nothing
            self.place = "closed"
            end += len(self._closing) - len(self.tail)
            thought += more[:end]
            more, self.tail = more[end:], nothing
        if self.place == "closed":
            said = more.lstrip()
            thought += more[: len(more) - len(said)]
            more = said
            if said:
                self.place = "behind"
        return thought, more

    def finish(self) -> AnyStr:
        """What was held back, which is no thought: nothing more comes."""
        return self.tail if self.place == "before" else self.tail[:0]
