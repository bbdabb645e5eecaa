"""The options and commands of vLLM, llama.cpp's server and Ollama, which users have in their scripts.

What means the same here is taken; what is so anyway is left out with a note; all else is answered with what to do
instead. The names are those of `vllm serve --help` (0.7.3 and newer), `llama-server --help` and `ollama --help`.
"""

from __future__ import annotations

SAME = {
    "-m": "--model",
    "-q": "--quantization",
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-np": "--max-num-seqs",
    "--parallel": "--max-num-seqs",
    "--kv-cache-memory-bytes": "--kv-cache-memory",
    "-s": "--seed",
    "-a": "--served-model-name",
    "--alias": "--served-model-name",
    "--chat-template-file": "--chat-template",
    "-md": "--speculative-model",
    "--model-draft": "--speculative-model",
    "--ssl-cert-file": "--ssl-certfile",
    "--ssl-key-file": "--ssl-keyfile",
    "--enable-log-requests": "--log-requests",
}
"""Other names of options: with the same values they mean the same."""

_NEEDLESS = {
    "no code of a checkpoint is ever run, known architectures need none": "--trust-remote-code",
    "prompts are logged with --log-requests alone": "--disable-log-requests --no-enable-log-requests",
    "/metrics always counts, and the log shows no statistics": "--disable-log-stats --metrics",
    "the chat template decides, and --reasoning-parser": "--enable-reasoning",
    "it is always so": "--async-scheduling --use-v2-block-manager --cont-batching -cb --jinja --embedding "
    "--embeddings --enable-prompt-tokens-details --enable-server-load-tracking "
    "--enable-request-id-headers --interleave-mm-strings",
    "there is no such part that could be turned off": "--disable-custom-all-reduce --disable-async-output-proc "
    "--disable-frontend-multiprocessing --disable-cascade-attn --disable-mm-preprocessor-cache "
    "--disable-uvicorn-access-log --no-context-shift --no-perf --no-warmup",
}

