"""The mutants of a file: what mutmut's operators make of its functions and of the values of its module, and what
is changed in SQL. A mutant is a piece of text in place of another one.

Left out, because it changes nothing that a test should hold to the letter: words for people (messages of errors,
the log, whatever text has a space in it and is no SQL), the fields of a refusal that repeat what was given,
annotations, casts, decorators, bodies of classes (declarations), names of types, and letters of SQL in the other
case.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import libcst as cst
from libcst.metadata import ByteSpanPositionProvider, MetadataWrapper, PositionProvider
from mutmut.mutation.file_mutation import Mutation, MutationVisitor, OuterFunctionProvider
from mutmut.mutation.mutators import mutation_operators, operator_string
from mutmut.mutation.pragma_handling import IgnoredCode

PACKAGE = Path(__file__).resolve().parents[2] / "include" / "continuitybridge"

_SQL = re.compile(
    r"\b(SELECT|INSERT INTO|UPDATE|DELETE FROM|FROM|WHERE|VALUES|ORDER BY|GROUP BY|SET|FOR UPDATE|ON CONFLICT|"
    r"RETURNING|LISTEN|NOTIFY|AND|OR|JOIN|LIMIT)\b"
)
_CONDITION = re.compile(r"\b(WHERE|ON|HAVING|CASE|AND)\b")
_SWAPS = (
    (r"\bAND\b", "OR"),
    (r"\bOR\b", "AND"),
    (r"\btrue\b", "false"),
    (r"\bfalse\b", "true"),
    (r"\bIS NOT NULL\b", "IS NULL"),
    (r"\bIS NULL\b", "IS NOT NULL"),
    (r"\bNOT EXISTS\b", "EXISTS"),
    (r"<=", "<"),
    (r">=", ">"),
    (r"(?<=\s)<(?=\s)", "<="),
    (r"(?<=\s)>(?=\s)", ">="),
    (r"<>", "="),
    (r"(?<![<>!:])=(?!=)", "<>"),
    (r"(?<=[a-z]) \+ (?=\d)", " - "),
    (r"\bDESC\b", ""),
    (r" FOR (NO KEY )?UPDATE\b(?! OF| SKIP)", ""),
    (r" LIMIT \d+", ""),
)
_UNNAMED = (
    "field",
    "value",
    "valid",
    "detail",
    "title",
    "description",
    "summary",
    "examples",
    "name",
    "application_name",
)
"""Arguments that only tell something to people."""
_LOGGERS = ("log", "logger", "logging")
_MODULE_NAMES = ("log", "router", "__all__", "pytestmark")


@dataclass(frozen=True)
class Mutant:
    """`file` is relative to the package, `function` its dotted name ("" at module level); `first` and `last` are
    the lines of the changed statement, `body` those of the outermost function; `in_head`: a default of its
    arguments is changed. `change` tells it to people."""

    id: str
    file: str
    function: str
    outermost: str
    first: int
    last: int
    body: tuple[int, int]
    in_head: bool
    start: int
    length: int
    text: str
    change: str

    def source(self) -> str:
        """The file with the change."""
        original = (PACKAGE / self.file).read_bytes()
        return (original[: self.start] + self.text.encode() + original[self.start + self.length :]).decode()


def is_sql(text: str) -> bool:
    return _SQL.search(text) is not None


def _strings(node: cst.BaseString) -> Iterator[cst.BaseString]:
    """SQL with another condition; other strings as mutmut does."""
    if not isinstance(node, cst.SimpleString):
        return
    if is_sql(node.value) and "b" not in node.prefix:
        yield from (node.with_changes(value=changed) for changed in _sql(node.value))
    elif " " not in node.value.strip():
        yield from operator_string(node)


def _sql(text: str) -> Iterator[str]:
    condition = _CONDITION.search(text)
    for pattern, replacement in _SWAPS:
        for found in re.finditer(pattern, text):
            # What `=` assigns is no condition.
            if "=" in pattern and replacement == "<>" and (condition is None or found.start() < condition.start()):
                continue
            yield text[: found.start()] + replacement + text[found.end() :]


_OPERATORS = [
    (kind, _strings if operator is operator_string else operator) for kind, operator in mutation_operators
]


class _Visitor(MutationVisitor):
    """mutmut's, which also looks into decorated functions: nothing is copied here."""

    METADATA_DEPENDENCIES = (PositionProvider, OuterFunctionProvider, ByteSpanPositionProvider)

    def __init__(self) -> None:
        super().__init__(_OPERATORS, IgnoredCode(set(), set(), set()))
        self._around: list[cst.CSTNode] = []
        self.found: list[tuple[Mutation, tuple[cst.CSTNode, ...]]] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        before = len(self.mutations)
        goes_on = super().on_visit(node)
        around = (*self._around, node)
        self.found += [(each, around) for each in self.mutations[before:]]
        self._around.append(node)
        return goes_on

    def on_leave(self, original_node: cst.CSTNode) -> None:
        self._around.pop()
        super().on_leave(original_node)

    def _skip_node_and_children(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.FunctionDef):
            bare = node.with_changes(decorators=[])
            return super()._skip_node_and_children(bare)
        if isinstance(node, cst.SimpleString | cst.ConcatenatedString | cst.FormattedString):
            return False
        if isinstance(node, cst.Call) and _is_for_people(node):
            return True
        if isinstance(node, cst.Arg) and node.keyword is not None and node.keyword.value in _UNNAMED:
            return True
        if isinstance(node, cst.Import | cst.ImportFrom | cst.Subscript) and _is_type(node):
            return True
        if isinstance(node, cst.Param) and node.default is not None:
            return False
        return super()._skip_node_and_children(node)


