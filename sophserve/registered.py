"""The names that plugins register, read in their source: to load plugins takes torch, and seconds.

Registering is a call of `register` with the name as it is written in a hook; whatever else a plugin does cannot be
seen here, and is for the worker to find out.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from sophserve.plugins import PROJECT


@dataclass
class Names:
    """What is registered, in order. members: the methods of the class behind a name, and of its bases in the same file,
    and the fields of all classes of that file. distributions: where each is from.
    """

    members: dict[str, set[str]] = field(default_factory=dict)
    distributions: dict[str, str] = field(default_factory=dict)


def registered(hook: str) -> Names | None:
    """What the installed plugins register in a hook; None if the source of one cannot be read."""
    found = Names()
    for distribution, tree in _plugins():
        if tree is None:
            return None
        classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        fields = {name for node in classes.values() for name in _fields(node)}
        for function in tree.body:
            if isinstance(function, ast.FunctionDef) and function.name == hook:
                names = list(_registrations(function))
                if not names or None in names:
                    return None
                for name, registered_class in (each for each in names if each is not None):
                    found.members[name] = _methods(registered_class, classes) | fields
                    found.distributions[name] = distribution
    return Names(dict(sorted(found.members.items())), found.distributions)


@cache
def _plugins() -> list[tuple[str, ast.Module | None]]:
    """The distribution and the source of each; None for what is not Python."""
    found = []
    for entry in entry_points(group=PROJECT):
        path = _source(entry.module)
        try:
            tree = ast.parse(path.read_text(encoding="utf-8")) if path else None
        except (OSError, ValueError, SyntaxError):
            tree = None
        found.append((entry.dist.name if entry.dist else "unknown", tree))
    return found


def _source(module: str) -> Path | None:
    """The file of a module, which is not imported."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    places = [Path(place, *rest) for place in spec.submodule_search_locations or ()]
    files = [file for place in places for file in (place / "__init__.py", place.with_name(place.name + ".py"))]
    files += [Path(spec.origin)] if spec.origin and not rest else []
    return next((file for file in files if file.suffix == ".py" and file.is_file()), None)


def _registrations(function: ast.FunctionDef) -> Iterator[tuple[str, str] | None]:
    """(name, class) of each call of `register`; None for one whose arguments are not written out."""
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "register":
            match node.args:
                case [ast.Constant(value=str(name)), ast.Name(id=registered_class)]:
                    yield name, registered_class
                case _:
                    yield None


def _methods(name: str, classes: dict[str, ast.ClassDef]) -> set[str]:
    """What a class and its bases in the same file define."""
    if name not in classes:
        return set()
    found = {node.name for node in classes[name].body if isinstance(node, ast.FunctionDef)}
    return found.union(*(_methods(base.id, classes) for base in classes[name].bases if isinstance(base, ast.Name)))


def _fields(node: ast.ClassDef) -> set[str]:
    assigned = (each.target for each in node.body if isinstance(each, ast.AnnAssign))
    return {target.id for target in assigned if isinstance(target, ast.Name)}
