"""Every option, once: those of the engine and those of the HTTP server.

The command line is made from both, the embedded API from EngineConfig."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Annotated, Any, Literal

import msgspec

from sophserve.drafting import Drafting, read_drafting
from sophserve.errors import ConfigError
from sophserve.keys import ApiKey, Limits, read_keys
from sophserve.kv_events_config import KvEventsConfig, read_kv_events
from sophserve.media_domains import MediaDomain, read_domains


class Count(str):
    """Describes an option that is a number of things: `read_count` reads it."""


class JsonObject(str):
    """Describes an option that is an object, written as JSON: `read_object` reads it."""


class EngineConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The options that concern the engine and its workers. Raises ConfigError."""

    model: Annotated[str, "a directory with a checkpoint, a Hub id, or demo or demo-gptq"]
    device: Annotated[str, "auto, or a device that a plugin provides, such as cmodel"] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "float16", "bfloat16", "float", "half"],
        "auto: as in config.json; half: float16; float: float32",
    ] = "auto"
    quantization: Annotated[str | None, "gptq or fp8 quantizes a plain checkpoint on loading (default: as is)"] = None
    activation_bits: Annotated[
        Literal["auto", 16, 8],
        "8: round activations to int8 where they meet weights of 4 and 8 bits; 16: leave them in --dtype; auto: what "
        "is fast here, 16 with float32",
    ] = "auto"
    head_bits: Annotated[
        Literal[16, 8], "8 rounds the weights of a plain head, and of the embedding where it is tied, on loading"
    ] = 16
    tensor_parallel_size: Annotated[int, "devices to split every layer over, one worker each"] = 1
    pipeline_parallel_size: Annotated[
        int, "stages to split the layers over, each on --tensor-parallel-size devices of its own"
    ] = 1
    max_model_len: Annotated[int | None, Count("longest prompt plus answer, in tokens (default: config.json's)")] = None
    max_num_seqs: Annotated[int, Count("most sequences that run at once")] = 256
    max_num_batched_tokens: Annotated[int, Count("most tokens of one step, decodes and prefills")] = 2048
    block_size: Annotated[int, "tokens of one KV block"] = 16
    kv_cache_memory: Annotated[str, "such as 2GiB; auto: a share of the device's free memory"] = "auto"
    encoder_cache_memory: Annotated[str, "for the embeddings of images, which later requests find there"] = "512MiB"
    enable_prefix_caching: Annotated[bool, "reuse KV blocks of equal prompt beginnings"] = True
    kv_events_config: Annotated[
        dict[str, Any],
        JsonObject('publish what the prefix cache holds, such as {"enable_kv_cache_events": true}, as vLLM does'),
    ] = {}
    enable_chunked_prefill: Annotated[bool, "split long prompts over steps"] = True
    enforce_eager: Annotated[bool, "issue every operator anew at each step instead of replaying a recording"] = False
    scheduling_policy: Annotated[
        Literal["fcfs", "priority"], "fcfs: first come, first served; priority: lowest `priority` first"
    ] = "fcfs"
    max_queue_time: Annotated[
        float | None, "seconds after which a request that still waits is refused (default: none)"
    ] = None
    step_timeout: Annotated[float, "seconds without a sign of life after which a busy worker is restarted"] = 60.0
    load_timeout: Annotated[
        float, "seconds without progress after which a worker that loads the model is restarted"
    ] = 300.0
    max_restarts: Annotated[int, "restarts of lost workers within ten minutes before giving up"] = 5
    seed: Annotated[int | None, "makes requests without a seed of their own repeatable"] = None
    speculation: Annotated[
        Literal["auto", "off", "lookup", "mtp", "draft"],
        "lookup: also compute what followed the newest tokens where they stood before, where that is likely to gain "
        "time; mtp: what the model's own layer for further tokens predicts; draft: what --speculative-model does; "
        "auto: the first, and the last that is there; the answers are the same",
    ] = "auto"
    speculative_model: Annotated[
        str | None,
        "a smaller model with the same vocabulary, or an EAGLE-3 head, that guesses: a directory or a Hub id "
        "(default: none)",
    ] = None
    speculative_tokens: Annotated[int, "most tokens of one sequence that are computed so in a step"] = 15
    speculative_config: Annotated[
        dict[str, Any], JsonObject('the same as vLLM has it: {"method": "ngram", "num_speculative_tokens": 5}')
    ] = {}
    reorder_cache_dir: Annotated[
        str | None, "where packed quantized weights are kept (default: .reorder_cache beside the model)"
    ] = None
    chat_template: Annotated[str | None, "a file with the chat template to use instead of the checkpoint's"] = None
    limit_mm_per_prompt: Annotated[
        dict[str, int], JsonObject('most images of one request, such as {"image": 8} (default: 16)')
    ] = {}
    mm_processor_kwargs: Annotated[
        dict[str, Any], JsonObject('laid over preprocessor_config.json, such as {"max_pixels": 1003520}')
    ] = {}

    def __post_init__(self) -> None:
        if self.device == "auto":
            self.device = _device_from_environment()
        self.dtype = _DTYPES.get(self.dtype, self.dtype)
        _check(self, "at least 1", "tensor_parallel_size", "pipeline_parallel_size", "max_model_len", "max_num_seqs")
        _check(self, "at least 1", "max_num_batched_tokens", "block_size")
        _check(self, "above 0", "step_timeout", "load_timeout", "max_queue_time")
        _check(self, "0 or more", "max_restarts")
        _check_images(self)
        # Every running request must be able to take a step.
        self.max_num_seqs = min(self.max_num_seqs, self.max_num_batched_tokens)
        self.kv_cache_bytes, self.encoder_cache_bytes  # noqa: B018 - raises for a malformed size
        if self.kv_events.enabled and not self.enable_prefix_caching:
            raise ConfigError("--kv-events-config has nothing to tell without --enable-prefix-caching")
        self.drafting  # noqa: B018 - raises for what cannot be together

    @property
    def world_size(self) -> int:
        """The ranks of all stages, one device each."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def kv_cache_bytes(self) -> int | None:
        """kv_cache_memory in bytes; None for auto."""
        return None if self.kv_cache_memory == "auto" else parse_size(self.kv_cache_memory)

    @property
    def kv_events(self) -> KvEventsConfig:
        """What kv_events_config says."""
        return read_kv_events(self.kv_events_config)

    @property
    def drafting(self) -> Drafting:
        """What speculation, speculative_model, speculative_tokens and speculative_config say together."""
        given = self.speculative_model, self.speculative_config
        return read_drafting(self.speculation, self.speculative_tokens, *given)

    @property
    def encoder_cache_bytes(self) -> int:
        """encoder_cache_memory in bytes."""
        return parse_size(self.encoder_cache_memory)


class ServerConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The options of the HTTP server. Raises ConfigError."""

    host: Annotated[str, "address to listen on; 0.0.0.0 for all"] = "localhost"
    port: Annotated[int, "port to listen on; 0 takes a free one"] = 8000
    uds: Annotated[str | None, "path of a Unix socket to listen on instead of host and port"] = None
    served_model_name: Annotated[list[str], "names that clients use for the model (default: the model argument)"] = []
    api_key: Annotated[list[str], "keys, any of which a client must send; also SOPHSERVE_API_KEY"] = []
    api_key_file: Annotated[
        str | None, "TOML file with a table [NAME] for each key: key or sha256, limits and priority"
    ] = None
    max_concurrent_requests_per_key: Annotated[
        int | None, Count("requests of one key that may run at once (default: any number)")
    ] = None
    max_tokens_per_minute_per_key: Annotated[
        int | None, Count("tokens of prompts and answers that one key may use (default: any number)")
    ] = None
    max_queued_requests: Annotated[
        int, Count("sequences that may wait beyond --max-num-seqs; further ones are answered 429")
    ] = 1024
    max_connections: Annotated[
        int, "open connections; beyond them the one that has been idle for longest is closed"
    ] = 8192
    header_timeout: Annotated[float, "seconds that a request's header may take to come"] = 60.0
    body_timeout: Annotated[float, "seconds that a request's body may stand still"] = 60.0
    write_timeout: Annotated[float, "seconds that a client may take no more of its answer before it is cut off"] = 60.0
    keep_alive_timeout: Annotated[float, "seconds after which a connection without a request is closed"] = 75.0
    upload_memory: Annotated[str, "for all bodies of requests being received; who holds most gives way"] = "64MiB"
    unread_memory: Annotated[str, "for all answers that clients do not read; who holds most is cut off"] = "64MiB"
    response_store_memory: Annotated[
        str, "how much to keep of responses and conversations, which clients can go on from"
    ] = "64MiB"
    batch_dir: Annotated[
        str | None, "where files and batches are kept (default: sophserve/batches in XDG_STATE_HOME)"
    ] = None
    max_file_size: Annotated[str, "for one file of /v1/files"] = "200MiB"
    batch_storage: Annotated[str, "for all files and batches; beyond it uploads are refused"] = "10GiB"
    batch_lines: Annotated[
        int | None,
        Count("lines of batches that are answered at once, behind all other requests (default: half --max-num-seqs)"),
    ] = None
    max_image_bytes: Annotated[str, "for one image as it is sent or fetched"] = "20MiB"
    max_image_pixels: Annotated[int, Count("pixels that an image may have; decoding takes up to 32 bytes for each")] = (
        1 << 26  # 8192 x 8192: phones take photos of up to 64 megapixels
    )
    image_memory: Annotated[
        str, "for the images of all requests that wait or run, and to keep some of those before them"
    ] = "1GiB"
    image_timeout: Annotated[float, "seconds of processor time that decoding and resizing an image may take"] = 10.0
    allowed_media_domains: Annotated[
        list[str], "hosts, with their subdomains, that images may be fetched from by URL (default: none)"
    ] = []
    image_fetch_timeout: Annotated[float, "seconds that fetching an image may take"] = 10.0
    pooling: Annotated[
        Literal["auto", "last", "mean"],
        "what of a text is its embedding: the last token's state, or the mean; auto: as the checkpoint",
    ] = "auto"
    reject_unknown_fields: Annotated[
        bool, "answer 400 to fields that nobody knows instead of ignoring them with a warning"
    ] = False
    trust_request_chat_template: Annotated[bool, "take chat templates, which are programs, from requests"] = False
    enable_tokenizer_info_endpoint: Annotated[
        bool, "answer /tokenizer_info, which shows the tokenizer's settings and the chat template"
    ] = False
    ui: Annotated[bool, "show a page at / to chat with the model and to watch the server"] = True
    root_path: Annotated[
        str, "path under which a proxy shows the server, such as /llm; answered with and without it"
    ] = ""
    sse_keep_alive_interval: Annotated[
        float, "seconds after which a stream with nothing to say sends a comment; 0 sends none"
    ] = 10.0
    drain_timeout: Annotated[float, "seconds that running requests get to finish in when the server stops"] = 30.0
    tool_call_parser: Annotated[
        str, "how the model writes tool calls: auto, as its chat template says, none, or a plugin's name"
    ] = "auto"
    reasoning_parser: Annotated[
        str, "how it marks its reasoning: auto, as its chat template says, none, or a plugin's name"
    ] = "auto"
    enable_auto_tool_choice: Annotated[bool, "accepted without effect: models always choose"] = True
    ssl_certfile: Annotated[str | None, "serve HTTPS with this certificate chain (PEM)"] = None
    ssl_keyfile: Annotated[str | None, "its private key, where that is not in the same file"] = None
    ssl_ca_certs: Annotated[str | None, "let in only clients with a certificate of these authorities (PEM)"] = None
    allowed_origins: Annotated[list[str], "web origins whose pages may call the server; * for any (default: none)"] = []
    log_level: Annotated[Literal["debug", "info", "warning", "error"], "least severe messages to print"] = "info"
    log_format: Annotated[Literal["text", "json"], "json: an object a line"] = "text"
    log_requests: Annotated[bool, "log prompts and sampling parameters, which are never logged otherwise"] = False

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port must be between 0 and 65535, got {self.port}")
        per_key = ("max_concurrent_requests_per_key", "max_tokens_per_minute_per_key")
        _check(self, "0 or more", "max_queued_requests", "drain_timeout", "sse_keep_alive_interval")
        _check(self, "at least 1", "max_connections", "batch_lines", "max_image_pixels", *per_key)
        _check(self, "above 0", "header_timeout", "body_timeout", "write_timeout", "keep_alive_timeout")
        _check(self, "above 0", "image_timeout", "image_fetch_timeout")
        for name in ("api_key", "served_model_name", "allowed_origins"):
            if not all(getattr(self, name)):
                raise ConfigError(f"{option(name)} is empty; give it a value or leave it out")
        self.response_store_bytes, self.upload_bytes, self.unread_bytes  # noqa: B018 - raise for a malformed size
        self.file_bytes, self.batch_storage_bytes, self.image_bytes, self.image_memory_bytes  # noqa: B018 - as well
        self.media_domains  # noqa: B018 - as well
        if self.batch_dir == "":
            raise ConfigError("--batch-dir is empty; give it a directory or leave it out")
        for name in ("ssl_keyfile", "ssl_ca_certs"):
            if getattr(self, name) and not self.ssl_certfile:
                raise ConfigError(f"{option(name)} needs --ssl-certfile")
        if not self.api_key and os.environ.get("SOPHSERVE_API_KEY"):
            self.api_key = [os.environ["SOPHSERVE_API_KEY"]]
        for name in per_key:
            if getattr(self, name) is not None and not self.keys:
                raise ConfigError(f"{option(name)} needs --api-key or --api-key-file")
        self.keys  # noqa: B018 - raises for a file that cannot be used
        if self.root_path and not re.fullmatch(r"(/[\w.~-]+)+", self.root_path, re.ASCII):
            raise ConfigError(f"--root-path must look like /llm or /a/b, got {self.root_path!r}")

    @property
    def keys(self) -> list[ApiKey]:
        """Those of api_key and api_key_file."""
        limits = Limits(
            max_concurrent_requests=self.max_concurrent_requests_per_key,
            max_tokens_per_minute=self.max_tokens_per_minute_per_key,
        )
        return read_keys(self.api_key, self.api_key_file, limits)

    @property
    def image_bytes(self) -> int:
        """max_image_bytes in bytes."""
        return parse_size(self.max_image_bytes)

    @property
    def image_memory_bytes(self) -> int:
        """image_memory in bytes."""
        return parse_size(self.image_memory)

    @property
    def media_domains(self) -> list[MediaDomain]:
        """Those of allowed_media_domains."""
        return read_domains(self.allowed_media_domains)

    @property
    def upload_bytes(self) -> int:
        return parse_size(self.upload_memory)

    @property
    def unread_bytes(self) -> int:
        return parse_size(self.unread_memory)

    @property
    def file_bytes(self) -> int:
        """max_file_size in bytes."""
        return parse_size(self.max_file_size)

    @property
    def batch_storage_bytes(self) -> int:
        """batch_storage in bytes."""
        return parse_size(self.batch_storage)

    @property
    def response_store_bytes(self) -> int:
        """response_store_memory in bytes; 0 stores nothing."""
        return 0 if self.response_store_memory.strip() == "0" else parse_size(self.response_store_memory)


