"""One name, one place for versions, and a folder that stays clean: what packages, CI and git say of the program."""

from __future__ import annotations

import fnmatch
import os
import re
import unittest
from pathlib import Path
from typing import List

import gpt_image
from tests.support import ROOT, ProgramTest


def lines_of(name: str) -> List[str]:
    """Returns the lines of a file that are neither empty nor a comment."""
    return [line for line in (ROOT / name).read_text("utf-8").splitlines() if line.strip() and line[0] != "#"]


class Package(unittest.TestCase):
    """pyproject.toml and MANIFEST.in."""

    TEXT = (ROOT / "pyproject.toml").read_text("utf-8")

    def test_the_distribution_is_gpt_image_cli_and_its_command_gpt_image(self) -> None:
        self.assertRegex(self.TEXT, r'(?m)^name = "gpt-image-cli"')
        self.assertRegex(self.TEXT, r'(?m)^gpt-image = "gpt_image:main"$')
        for field in ("keywords", "classifiers", r"\[project\.urls\]"):
            self.assertRegex(self.TEXT, rf"(?m)^{field}")

    def test_the_classifiers_begin_with_the_oldest_python_that_is_supported(self) -> None:
        named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', self.TEXT)
        self.assertIn(f'requires-python = ">={named[0]}"', self.TEXT)
        self.assertEqual(named, [f"3.{9 + number}" for number in range(len(named))])

    def test_the_source_distribution_holds_the_tests_and_all_pages(self) -> None:
        rows = [line.split() for line in lines_of("MANIFEST.in")]
        folders = {folder for word, *names in rows for folder in names if word == "graft"}
        files = [name for word, *names in rows for name in names if word == "include"]
        self.assertLessEqual({"tests", "references", ".ci", ".github"}, folders)
        for name in ("README.md", "SKILL.md", "CHANGELOG.md", "LICENSE", ".env.example", ".gitignore"):
            self.assertTrue(any(fnmatch.fnmatch(name, pattern) for pattern in files), name)

    @unittest.skipIf(os.name == "nt", "a file has no such mode here")
    def test_the_program_can_be_called_as_a_file(self) -> None:
        program = ROOT / "gpt_image.py"
        self.assertTrue(os.access(program, os.X_OK))
        self.assertTrue(program.read_text("utf-8").startswith("#!/usr/bin/env python3\n"))


class ContinuousIntegration(unittest.TestCase):
    """`.ci/run` and the workflow do the same with the same tools."""

    PLACES = [(ROOT / name).read_text("utf-8") for name in (".ci/run", ".github/workflows/test.yml")]

    def test_every_tool_has_one_version_in_one_place(self) -> None:
        tools = lines_of(".ci/tools.txt")
        for line in tools:
            self.assertRegex(line, r"^[a-z]+==\d+(\.\d+)+$")
        self.assertEqual([line.split("==")[0] for line in tools], ["build", "mypy", "ruff"])
        for text in self.PLACES:
            self.assertRegex(text, r"pip install .*--requirement \.ci/tools\.txt")
            self.assertNotRegex(text, r"pip install [^-\n]*(ruff|mypy|build)")

    def test_both_build_the_distributions_and_try_them(self) -> None:
        for text in self.PLACES:
            self.assertIn(".ci/package.py", text)
            self.assertIn("-m unittest -q", text)

    def test_a_run_of_no_tests_fails(self) -> None:
        self.assertIn('[ "$ran" -eq 0 ]', self.PLACES[0])


class WhatIsWrittenIsIgnored(ProgramTest):
    """Nothing that the program writes by itself is committed by chance."""

    def ignored(self, path: str) -> bool:
        """Tells whether a pattern of .gitignore fits a path or a folder above it."""
        parts = [part for part in Path(path).parts if part != "."]
        shown = [*parts, "/".join(parts)]
        for pattern in lines_of(".gitignore"):
            plain = pattern.strip("/")
            if fnmatch.fnmatch("/".join(parts), plain) if pattern[0] == "/" else fnmatch.filter(shown, plain):
                return True
        return False

    def test_what_a_call_writes(self) -> None:
        runs = (
            ("generations", "A lake"),
            ("generations", "A lake", "--stream", "--partial-images", "1", "--output", "pictures/lake.png"),
            ("config", "--init"),
        )
        for argv in runs:
            self.run_main(*argv, gateway=self.gateway())
        kept = [name for name in self.files() if not self.ignored(name)]
        self.assertEqual(kept, ["pictures/lake.png"])

    def test_what_is_kept_for_later(self) -> None:
        names = [f"lake{gpt_image.SESSION_ENDING}", "lake.reply", "lake-unclaimed-1.png", "lake-mask.png"]
        for name in (*names, "jobs.csv.ledger.jsonl", ".env"):
            self.assertTrue(self.ignored(name), name)
        for name in ("gpt_image.py", "tests/gateway.py", "references/first.png", ".env.example"):
            self.assertFalse(self.ignored(name), name)


if __name__ == "__main__":
    unittest.main()
