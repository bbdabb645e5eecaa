"""How the tokens of one request are chosen and when it ends. Shared by the API, the engine and the worker."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

import msgspec

MAX_LOGPROBS = 20


class StructuredOutput(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an answer must look like.

    value: the schema as JSON text, the regular expression, a JSON array of the choices, or a grammar in llguidance's
    dialect of Lark or in GBNF; empty for json_object.
    """

    kind: Literal["json_object", "json_schema", "regex", "choice", "lark"]
    value: str = ""


class Thought(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a model may think before it answers, and how that is marked. inside: the answer begins within it; otherwise
    it begins with the opening mark where the model thinks at all. Raises ValueError for a thought without an end."""

    opening: str
    closing: str
    inside: bool = False

    def __post_init__(self) -> None:
        if not self.closing:
            raise ValueError(f"closing must be a text of at least one character, got {self.closing!r}")


class SamplingParams(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, dict=True):
    """Names and meanings follow vLLM's. Raises ValueError for a value out of its range.

    n: how many answers. temperature: 0 is greedy, as is a top_p of 0. top_k: 0 or -1 is all. max_tokens: None is the
    rest of the context, 0 computes the prompt alone, for its logprobs or for the prefix cache.
    stop: texts that end the answer. bad_words: texts that it will not contain as tokens of their own, with or without
    a space before them. allowed_token_ids: the only tokens that may be chosen. shown_token_ids: special tokens that
    stay in the text although skip_special_tokens hides the others. logprobs, prompt_logprobs: how many
    most probable tokens to report besides the chosen one, None for no logprobs. begins_text: the answer's text begins
    anew, as that of a chat does, and loses the space before its first word where texts of the tokenizer begin without
    one; else it goes on where the prompt's ends. seed: the same seed and prompt give the same answer under any load;
    None draws one. structured: a form that the answer is kept to, and that ends it once it is complete. Where other
    parameters leave no token that fits it, the request fails. thought: what comes before the answer proper, which alone
    has that form and ends at texts of stop. speculative_tokens: at most so many are guessed in a step; 0 is none, None
    as many as the server allows. prediction: tokens that
    the answer is thought to have. Both change how long an answer takes, not what it says.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    bad_words: list[str] = []
    allowed_token_ids: list[int] | None = None
    seed: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: list[str] = []
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    shown_token_ids: list[int] = []
    spaces_between_special_tokens: bool = True
    begins_text: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    structured: StructuredOutput | None = None
    thought: Thought | None = None
    speculative_tokens: int | None = None
    prediction: list[int] = []

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            self.stop = [self.stop]
        if self.top_k == -1:
            self.top_k = 0
        self._check("n", "between 1 and 128", 1 <= self.n <= 128)
        self._check("temperature", "between 0 and 100", 0 <= self.temperature <= 100)
        self._check("top_p", "at least 0 and at most 1", 0 <= self.top_p <= 1)
        self._check("top_k", "-1, 0 or positive", 0 <= self.top_k < 2**31)
        self._check("min_p", "between 0 and 1", 0 <= self.min_p <= 1)
        self._check("repetition_penalty", "above 0 and at most 100", 0 < self.repetition_penalty <= 100)
        self._check("presence_penalty", "between -2 and 2", -2 <= self.presence_penalty <= 2)
        self._check("frequency_penalty", "between -2 and 2", -2 <= self.frequency_penalty <= 2)
        self._check("seed", "a 64-bit integer", self.seed is None or -(2**63) <= self.seed < 2**63)
        most = self.max_tokens
        self._check("max_tokens", "at least 0", most is None or most >= 0)
        self._check("min_tokens", "at least 0", self.min_tokens >= 0)
        self._check("min_tokens", f"at most max_tokens ({most})", most is None or self.min_tokens <= most)
        drafts = self.speculative_tokens
        self._check("speculative_tokens", "at least 0", drafts is None or drafts >= 0)
        self._check("bad_words", "texts that are not blank", all(word.strip() for word in self.bad_words))
        self._check("allowed_token_ids", "at least one token id", self.allowed_token_ids != [])
        self._check("stop", "texts of at least one character", all(self.stop))
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            self._check(name, f"between 0 and {MAX_LOGPROBS}", value is None or 0 <= value <= MAX_LOGPROBS)
        biases = self.logit_bias.values()
        self._check("logit_bias", "values between -100 and 100", all(-100 <= bias <= 100 for bias in biases))

    def _check(self, name: str, rule: str, ok: bool) -> None:
        if not ok:
            raise ValueError(f"{name} must be {rule}, got {getattr(self, name)}")

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature == 0 or self.top_p == 0

    @cached_property
    def allowed_mask(self) -> bytes | None:
        """allowed_token_ids as bits, the lowest first; None allows all."""
        if self.allowed_token_ids is None:
            return None
        digits = bytearray(b"0") * (max(self.allowed_token_ids) + 1)
        for token_id in self.allowed_token_ids:
            digits[~token_id] = ord("1")
        return int(digits, 2).to_bytes(-(-len(digits) // 8), "little")

    @cached_property
    def for_worker(self) -> SamplingParams:
        """Without what the workers need not know, or are told otherwise."""
        temperature, top_p = (0.0, 1.0) if self.greedy else (self.temperature, self.top_p)
        known_here: dict[str, Any] = {"stop": [], "bad_words": [], "allowed_token_ids": None, "shown_token_ids": []}
        known_here |= {"begins_text": False, "thought": self.thought if self.structured else None}
        known_here |= {"speculative_tokens": None, "prediction": []}
        return msgspec.structs.replace(self, temperature=temperature, top_p=top_p, **known_here)


def sampling_defaults(generation_config: dict[str, Any]) -> dict[str, Any]:
    """The fields of SamplingParams that a checkpoint's generation_config.json sets; `do_sample: false` is greedy."""
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    defaults = {name: generation_config[name] for name in names if generation_config.get(name) is not None}
    if generation_config.get("max_new_tokens") is not None:
        defaults["max_tokens"] = generation_config["max_new_tokens"]
    if generation_config.get("do_sample") is False:
        defaults["temperature"] = 0.0
    return defaults
