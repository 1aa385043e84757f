"""
What an arithmetic expression of plain numbers comes to, exactly.

Knows digits, `+ - * /` and parentheses; no letters, powers or functions. Whoever asks has seen to it that the text is no date, range or
telephone number.
"""

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction

_LONGEST = 100  # characters
_WRITTEN = re.compile(r"[-+*/(). 0-9]+")
_OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def value_of(form: str) -> Fraction | None:
    """The value of an expression such as "(3+5)*2", or None for what is none, divides by zero or is longer than 100 characters."""
    if len(form) > _LONGEST or not _WRITTEN.fullmatch(form):
        return None
    form = form.strip()
    try:
        return _value(ast.parse(form, mode="eval").body, form)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


def _value(node: ast.expr, form: str) -> Fraction:
    match node:
        case ast.Constant():
            return Fraction(form[node.col_offset : node.end_col_offset])  # 0.1, and not its float
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, form)
        case ast.BinOp(left=left, op=op, right=right) if operation := _OPERATIONS.get(type(op)):
            return operation(_value(left, form), _value(right, form))
        case _:
            raise ValueError(f"not arithmetic: {form}")
