"""Text to token ids and back, over the `tokenizers` library (https://github.com/huggingface/tokenizers)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from sophserve.checkpoint import read_json
from sophserve.errors import CheckpointError, RequestError
from sophserve.text import sentencepiece
from sophserve.text.prefix_space import set_prefix_space

_ADD_BOS_FAMILIES = {"LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer"}
"""Tokenizer classes whose add_bos_token and add_eos_token count even if tokenizer.json says otherwise."""

_TAKEN_AS_THEY_ARE = {"", "PreTrainedTokenizer", "TokenizersBackend"}
"""Tokenizer classes for which tokenizer.json alone says whether a space comes before a text."""

_QWEN2_SPLIT = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
"""How Qwen2 cuts a text into words before BPE."""


class Tokenizer:
    """The tokenizer of one checkpoint.

    bos_token, eos_token: the texts of these special tokens, None where the checkpoint has none; bos_id, eos_id:
    their ids. special_ids: the ids that decode leaves out by default. special_tokens: the named special tokens as
    chat templates see them, such as `{"eos_token": "</s>"}`. config: tokenizer_config.json, empty where there is
    none. decoder_types: the steps of the decoder as tokenizer.json names them, such as `("ByteLevel",)`.
    """

    def __init__(self, backend: Backend, special_tokens: dict[str, str], config: dict[str, Any]) -> None:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = bool(config.get("split_special_tokens", False))
        self.config = config
        self.special_tokens = special_tokens
        self.bos_token = special_tokens.get("bos_token")
        self.eos_token = special_tokens.get("eos_token")
        self.bos_id = None if self.bos_token is None else backend.token_to_id(self.bos_token)
        self.eos_id = None if self.eos_token is None else backend.token_to_id(self.eos_token)
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(index for index, token in added.items() if token.special)
        self._backend = backend
        self._bytes: dict[int, bytes] = {}
        self.decoder_types = tuple(step["type"] for step in _decoder_steps(backend))

    @classmethod
    def from_directory(cls, directory: Path) -> Tokenizer:
        """Read tokenizer.json, or tokenizer.model, or vocab.json with merges.txt, and the files beside it.

        tokenizer_config.json adds tokens and names the special ones; special_tokens_map.json and
        added_tokens.json do so in older checkpoints. Raises CheckpointError.
        """
        path = directory / "tokenizer_config.json"
        config = read_json(path) if path.exists() else {}
        try:
            return cls._from_files(directory, config)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the tokenizer files in {directory} hold something unexpected in tokenizer_config.json, "
                f"special_tokens_map.json or added_tokens.json: {type(error).__name__}: {error}"
            ) from error

    @classmethod
    def _from_files(cls, directory: Path, config: dict[str, Any]) -> Tokenizer:
        family = str(config.get("tokenizer_class", "")).removesuffix("Fast")
        special = dict(config)
        if "added_tokens_decoder" not in config:
            special |= _read_optional(directory / "special_tokens_map.json")
        if (directory / "tokenizer.json").exists():
            backend = _with_flags(
                _from_tokenizer_json(directory / "tokenizer.json"), config.get("added_tokens_decoder") or {}
            )
            prefix = config.get("add_prefix_space")
            if isinstance(prefix, bool) and family not in _TAKEN_AS_THEY_ARE:
                set_prefix_space(backend, prefix)
            flags = ("add_bos_token", "add_eos_token")
            sets_template = family in _ADD_BOS_FAMILIES and any(flag in config for flag in flags)
        elif (directory / "tokenizer.model").exists():
            model = sentencepiece.read_model(directory / "tokenizer.model")
            backend = _from_sentencepiece(model, directory / "tokenizer.model", config)
            special = model.special_tokens | special
            sets_template = True
        elif (directory / "vocab.json").exists() and (directory / "merges.txt").exists():
            backend = _from_vocabulary(directory, family)
            sets_template = False
        else:
            raise CheckpointError(
                f"{directory} has no tokenizer: it needs a tokenizer.json, a tokenizer.model, "
                "or a vocab.json with a merges.txt"
            )
        _add_tokens(backend, directory, special)
        names = {name: _content(token) for name, token in _named_tokens(special).items()}
        if sets_template:
            _set_template(
                backend,
                names.get("bos_token") if config.get("add_bos_token", True) else None,
                names.get("eos_token") if config.get("add_eos_token", False) else None,
            )
        return cls(backend, names, config)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, with the checkpoint's own beginning (and end) tokens unless told otherwise.

        Releases the GIL. Raises RequestError for a text that is not valid Unicode.
        """
        try:
            # The batch call is the one that releases the GIL; "fast" leaves out offsets that nobody asks for.
            [encoding] = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        except (TypeError, UnicodeEncodeError):
            raise RequestError(
                "the text holds half of a surrogate pair (such as \\ud800 alone); remove it, it is no character"
            ) from None
        return encoding.ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids. Ids outside the vocabulary add nothing; bytes that are not UTF-8 become U+FFFD.

        clean_up_tokenization_spaces is not applied, as it removes spaces that the model wrote.
        """
        known = [index for index in ids if 0 <= index < 2**32]
        return self._backend.decode(known, skip_special_tokens=skip_special_tokens)

    @cached_property
    def vocab_size(self) -> int:
        """The largest token id + 1. Takes a tenth of a second the first time for a vocabulary of 150000."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    def plain_tokens(self) -> dict[int, str]:
        """The tokens by their ids, as the vocabulary writes them, without those that were added to it."""
        return {index: text for text, index in self._backend.get_vocab(with_added_tokens=False).items()}

    def special_id(self, text: str) -> int | None:
        """The id of a special token, None for any other text."""
        index = self._backend.token_to_id(text)
        return index if index in self.special_ids else None

    def in_vocabulary(self, token_id: int) -> bool:
        """Whether the id stands for a token."""
        return self._token(token_id) is not None

    def token_text(self, token_id: int) -> str:
        """One token as text, U+FFFD where it is not whole characters. Spaces at its beginning are kept."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes that a token adds to a text; empty for an id outside the vocabulary."""
        cached = self._bytes.get(token_id)
        if cached is None:
            cached = self._bytes[token_id] = self._to_bytes(self._token(token_id) or "")
        return cached

    def vocabulary_entry(self, token_id: int) -> str:
        """One token as the vocabulary writes it, such as `Ġworld`; empty for an id outside the vocabulary."""
        return self._token(token_id) or ""

    def is_byte_token(self, token_id: int) -> bool:
        """Whether the token is one of SentencePiece's `<0x00>` to `<0xFF>`, which stand for one byte each."""
        return "ByteFallback" in self.decoder_types and _byte_of(self._token(token_id) or "") is not None

    def _token(self, token_id: int) -> str | None:
        return self._backend.id_to_token(token_id) if 0 <= token_id < 2**32 else None

    def _to_bytes(self, token: str) -> bytes:
        if "ByteLevel" in self.decoder_types:
            try:
                return bytes(_BYTE_OF_CHARACTER[character] for character in token)
            except KeyError:
                return token.encode()
        if "ByteFallback" in self.decoder_types and (byte := _byte_of(token)) is not None:
            return bytes([byte])
        if "Replace" in self.decoder_types or "Metaspace" in self.decoder_types:
            token = token.replace(sentencepiece.SPACE, " ")
        return token.encode()


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _from_tokenizer_json(path: Path) -> Backend:
    try:
        return Backend.from_buffer(path.read_bytes())  # a fifth faster than from_file
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"cannot read {path}: {error}") from None


