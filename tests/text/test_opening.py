"""Whether a rendered conversation of a model that sees begins with the tokenizer's own token, as ProcessorMixin's
apply_chat_template of transformers 5.24 has it: those of llava-hf leave it to the tokenizer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sophserve.image_prompt import lacks_opening


@pytest.mark.parametrize(
    ("bos", "rendered", "sees", "lacks"),
    [
        ("<s>", "USER: <image>\nHi ASSISTANT:", True, True),
        ("<s>", "<s>USER: Hi ASSISTANT:", True, False),
        (None, "<|im_start|>user", True, True),
        ("<s>", "USER: Hi ASSISTANT:", False, False),
    ],
)
def test_opening(bos, rendered, sees, lacks):
    assert lacks_opening(rendered, SimpleNamespace(bos_token=bos), object() if sees else None) is lacks
