#!/usr/bin/env bash
# litellm 1.110.2 (over openai 3.57.0): the code context_length_exceeded alone does not make a context error.
#
# One would expect OpenAI's own code to decide. But litellm looks for it as JSON writes it, in double quotes, in the text
# of the openai client's exception, where Python has written it in single quotes: the answer becomes a plain
# BadRequestError, and the fallbacks for prompts that are too long never come. Only known sentences in the message count.
#
# Output seen:
#     code alone: BadRequestError
#     with the sentence: ContextWindowExceededError
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install -q --target "$folder" litellm==1.110.2 openai==3.57.0 2>/dev/null
cat > "$folder/show.py" <<'PY'
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import litellm

message = ""


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        error = {"message": message, "type": "invalid_request_error", "param": "messages", "code": "context_length_exceeded"}
        body = json.dumps({"error": error}).encode()
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(400)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


server = HTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
litellm.suppress_debug_info = True
found = []
for text in ("the prompt is longer than the context", "This model's maximum context length is 8 tokens. However, it has 9"):
    message = text
    try:
        litellm.completion(
            model="openai/m", api_base=f"http://127.0.0.1:{server.server_port}/v1", api_key="none", num_retries=0,
            messages=[{"role": "user", "content": "Hi"}],
        )
    except Exception as error:
        found.append(type(error).__name__)
print("code alone:", found[0])
print("with the sentence:", found[1])
assert found == ["BadRequestError", "ContextWindowExceededError"], found
PY
LITELLM_LOCAL_MODEL_COST_MAP=True PYTHONPATH="$folder" python3 "$folder/show.py"
