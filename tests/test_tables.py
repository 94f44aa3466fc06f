"""The tables agree with each other and with the API, each row is reached, and a new row is all that a change costs."""

from __future__ import annotations

import ast
import base64
import functools
import itertools
import json
import re
import struct
import unittest
import zlib
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple
from unittest import mock

import gpt_image
from tests import pictures, reference
from tests.support import ROOT, FakeTransport, ProgramTest, Ran, reply, source_nodes

GATEWAY = "https://gateway.example/v1"
PNG_HEAD = 33  # bytes of signature and IHDR
HUGE = 50 * 1024 * 1024


class Case(NamedTuple):
    """A command that breaks one rule, and the name it is reported by, or what a warning says."""

    argv: Tuple[str, ...]
    reported: str = ""


def case(line: str, reported: str = "") -> Case:
    """Returns a case from a line whose words hold no blanks."""
    return Case(tuple(line.split()), reported)


class Rule(NamedTuple):
    """A rule as the source words it: its name, and its grade."""

    name: str
    warning: bool
    fatal: bool


@functools.lru_cache(1)
def rules() -> Dict[str, Rule]:
    """Returns the rules of the program: each call that makes a problem, and each row of check_needs.

    The name of a rule that serves many options is what stands behind the option's name: `value` of f"{name}-value".
    """
    found: Dict[str, Rule] = {}
    for node in source_nodes():
        if isinstance(node, ast.FunctionDef) and node.name == "check_needs":
            rows = [row.elts for row in ast.walk(node) if isinstance(row, ast.Tuple) and len(row.elts) == 5]
            names = [ast.literal_eval(row[1]) for row in rows if isinstance(row[1], ast.Constant)]
            found.update({name: Rule(name, False, False) for name in names})
        if not isinstance(node, ast.Call) or not node.args:
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        first = node.args[0]
        name = first.values[-1] if isinstance(first, ast.JoinedStr) else first
        if called in ("Problem", "problem") and isinstance(name, ast.Constant):
            grades = {word.arg for word in node.keywords if getattr(word.value, "value", None) is True}
            rule = Rule(str(name.value).lstrip("-"), "warning" in grades, "fatal" in grades)
            assert found.setdefault(rule.name, rule) == rule, f"{rule.name} is of two grades"
    return found



SVG = "generations x --model gpt-image-2.6-flare --format svg"
EDIT = "edits x --image a.png"
ANSWER = "responses x"
CHAT = f"generations x --base-url {GATEWAY} --protocol openai_chat"
TRUE_GIF = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"

