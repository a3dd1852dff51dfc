"""Expressions over what is known of a sample, as `select --where` and `split --by` take them: parsed, never evaluated
as Python.

Names are columns: ``key``, ``shard``, ``label``, ``class_name``, ``size`` (bytes in the shard), ``length`` (tokens,
frames); any other name is a field of the sample's JSON member, ``json.year`` as well as ``year``, ``json["a b"]``.
Comparisons, ``and or not``, ``in``, arithmetic, literals. What is missing is None: a comparison of order with it is
false, arithmetic with it is None.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from data_tools.errors import UserError

Row = Mapping[str, Any]
"""Columns of one sample by name; ``json`` is its JSON member, or None."""
Value = Callable[[Row], Any]

INDEX_COLUMNS = ("shard", "size", "length")
"""What the index knows; every other column is read from the shards."""
COLUMNS = ("key", "label", "class_name", *INDEX_COLUMNS)
MAX_CHARACTERS = 10_000

_ARITHMETIC: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.UAdd: operator.pos, ast.USub: operator.neg,
}  # fmt: skip
_EQUALITY: dict[type[ast.AST], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Is: lambda a, b: a is b, ast.IsNot: lambda a, b: a is not b,
}  # fmt: skip
_ORDER: dict[type[ast.AST], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b,
}  # fmt: skip


@dataclass(frozen=True)
class Expression:
    """A parsed expression: ``columns`` are those that it names, such as ``label`` or ``json.year``."""

    text: str
    columns: tuple[str, ...]
    value: Value

    @property
    def reads_samples(self) -> bool:
        """Whether the index alone does not know the value."""
        return any(column not in INDEX_COLUMNS for column in self.columns)

    def __call__(self, row: Row) -> Any:
        """The value for one sample; raises UserError, naming the sample, where types do not go together."""
        try:
            return self.value(row)
        except (TypeError, ZeroDivisionError, OverflowError, RecursionError) as error:
            raise UserError(f"{self.text}: sample {row.get('key', '')}: {error}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        return parse_expression, (self.text,)  # closures do not go to other processes


def parse_expression(text: str) -> Expression:
    """Parse an expression; raises UserError naming what is not allowed in one."""
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"an expression of {len(text):,} characters; the limit is {MAX_CHARACTERS:,}")
    try:
        tree = ast.parse(text.strip(), mode="eval")
        columns: dict[str, None] = {}
        value = _build(tree.body, text, columns)
    except (SyntaxError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{text}: not an expression ({error.args[0]}); an example: year >= 1900 and label in (1, 2)"
        ) from None
    except (RecursionError, MemoryError):
        raise UserError(f"{text[:60]} …: is nested too deeply") from None
    return Expression(text, tuple(columns), value)


def _build(node: ast.AST, text: str, columns: dict[str, None]) -> Value:
    """The function of a row that a node stands for; its columns are added to ``columns``."""
    if (path := _path(node)) is not None:
        return _column(path, columns)
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float | bool | None):
        constant = node.value
        return lambda _: constant
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        members = [_build(element, text, columns) for element in node.elts]
        return lambda row: [member(row) for member in members]
    if isinstance(node, ast.BoolOp):
        parts = [_build(part, text, columns) for part in node.values]
        if isinstance(node.op, ast.And):
            return lambda row: all(part(row) for part in parts)
        return lambda row: any(part(row) for part in parts)
    if isinstance(node, ast.UnaryOp):
        operand = _build(node.operand, text, columns)
        if isinstance(node.op, ast.Not):
            return lambda row: not operand(row)
        if type(node.op) in _ARITHMETIC:
            return _arithmetic(_ARITHMETIC[type(node.op)], [operand])
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        sides = [_build(side, text, columns) for side in (node.left, node.right)]
        return _arithmetic(_ARITHMETIC[type(node.op)], sides)
    if isinstance(node, ast.Compare):
        operands = [_build(operand, text, columns) for operand in (node.left, *node.comparators)]
        return _comparison([type(op) for op in node.ops], operands)
    raise UserError(
        f"{text}: {type(node).__name__} ({ast.unparse(node)[:40]}) is not allowed in an expression; use columns, "
        "literals, comparisons, and, or, not, in, + - * / // %"
    )


def _path(node: ast.AST) -> list[str | int] | None:
    """``json.a["b c"][0]`` → ["json", "a", "b c", 0]; None for anything else."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute) and (path := _path(node.value)) is not None:
        return [*path, node.attr]
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        path = _path(node.value)
        if path is not None and isinstance(node.slice.value, str | int):
            return [*path, node.slice.value]
    return None


def _column(path: list[str | int], columns: dict[str, None]) -> Value:
    if path[0] in COLUMNS and len(path) == 1:
        name = str(path[0])
        columns[name] = None
        return lambda row: row.get(name)
    inside = path[1:] if path[0] == "json" else path
    columns[".".join(["json", *map(str, inside)])] = None
    return lambda row: find_field(row.get("json"), inside)


def find_field(value: Any, path: list[str | int]) -> Any:
    """What stands in nested dictionaries and lists under a path; None where it does not go on."""
    for step in path:
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and -len(value) <= step < len(value):
            value = value[step]
        else:
            return None
    return value


def _arithmetic(operation: Callable[..., Any], operands: list[Value]) -> Value:
    def compute(row: Row) -> Any:
        values = [operand(row) for operand in operands]
        if None in values:
            return None
        for value in values:
            if not isinstance(value, int | float):
                raise TypeError(f"arithmetic needs numbers, not {value!r}")
        return operation(*values)

    return compute


def _comparison(kinds: list[type[ast.cmpop]], operands: list[Value]) -> Value:
    def compare(row: Row) -> bool:
        left = operands[0](row)
        for kind, operand in zip(kinds, operands[1:], strict=True):
            right = operand(row)
            if kind in _EQUALITY:
                holds = _EQUALITY[kind](left, right)
            elif right is None or (left is None and kind not in (ast.In, ast.NotIn)):
                holds = False
            else:
                holds = _ORDER[kind](left, right)
            if not holds:
                return False
            left = right
        return True

    return compare
