#!/usr/bin/env bash
# transformers 5.24.0, tokenizers 0.23.3: LlamaTokenizer takes no more than the vocabulary and the merges of a tokenizer.json.
#
# One would expect a tokenizer.json to mean the same whoever reads it. Llama 2's and Mistral's have a normalizer that puts a
# mark before every text and makes marks of its spaces, so that a text with a space in front begins with two. The class
# that tokenizer_config.json names builds its own steps instead, which put no mark before a text that begins with one: a
# space in front is lost, and differs in nothing from none. PreTrainedTokenizerFast, named in the same place, and the
# tokenizers library take the file as it is.
#
# Output seen:
#     tokenizers                normalizer: Sequence, ids differ by the space: True
#     PreTrainedTokenizerFast   normalizer: Sequence, ids differ by the space: True
#     LlamaTokenizer            normalizer: none, ids differ by the space: False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.24.0 tokenizers==0.23.3
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer

pieces = ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a"]
vocabulary = {piece: index for index, piece in enumerate(pieces)}
file = Tokenizer(models.BPE(vocabulary, [("▁", "a")], unk_token="<unk>"))
file.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
file.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])


def say(name, backend):
    kind = type(backend.normalizer).__name__ if backend.normalizer else "none"
    ids = [backend.encode(text, add_special_tokens=False).ids for text in ("ab", " ab")]
    print(f"{name:<25} normalizer: {kind}, ids differ by the space: {ids[0] != ids[1]}")
    return kind, ids[0] != ids[1]


assert say("tokenizers", file) == ("Sequence", True)
for name, expected in (("PreTrainedTokenizerFast", ("Sequence", True)), ("LlamaTokenizer", ("none", False))):
    folder = Path(sys.argv[1], name)
    folder.mkdir()
    file.save(str(folder / "tokenizer.json"))
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name, **special}))
    assert say(name, AutoTokenizer.from_pretrained(folder).backend_tokenizer) == expected
PYTHON