# One command for each rule, which breaks that rule and no other.
CASES: Dict[str, Case] = {
    "value": case("generations x --n 11", "n-value"),
    "unreadable-value": case("generations x --n many", "n-unreadable-value"),
    "prompt-missing": case("generations"),
    "prompt-blank": Case(("generations", " \n\t")),
    "prompt-key": Case(("generations", "sk-proj-0123456789abcdef")),
    "prompt-length": Case(("generations", "x" * 32_001)),
    "prompt-twice": case("generations x --prompt y"),
    "size-form": case("generations x --size big"),
    "size-multiple": case("generations x --size 1920x1080"),
    "size-edge": case("generations x --size 3856x1600"),
    "size-ratio": case("generations x --size 3200x1024"),
    "size-pixels": case("generations x --size 512x512"),
    "size-fixed": case("generations x --model gpt-image-1.5 --size 2048x2048"),
    "size-frames": case("generations x --model gpt-image-2.6-flare --format gif --size 1024x1024", "9 frames hold"),
    "aspect-ratio": case("generations x --size 1024x1024 --aspect-ratio 16:9"),
    "size-experimental": case("generations x --size 3840x2160", "above 2560x1440 pixels"),
    "model-retired": case("generations x --model dall-e-3"),
    "model-leaving": case("generations x --model gpt-image-1.5", "OpenAI shuts gpt-image-1.5 down"),
    "model-elsewhere": case(f"generations x --model dall-e-3 --base-url {GATEWAY}", "dall-e-3 is gone at OpenAI"),
    "model-bare": case("generations x --model gpt-image-2.5"),
    "model-missing": Case(("generations", "x", "--model", " ")),
    "responses-model": case(f"{ANSWER} --model gpt-image-2"),
    "by-model": case("generations x --quality xhigh", "quality-by-model"),
    "transparent-format": case("generations x --model gpt-image-2.5-flare --background transparent --format jpeg"),
    "compression-format": case("generations x --compression 50"),
    "format-suffix": case("generations x --format webp --output new.jpg"),
    "format-refuses": case("generations x --model gpt-image-2.6-flare --format gif --stream"),
    "format-one": case(f"{SVG} --n 2 --svg-model gpt-5.5"),
    "format-owns": case("generations x --model gpt-image-2.6-flare --frame-count 4"),
    "output-suffix": case("generations x --output a.tiff"),
    "output-one": case("generations x --n 2 --output -"),
    "output-place": case("generations x --output a-{number}.png", "{number} is not a placeholder"),
    "svg-model-missing": case(f"{SVG} --svg-effort low"),
    "partial-images-stream": case("generations x --partial-images 2"),
    "conversation-twice": case(f"{ANSWER} --conversation conv_1 --previous-response-id resp_1"),
    "window-background": case(f"{ANSWER} --completion-window 2h"),
    "window-standard": case(f"{ANSWER} --completion-window 8h --background-mode --service-tier flex"),
    "stream-n": case("generations x --stream --n 2"),
    "fidelity-input": case(f"{ANSWER} --tool-model gpt-image-1.5 --input-fidelity high"),
    "image-missing": case("edits x"),
    "image-unreadable": case("edits x --image none.png"),
    "image-empty": case("edits x --image empty.png"),
    "image-unknown": case("edits x --image words.png"),
    "image-type": case(f"edits x --image {TRUE_GIF}"),
    "image-truncated": case("edits x --image cut.png"),
    "image-size": case("edits x --image huge.png"),
    "image-count": case("edits x" + " --image a.png" * 17),
    "image-url": case(f"{ANSWER} --input-image-url ftp://host.example/a.png"),
    "image-url-length": case("edits x --image large.png --image https://host.example/a.png"),
    "mask-without-image": case(f"{ANSWER} --mask mask.png"),
    "mask-twice": case(f"{EDIT} --mask mask.png --mask-box 0,0,8,8"),
    "mask-png": case(f"{EDIT} --mask a.jpg"),
    "mask-alpha": case(f"{EDIT} --mask a.png"),
    "mask-opaque": case(f"{EDIT} --mask opaque.png"),
    "mask-dimensions": case(f"{EDIT} --mask small-mask.png"),
    "mask-large": case(f"{EDIT} --mask large-mask.png", "less than 4 MB"),
    "mask-auto": case("edits x --image https://host.example/a.png --mask auto"),
    "mask-box": case(f"{EDIT} --mask-box 0,0,65,48"),
    "engine-batch": case("batch jobs.txt --engine batch-api --model gpt-image-2.6-flare"),
    "jobs-column": case("batch jobs-column.jsonl"),
    "jobs-option": case("batch jobs-option.jsonl"),
    "jobs-place": case("batch jobs-place.jsonl"),
    "max-cost": case("generations x --size 1024x1024 --quality high --max-cost 0.01"),
    "markup-mask": case(f"{EDIT} --model gpt-image-2.5-flare --mask mask.png --markup mask.png"),
    "markup-form": case("edits x --model gpt-image-2.5-flare --image https://host.example/a.png --markup mask.png"),
    "action-edit": case(f"{ANSWER} --action edit"),
    "identifier": Case(("generations", "x", "--safety-identifier", "a\r\nb")),
    "metadata": Case(("responses", "x", "--metadata-json", '{"count": 3}')),
    "store-background": case(f"{ANSWER} --background-mode --no-store", "ten minutes"),
    "base-url": case("generations x --base-url api.openai.com/v1"),
    "base-url-http": case("generations x --base-url http://gateway.example/v1"),
    "chat-carries": case(f"{CHAT} --size 1024x1024", "size-chat-carries"),
    "chat-one": case(f"{CHAT} --n 2"),
}


