"""Being a mutant: the functions of this process get the changed code, in place, wherever they are held; values of
a module are evaluated anew, and whoever imported them gets the new ones."""

from __future__ import annotations

import ast
import functools
import gc
import sys
import types
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from mutants import PACKAGE, Mutant


class NotImportable(Exception):
    """A mutant whose module does not load."""


class Live:
    """What of ours lives in this process, looked for once: looking touches each page of memory, which forks share.

    `functions` by file; `caches` of functions, which remember what was found without a mutant."""

    def __init__(self) -> None:
        self.functions: dict[str, list[types.FunctionType]] = defaultdict(list)
        self.caches: list[Any] = []
        for each in gc.get_objects():
            if isinstance(each, types.FunctionType):
                file = each.__code__.co_filename
                if file.startswith(str(PACKAGE)):
                    self.functions[file].append(each)
            elif isinstance(each, functools._lru_cache_wrapper):
                ours = getattr(each, "__module__", "").startswith("continuitybridge")
                # Tests hold on to the settings that they have.
                if ours and getattr(each, "__name__", "") != "get_settings":
                    self.caches.append(each)


def become(mutant: Mutant, live: Live) -> None:
    """Change this process's copy of the function, or the values of its module."""
    path = str(PACKAGE / mutant.file)
    name = "continuitybridge." + mutant.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    module = sys.modules[name]
    source = mutant.source()
    if mutant.function == "":
        _evaluate_again(module, source, mutant.first)
        return
    old = _codes(compile((PACKAGE / mutant.file).read_text(), path, "exec", dont_inherit=True))
    codes = _codes(compile(_with_names(source, mutant.outermost, old), path, "exec", dont_inherit=True))
    ordinals = {(code.co_qualname, code.co_firstlineno): key for key, code in old.items()}
    changed = 0
    for function in live.functions[path]:
        code = function.__code__
        key = ordinals.get((code.co_qualname, code.co_firstlineno))
        if key is None or not _is_within(key[0], mutant.outermost) or key not in codes:
            continue
        if len(codes[key].co_freevars) == len(code.co_freevars):
            function.__code__ = codes[key]
            changed += 1
        if key[0] == mutant.outermost:
            _take_defaults(function, source, mutant, module)
    if not changed:
        raise LookupError(f"no function {mutant.outermost} lives")


def _is_within(qualname: str, outermost: str) -> bool:
    return qualname == outermost or qualname.startswith(f"{outermost}.<locals>.")


def _codes(code: types.CodeType) -> dict[tuple[str, int], types.CodeType]:
    """Code by its qualified name, and the how-manieth of that name it is."""
    found: dict[tuple[str, int], types.CodeType] = {}
    seen: Counter[str] = Counter()

    def walk(of: types.CodeType) -> None:
        for each in of.co_consts:
            if isinstance(each, types.CodeType):
                found[each.co_qualname, seen[each.co_qualname]] = each
                seen[each.co_qualname] += 1
                walk(each)

    walk(code)
    return found


def _with_names(source: str, outermost: str, old: Mapping[tuple[str, int], types.CodeType]) -> ast.Module:
    """The mutated module, whose function goes on naming what it had from around it (`super()` is such a name):
    code with other such names does not fit the function."""
    tree = ast.parse(source)
    for (name, _), code in old.items():
        if name == outermost and code.co_freevars:
            function = _found(tree, outermost)
            named: list[ast.stmt] = [ast.Expr(ast.Name(each, ast.Load())) for each in code.co_freevars]
            function.body.insert(0, ast.If(ast.Constant(0), named, []))
    return ast.fix_missing_locations(tree)


def _found(tree: ast.Module, name: str) -> ast.FunctionDef | ast.AsyncFunctionDef:
    place: Any = tree
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    for part in name.split("."):
        place = next(each for each in place.body if isinstance(each, kinds) and each.name == part)
    found: ast.FunctionDef | ast.AsyncFunctionDef = place
    return found


def _take_defaults(function: types.FunctionType, source: str, mutant: Mutant, module: types.ModuleType) -> None:
    found = _found(ast.parse(source), mutant.outermost)
    found.decorator_list = []
    found.body = [ast.Pass()]
    future = ast.parse("from __future__ import annotations").body
    place = dict(vars(module))
    exec(compile(ast.fix_missing_locations(ast.Module([*future, found], [])), "defaults", "exec"), place)
    made = place[found.name]
    function.__defaults__, function.__kwdefaults__ = made.__defaults__, made.__kwdefaults__


def _evaluate_again(module: types.ModuleType, source: str, line: int) -> None:
    """The module's assignments from that line on; whoever imported a value gets the new one."""
    before = dict(vars(module))
    kinds = ast.Assign | ast.AnnAssign | ast.AugAssign
    statements = [
        each for each in ast.parse(source).body if isinstance(each, kinds) and (each.end_lineno or 0) >= line
    ]
    try:
        exec(compile(ast.Module(statements, []), module.__file__ or "", "exec"), vars(module))
    except Exception as error:
        raise NotImportable(str(error)) from error
    for name, value in list(vars(module).items()):
        if name.startswith("__") or before.get(name, value) is value:
            continue
        for other in list(sys.modules.values()):
            if (
                other is not module and vars(other).get(name) is before[name]
                if isinstance(other, types.ModuleType)
                else False
            ):
                setattr(other, name, value)
