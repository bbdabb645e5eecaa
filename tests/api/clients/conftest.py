"""A model that calls a tool, for libraries that applications are written with. All these tests are run on request:

pip install -r tests/api/clients/requirements.txt
npm install --prefix tests/api/clients/node
pytest -m clients tests/api/clients
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from sophserve.text.chat_template import ChatTemplate

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or importing it waits for a download

TEMPLATE = """\
{%- for message in messages %}
{{- message.role + ':' + message.content }}
{%- for call in message.tool_calls %}{{- '<tool_call>' + (call.function | tojson) + '</tool_call>' }}{%- endfor %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>' }}{%- endif %}"""
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln", "days": 2}}\n</tool_call>'


@pytest.fixture
async def app(start_app: Any) -> Any:
    """One that answers every question with a call of `weather`, until it is told what else to say."""
    app = await start_app(ready=False)
    app.engine.context = 4096
    await app.engine.start(app.tokenizer)
    app.serving.chat_template = ChatTemplate({"default": TEMPLATE}, {})
    app.engine.text = CALL
    return app