def _with_flags(backend: Backend, listed: dict[str, Any]) -> Backend:
    """The tokenizer in which added tokens are normalized, or not, as those that are listed say."""
    known = {token.content: token.normalized for token in backend.get_added_tokens_decoder().values()}
    wanted = {token.content: token.normalized for token in map(_added_token, listed.values())}
    if all(wanted.get(content, normalized) == normalized for content, normalized in known.items()):
        return backend
    data = json.loads(backend.to_str())  # only a new one forgets how such a token was taken before
    for entry in data["added_tokens"]:
        entry["normalized"] = wanted.get(entry["content"], entry["normalized"])
    return Backend.from_str(json.dumps(data))


def _from_sentencepiece(model: sentencepiece.SentencePieceModel, path: Path, config: dict[str, Any]) -> Backend:
    try:
        return sentencepiece.build_tokenizer(model, config.get("legacy", True), config.get("add_prefix_space"))
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"cannot read {path}: {error}") from None


def _from_vocabulary(directory: Path, family: str) -> Backend:
    if family != "Qwen2Tokenizer":
        raise CheckpointError(
            f"{directory} has no tokenizer.json, and vocab.json with merges.txt can be read for tokenizer_class "
            f"Qwen2Tokenizer only, not {family or 'an unknown one'}; save the tokenizer as tokenizer.json"
        )
    try:
        model = models.BPE.from_file(str(directory / "vocab.json"), str(directory / "merges.txt"))
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"cannot read vocab.json and merges.txt in {directory}: {error}") from None
    backend = Backend(model)
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _named_tokens(special: dict[str, Any]) -> dict[str, str | dict[str, Any]]:
    """bos_token, eos_token and all others that have a name, each a text or an object with its flags."""
    extra = special.get("extra_special_tokens")
    named = special | extra if isinstance(extra, dict) else special
    return {
        name: token
        for name, token in named.items()
        if name.endswith("_token") and token and isinstance(token, str | dict)
    }


