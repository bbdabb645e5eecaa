"""tokenizer.model files of SentencePiece (https://github.com/google/sentencepiece), as Llama 2 ships them.

The file is one protobuf message (sentencepiece_model.proto); the few fields that matter here are read from the
wire format directly (https://protobuf.dev/programming-guides/encoding).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from sophserve.errors import CheckpointError

SPACE = "▁"
_UNIGRAM, _BPE = 1, 2
_CONTROL, _USER_DEFINED = 3, 4


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary. kind: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class SentencePieceModel:
    """The fields of a tokenizer.model that decide how it splits a text.

    algorithm: 1 unigram, 2 BPE. A special id is -1 where the model has no such token.
    """

    pieces: list[Piece]
    algorithm: int
    byte_fallback: bool
    unk_id: int
    bos_id: int
    eos_id: int
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool

    @property
    def special_tokens(self) -> dict[str, str]:
        """The special tokens that the model has, by the names of tokenizer_config.json."""
        ids = {"unk_token": self.unk_id, "bos_token": self.bos_id, "eos_token": self.eos_id}
        return {name: self.pieces[index].text for name, index in ids.items() if index >= 0}


def read_model(path: Path) -> SentencePieceModel:
    """Read a tokenizer.model. Raises CheckpointError."""
    try:
        data = path.read_bytes()
        if re.match(rb"[A-Za-z0-9+/]+=* \d+\n", data):
            raise CheckpointError(
                f"{path} is a vocabulary of tiktoken, as the original Llama 3 has it; use the checkpoint in Hugging "
                "Face's form, which has a tokenizer.json"
            )
        sections = list(_fields(data))
        trainer = dict(_fields(dict(sections)[2]))
        normalizer = dict(_fields(dict(sections).get(3, b"")))
        model = SentencePieceModel(
            pieces=[_piece(value) for number, value in sections if number == 1],
            algorithm=trainer.get(3, _UNIGRAM),
            byte_fallback=bool(trainer.get(35, False)),
            unk_id=_signed(trainer.get(40, 0)),
            bos_id=_signed(trainer.get(41, 1)),
            eos_id=_signed(trainer.get(42, 2)),
            charsmap=normalizer.get(2, b""),
            add_dummy_prefix=bool(normalizer.get(3, True)),
            remove_extra_whitespaces=bool(normalizer.get(4, True)),
        )
        whitespace_as_suffix, escape_whitespaces = trainer.get(24, False), normalizer.get(5, True)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error}") from None
    except (ValueError, TypeError, AttributeError, KeyError, struct.error):
        raise CheckpointError(f"{path} is not a SentencePiece model, or a damaged one") from None
    if max(model.unk_id, model.bos_id, model.eos_id) >= len(model.pieces) or model.unk_id < 0:
        raise CheckpointError(f"{path} has special tokens outside its vocabulary; the file is damaged")
    if model.algorithm not in (_UNIGRAM, _BPE):
        raise CheckpointError(f"{path} was trained as a word or character model; only bpe and unigram are supported")
    if whitespace_as_suffix or not escape_whitespaces:
        raise CheckpointError(f"{path} does not write a space before words as {SPACE}, which is not supported")
    return model


def build_tokenizer(model: SentencePieceModel, legacy: bool, add_prefix_space: bool | None) -> Tokenizer:
    """A tokenizer that splits as the model does.

    legacy: put the dummy prefix before every stretch between special tokens, as SentencePiece itself would if it
    was given each stretch alone, and not only at the beginning of the text. add_prefix_space overrides the
    model's own setting.
    """
    prefix = model.add_dummy_prefix if add_prefix_space is None else add_prefix_space
    tokenizer = Tokenizer(_bpe(model) if model.algorithm == _BPE else _unigram(model))
    steps: list[normalizers.Normalizer] = []
    if model.charsmap:
        steps.append(normalizers.Precompiled(model.charsmap))
    if model.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if legacy:
        if prefix:
            steps.append(normalizers.Prepend(SPACE))
        steps.append(normalizers.Replace(" ", SPACE))
    else:
        scheme = "first" if prefix else "never"
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme=scheme, split=False)
    if steps:
        tokenizer.normalizer = normalizers.Sequence(steps)
    undo = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        undo.append(decoders.Strip(" ", left=1))
    tokenizer.decoder = decoders.Sequence(undo)
    tokenizer.add_tokens(
        [
            AddedToken(piece.text, normalized=False, special=piece.kind == _CONTROL)
            for piece in model.pieces
            if piece.kind in (_CONTROL, _USER_DEFINED)
        ]
    )
    return tokenizer


def _bpe(model: SentencePieceModel) -> models.BPE:
    ids = {piece.text: index for index, piece in enumerate(model.pieces)}
    merges = [
        (-piece.score, -cut, cut - len(piece.text), piece.text[:cut], piece.text[cut:])
        for piece in model.pieces
        for cut in range(1, len(piece.text))
        if piece.text[:cut] in ids and piece.text[cut:] in ids
    ]
    # SentencePiece joins the pair that makes the piece of the highest score, and so does a list of merges.
    merges.sort(key=lambda merge: merge[:3])
    return models.BPE(
        vocab=ids,
        merges=[merge[3:] for merge in merges],
        unk_token=model.pieces[model.unk_id].text,
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )


def _unigram(model: SentencePieceModel) -> models.Unigram:
    vocabulary = [(piece.text, piece.score) for piece in model.pieces]
    return models.Unigram(vocabulary, unk_id=model.unk_id, byte_fallback=model.byte_fallback)


# --- wire format --------------------------------------------------------------------------------------------


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field: int for a varint, bytes for everything else. Raises ValueError."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire_type == 2:
            size, position = _varint(data, position)
        elif wire_type in (1, 5):
            size = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"no protobuf message has wire type {wire_type}")
        if position + size > len(data):
            raise ValueError("it ends in the middle of a field")
        yield number, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        if position >= len(data):
            raise ValueError("it ends in the middle of a number")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position
    raise ValueError("a number of it is longer than 64 bits")


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _piece(data: bytes) -> Piece:
    fields = dict(_fields(data))
    return Piece(fields[1].decode(), struct.unpack("<f", fields.get(2, bytes(4)))[0], fields.get(3, 1))
