"""The form of an answer that may call tools, or must."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from functools import partial

from sophserve.api.generation.served_model import ServedModel
from sophserve.api.generation.tools import Function, ToolUse
from sophserve.errors import GrammarTooLarge, RequestError
from sophserve.sampling import StructuredOutput
from sophserve.text.json_schema import prepared
from sophserve.text.tool_grammar import ToolGrammar
from sophserve.text.tool_parser import ToolParser


class CallForm:
    """What calls have to fit, beside asked, the form of the answer. needed: whether there is a demand on any. not_kept:
    what is left open of the schemas of tools that are not strict."""

    def __init__(
        self, served: ServedModel, use: ToolUse, parser: type[ToolParser], asked: StructuredOutput | None
    ) -> None:
        functions = use.forced or list(use.functions.values())
        of_json = asked is not None and asked.kind in ("json_object", "json_schema")
        strict = any(function.strict for function in functions)
        self.needed = bool(use.forced or of_json or (not asked and (strict or use.limited)))
        self.not_kept: dict[str, None] = {}
        self._use, self._asked = use, asked
        template = served.chat_template.source(with_tools=True)
        self._grammar = partial(ToolGrammar, parser, template, served.tokenizer)
        self._schemas = {each.name: {"type": "object"} | (each.parameters or {"properties": {}}) for each in functions}
        self._kept = {function.name: function for function in functions if use.forced or function.strict}

    def grammar(self) -> StructuredOutput:
        """Where one is needed. Raises RequestError."""
        try:
            for function in list(self._kept.values()):
                self._prepare(function)
            return StructuredOutput("lark", self._written())
        except RecursionError:
            raise RequestError("tools: a schema is nested too deeply", "tools") from None
        except ValueError as error:
            raise self._refusal(str(error)) from None

    async def loosened(
        self, check: Callable[[StructuredOutput], Awaitable[None]], error: RequestError
    ) -> StructuredOutput:
        """The grammar without the schemas that cannot be applied. check: raises RequestError for such a form. error:
        what it raised for all of them. Raises RequestError where a strict tool is at fault, or none alone.
        """
        if isinstance(error, GrammarTooLarge):
            raise self._refusal(f"their schemas together make a form that {str(error).removeprefix('the lark ')}")
        if self._asked and not self._use.forced:
            await check(self._asked)
        before = len(self._kept)
        for function in list(self._kept.values()):
            try:
                await check(StructuredOutput("json_schema", json.dumps(self._schemas[function.name])))
            except RequestError as own:
                reason = str(own).removeprefix("the json_schema ")
                self._give_up(function, f"the schema of {function.name} {reason}")
        if len(self._kept) == before:
            raise self._refusal("their schemas cannot be kept to together")
        grammar = StructuredOutput("lark", self._written())
        await check(grammar)
        return grammar

    def _prepare(self, function: Function) -> None:
        """Make a tool's schema one that its calls can be kept to. Raises RequestError where that must be and cannot."""
        name = function.name
        try:
            schema, not_kept, lacking = prepared(self._schemas[name], name)
            self._grammar({name: schema}, [name]).demanded(several=False)
        except ValueError as error:
            self._give_up(function, str(error))
            return
        if lacking and function.strict:
            raise self._refusal(f"{', '.join(lacking)} cannot be kept to", "leave out strict")
        self._schemas[name] = schema
        self.not_kept |= dict.fromkeys([*not_kept, *lacking])

    def _give_up(self, function: Function, problem: str) -> None:
        """Let a tool be called with any arguments. Raises RequestError for one that is strict."""
        if function.strict:
            raise self._refusal(problem, "leave out strict")
        del self._kept[function.name]
        self.not_kept[f"the schema of {function.name}"] = None

    def _written(self) -> str:
        use, grammar = self._use, self._grammar(self._schemas, self._kept)
        if use.forced:
            return grammar.demanded(use.choice == "required" and use.parallel)
        if self._asked:
            schema = json.loads(self._asked.value or '{"type": "object"}')
            if not isinstance(schema, dict | bool):
                raise ValueError("the form of the answer is no JSON schema, which is an object or a boolean")
            return grammar.or_json(use.parallel, schema)
        return grammar.free(use.parallel)

    def _refusal(self, problem: str, way_out: str = "") -> RequestError:
        if not way_out and self._use.forced:
            way_out = "set tool_choice to auto"
        elif not way_out:
            way_out = "leave out the form of the answer" if self._asked else "leave out strict and allowed_tools"
        return RequestError(f"tools: {problem}; change it, or {way_out}", "tools")