_ANSWERS = {
    "the cache is sized by --kv-cache-memory, such as 8GiB": "--gpu-memory-utilization --num-gpu-blocks-override",
    "a sequence that finds no room is computed again later, nothing is swapped": "--swap-space --preemption-mode",
    "weights stay on the device; quantize or split them: --quantization, --tensor-parallel-size": "--cpu-offload-gb",
    "keys and values stay on the device": "--kv-offloading-size --kv-offloading-backend --kv-transfer-config "
    "--ec-transfer-config",
    "a model is split by --tensor-parallel-size and --pipeline-parallel-size alone": "--enable-expert-parallel -ep "
    "--decode-context-parallel-size -dcp --prefill-context-parallel-size -pcp --dcp-kv-cache-interleave-size "
    "--cp-kv-cache-interleave-size --all2all-backend --enable-dbo --ubatch-size --dbo-decode-token-threshold "
    "--dbo-prefill-token-threshold --enable-eplb --eplb-config --expert-placement-strategy --num-redundant-experts "
    "--eplb-window-size --eplb-step-interval --eplb-log-balancedness --max-parallel-loading-workers "
    "-sm --split-mode -ts --tensor-split -mg --main-gpu --rpc",
    "start several servers behind `sophserve route` instead (docs/scaling.md)": "--data-parallel-size -dp "
    "--data-parallel-size-local -dpl --data-parallel-rank -dpn --data-parallel-start-rank -dpr --data-parallel-address "
    "-dpa --data-parallel-rpc-port -dpp --data-parallel-backend -dpb --data-parallel-hybrid-lb -dph "
    "--data-parallel-external-lb -dpe --disable-nccl-for-dp-synchronization --api-server-count -asc --headless",
    "workers are processes of one machine": "--distributed-executor-backend --master-addr --master-port --nnodes "
    "--node-rank -r --ray-workers-use-nsight --worker-cls --worker-extension-cls --worker-use-ray "
    "--enable-multimodal-encoder-data-parallel --scheduler-cls --enable-fault-tolerance "
    "--shutdown-on-fault-tolerance-failure --engine-recovery-timeout --internal-fault-report-port "
    "--external-fault-notify-port --gloo-comm-timeout",
    "keys and values are kept in --dtype": "--kv-cache-dtype --calculate-kv-scales --kv-sharing-fast-prefill "
    "--disable-hybrid-kv-cache-manager --mamba-cache-dtype --mamba-ssm-cache-dtype --mamba-block-size "
    "--mamba-cache-mode --override-attention-dtype",
    "the tokenizer is the checkpoint's; put another into its directory": "--tokenizer --tokenizer-mode "
    "--tokenizer-revision --skip-tokenizer-init --tokenizer-pool-size --tokenizer-pool-type "
    "--tokenizer-pool-extra-config --tokens-only",
    "the newest revision is taken; download another into a directory and give that as --model": "--revision "
    "--code-revision",
    "set HF_TOKEN in the environment": "--hf-token",
    "set HF_HOME in the environment to where the Hub's files should lie": "--download-dir",
    "safetensors are what is loaded": "--load-format --safetensors-load-strategy --model-loader-extra-config "
    "--ignore-patterns --pt-load-map-location --use-tqdm-on-load --qlora-adapter-name-or-path "
    "--weight-transfer-config --model-weights",
    "change config.json in a copy of the checkpoint's directory": "--hf-overrides --hf-config-path --config-format "
    "--rope-scaling --rope-theta --disable-sliding-window --rope-freq-base --rope-freq-scale --rope-scale "
    "--yarn-ext-factor --yarn-attn-factor --yarn-beta-slow --yarn-beta-fast --yarn-orig-ctx",
    "architectures are plugins, see sophserve plugins": "--model-impl --model-class-overrides --logits-processors "
    "--io-processor-plugin --additional-config --override-neuron-config --allow-deprecated-quantization "
    "--enable-return-routed-experts",
    "generation_config.json of the checkpoint gives the defaults, and each request its own": "--generation-config "
    "--override-generation-config",
    "one server generates and embeds; --pooling says how": "--task --runner --convert --pooler-config "
    "--override-pooler-config",
    "the most that a request may ask for is fixed": "--max-logprobs",
    "logprobs are those of the model, before sampling parameters": "--logprobs-mode --logits-processor-pattern "
    "--disable-logprobs-during-spec-decoding",
    "adapters are not served; merge them into the model": "--enable-lora --lora-modules --max-loras --max-lora-rank "
    "--lora-extra-vocab-size --lora-dtype --max-cpu-loras --fully-sharded-loras --long-lora-scaling-factors "
    "--enable-lora-bias --enable-tower-connector-lora --default-mm-loras --specialize-active-lora "
    "--enable-prompt-adapter --prompt-adapters --max-prompt-adapters --max-prompt-adapter-token --lora --lora-scaled "
    "--lora-init-without-apply --control-vector",
    "images alone are taken beside text, as files": "--enable-mm-embeds --video-pruning-rate --enable-prompt-embeds",
    "images are sent with requests, or fetched from --allowed-media-domains": "--allowed-local-media-path",
    "sizes of images are in the checkpoint's preprocessor_config.json, and --mm-processor-kwargs changes them": ""
    "--media-io-kwargs --image-min-tokens --image-max-tokens",
    "pictures are kept by themselves, their embeddings in --encoder-cache-memory": "--mm-processor-cache-gb "
    "--mm-processor-cache-type --mm-shm-cache-max-object-size-mb",
    "images are encoded by the model's own workers, in pieces between steps": "--mm-encoder-only "
    "--mm-encoder-tp-mode --mm-encoder-attn-backend --skip-mm-profiling --disable-chunked-mm-input",
    "a model that sees is one checkpoint, with its vision tower": "-mm --mmproj --mmproj-url --no-mmproj",
    "call it --speculative-tokens": "--num-speculative-tokens --draft --draft-max --draft-n --draft-n-max",
    "say it in --speculative-config": "--ngram-prompt-lookup-max --ngram-prompt-lookup-min",
    "the model of --speculative-model runs beside the first rank, as its files have it": ""
    "--speculative-model-quantization --speculative-disable-mqa-scorer "
    "--speculative-draft-tensor-parallel-size --speculative-max-model-len -hfd ",
    "guesses are computed where that saves time, and tokens are what they would be without": ""
    "--speculative-disable-by-batch-size --spec-decoding-acceptance-method --draft-min --draft-p-min "
    "--typical-acceptance-sampler-posterior-threshold --typical-acceptance-sampler-posterior-alpha "
    "-ngld -cd --spec-type",
    "a step holds what --max-num-batched-tokens and --max-num-seqs say": "--num-scheduler-steps "
    "--multi-step-stream-outputs --scheduler-delay-factor --max-num-partial-prefills --max-long-partial-prefills "
    "--long-prefill-token-threshold --num-lookahead-slots --stream-interval",
    "decode steps are recorded and replayed, unless with --enforce-eager": "--compilation-config -cc -O "
    "--optimization-level -O0 -O1 -O2 -O3 --cudagraph-capture-sizes "
    "--max-cudagraph-capture-size --max-seq-len-to-capture --cuda-graph-sizes --attention-backend --attention-config "
    "-ac --afd-config",
    "one library (llguidance) follows schemas, grammars and expressions": "--guided-decoding-backend "
    "--guided-decoding-disable-fallback --guided-decoding-disable-any-whitespace "
    "--guided-decoding-disable-additional-properties --structured-outputs-config",
    "parsers are plugins, see sophserve plugins": "--tool-parser-plugin --reasoning-parser-plugin --middleware "
    "--tool-server",
    "call it --log-level": "--uvicorn-log-level -v --verbose --log-verbose -lv --verbosity --log-verbosity "
    "--log-disable",
    "prompts are logged whole or not at all": "--max-log-len --aggregate-engine-logging --log-config-file "
    "--enable-log-outputs --enable-log-deltas",
    "metrics are at /metrics, profiles at /start_profile; there are no traces": "--otlp-traces-endpoint "
    "--collect-detailed-traces --show-hidden-metrics-for-version --kv-cache-metrics --kv-cache-metrics-sample "
    "--cudagraph-metrics --enable-layerwise-nvtx-tracing --enable-mfu-metrics --enable-logging-iteration-details "
    "--profiler-config",
    "the prefix cache has one way to hash, SHA-256": "--prefix-caching-hash-algo",
    "requests carry it: chat_template_kwargs": "--default-chat-template-kwargs",
    "the template's own form is found out": "--chat-template-content-format --response-role "
    "--exclude-tools-when-tool-choice-none",
    "/openapi.json describes the API, pages of it there are none": "--disable-fastapi-docs --enable-offline-docs",
    "requests ask for it: stream_options.include_usage": "--enable-force-include-usage",
    "requests ask for it: return_token_ids": "--return-tokens-as-token-ids",
    "--allowed-origins is the one choice: its pages may send any method and header": "--allow-credentials "
    "--allowed-methods --allowed-headers",
    "with --ssl-ca-certs clients must have certificates": "--ssl-cert-reqs --ssl-ciphers",
    "renewed certificates are taken by themselves": "--enable-ssl-refresh",
    "the memory stays with the server while it runs": "--enable-sleep-mode",
    "bodies have limits of their own (docs/security.md)": "--h11-max-incomplete-event-size --h11-max-header-count",
    "call it --max-model-len: tokens of one sequence, not of all together": "-c --ctx-size",
    "a model runs wholly on its device; choose that with --device": "-ngl --gpu-layers --n-gpu-layers -dev "
    "--list-devices -cmoe --cpu-moe -ncmoe --n-cpu-moe -ot --override-tensor -nkvo --no-kv-offload --fit",
    "set OMP_NUM_THREADS in the environment": "-t --threads -tb --threads-batch --threads-http -C --cpu-mask "
    "--cpu-range --cpu-strict --prio --poll --numa",
    "call it --max-num-batched-tokens": "-b --batch-size -ub",
    "a Hub id of safetensors is given as --model": "-hf -hfr --hf-repo -hff --hf-file -hft -mu --model-url "
    "--models-dir --models-preset --models-max",
    "the cache is sized by --kv-cache-memory and kept in --dtype": "-ctk --cache-type-k -ctv --cache-type-v "
    "--cache-ram -cram -kvu --kv-unified --swa-full --defrag-thold -dt",
    "prefixes are cached by themselves, see --enable-prefix-caching": "--cache-reuse --cache-prompt --no-cache-prompt "
    "--slot-save-path --slot-prompt-similarity -sps --keep",
    "/requests shows what runs, to those who hold a key": "--slots --no-slots",
    "attention has one implementation": "-fa --flash-attn",
    "weights are mapped and packed as the device needs them": "--mlock --mmap --no-mmap --direct-io --no-repack "
    "--check-tensors --override-kv",
    "requests carry it": "-n --predict --n-predict --temp --temperature --top-k --top-p --min-p --repeat-penalty "
    "--repeat-last-n --presence-penalty --frequency-penalty --mirostat --samplers --sampling-seq --ignore-eos "
    "--grammar --grammar-file -j --json-schema --json-schema-file -l --logit-bias --chat-template-kwargs "
    "--reasoning-budget",
    "call it --pooling": "--pooling-type",
    "call it --reasoning-parser": "--reasoning-format",
    "direct standard error into a file": "--log-file --log-prefix --log-timestamps --log-colors",
    "call it --no-ui": "--no-webui --webui",
    "call it --root-path": "--api-prefix",
    "the server has its own page, see --ui": "--path --media-path",
    "requests may take as long as they like; --max-queue-time bounds their wait": "-to --timeout",
    "models that rerank are not served": "--rerank --reranking",
    "a server serves one model as it was started": "--props --models-autoload --sleep-idle-seconds",
}

