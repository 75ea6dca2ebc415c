"""jq programs: compiled once, run per message, cut off from the machine they run on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import jq  # type: ignore[import-not-found]

from continuitybridge.engine.message import Message
from continuitybridge.errors import ConfigurationError, TransformFailed
from continuitybridge.nodes.language import json_text

MAX_CHARACTERS = 65_536
"""jq's compiler needs time in the square of a program's length."""

_WITHHELD = {
    "env": "reads the environment of the server",
    "input": "reads further inputs; a program sees one message",
    "input_line_number": "has no meaning without files",
    "modulemeta": "reads files",
    "halt": "would drop the message without a word; use empty or error",
    "halt_error": "would drop the message without a word; use error",
    "halt_error/1": "would drop the message without a word; use error",
}
"""Builtins that a program may not use. jq drops definitions that nobody calls and only then looks up names, so
a body that names an undefined variable turns every use into a compile error and costs nothing otherwise."""

_PRELUDE = (
    "".join(
        f"def {name.removesuffix('/1')}{'(f)' if name.endswith('/1') else ''}: $__no_{name.replace('/', '_')};"
        for name in _WITHHELD
    )
    + "{} as $ENV|"
)
"""Bound in front of the program, in whose scope all of it stands: `$ENV` is empty, and `import` and `include`,
which may only come first, are syntax errors."""

_CONTEXT_NAMES = re.compile(r"\$(?:headers|vars|message)\b")
_CONTEXT = ".headers as $headers|.vars as $vars|.message as $message|.body|"

_WITHHELD_USE = re.compile(r"\$__no_(\w+) is not defined")
_PLACE = re.compile(r" at <top-level>, line (\d+), column (\d+):\n")


class JqProgram:
    """One program. The input is the message's body; `$headers`, `$vars` and `$message` (`id`, `generation`)
    are bound where the program names them.

    Numbers keep the value they were written with (jq's literal preservation: integers beyond 2^53 pass
    unchanged until the program computes with them). The environment, files, modules and further inputs of the
    process are out of reach: using `env`, `input`, `import`, `halt` … raises `ConfigurationError`, and `$ENV`
    is an empty object. An endless program can only be ended by ending its process.
    """

    __slots__ = ("_program", "_with_context", "text")

    def __init__(self, text: str, *, field: str) -> None:
        """Compile; raises `ConfigurationError(field=field)` with jq's words, line and column."""
        if len(text) > MAX_CHARACTERS:
            raise ConfigurationError(f"jq: a program has at most {MAX_CHARACTERS} characters", field=field)
        if "\0" in text:
            raise ConfigurationError("jq: a program holds no NUL character", field=field)
        self.text = text
        self._with_context = _CONTEXT_NAMES.search(text) is not None
        prefix = _PRELUDE + (_CONTEXT if self._with_context else "")
        try:
            # The pipe binds weakest, so `| tojson` takes the output of any program without parentheses that
            # the program could close. jq writes numbers itself, where the library would go through floats.
            self._program = jq.compile(f"{prefix}{text}\n|tojson")
        except ValueError as error:
            raise _refused(text, prefix, str(error), field) from None

    def values(self, message: Message) -> Iterator[Any]:
        """The program's outputs for one message, one by one. Raises `InvalidPayload` when the body is not JSON
        data and `TransformFailed` with jq's text when the program fails on it."""
        results = iter(self._program.input_text(self._input(message)))
        while True:
            try:
                text = next(results, None)
                if text is None:
                    return
                value = json_text.loads(text)
            except ValueError as error:
                reason = str(error)
                break
            yield value
        # Raised here, not in the handler: an exception that held on to jq's frames would keep its state busy,
        # and the next message would have to compile the program anew.
        del results
        raise TransformFailed(f"jq: {reason}", program=self.text[:500])

    def first(self, message: Message) -> Any:
        """The first output, None when there is none. Raises as `values` does."""
        return next(self.values(message), None)

    def _input(self, message: Message) -> str:
        if not self._with_context:
            return json_text.dumps(message.body)
        return json_text.dumps(
            {
                "body": message.body,
                "headers": message.headers,
                "vars": message.vars,
                "message": {"id": message.id, "generation": message.generation},
            }
        )


def _refused(text: str, prefix: str, reason: str, field: str) -> ConfigurationError:
    """jq's complaint in terms of the program as it was written."""
    withheld = _WITHHELD_USE.search(reason)
    if withheld:
        name = withheld[1].replace("_1", "/1") if withheld[1].endswith("_1") else withheld[1]
        return ConfigurationError(
            f"jq: {name} is not available here: it {_WITHHELD[name]}", field=field, value=text
        )
    try:
        jq.compile(prefix + text)
    except ValueError as error:
        reason = str(error)  # without the `| tojson` behind it, where the complaint is about the end
    first = reason.removeprefix("jq: error: ").split("\njq: ")[0].strip()
    place = _PLACE.search(first)
    if place is None:
        return ConfigurationError(f"jq: {first}", field=field, value=text)
    line, column = int(place[1]), int(place[2])
    if line == 1:
        column = max(1, column - len(prefix))
    return ConfigurationError(
        f"jq: {first[: place.start()]}, line {line}, column {column}",
        field=field,
        value=text,
        line=line,
        column=column,
    )