def _is_for_people(call: cst.Call) -> bool:
    func = call.func
    if isinstance(func, cst.Name):
        return func.value in ("cast", "len", "isinstance", "TypeVar", "getLogger")
    return isinstance(func, cst.Attribute) and isinstance(func.value, cst.Name) and func.value.value in _LOGGERS


def _is_type(node: cst.CSTNode) -> bool:
    return not isinstance(node, cst.Subscript) or (
        isinstance(node.value, cst.Name) and node.value.value in ("Literal", "Annotated", "Callable", "Mapping")
    )


@lru_cache(maxsize=64)
def of(file: str) -> tuple[Mutant, ...]:
    """The mutants of a file of the package, in the order of the file."""
    source = (PACKAGE / file).read_bytes()
    wrapper = MetadataWrapper(cst.parse_module(source), unsafe_skip_copy=True)
    visitor = _Visitor()
    module = wrapper.module
    wrapper.visit(visitor)
    spans = wrapper.resolve(ByteSpanPositionProvider)
    lines = wrapper.resolve(PositionProvider)
    seen: Counter[tuple[str, str, str]] = Counter()
    found = []
    for mutation, around in visitor.found:
        if _means_nothing(mutation, around):
            continue
        defs = [each for each in around if isinstance(each, cst.FunctionDef | cst.ClassDef)]
        functions = [each for each in defs if isinstance(each, cst.FunctionDef)]
        # A class's body declares; so does a class within a function.
        if defs and not functions:
            continue
        outermost = defs[: defs.index(functions[0]) + 1] if functions else []
        node = mutation.original_node
        span = spans[node]
        text = module.code_for_node(mutation.mutated_node)
        if isinstance(node, cst.Match):
            continue
        statement = _statement(around)
        first, last = lines[statement].start.line, lines[statement].end.line
        if isinstance(statement, cst.BaseCompoundStatement):
            first, last = lines[node].start.line, lines[node].end.line
        outer = lines[outermost[-1]] if outermost else None
        after = source[: span.start] + text.encode() + source[span.start + span.length :]
        change = _change(source, after, span.start, span.length, len(text.encode()))
        function = ".".join(each.name.value for each in defs)
        key = (function, *change)
        seen[key] += 1
        name = hashlib.sha256("\0".join((*key, str(seen[key]))).encode()).hexdigest()[:8]
        found.append(
            Mutant(
                id=f"{file}:{function or '-'}:{name}",
                file=file,
                function=function,
                outermost=".".join(each.name.value for each in outermost),
                first=first,
                last=last,
                body=(outer.start.line, outer.end.line) if outer else (0, 0),
                in_head=any(isinstance(each, cst.Param) for each in around),
                start=span.start,
                length=span.length,
                text=text,
                change=f"{change[0]}  =>  {change[1]}",
            )
        )
    return tuple(found)


def _statement(around: tuple[cst.CSTNode, ...]) -> cst.CSTNode:
    return next(
        each for each in reversed(around) if isinstance(each, cst.SimpleStatementLine | cst.BaseCompoundStatement)
    )


def _change(before: bytes, after: bytes, start: int, length: int, new: int) -> tuple[str, str]:
    """The lines that the change touches, as they were and as they are, on one line each."""
    begin = before.rfind(b"\n", 0, start) + 1
    end_before = before.find(b"\n", start + length)
    end_after = after.find(b"\n", start + new)
    was, is_ = before[begin:end_before].decode(), after[begin:end_after].decode()
    return " ".join(was.split()), " ".join(is_.split())


def _means_nothing(mutation: Mutation, around: tuple[cst.CSTNode, ...]) -> bool:
    node, changed = mutation.original_node, mutation.mutated_node
    if isinstance(node, cst.SimpleString) and _is_docstring(around):
        return True
    if isinstance(node, cst.Call) and isinstance(changed, cst.Call):
        kept = {id(each) for each in changed.args}
        raised = any(isinstance(each, cst.Raise) for each in around)
        if any(_is_words(each, raised) for each in node.args if id(each) not in kept):
            return True
    if len(around) < 2 or not any(isinstance(each, cst.FunctionDef | cst.ClassDef) for each in around):
        return _is_unmoved(around)
    return False


def _is_words(arg: cst.Arg, raised: bool) -> bool:
    """Whether an argument is words for people, or what a refusal repeats of what it was given."""
    value = arg.value
    if arg.keyword is not None and arg.keyword.value in _UNNAMED:
        return True
    if isinstance(value, cst.FormattedString | cst.ConcatenatedString):
        return raised
    return isinstance(value, cst.SimpleString) and " " in value.value and not is_sql(value.value)


def _is_docstring(around: tuple[cst.CSTNode, ...]) -> bool:
    return len(around) >= 2 and isinstance(around[-2], cst.Expr)


def _is_unmoved(around: tuple[cst.CSTNode, ...]) -> bool:
    """Whether a statement of the module is no value: imports, types, the log, routers."""
    for each in around:
        if isinstance(each, cst.Assign | cst.AnnAssign):
            target = each.targets[0].target if isinstance(each, cst.Assign) else each.target
            if not isinstance(target, cst.Name):
                return True
            name = target.value
            is_type = name[:1].isupper() and any(letter.islower() for letter in name)
            return is_type or name in _MODULE_NAMES or (name.lstrip("_")[:1].isupper() and not name.isupper())
    return True
