"""Writes a flow in any of the formats. Nothing is lost on the way: what the target has no place for stands under
`extra` (our language) or `bridge` (the older formats), and what it cannot express at all is refused."""

from __future__ import annotations

from dataclasses import replace

from continuitybridge.errors import ConfigurationError
from continuitybridge.flows import canvas, dsl, native
from continuitybridge.flows.load import Format, LoadedFlow, load_flow
from continuitybridge.flows.model import Flow
from continuitybridge.flows.problems import refuse

_WRITERS = {"yaml": native.write, "canvas": canvas.write, "dsl": dsl.write}
FORMATS: tuple[Format, ...] = ("yaml", "canvas", "dsl")


def convert(loaded: LoadedFlow, target: Format) -> str:
    """The flow as text in the target format: YAML for `yaml` and `dsl`, JSON for `canvas`.

    A flow in our language asked for in our language comes back as it is, comments included. Side files keep
    their names; they are not part of the text. What is written is read back and compared before it is given out.
    Raises `ConfigurationError` naming the edge that the target cannot express, or (facts: problems) the parts of
    the source that could not be read and would be lost.
    """
    if target not in _WRITERS:
        raise ConfigurationError(
            f"there is no format {target!r}", field="to", value=target, valid=", ".join(FORMATS)
        )
    if loaded.unreadable:
        raise refuse("the flow cannot be converted without loss", loaded.unreadable)
    if loaded.format == target == "yaml":
        return loaded.text
    text = _WRITERS[target](loaded.flow)
    again = load_flow(text, name=target, files=loaded.flow.files)
    if again.unreadable or _meaning(again.flow) != _meaning(loaded.flow):
        # Two nodes of one id, say: their edges cannot be told apart any more.
        raise ConfigurationError(
            f"the flow cannot be converted to {target} without loss; mend what lint says of it first", field="to"
        )
    return text


def _meaning(flow: Flow) -> Flow:
    """The flow without how its canvas was drawn, which changes where edges came or went."""
    return replace(flow, extra={key: value for key, value in flow.extra.items() if key not in ("edges", "nodes")})