_DEVICES = {"": "auto", "SOPHTPU": "tpuv7", "GPU": "gpu"}


def _device_from_environment() -> str:
    name = os.environ.get("DEVICE", "")
    if name not in _DEVICES:
        raise ConfigError(f"the environment variable DEVICE is {name!r}; set it to SOPHTPU or GPU, or unset it")
    return _DEVICES[name]


_DTYPES: dict[str, Literal["float16", "float32"]] = {"half": "float16", "float": "float32"}

# What an option's number may have to be.
_RULES: dict[str, Callable[[float], bool]] = {
    "0 or more": lambda value: value >= 0,
    "at least 1": lambda value: value >= 1,
    "above 0": lambda value: value > 0,
}


def _check(config: msgspec.Struct, rule: str, *names: str) -> None:
    """Raise ConfigError if one of these options breaks the rule; None, where it may be, does not."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not _RULES[rule](value):
            raise ConfigError(f"{option(name)} must be {rule}, got {value}")


# What workers do with pixels, as the checkpoint's own file has it.
_OF_WORKERS = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")


def _check_images(config: EngineConfig) -> None:
    """Raise ConfigError for what limit_mm_per_prompt and mm_processor_kwargs cannot say."""
    for kind, most in config.limit_mm_per_prompt.items():
        if kind != "image" and most != 0:
            raise ConfigError(f"--limit-mm-per-prompt names {kind[:40]!r}; only images are taken beside text")
        if most < 0:
            raise ConfigError(f"--limit-mm-per-prompt must be 0 or more, got {most}")
    for key in _OF_WORKERS:
        if key in config.mm_processor_kwargs:
            raise ConfigError(
                f"--mm-processor-kwargs cannot change {key}; change it in the checkpoint's preprocessor_config.json"
            )


_NUMBER = r"(-?\d[\d_]*(?:\.\d+)?)\s*"
_COUNT = re.compile(_NUMBER + "([kmgt]?)()", re.ASCII | re.IGNORECASE)
_SIZE = re.compile(_NUMBER + "(?:([kmgt])(ib?|b?)|b?)", re.ASCII | re.IGNORECASE)
_MOST = 2**63 - 1


def parse_size(text: str) -> int:
    """Bytes of a size such as `2GiB`, `500MB` or `1048576`; a letter alone is as in read_count. Raises ConfigError."""
    number = _parse(text, _SIZE)
    if number is None or not 1 <= number <= _MOST:
        raise ConfigError(f"cannot read the size {text!r}; write it like 2GiB, 500MB or a number of bytes")
    return int(number)


def read_count(text: str) -> int:
    """A number such as `4096`, `32k` (32,000) or `32K` (32,768): small letters count in thousands, as they do for vLLM.
    Raises ConfigError."""
    number = _parse(text, _COUNT)
    if number is None or abs(number) > _MOST or number != int(number):
        raise ConfigError(f"{text!r} is no whole number; write it like 4096, 32k (32,000) or 32K (32,768)")
    return int(number)


def read_object(text: str) -> dict[str, Any]:
    """A JSON object. Raises ConfigError."""
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError):
        raise ConfigError(f"{text[:80]!r} is no JSON object; write it like '{{\"image\": 8}}'") from None


def _parse(text: str, form: re.Pattern[str]) -> Fraction | None:
    """The number that a text with a unit means; None for another text."""
    match = form.fullmatch(text.strip())
    if not match:
        return None
    digits, letter, rest = match.groups()
    number = Fraction(digits.replace("_", ""))
    if not letter:
        return number
    binary = rest[0] in "iI" if rest else letter.isupper()
    return number * (1024 if binary else 1000) ** ("kmgt".index(letter.lower()) + 1)


def option(field: str) -> str:
    """The command line's name of a config field: max_num_seqs is --max-num-seqs."""
    return "--" + field.replace("_", "-")