def opaque_png(width: int, height: int) -> bytes:
    """Returns an RGBA PNG without a transparent pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + b"\x10\x20\x30\xff" * width) * height
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def write_sparse(path: str, png: bytes, size: int) -> None:
    """Writes a PNG of the given size with a chunk that holds nothing but a hole."""
    with open(path, "wb") as file:
        length = size - len(png) - 12
        file.write(png[:PNG_HEAD] + struct.pack(">I", length) + b"noIZ")
        file.seek(length + 4, 1)
        file.write(png[PNG_HEAD:])


def write_inputs() -> None:
    """Writes the pictures the cases speak of into the current folder; nearly all are 64x48."""
    whole = pictures.picture(b"a", "png", 64, 48)
    clear = pictures.picture(b"a", "png", 64, 48, clear=True)
    jpeg = pictures.picture(b"a", "jpeg", 64, 48)
    files = {
        "a.png": whole, "b.png": pictures.picture(b"b", "png", 64, 48), "a.jpg": jpeg, "mask.png": clear,
        "a.webp": pictures.picture(b"a", "webp", 64, 48), "a.gif": pictures.picture(b"a", "gif", 64, 48, frames=1),
        "jobs.txt": b"x",
        "jobs-column.jsonl": b'{"prompt": "x", "qualty": "low"}',
        "jobs-option.jsonl": b'{"prompt": "x", "base-url": "https://host.example/v1"}',
        "jobs-place.jsonl": b'{"prompt": "A {colour} lake"}', "empty.png": b"", "words.png": b"these are words", "cut.png": whole[:-20],
        "opaque.png": opaque_png(64, 48), "small-mask.png": pictures.picture(b"a", "png", 32, 48, clear=True),
    }  # fmt: skip
    for name, data in files.items():
        Path(name).write_bytes(data)
    write_sparse("huge.png", whole, HUGE)
    write_sparse("large.png", whole, 16_000_000)
    write_sparse("large-mask.png", clear, 5_000_000)


class RulesAreReached(ProgramTest):
    """Each rule is broken by one command, which breaks no other."""

    def setUp(self) -> None:
        super().setUp()
        write_inputs()

    def dry_run(self, *argv: str) -> Ran:
        """Runs a command as a dry run, which makes all checks."""
        return self.run_main(*argv, "--dry-run")

    def assert_refused(self, rule: Rule, ran: Ran) -> None:
        """Asserts that a run was refused by a rule and no other."""
        self.assertEqual(ran.code, 2, ran.err)
        names = [found["rule"] for found in ran.error["problems"]]
        self.assertEqual(names, [CASES[rule.name].reported or rule.name])

    def test_there_is_a_case_for_each_rule_and_a_rule_for_each_case(self) -> None:
        self.assertEqual(sorted(CASES), sorted(rules()))

    def test_each_case_breaks_its_rule_and_no_other(self) -> None:
        for rule in rules().values():
            with self.subTest(rule.name):
                ran = self.dry_run(*CASES[rule.name].argv)
                if not rule.warning:
                    self.assert_refused(rule, ran)
                    continue
                self.assertEqual(ran.code, 0, ran.err)
                self.assertEqual(len(ran.json["warnings"]), 1)
                self.assertIn(CASES[rule.name].reported, ran.json["warnings"][0])

    def test_no_validate_lets_through_what_can_be_built_and_nothing_else(self) -> None:
        for rule in rules().values():
            with self.subTest(rule.name):
                ran = self.dry_run(*CASES[rule.name].argv, "--no-validate")
                if rule.fatal:
                    self.assert_refused(rule, ran)
                    continue
                self.assertEqual(ran.code, 0, ran.err)
                refused = self.dry_run(*CASES[rule.name].argv)
                said = CASES[rule.name].reported if rule.warning else refused.error["message"]
                said = re.sub(r"^jobs\.txt line 1 \(1\): ", "", said)  # a warning is said once for all jobs
                self.assertEqual(sum(said in text for text in ran.json["warnings"]), 1, ran.json["warnings"])

    def test_each_refusal_is_worded_for_a_person_with_no_place_left_open(self) -> None:
        for rule in rules().values():
            if rule.warning:
                continue
            with self.subTest(rule.name):
                ran = self.run_main(*CASES[rule.name].argv, "--no-env-file")
                first = ran.error["problems"][0]
                self.assertIn(f"gpt_image.py: error: {first['message']}"[:300], ran.err)
                for words in (first["message"], first["hint"] or ""):
                    self.assertNotRegex(words, r"\{\w+\}|None|\(\)")
                    self.assertFalse(words.endswith((".", " ")), words)


class RulesAreDocumented(unittest.TestCase):
    """references/errors.md has a row for each rule, and no other."""

    TEXT = (ROOT / "references" / "errors.md").read_text("utf-8")

    def test_errors_md_has_each_rule_of_the_source_and_the_source_each_of_errors_md(self) -> None:
        self.assertEqual(sorted(re.findall(r'<a id="([^"]+)"', self.TEXT)), sorted(rules()))

    def test_names_of_rules_are_stable_in_form_and_of_one_grade(self) -> None:
        for rule in rules().values():
            with self.subTest(rule.name):
                self.assertRegex(rule.name, r"^[a-z]+(-[a-z]+)*$")
                self.assertFalse(rule.warning and rule.fatal)

    def test_warnings_and_what_is_always_refused_are_marked(self) -> None:
        for rule in rules().values():
            line = next(line for line in self.TEXT.split("\n") if f'<a id="{rule.name}">' in line)
            with self.subTest(rule.name):
                self.assertEqual(rule.warning, "| warning: " in line)
                self.assertEqual(rule.fatal, "(always)" in line)


class TablesAgree(ProgramTest):
    """Rows name what other rows define, and nothing is said twice."""

    def test_each_option_has_help_and_a_group(self) -> None:
        for row in gpt_image.OPTIONS:
            with self.subTest(row.name):
                self.assertRegex(row.name, r"^[a-z]+(-[a-z]+)*$")
                self.assertTrue(row.help.strip())
                self.assertNotRegex(row.help, r"\n|\.$")
                self.assertTrue(row.group)
                self.assertTrue(row.commands)
                self.assertLessEqual(set(row.commands), set(gpt_image.COMMANDS))
                self.assertIn(row.sends, ("", "top", "image", "picture", "header"))
                self.assertTrue(row.kind.flag or row.kind.metavar)
                self.assertTrue(row.default is None or not row.kind.repeat)

    def test_a_command_has_each_spelling_once(self) -> None:
        for command in gpt_image.COMMANDS:
            spellings: List[str] = []
            for row in gpt_image.OPTIONS:
                if command in row.commands:
                    spellings += gpt_image.spellings(row)
            with self.subTest(command):
                self.assertEqual(sorted(spellings), sorted(set(spellings)))

    def test_an_environment_variable_belongs_to_one_option(self) -> None:
        names = [name for row in gpt_image.OPTIONS for name in row.env]
        self.assertEqual(sorted(names), sorted(set(names)))
        for name in names:
            self.assertRegex(name, r"^(OPENAI|GPT_IMAGE2)_[A-Z_]+$")

    def test_a_default_is_of_its_option_s_kind(self) -> None:
        for row in gpt_image.OPTIONS:
            if row.default is not None:
                with self.subTest(row.name):
                    value = row.kind.parse(row.default)
                    self.assertTrue(not row.kind.choices or value in row.kind.choices)

    def test_the_first_row_of_models_that_matches_wins(self) -> None:
        # model id -> sizes are free, the day it goes, and what it takes of `asked`
        asked = ("background transparent", "quality xhigh", "complexity low", "format gif", "input-fidelity high")
        rows = {
            "gpt-image-2": (True, "", "no no no no no"),
            "gpt-image-2-2026-04-21": (True, "", "no no no no no"),
            "gpt-image-2.5-sunburst": (True, "", "yes yes no no no"),
            "gpt-image-2.5-flare-2026-09-08": (True, "", "yes yes no no no"),
            "gpt-image-2.6-sunburst": (True, "", "yes yes yes yes no"),
            "gpt-image-2.6-flare": (True, "", "yes yes yes yes no"),
            "gpt-image-1.5": (False, "2026-12-01", "yes no no no yes"),
            "chatgpt-image-latest": (False, "2026-12-01", "yes no no no yes"),
            "gpt-image-1-mini": (False, "2026-12-01", "yes no no no no"),
            "gpt-image-1": (False, "2026-10-23", "yes no no no yes"),
        }
        for model, (free, gone, words) in rows.items():
            row = next(row for row in gpt_image.MODELS if re.fullmatch(row.pattern, model))
            with self.subTest(model):
                self.assertEqual(row.gone, gone)
                self.assertIsNotNone(row.sizes)
                self.assertEqual(bool(row.sizes and not row.sizes.fixed), free)
                takes = row.takes or {}
                pairs = [text.split() for text in asked]
                answers = ["yes" if value in takes.get(name, (value,)) else "no" for name, value in pairs]
                self.assertEqual(" ".join(answers), words)

    def test_the_last_row_of_models_knows_nothing_and_each_other_one_is_reached(self) -> None:
        last = gpt_image.MODELS[-1]
        self.assertIsNone(last.takes)
        for name in ("", "flux-pro", "openai/gpt-image-2", "gpt-image-3", "my deployment"):
            self.assertTrue(re.fullmatch(last.pattern, name), name)
        known = ["gpt-image-2", "gpt-image-2.5-flare", "gpt-image-2.6-flare", "gpt-image-1.5", "gpt-image-1-mini",
                 "gpt-image-1", "dall-e-2", "any"]  # fmt: skip
        firsts = [next(row.pattern for row in gpt_image.MODELS if re.fullmatch(row.pattern, name)) for name in known]
        self.assertEqual(sorted(firsts), sorted(row.pattern for row in gpt_image.MODELS))

    def test_models_speak_of_options_and_values_that_exist(self) -> None:
        rows = {row.name: row for row in gpt_image.OPTIONS}
        for model in gpt_image.MODELS:
            for name, values in (model.takes or {}).items():
                with self.subTest(model=model.pattern, option=name):
                    self.assertIn(name, rows)
                    if model.takes is not gpt_image.TAKES_DALLE:
                        self.assertLessEqual(set(values), set(rows[name].kind.choices))
            self.assertEqual(bool(model.gone), bool(model.instead), model.pattern)
            if model.instead:
                self.assertIn(model.instead, gpt_image.MODEL_IDS)

    def test_no_model_that_goes_is_recommended_or_a_default(self) -> None:
        defaults = [row.default for row in gpt_image.OPTIONS if row.name.endswith("model") and row.default]
        for name in (*gpt_image.MODEL_IDS, gpt_image.TOOL_MODEL, *gpt_image.BARE_MODELS.values(), *defaults):
            with self.subTest(name):
                self.assertEqual(gpt_image.model_row(name).gone, "")
        hints = [row.hint for row in gpt_image.STATUSES] + [*gpt_image.CODE_HINTS.values()]
        named = re.findall(r"(?:gpt-image|chatgpt-image|dall-e)-[\w.-]+", " ".join(hints + [row.help for row in gpt_image.OPTIONS]))
        self.assertLessEqual(set(named), set(gpt_image.MODEL_IDS))

    def test_formats_speak_of_options_that_exist_and_share_no_suffix(self) -> None:
        names = {row.name for row in gpt_image.OPTIONS}
        suffixes = [suffix for row in gpt_image.FORMATS for suffix in row.suffixes]
        self.assertEqual(sorted(suffixes), sorted(set(suffixes)))
        for row in gpt_image.FORMATS:
            self.assertLessEqual({*row.refuses, *row.owns}, names, row.name)
        formats = next(row.kind.choices for row in gpt_image.OPTIONS if row.name == "format")
        self.assertEqual(tuple(row.name for row in gpt_image.FORMATS), formats)

    def test_each_documented_event_has_its_meaning(self) -> None:
        meanings = {
            "image_generation.partial_image": "partial", "image_edit.partial_image": "partial",
            "image_generation.completed": "final", "image_edit.completed": "final",
            "response.image_generation_call.partial_image": "partial", "response.output_item.done": "item",
            "response.completed": "response", "response.failed": "response", "response.incomplete": "response",
            "response.output_text.delta": "delta", "response.refusal.delta": "delta", "error": "error",
            "response.output_text.done": "said", "response.refusal.done": "said",
        }  # fmt: skip
        for name, meaning in meanings.items():
            with self.subTest(name):
                rows = [row for row in gpt_image.EVENTS if re.fullmatch(row.pattern, name)]
                self.assertEqual([row.meaning for row in rows], [meaning])

    def test_events_without_a_picture_are_in_no_row_that_means_one(self) -> None:
        for name in ("in_progress", "generating", "completed"):
            event = f"response.image_generation_call.{name}"
            found = [row.meaning for row in gpt_image.EVENTS if re.fullmatch(row.pattern, event)]
            self.assertNotIn("final", found)
            self.assertNotIn("response", found)

    def test_exit_codes_are_those_of_the_contract(self) -> None:
        self.assertEqual(list(gpt_image.EXITS), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 130])
        for code, meaning in gpt_image.EXITS.items():
            self.assertTrue(code >= 0 and meaning)

    def test_a_status_is_in_one_row_and_retried_as_the_contract_says(self) -> None:
        codes = [code for row in gpt_image.STATUSES for code in row.codes]
        self.assertEqual(sorted(codes), sorted(set(codes)))
        verdicts = {code: row.retry for row in gpt_image.STATUSES for code in row.codes}
        for verdict, wanted in (("safe", {408, 409, 429, 500, 503}), ("billable", {502, 504, *range(520, 525)})):
            self.assertEqual({code for code, found in verdicts.items() if found == verdict}, wanted)

    def test_routes_post_where_the_api_has_them_and_are_commands(self) -> None:
        paths = {row.name: row.path for row in gpt_image.ROUTES}
        wanted = {"generations": "/images/generations", "edits": "/images/edits", "responses": "/responses"}
        self.assertEqual(paths, wanted)
        self.assertEqual(list(gpt_image.COMMANDS), [*wanted, "resume", "extract", "batch", "config"])

    def test_checks_are_functions_that_stand_once(self) -> None:
        self.assertEqual(len(gpt_image.CHECKS), len(set(gpt_image.CHECKS)))
        self.assertTrue(all(callable(check) and check.__doc__ for check in gpt_image.CHECKS))


class EstimatesFitThePublishedFigures(ProgramTest):
    """Output tokens before the call: every figure that is known, and none where none is."""

    FIGURES = {  # model -> size -> tokens by quality
        "gpt-image-2": {
            "1024x1024": {"low": 196, "medium": 1756, "high": 7024},
            "1536x1024": {"low": 158, "medium": 1372, "high": 5488},
            "1024x1536": {"low": 158, "medium": 1372, "high": 5488},
            "3840x2160": {"low": 371, "medium": 3336, "high": 13342},
        },
        "gpt-image-2.5-sunburst": {
            "1024x1024": {"low": 196, "medium": 439, "high": 1756, "xhigh": 3122, "max": 7024},
            "1536x1024": {"low": 158, "medium": 343, "high": 1372, "xhigh": 2459, "max": 5488},
            "3840x2160": {"low": 371, "medium": 865, "high": 3336, "xhigh": 5930, "max": 13342},
        },
        "gpt-image-2.6-flare": {"1024x1024": {"high": 1756, "xhigh": 3122, "max": 7024}},
    }

    def estimate(self, *argv: str) -> Any:
        """Returns the estimate of a dry run."""
        ran = self.run_main("generations", "x", *argv, "--dry-run")
        self.assertEqual(ran.code, 0, ran.err)
        return ran.json["estimate"]

    def figures(self) -> Iterator[Tuple[str, str, str, int]]:
        for model, sizes in self.FIGURES.items():
            for size, tokens in sizes.items():
                for quality, figure in tokens.items():
                    yield model, size, quality, figure

    def test_each_published_figure_is_met(self) -> None:
        for model, size, quality, tokens in self.figures():
            with self.subTest(model=model, size=size, quality=quality):
                found = self.estimate("--model", model, "--size", size, "--quality", quality)
                self.assertEqual(found["output_tokens"], tokens)
                self.assertEqual(found["usd"], round(tokens * 30 / 1e6, 4))
                self.assertRegex(found["prices_of"], r"^\d{4}-\d\d-\d\d$")

    def test_no_figure_is_made_up(self) -> None:
        for argv in (
            ["--model", "gpt-image-2.6-flare"], ["--model", "flux"], ["--model", "gpt-image-1.5"],
            ["--model", "flux", "--size", "1024x1024", "--quality", "high"],
            ["--model", "gpt-image-2.6-flare", "--size", "1024x1024", "--quality", "low"],
            ["--model", "gpt-image-2.6-flare", "--size", "1024x1024", "--quality", "medium"],
        ):  # fmt: skip
            with self.subTest(argv):
                self.assertIsNone(self.estimate(*argv))

    def test_each_picture_and_each_preview_counts(self) -> None:
        self.assertEqual(self.estimate("--size", "1024x1024", "--quality", "low", "--n", "3")["output_tokens"], 588)
        streamed = self.estimate("--size", "1024x1024", "--quality", "low", "--stream", "--partial-images", "2")
        self.assertEqual(streamed["output_tokens"], 396)


def forget() -> None:
    """Empties what the program remembers of its tables, which change in a test only."""
    for value in list(vars(gpt_image).values()):
        if hasattr(value, "cache_clear"):
            value.cache_clear()


class OneRowIsEnough(ProgramTest):
    """What this API does every few months (an option, a value, a model, an event) is one new row."""

    ROUTES = {
        "generations": ("generations", "x"),
        "edits": ("edits", "x", "--image", "a.png"),
        "responses": ("responses", "x"),
    }

    def setUp(self) -> None:
        super().setUp()
        Path("a.png").write_bytes(pictures.picture(b"a", "png", 64, 48))

    def add(self, table: str, rows: Any) -> None:
        """Puts a table in place of the program's for this test."""
        patch = mock.patch.object(gpt_image, table, rows)
        self.addCleanup(forget)
        self.addCleanup(patch.stop)
        patch.start()
        forget()

    def add_seed(self) -> None:
        """Adds an option --seed."""
        size = next(row for row in gpt_image.OPTIONS if row.name == "size")
        kind, env = gpt_image.number(0, 99), ("OPENAI_IMAGE_SEED",)
        seed = size._replace(name="seed", kind=kind, help="seed of the noise", env=env, also=())
        self.add("OPTIONS", (*gpt_image.OPTIONS, seed))

    def sent(self, route: str, *argv: str, env: Optional[Dict[str, str]] = None) -> Any:
        """Returns the fields of a dry run: the body, the tool of a response, or the rows of a form by name."""
        ran = self.run_main(*self.ROUTES[route], *argv, "--dry-run", env=env)
        self.assertEqual(ran.code, 0, ran.err)
        if ran.json["form"] is not None:
            return {row["name"]: row.get("value") for row in ran.json["form"]}
        return ran.json["body"]["tools"][0] if route == "responses" else ran.json["body"]

    def test_a_new_option_goes_into_the_body_of_each_route(self) -> None:
        self.add_seed()
        for route, value in (("generations", 7), ("edits", "7"), ("responses", 7)):
            with self.subTest(route):
                self.assertEqual(self.sent(route, "--seed", "7")["seed"], value)
                self.assertEqual(self.sent(route, env={"OPENAI_IMAGE_SEED": "7"})["seed"], value)
                self.assertNotIn("seed", self.sent(route))

    def test_a_new_option_is_read_from_a_dotenv_and_shown_with_its_source(self) -> None:
        self.add_seed()
        Path(".env").write_text("OPENAI_IMAGE_SEED=8\n")
        ran = self.run_main("generations", "x", "--dry-run")
        self.assertEqual(ran.json["settings"]["seed"], {"value": 8, "source": ".env line 1"})
        self.assertEqual(ran.json["warnings"], [])

    def test_a_new_option_is_checked_by_its_kind(self) -> None:
        self.add_seed()
        for text, rule in (("100", "seed-value"), ("x", "seed-unreadable-value")):
            ran = self.run_main("generations", "x", "--seed", text, "--dry-run")
            self.assertEqual([row["rule"] for row in ran.error["problems"]], [rule])

    def test_a_new_option_is_in_help_reference_and_completion(self) -> None:
        self.add_seed()
        for command in self.ROUTES:
            self.assertIn("--seed N", self.run_main(command, "--help").out)
        self.assertIn("| `--seed` |", reference.options_page())
        self.assertIn("# OPENAI_IMAGE_SEED=", gpt_image.example_dotenv())
        for shell in ("bash", "zsh", "fish"):
            self.assertIn("seed", self.run_main("config", "--completion", shell).out)
        self.assertIn("--seed", self.run_main("generations", "x", "--sede", "7").error["hint"])

    def test_a_new_value_is_taken_shown_and_suggested(self) -> None:
        rows = []
        for row in gpt_image.OPTIONS:
            if row.name == "quality":
                choices = (*row.kind.choices, "ultra")
                row = row._replace(kind=gpt_image.choice(*choices))
            rows.append(row)
        model = ("--model", "gpt-image-2.6-flare")
        self.assertEqual(self.run_main("generations", "x", *model, "--quality", "ultra", "--dry-run").code, 2)
        self.add("OPTIONS", tuple(rows))
        self.assertEqual(self.sent("generations", *model, "--quality", "ultra")["quality"], "ultra")
        self.assertIn("|ultra", self.run_main("generations", "--help").out)
        self.assertIn("ultra", reference.options_page())
        ran = self.run_main("generations", "x", *model, "--quality", "ulta", "--dry-run")
        self.assertIn("ultra", ran.error["hint"])
        older = self.run_main("generations", "x", "--quality", "ultra", "--dry-run")
        self.assertEqual(older.error["rule"], "quality-by-model")

    def test_a_new_model_has_its_own_limits(self) -> None:
        argv = ("generations", "x", "--model", "gpt-image-3", "--size", "100x100", "--quality", "low", "--dry-run")
        self.assertEqual(self.run_main(*argv).code, 0)
        sizes = gpt_image.Sizes(fixed=("100x100", "200x100"))
        row = gpt_image.Model(r"gpt-image-3", {"quality": ("low",), "style": ()}, sizes, {"low": 16})
        self.add("MODELS", (row, *gpt_image.MODELS))
        ran = self.run_main(*argv)
        self.assertEqual(ran.code, 0, ran.err)
        self.assertEqual(ran.json["estimate"]["output_tokens"], 129)  # 16 * 16 * 2 010 000 / 4 000 000
        wrong = self.run_main("generations", "x", "--model", "gpt-image-3", "--size", "300x100", "--quality", "high",
                              "--style", "vivid", "--dry-run")  # fmt: skip
        names = {row["rule"] for row in wrong.error["problems"]}
        self.assertEqual(names, {"size-fixed", "quality-by-model", "style-by-model"})
        self.assertIn("200x100", json.dumps(wrong.error["problems"]))

    def test_a_new_event_is_understood(self) -> None:
        event = {"type": "image_magic.finished", "b64_json": "", "created_at": 1}
        data = pictures.picture(b"a", "png", 64, 48)
        event["b64_json"] = base64.b64encode(data).decode()
        stream = f"event: image_magic.finished\ndata: {json.dumps(event)}\n\n"
        argv = ("generations", "x", "--stream", "--output", "out.png")
        before = self.run_main(*argv, transport=FakeTransport(reply(stream)))
        self.assertEqual(before.code, 6)
        self.add("EVENTS", (gpt_image.Dialect(r"image_magic\.finished", "final"), *gpt_image.EVENTS))
        after = self.run_main(*argv, transport=FakeTransport(reply(stream)))
        self.assertEqual(after.code, 0, after.err)
        self.assertEqual(Path("out.png").read_bytes(), data)

    def test_a_new_check_and_its_rule_are_two_rows(self) -> None:
        def check_haste(case: Any) -> Iterator[Any]:
            """Refuses haste."""
            if "quick" in "".join(case.texts):
                yield gpt_image.Problem("haste", "no haste", "take your time", False, False)

        self.add("CHECKS", (*gpt_image.CHECKS, check_haste))
        ran = self.run_main("generations", "quick", "--n", "11", "--dry-run")
        self.assertEqual([row["rule"] for row in ran.error["problems"]], ["n-value", "haste"])


class ReferenceIsTheTable(ProgramTest):
    """The generated pages show each row."""

    def test_options_md_is_a_table_for_each_group(self) -> None:
        text = reference.options_page()
        groups = list(dict.fromkeys(row.group for row in gpt_image.OPTIONS))
        self.assertEqual(re.findall(r"^## (.*)$", text, re.MULTILINE), groups)
        lines = [line for line in text.splitlines() if line.startswith("|")]
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
        self.assertEqual(len(counts), 1, "rows of different length")
        self.assertEqual(sum(line.startswith("| `--") for line in lines), len(gpt_image.OPTIONS))

    def test_the_example_env_names_each_variable_and_is_read_back_as_nothing_set(self) -> None:
        text = gpt_image.example_dotenv()
        for name in itertools.chain.from_iterable(row.env for row in gpt_image.OPTIONS):
            self.assertRegex(text, rf"(?m)^(# )?{name}=")
        Path("example.env").write_text(text, encoding="utf-8")
        plain = self.run_main("generations", "x", "--dry-run")
        ran = self.run_main("generations", "x", "--dry-run", "--env-file", "example.env")
        self.assertEqual(ran.json["warnings"], [])
        self.assertEqual(ran.json["body"], plain.json["body"])
