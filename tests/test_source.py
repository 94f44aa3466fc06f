"""The promises about the source itself: read downward, short functions, one way out, one use of the key."""

from __future__ import annotations

import ast
import io
import json
import re
import statistics
import subprocess
import symtable
import sys
import tokenize
import unittest
from pathlib import Path
from typing import Any, Dict, Iterator, List, Set, Tuple, Union

from tests import pictures
from tests.support import ROOT, ProgramTest, source_nodes

SOURCE = ROOT / "gpt_image.py"
TEXT = SOURCE.read_text(encoding="utf-8")
LINES = TEXT.splitlines()
SLOW_MODULES = ("ssl", "http.client", "urllib.request")  # importing them takes as long as starting Python
OLDEST = (3, 9)

Function = Union[ast.FunctionDef, ast.AsyncFunctionDef]


def tree() -> ast.Module:
    """Returns the syntax tree of the program."""
    module = source_nodes()[0]
    assert isinstance(module, ast.Module)
    return module


def functions() -> List[Function]:
    """Returns every function of the program, methods and nested ones too."""
    return [node for node in source_nodes() if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


class WithoutAnnotations(ast.NodeTransformer):
    """Takes the annotations out of a tree: `from __future__ import annotations` means that nothing evaluates them."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.returns = None
        self.generic_visit(node)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        node.annotation = ast.Constant(None)
        self.generic_visit(node)
        return node


def names_defined(node: ast.stmt) -> Set[str]:
    """Returns the names that a statement at the top level defines."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {(name.asname or name.name).partition(".")[0] for name in node.names}
    if isinstance(node, ast.If):
        return {name for inner in node.body for name in names_defined(inner)}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {inner.id for target in targets for inner in ast.walk(target) if isinstance(inner, ast.Name)}


def names_used(node: ast.stmt) -> Set[str]:
    """Returns the global names that a statement at the top level uses, in itself or in functions within it."""

    def at_top(table: symtable.SymbolTable) -> bool:
        return table.get_type() == "module"

    def walk(table: symtable.SymbolTable) -> Iterator[str]:
        for symbol in table.get_symbols():
            # From 3.12 on, the variable of a comprehension is listed in the scope around it, as assigned there.
            if symbol.is_referenced() and (symbol.is_global() or at_top(table)) and not symbol.is_assigned():
                yield symbol.get_name()
        for child in table.get_children():
            yield from walk(child)

    first = min([node.lineno, *(part.lineno for part in getattr(node, "decorator_list", []))])
    bare = WithoutAnnotations().visit(ast.parse("\n".join(LINES[first - 1 : node.end_lineno])))
    return set(walk(symtable.symtable(ast.unparse(ast.fix_missing_locations(bare)), "part", "exec")))


def forward_references() -> List[str]:
    """Returns `user -> name` for each name used above its definition, unless the two need each other."""
    statements = [(node, names_defined(node), names_used(node)) for node in tree().body]
    uses: Dict[str, Set[str]] = {}
    place: Dict[str, int] = {}
    for i, (_, defined, used) in enumerate(statements):
        for name in defined:
            place.setdefault(name, i)
            uses[name] = uses.get(name, set()) | used

    def reaches(start: str, goal: str, seen: Set[str]) -> bool:
        todo = uses.get(start, set()) - seen
        return goal in todo or any(reaches(name, goal, seen | todo) for name in todo)

    found = []
    for i, (node, defined, used) in enumerate(statements):
        for name in sorted(used & set(place)):
            if place[name] > i and not any(reaches(name, mine, set()) for mine in defined):
                found.append(f"{', '.join(sorted(defined)) or f'line {node.lineno}'} -> {name}")
    return found


def calls(name: str) -> List[int]:
    """Returns the lines on which a function is called by its plain name."""
    return [node.lineno for node in source_nodes()
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name]  # fmt: skip


def attributes(name: str) -> List[int]:
    """Returns the lines on which an attribute of this name is used."""
    return [node.lineno for node in source_nodes() if isinstance(node, ast.Attribute) and node.attr == name]


def imported(node: ast.AST) -> List[str]:
    """Returns the modules that an import statement names."""
    if isinstance(node, ast.Import):
        return [name.name for name in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


class TheFileIsReadDownward(unittest.TestCase):
    """Sections in order, each of which uses only what stands above it."""

    def test_the_sections_stand_in_the_order_of_the_map(self) -> None:
        sections = re.findall(r"^# -+\n# ([0-9]+) (\w+(?:, \w+)?): .+\n# -+$", TEXT, re.MULTILINE)
        self.assertEqual([int(number) for number, _ in sections], list(range(1, len(sections) + 1)))
        self.assertGreaterEqual(len(sections), 13)
        listed = re.findall(r"(?<!\S)([0-9]{1,2}) ([A-Z][a-z]+(?:, [A-Z][a-z]+)?)  ", ast.get_docstring(tree()) or "")
        self.assertEqual(sorted(listed, key=lambda row: int(row[0])), sections)

    def test_no_name_is_used_above_its_definition(self) -> None:
        found = forward_references()
        self.assertEqual(found, [], "\n".join(found))

    def test_no_module_state_changes(self) -> None:
        self.assertEqual([node.lineno for node in source_nodes() if isinstance(node, ast.Global)], [])
        for node in tree().body:
            if isinstance(node, (ast.Assign, ast.AnnAssign)):
                for name in names_defined(node):
                    self.assertRegex(name, r"^([A-Z][A-Z0-9_]*|[A-Z][A-Za-z]+|__version__)$")

    def test_it_begins_as_a_script_that_any_python_from_3_9_runs(self) -> None:
        self.assertEqual(LINES[0], "#!/usr/bin/env python3")
        block = re.search(r"^# /// script\n((?:#.*\n)+?)# ///$", TEXT, re.MULTILINE)
        self.assertIsNotNone(block)
        self.assertIn('# requires-python = ">=3.9"', TEXT)
        self.assertIn("# dependencies = []", TEXT)


class FunctionsAreShort(unittest.TestCase):
    """What a reader holds in the head at a time."""

    def test_no_function_is_over_fifty_lines_and_half_of_them_are_under_twelve(self) -> None:
        lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions()}
        self.assertEqual({name: length for name, length in lengths.items() if length > 50}, {})
        every = [(node.end_lineno or 0) - node.lineno + 1 for node in functions()]
        self.assertLessEqual(statistics.median(every), 12)

    def test_every_definition_at_the_top_says_in_a_sentence_what_it_is(self) -> None:
        for node in tree().body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                with self.subTest(node.name):
                    words = ast.get_docstring(node) or ""
                    self.assertRegex(words.split("\n\n")[0].replace("\n", " "), r"^[A-Z*`a-z].+[.:]$")

    def test_no_line_is_over_120_characters(self) -> None:
        self.assertEqual([i for i, line in enumerate(LINES, 1) if len(line) > 120], [])

    def test_no_line_ends_in_blanks_or_holds_a_tab(self) -> None:
        self.assertEqual([i for i, line in enumerate(LINES, 1) if line != line.rstrip() or "\t" in line], [])

    def test_comments_are_a_twentieth_to_a_seventh(self) -> None:
        tokens = tokenize.generate_tokens(io.StringIO(TEXT).readline)
        commented = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
        share = len(commented) / sum(bool(line.strip()) for line in LINES)
        self.assertGreaterEqual(share, 0.04)
        self.assertLessEqual(share, 0.15)

    def test_nothing_is_left_to_do(self) -> None:
        self.assertEqual(re.findall(r"\b(?:TODO|FIXME|XXX|HACK)\b", TEXT), [])

    def test_no_name_says_utils_helper_manager_or_handler(self) -> None:
        names = [node.name for node in source_nodes() if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        self.assertEqual([name for name in names if re.search("util|helper|manager|handler", name, re.IGNORECASE)], [])


class ThereIsOneWayOut(unittest.TestCase):
    """Words, exits, exceptions and the key each leave in one place."""

    def test_print_is_called_in_one_place(self) -> None:
        self.assertEqual(len(calls("print")), 1)
        for stream in ("stdout", "stderr"):
            writes = [node.lineno for node in source_nodes() if isinstance(node, ast.Attribute) and node.attr == "write"
                      and isinstance(node.value, ast.Attribute) and node.value.attr == stream]  # fmt: skip
            self.assertEqual(writes, [])

    def test_the_interpreter_is_left_in_one_place(self) -> None:
        exits = [node.lineno for node in source_nodes() if isinstance(node, ast.Name) and node.id == "SystemExit"]
        self.assertEqual(len(exits), 1)
        self.assertEqual(calls("exit") + calls("quit"), [])
        self.assertEqual(attributes("_exit"), [])
        self.assertEqual([line for line in attributes("exit") if re.search(r"\bsys\.exit\b", LINES[line - 1])], [])

    def test_the_key_is_revealed_to_one_caller(self) -> None:
        self.assertEqual(len(attributes("reveal")), 1)
        self.assertEqual(len(re.findall(r"def reveal\b", TEXT)), 1)

    def test_a_failure_is_the_only_exception_but_for_a_few(self) -> None:
        allowed = {"Failure", "KeyboardInterrupt", "ValueError", "ConnectionError", "AssertionError", "SystemExit"}
        raised = set()
        for node in source_nodes():
            if isinstance(node, ast.Raise) and node.exc:
                what = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
                raised.add(what.id if isinstance(what, ast.Name) else ast.unparse(what))
        classes = {name for name in raised if re.match(r"[A-Z]", name)}
        self.assertLessEqual(classes, allowed)
        classes_at_top = [node for node in tree().body if isinstance(node, ast.ClassDef)]
        bases = {node.name: " ".join(ast.unparse(base) for base in node.bases) for node in classes_at_top}
        own = [name for name, words in bases.items() if re.search("Exception|Error|Interrupt", words)]
        self.assertEqual(own, ["Failure"])

    def test_nothing_is_evaluated_and_no_shell_is_used(self) -> None:
        for name in ("eval", "exec", "compile", "__import__", "input"):
            self.assertEqual(calls(name), [], name)
        self.assertEqual(re.findall(r"shell=True|os\.system|os\.popen|pickle|tempfile\.mktemp", TEXT), [])


class OnlyTheStandardLibraryIsImported(ProgramTest):
    """Nothing to install, and nothing slow before something is sent."""

    def test_every_import_is_of_the_standard_library(self) -> None:
        known = getattr(sys, "stdlib_module_names", None)
        if known is None:
            self.skipTest("sys.stdlib_module_names came with Python 3.10")
        names = {name.partition(".")[0] for node in source_nodes() for name in imported(node)}
        self.assertEqual(names - set(known), set())

    def test_what_only_a_call_needs_is_not_imported_at_the_top(self) -> None:
        names = {name for node in tree().body for name in imported(node)}
        self.assertEqual(names & {*SLOW_MODULES, "socket", "subprocess", "hashlib", "asyncio", "email"}, set())

    def test_neither_help_nor_a_dry_run_imports_what_only_a_call_needs(self) -> None:
        Path("a.png").write_bytes(pictures.picture(b"a", "png", 64, 48))
        commands = [
            ["--help"], ["--version"], ["config"],
            ["generations", "--help"], ["edits", "--help"], ["responses", "--help"],
            ["generations", "x", "--dry-run", "--size", "1024x1024"], ["edits", "x", "--image", "a.png", "--dry-run"],
            ["responses", "x", "--input-image", "a.png", "--stream", "--dry-run"], ["generations", "x", "--n", "11"],
            ["generations", "x", "--curl"],
        ]  # fmt: skip
        probe = (
            "import sys, json, io\n"
            "before = set(sys.modules)\n"
            f"sys.path.insert(0, {str(ROOT)!r})\n"
            "import gpt_image\n"
            "found = {}\n"
            "for argv in json.loads(sys.argv[1]):\n"
            "    gpt_image.main(argv, stdout=io.StringIO(), stderr=io.StringIO(), environ={})\n"
            f"    found[' '.join(argv)] = sorted(set({SLOW_MODULES!r}) & (set(sys.modules) - before))\n"
            "print(json.dumps(found))\n"
        )
        done = subprocess.run([sys.executable, "-S", "-c", probe, json.dumps(commands)], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        found: Dict[str, Any] = json.loads(done.stdout)
        self.assertEqual(len(found), len(commands))
        self.assertEqual({command: names for command, names in found.items() if names}, {})


class EveryPythonRunsIt(ProgramTest):
    """From 3.9 up, with the oldest and the newest interpreter this machine has: the tests run on every one in CI."""

    def pythons(self) -> List[Tuple[str, str]]:
        """Returns name and path of the interpreters of pyenv, if there is one."""
        found: List[Tuple[Tuple[int, ...], str, str]] = []
        for folder in sorted((Path.home() / ".pyenv" / "versions").glob("3.*")):
            version = tuple(int(part) for part in re.findall(r"[0-9]+", folder.name)[:2])
            python = folder / "bin" / "python3"
            if version >= OLDEST and python.exists():
                found.append((version, folder.name, str(python)))
        found.sort()
        return [(name, python) for _, name, python in (found[:1] + found[1:][-1:])]

    def test_the_oldest_and_the_newest_compile_and_run_it_without_a_warning(self) -> None:
        pythons = self.pythons()
        if not pythons:
            self.skipTest("no other Python here")
        argv = [str(SOURCE), "generations", "x", "--dry-run", "--no-env-file"]
        running = [
            (name, subprocess.Popen([python, "-S", "-W", "error", *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE))
            for name, python in pythons
        ]
        for name, process in running:
            out, err = process.communicate()
            with self.subTest(name):
                self.assertEqual((process.returncode, err), (0, b""))
                self.assertTrue(json.loads(out)["dry_run"])