def _add_tokens(backend: Backend, directory: Path, special: dict[str, Any]) -> None:
    """Make the backend know every added and special token that the files beside the vocabulary list."""
    known = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    tokens = []
    unnamed = [*_listed(special, "additional_special_tokens"), *_listed(special, "extra_special_tokens")]
    specials = {_content(token) for token in [*_named_tokens(special).values(), *unnamed]}
    if "added_tokens_decoder" in special:
        listed = sorted(special["added_tokens_decoder"].items(), key=lambda item: int(item[0]))
        tokens = [_added_token(token) for _, token in listed]
    else:
        ids = _read_optional(directory / "added_tokens.json")
        tokens = [
            AddedToken(text, special=text in specials, normalized=text not in specials)
            for text in sorted(ids, key=ids.__getitem__)
        ]
    for token in tokens:
        # A token that the backend has skipped once it skips for ever: do not claim otherwise.
        token.special = token.special or (token.content in known and known[token.content].special)
    known |= {token.content: token for token in tokens}
    for value in [*_named_tokens(special).values(), *unnamed]:
        if _content(value) not in known:
            token = _added_token(value, special=True)
            known[token.content] = token
            tokens.append(token)
    backend.add_tokens(tokens)


def _listed(special: dict[str, Any], key: str) -> list[str | dict[str, Any]]:
    value = special.get(key)
    return value if isinstance(value, list) else []


def _content(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else token["content"]


def _added_token(token: str | dict[str, Any], special: bool = False) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, special=special, normalized=not special)
    flags = {name: token[name] for name in ("single_word", "lstrip", "rstrip", "normalized") if name in token}
    return AddedToken(token["content"], special=special or token.get("special", False), **flags)


def _set_template(backend: Backend, bos: str | None, eos: str | None) -> None:
    """Let encode put bos before a text and eos behind it, where they are not None."""
    backend.post_processor = processors.TemplateProcessing(
        single=[*([bos] if bos else []), "$A", *([eos] if eos else [])],
        special_tokens=[(token, backend.token_to_id(token)) for token in (bos, eos) if token],
    )


def _decoder_steps(backend: Backend) -> Sequence[dict[str, Any]]:
    if backend.decoder is None:
        return []
    step = json.loads(backend.decoder.__getstate__())
    return step["decoders"] if step["type"] == "Sequence" else [step]


def _byte_of(token: str) -> int | None:
    """The byte that a token such as `<0x0A>` stands for."""
    match = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", token)
    return int(match[1], 16) if match else None


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's character for each byte: printable Latin-1 stands for itself, the rest for U+0100 and on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_alphabet()
