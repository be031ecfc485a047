"""`python -O` removes assert statements, so none may have an effect, and none may guard what a user can give."""

import ast
import os
import subprocess
import sys

import pytest

from paths import ROOT

SOURCES = sorted(
    file for pattern in ("src/**/*.py", "benchmarks/**/*.py", "slurm/**/*.py", "*.py") for file in ROOT.glob(pattern)
)
PURE = {"all", "any", "isinstance", "len", "list", "max", "min", "range", "set", "sorted", "sum", "tuple"}
EFFECTS = (ast.NamedExpr, ast.Await, ast.Yield, ast.YieldFrom)


def found_in(source: str) -> list[str]:
    """Asserts that may do something, and code that depends on `__debug__`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and node.id == "__debug__":
            found.append(f"{node.lineno}: __debug__")
        if isinstance(node, ast.Assert):
            for part in ast.walk(node):
                is_call = isinstance(part, ast.Call) and not (isinstance(part.func, ast.Name) and part.func.id in PURE)
                if is_call or isinstance(part, EFFECTS):
                    found.append(f"{node.lineno}: {ast.unparse(part)}")
    return found


def test_no_assert_has_an_effect():
    assert len(SOURCES) > 200
    found = [f"{file.relative_to(ROOT)}:{line}" for file in SOURCES for line in found_in(file.read_text())]
    assert found == [], "move the call out of the assert, or raise an exception"


@pytest.mark.parametrize(
    "source",
    [
        "assert self._next() == 1",
        "assert next(rows)",
        "assert rows.pop()",
        "assert (n := read())",
        "assert x, file.read()",
        "assert all(write(x) for x in y)",
        "async def f():\n    assert await x",
        "if __debug__:\n    read()",
    ],
)
def test_an_effect_is_found(source):
    assert found_in(source)


@pytest.mark.parametrize(
    "source", ["assert x is not None", "assert isinstance(x, int)", "assert len(x) == 2, (x, 'a')"]
)
def test_what_is_pure_is_allowed(source):
    assert found_in(source) == []


def test_a_json_array_is_read_without_asserts(tmp_path):
    file = tmp_path / "rows.json"
    file.write_text('[{"instruction": "Say A", "output": "A"}, {"instruction": "Say B", "output": "B"}]')
    code = (
        "import pathlib, sys; from sftmix.data.sources import read_file; "
        "print(len(list(read_file(pathlib.Path(sys.argv[1])))))"
    )
    environment = {**os.environ, "PYTHONOPTIMIZE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("2\n", "")
