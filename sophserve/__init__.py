"""sophserve serves large language models over the OpenAI API and embedded: `from sophserve import LLM`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sophserve.llm import LLM, AsyncLLM, CompletionOutput, RequestOutput, profile
    from sophserve.llm_prompts import TextPrompt, TokensPrompt
    from sophserve.sampling import SamplingParams, StructuredOutput, Thought

__all__ = [
    "LLM",
    "AsyncLLM",
    "CompletionOutput",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutput",
    "TextPrompt",
    "Thought",
    "TokensPrompt",
    "profile",
]


def __getattr__(name: str) -> Any:
    # Imported on first use, so that the command line answers at once.
    if name == "__version__":
        return import_module("sophserve.version").VERSION
    if name in ("SamplingParams", "StructuredOutput", "Thought"):
        return getattr(import_module("sophserve.sampling"), name)
    if name in ("TextPrompt", "TokensPrompt"):
        return getattr(import_module("sophserve.llm_prompts"), name)
    if name in __all__:
        return getattr(import_module("sophserve.llm"), name)
    raise AttributeError(f"module 'sophserve' has no attribute {name!r}")