_COMMANDS = {
    "run": "chat with a model as `sophserve chat --model MODEL`",
    "pull": "a server downloads what it serves: `sophserve --model ORG/NAME`",
    "list": "models lie in directories and in the Hub's cache; give one as `sophserve --model MODEL`",
    "ls": "models lie in directories and in the Hub's cache; give one as `sophserve --model MODEL`",
    "ps": "a server tells what it serves at /v1/models and what runs at /requests",
    "show": "`sophserve plan MODEL` says what a model takes",
    "stop": "interrupt the server (Ctrl-C); it finishes what runs",
    "rm": "delete the model's directory",
    "cp": "copy the model's directory, or give it a name with --served-model-name",
    "create": "a model is a directory with config.json, safetensors and tokenizer",
    "push": "upload with the Hub's own tools",
    "signin": "set HF_TOKEN in the environment",
    "complete": "`sophserve chat` asks a server",
    "collect-env": "`sophserve --version` and `sophserve plugins` say what is installed",
    "run-batch": "use `sophserve batch FILE -o OUT --model MODEL`",
}


def _by_name(groups: dict[str, str]) -> dict[str, str]:
    return {name: reason for reason, names in groups.items() for name in names.split()}


NEEDLESS = _by_name(_NEEDLESS)
"""Switches that ask for what is so anyway, with why."""

ANSWERS = _by_name(_ANSWERS)
"""Options that are not taken, with what to do instead."""


def answer(option: str) -> str | None:
    """What to say to an option of another server; None for one that is not known. A `--no-` form is its option."""
    positive = "--" + option.removeprefix("--no-") if option.startswith("--no-") else option
    reason = ANSWERS.get(option) or ANSWERS.get(positive) or NEEDLESS.get(positive)
    return reason and f"there is no {option} here: {reason}"


def answer_command(word: str) -> str | None:
    """What to say to a command of another server; None for one that is not known."""
    reason = _COMMANDS.get(word)
    return reason and f"there is no command {word} here: {reason}"
