#!/usr/bin/env bash
# transformers 5.24.0: beside a config.json of a Qwen2 model the pre-tokenizer of tokenizer.json is not used.
#
# tokenizer.json describes a whole tokenizer, and tokenizer_config.json may name PreTrainedTokenizerFast, which has no
# rules of its own: one would expect AutoTokenizer to tokenize as the file says. It does, until a config.json with
# model_type qwen2 lies beside them. Then it makes a Qwen2Tokenizer, which takes vocabulary and merges from the file and
# splits text by the pattern of Qwen2, where every digit stands alone: " 0" becomes two tokens in place of one. Whoever
# trained with the tokenizer of the file and serves with the other gets other ids, and no warning.
#
# Output seen:
#     tokenizer.json: [' 0']
#     without config.json: TokenizersBackend [' 0']
#     with config.json: Qwen2Tokenizer [' ', '0']
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.24.0 tokenizers==0.23.3
"$folder/venv/bin/python" - "$folder" 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer

letters = sorted(pre_tokenizers.ByteLevel.alphabet())
blank = "\u0120"  # as ByteLevel writes it
vocabulary = {piece: number for number, piece in enumerate([*letters, f"{blank}0"])}
tokenizer = Tokenizer(models.BPE(vocabulary, [(blank, "0")]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
folder = Path(sys.argv[1]) / "model"
folder.mkdir()
tokenizer.save(str(folder / "tokenizer.json"))
(folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
print("tokenizer.json:", [tokenizer.decode([token]) for token in tokenizer.encode(" 0").ids])


def shown():
    made = AutoTokenizer.from_pretrained(folder)
    pieces = [made.decode([token]) for token in made.encode(" 0", add_special_tokens=False)]
    print(type(made).__name__, pieces)
    return pieces


print("without config.json: ", end="")
assert shown() == [" 0"]
(folder / "config.json").write_text(json.dumps({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}))
print("with config.json: ", end="")
assert shown() == [" ", "0"]
PYTHON
