"""The documents are true: their commands run, their transcripts are what comes out, their links and tables hold.

    python3 -m tests.test_docs --write   writes anew what is generated: options.md, .env.example, transcripts, examples

Blocks of code are read so: `sh` and `powershell` hold commands, each dry-run here; a comment `# exit 5` says how one
ends. `console` holds a terminal: each command behind `$` is run against the stand-in gateway, and what it prints is
compared. A `json` block behind an `sh` block of one command is what that command prints, or of it the value of one key
where the comment says `only error`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import unittest
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Tuple

import gpt_image
from tests import pictures, reference
from tests.gateway import SCENARIOS
from tests.support import ROOT, ProgramTest, Ran

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "references").glob("*.md"))]
GATEWAY = ["-m", "tests.gateway"]
SEPARATORS = ("|", "||", "&&", ";", ">", "<", ">>")

SIX_COMMANDS = r"""
python gpt_image.py generations --prompt "A bold product hero image for a developer tool homepage" \
  --output ./out/hero.png --size 1536x1024 --quality high --format png

python gpt_image.py generations --prompt "A cinematic city skyline at night" \
  --output ./out/skyline-{index}.webp --n 3 --format webp --compression 90

python gpt_image.py edits --prompt "Blend the two references into one clean marketing illustration" \
  --image ./refs/subject.png --image ./refs/background.png --mask ./refs/mask.png \
  --output ./out/edit-{index}.png --image-field-style brackets --n 2

python gpt_image.py responses --input-text "Generate a poster for an AI developer summit" --model gpt-5.4 \
  --output ./out/poster-{index}.png --stream --partial-images 2 --save-response ./out/poster-events.json

python gpt_image.py responses --input-text "Turn this product shot into a clean studio ad" --model gpt-5.4 \
  --input-image ./refs/product.png --mask ./refs/mask.png --output ./out/studio.png --action edit

python gpt_image.py generations --prompt "A minimal cover image" --output ./out/cover.png --dry-run
"""


class Block(NamedTuple):
    """A block of code: its page, its first line's number, its language, and its lines."""

    page: Path
    line: int
    language: str
    lines: List[str]


class Command(NamedTuple):
    """A documented run of the program: where it stands, its arguments, the scenario, and how it is said to end."""

    where: str
    argv: List[str]
    scenario: str = ""
    exit: int = 0
    shows: str = ""
    only: str = ""


def blocks(page: Path) -> Iterator[Block]:
    """Yields the fenced blocks of a page."""
    lines = page.read_text("utf-8").split("\n")
    start = None
    for number, line in enumerate(lines):
        if line.startswith("```") and start is None:
            start = number
        elif line.startswith("```") and start is not None:
            yield Block(page, start + 2, lines[start][3:].strip(), lines[start + 1 : number])
            start = None


def joined(lines: List[str], mark: str) -> Iterator[Tuple[int, str]]:
    """Yields logical lines with the number of their first, where `mark` at a line's end means that it goes on."""
    held, first = "", 0
    for number, line in enumerate(lines):
        first = first if held else number
        if line.endswith(mark):
            held += line[: -len(mark)]
        else:
            yield first, held + line
            held = ""


def shell_words(line: str) -> List[str]:
    """Splits a line as a POSIX shell does, with pipes and redirections as words of their own."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    return list(lexer)


def powershell_words(line: str) -> List[str]:
    """Splits a line as PowerShell does; a brace, an @ or a comma outside quotes would not arrive, and is refused."""
    words = []
    for word in re.findall(r"""'[^']*'|"[^"]*"|[^\s'"]+""", line):
        bare = word[:1] not in "'\""
        if bare and re.search(r"[{}(),;]|^@", word):
            raise ValueError(f"{word} needs quotes in PowerShell")
        word = word if bare else word[1:-1]
        words.append(word.replace("\\", "/") if word.startswith(".\\") and os.name != "nt" else word)
    return words


def command_of(words: List[str], where: str, line: str) -> Command | None:
    """Returns the run of the program among the words of a line, or None if there is none."""
    scenario = ""
    if words[1:3] == GATEWAY:
        if "--" not in words:
            return None
        own, words = words[3 : words.index("--")], words[words.index("--") + 1 :]
        scenario = own[own.index("--scenario") + 1] if "--scenario" in own else "plain"
    words = words[2:] if words[:2] == ["uv", "run"] else words
    if words[:1] in (["python3"], ["python"], ["py"]) and words[1:2] == ["gpt_image.py"]:
        words = words[1:]
    if words[:1] not in (["gpt_image.py"], ["gpt-image"]):
        return None
    end = next((at for at, word in enumerate(words) if word in SEPARATORS), len(words))
    ends, shows, only = (re.search(says, line) for says in (r"# exit (\d+)", "# shows (.*)", r"[#,] only (\w+)$"))
    told = (found.group(1) if found else "" for found in (shows, only))
    return Command(where, words[1:end], scenario, int(ends.group(1)) if ends else 0, *told)


def commands(block: Block) -> Iterator[Command]:
    """Yields the documented runs of the program in a block."""
    power = block.language == "powershell"
    for number, line in joined(block.lines, "`" if power else "\\"):
        line = line[2:] if block.language == "console" and line.startswith("$ ") else line
        line = line.rpartition(" | ")[2] if line.startswith("printf ") else line
        if not re.match(r"(python3?|py|uv run|gpt_image\.py|gpt-image)\s", line):
            continue
        where = f"{block.page.name}:{block.line + number}"
        found = command_of(powershell_words(line) if power else shell_words(line), where, line)
        if found:
            yield found


def all_blocks(*languages: str) -> Iterator[Block]:
    """Yields the blocks of all pages in some languages."""
    for page in PAGES:
        yield from (block for block in blocks(page) if block.language in languages)


# What differs between two runs, or between two machines: times, ids, ports, and the sizes of compressed pictures.
VOLATILE = (
    (r'"seconds": [0-9.]+', '"seconds": 0.0'),
    (r"(req|resp|msg|ig)_[0-9a-f]+", r"\1_0"),
    (r"boundary=gpt-image-[0-9a-f]+", "boundary=gpt-image-0"),
    (r"127\.0\.0\.1:\d+/v1 *", "127.0.0.1/v1 "),
    (r'"sha256": "[0-9a-f]+"', '"sha256": "0"'),
    (r'"Content-Length": "\d+"', '"Content-Length": "0"'),
    (r'"bytes": \d+', '"bytes": 0'),
    (r"[0-9.]+ (bytes|kB|MB)", "0 kB"),
)
LIVE_LINE = re.compile(r"\r[^\r\n]*\x1b\[K")


def steady(text: str) -> str:
    """Returns a text without what differs from run to run."""
    for pattern, put in VOLATILE:
        text = re.sub(pattern, put, text)
    return text


class DocumentTest(ProgramTest):
    """A test in a folder with the input files that the documents speak of."""

    def setUp(self) -> None:
        super().setUp()
        for folder in ("refs", "out", "home"):
            os.mkdir(folder)
        for name in ("subject", "background", "product"):
            Path("refs", f"{name}.png").write_bytes(pictures.picture(name.encode()))
        Path("refs/mask.png").write_bytes(pictures.picture(b"mask", clear=True))
        Path("photo.jpg").write_bytes(pictures.picture(b"photo", "jpeg"))
        Path("prompt.txt").write_text("A lighthouse at dusk\n", "utf-8")
        Path("extra.json").write_text('{"seed": 7}\n', "utf-8")
        Path("team.env").write_text("OPENAI_IMAGE_SIZE=1536x1024\n", "utf-8")
        Path("prompts.csv").write_text("id,prompt\na,A lake\nb,A tea house\n", "utf-8")
        Path("animals.csv").write_text("animal\notter\nheron\n", "utf-8")
        for block in blocks(ROOT / "references" / "batch.md"):
            name = block.language.partition(" ")[2]
            if name:
                Path(name).write_text("\n".join(block.lines) + "\n", "utf-8")

    def run_documented(self, command: Command, terminal: bool = False) -> Ran:
        """Runs a command for real against a gateway in its scenario."""
        gateway = self.gateway(command.scenario or "plain")
        return self.run_main(*command.argv, gateway=gateway, terminal=terminal, env={"COLUMNS": "100", "NO_COLOR": "1"})

    def transcript(self, block: Block) -> List[str]:
        """Returns a console block as it is today: each command with what a terminal shows of it."""
        shown = []
        for line in block.lines:
            if not line.startswith("$ "):
                continue
            [command] = commands(block._replace(lines=[line]))
            ran = self.run_documented(command, terminal=True)
            shown += [line, *(LIVE_LINE.sub("", ran.err) + ran.out).splitlines()]
        return shown

    def example(self, block: Block) -> List[str]:
        """Returns what the one command of a block prints, as JSON."""
        [command] = commands(block)
        ran = self.run_documented(command)
        self.assertEqual(ran.code, command.exit, command.where)
        shown = json.dumps(ran.json[command.only], indent=2, ensure_ascii=False) if command.only else ran.out
        return shown.rstrip("\n").split("\n")


class CommandsTest(DocumentTest):
    """Every documented command is one that runs."""

    def check(self, command: Command) -> None:
        """Dry-runs a command of a route; of another command, checks that it can be read."""
        if command.argv[:1] and command.argv[0] in (*gpt_image.ALL, "batch"):
            ends = command.exit if "--dry-run" in command.argv else 0
            ran = self.run_main(*command.argv, "--dry-run", env={"RELAY_KEY": "sk-relay-0123456789"}, stdin="A lake")
            self.assertEqual(ran.code, ends, ran.err)
            self.assertIn(command.shows, ran.out)
            return
        ran = self.run_main(*command.argv, env={"OPENAI_API_KEY": ""})
        error = ran.json.get("error") if isinstance(ran.json, dict) else None
        self.assertNotIn((error or {}).get("rule"), ("usage", "command", "unknown-option"), ran.err)

    def test_every_command_in_a_block_is_accepted_by_a_dry_run(self) -> None:
        count = 0
        for block in all_blocks("sh", "powershell"):
            for command in commands(block):
                with self.subTest(command.where, argv=command.argv):
                    self.check(command)
                count += 1
        self.assertGreater(count, 60)

    def test_the_files_of_jobs_in_batch_md_become_their_pictures(self) -> None:
        wanted = ["hero.webp", "heron-dawn.png", "fox-midnight.png", "snow.png", "jazz.png", "1.png", "2.png"]
        for block in blocks(ROOT / "references" / "batch.md"):
            for command in commands(block):
                if {"-", "--engine"}.isdisjoint(command.argv):  # the engine needs one gateway for both
                    ran = self.run_documented(command)
                    self.assertEqual(ran.code, 0, ran.err)
        self.assertEqual(sorted(wanted), sorted(os.path.basename(name) for folder in ("out", "jobs", "lakes")
                                                for name in self.files(folder) if "mask" not in name))  # fmt: skip

    def test_every_command_within_a_line_names_options_that_exist(self) -> None:
        known = {word for row in gpt_image.OPTIONS for word in gpt_image.spellings(row)}
        known |= {"--help", "--version", "--scenario", "--list", "--write"}
        for page in PAGES:
            text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
            for code in re.findall(r"`([^`\n]+)`", text):
                for word in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", "" if "curl" in code or "SDK" in code else code):
                    with self.subTest(page.name, code=code):
                        self.assertIn(word, known)

    def test_the_six_commands_to_start_from_stand_there_word_for_word_and_run(self) -> None:
        page = ROOT / "references" / "recipes.md"
        for text in SIX_COMMANDS.strip().split("\n\n"):
            self.assertIn(text.replace("python ", "python3 ", 1), page.read_text("utf-8"))
        ran = list(commands(Block(page, 1, "sh", SIX_COMMANDS.split("\n"))))
        self.assertEqual(len(ran), 6)
        for command in ran:
            self.check(command)

    def test_a_brace_outside_quotes_is_noticed_in_powershell(self) -> None:
        with self.assertRaises(ValueError):
            powershell_words(r"python gpt_image.py generations --output .\out\a-{index}.png")

    def test_the_first_picture_is_what_the_first_command_makes(self) -> None:
        found = (command for block in blocks(ROOT / "README.md") if block.language == "sh" for command in commands(block))
        command = next(command for command in found if command.scenario)
        ran = self.run_documented(command)
        made, kept = Path(ran.json["images"][0]["path"]), ROOT / "references" / "first.png"
        self.assertEqual(pictures.measure(made.read_bytes()), pictures.measure(kept.read_bytes()))
        self.assertLess(kept.stat().st_size, 60_000)

    def test_the_readme_can_be_read_in_two_minutes(self) -> None:
        readme = (ROOT / "README.md").read_text("utf-8")
        self.assertLess(len(readme.split("\n")), 135)
        self.assertLess(readme.index("```console"), 500, "a transcript stands above the fold")


class GeneratedTest(DocumentTest):
    """What is generated is up to date; `python3 -m tests.test_docs --write` makes it so."""

    def test_options_md_is_the_table_of_options(self) -> None:
        self.assertEqual((ROOT / "references" / "options.md").read_text("utf-8"), reference.options_page())

    def test_the_example_env_is_what_config_init_writes(self) -> None:
        self.assertEqual(self.run_main("config", "--init", env={"OPENAI_API_KEY": ""}).code, 0)
        self.assertEqual((ROOT / ".env.example").read_text("utf-8"), Path(".env").read_text("utf-8"))

    def test_transcripts_show_what_a_terminal_shows(self) -> None:
        for block in all_blocks("console"):
            with self.subTest(f"{block.page.name}:{block.line}"):
                self.assertEqual(steady("\n".join(block.lines)), steady("\n".join(self.transcript(block))))

    def test_json_examples_are_what_the_command_before_them_prints(self) -> None:
        seen = list(blocks(ROOT / "references" / "output.md"))
        for command, block in zip(seen, seen[1:]):
            if block.language == "json":
                with self.subTest(line=block.line):
                    shown = "\n".join(block.lines)
                    self.assertEqual(steady(shown), steady("\n".join(self.example(command))))


def slug(heading: str) -> str:
    """Returns the anchor the usual code hosts give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> List[str]:
    """Returns all anchors of a page."""
    text = page.read_text("utf-8")
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return [slug(heading) for heading in headings] + re.findall(r'<a id="([^"]+)">', text)


class LinksTest(unittest.TestCase):
    """Links lead somewhere, and pages are complete."""

    def test_links_resolve_with_their_anchors(self) -> None:
        for page in PAGES:
            text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
            for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'<img src="([^"]+)"', text):
                if re.match(r"https?:", target):
                    continue
                path, _, anchor = target.partition("#")
                file = page.parent / path if path else page
                with self.subTest(page.name, target=target):
                    self.assertTrue(file.exists())
                    self.assertTrue(not anchor or anchor in anchors(file))

    def test_every_reference_is_linked_from_the_skill_and_from_the_readme(self) -> None:
        for name in ("SKILL.md", "README.md"):
            text = (ROOT / name).read_text("utf-8")
            for page in (ROOT / "references").glob("*.md"):
                self.assertIn(f"(references/{page.name})", text, name)

    def test_errors_md_names_every_rule_that_stands_where_a_run_stops(self) -> None:
        text = (ROOT / "references" / "errors.md").read_text("utf-8")
        others = set(re.findall(r'\brule="([a-z-]+)"', (ROOT / "gpt_image.py").read_text("utf-8")))
        self.assertEqual([], [name for name in sorted(others) if f"`{name}`" not in text])

    def test_exit_codes_and_meanings_agree_in_errors_and_skill(self) -> None:
        errors = (ROOT / "references" / "errors.md").read_text("utf-8")
        for code, meaning in gpt_image.EXITS.items():
            self.assertRegex(errors, rf"(?m)^\| {code} \| {re.escape(meaning)}")
        skill = (ROOT / "SKILL.md").read_text("utf-8")
        for code in gpt_image.EXITS:
            self.assertRegex(skill, rf"(?m)^\| {code} \| ")

    def test_the_models_and_their_limits_stand_in_the_api_surface(self) -> None:
        text = (ROOT / "references" / "api-surface.md").read_text("utf-8")
        gone = ("gpt-image-1.5", "gpt-image-1-mini", "chatgpt-image-latest", "gpt-image-1", "dall-e-2", "dall-e-3")
        for model in (*gpt_image.MODEL_IDS, *gone):
            self.assertIn(f"`{model}`", text)
        for row in gpt_image.MODELS:
            self.assertIn(row.gone, text)
        self.assertIn(f"As of {gpt_image.FACTS_OF}", text)

    def test_design_md_maps_the_sections_of_the_source_in_order(self) -> None:
        source = (ROOT / "gpt_image.py").read_text("utf-8")
        sections = re.findall(r"(?m)^# -{20,}\n# \d+ ([^:]+):", source)
        design = (ROOT / "references" / "design.md").read_text("utf-8")
        table = design[design.index("| section |") :].split("\n\n")[0].split("\n")[2:]
        self.assertEqual([row.split("|")[1].strip() for row in table], sections)

    def test_the_readme_names_every_command(self) -> None:
        readme = (ROOT / "README.md").read_text("utf-8")
        for name in gpt_image.COMMANDS:
            self.assertIn(f"| `{name}` |", readme)

    def test_every_phase_of_progress_stands_in_output_md(self) -> None:
        text = (ROOT / "references" / "output.md").read_text("utf-8")
        for name in gpt_image.PHASES:
            self.assertIn(f"| `{name}` |", text)

    def test_every_field_of_a_result_stands_in_output_md(self) -> None:
        text = (ROOT / "references" / "output.md").read_text("utf-8")
        failure = gpt_image.Failure(5, "no")
        result = gpt_image.result_of(gpt_image.Result("generations", None), failure, [], 0.0)
        for name in (*result, *result["error"]):
            self.assertIn(f"`{name}`", text)

    def test_every_variable_stands_in_the_example_env(self) -> None:
        text = (ROOT / ".env.example").read_text("utf-8")
        for name in {name for row in gpt_image.OPTIONS for name in row.env}:
            self.assertRegex(text, rf"(?m)^#? ?{name}=")

    def test_scenarios_that_are_named_exist(self) -> None:
        names = {row.name for row in SCENARIOS}
        for page in PAGES:
            for name in re.findall(r"--scenario ([a-z0-9-]+)", page.read_text("utf-8")):
                self.assertIn(name, names, page.name)


class SkillTest(unittest.TestCase):
    """SKILL.md keeps the specification of Agent Skills."""

    def front_matter(self) -> Tuple[Dict[str, str], str]:
        """Returns the front matter, folded texts joined, and the body."""
        text = (ROOT / "SKILL.md").read_text("utf-8")
        self.assertTrue(text.startswith("---\n"))
        head, body = text[4:].split("\n---\n", 1)
        fields: Dict[str, str] = {}
        for line in head.split("\n"):
            if line[:1] != " ":
                name, _, value = line.partition(":")
                fields[name] = value.strip().replace(">-", "")
            else:
                fields[name] = f"{fields[name]} {line.strip()}".strip()
        return fields, body

    def test_the_front_matter_has_what_the_specification_asks_for(self) -> None:
        fields, _ = self.front_matter()
        self.assertEqual(fields["name"], "gpt-image")
        self.assertTrue(1 <= len(fields["description"]) <= 1024)
        self.assertIn("Use it when", fields["description"])
        self.assertEqual(fields["license"], "MIT")
        self.assertTrue(1 <= len(fields["compatibility"]) <= 500)
        optional = {"license", "compatibility", "metadata", "allowed-tools"}
        self.assertLessEqual(set(fields), {"name", "description", *optional})

    def test_it_is_short(self) -> None:
        self.assertLess(len((ROOT / "SKILL.md").read_text("utf-8").splitlines()), 110)


class HonestyTest(unittest.TestCase):
    """The pages agree with each other, and speak of the project alone."""

    HOSTS = (
        "api.openai.com", "127.0.0.1", "localhost:4000", "localhost:8080", "relay.example", "example.com", "semver.org",
        "NAME.openai.azure.com",
    )  # fmt: skip

    def test_the_version_is_the_same_everywhere(self) -> None:
        version = re.escape(gpt_image.__version__)
        changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
        newest = re.search(r"(?m)^## (\S+)", changes)
        self.assertEqual(newest and newest.group(1), gpt_image.__version__)
        self.assertRegex((ROOT / "SKILL.md").read_text("utf-8"), rf'version: "{version}"')
        self.assertIn('attr = "gpt_image.__version__"', (ROOT / "pyproject.toml").read_text("utf-8"))

    def test_links_to_the_web_lead_to_few_hosts(self) -> None:
        for page in PAGES:
            for host in re.findall(r"https?://([^/\s`'\")?]+)", page.read_text("utf-8")):
                self.assertIn(re.sub(r"^(127\.0\.0\.1):\d+$", r"\1", host), self.HOSTS, page.name)

    def test_no_page_speaks_of_the_machine_or_the_work(self) -> None:
        odd = re.compile(r"/work/|/root/|/tmp/|/home/|\bsession [0-9a-f]{4,}|\bprompted\b|\bTODO\b|\bXXX\b|<!--")
        for page in (*PAGES, ROOT / "pyproject.toml", ROOT / ".env.example"):
            found = odd.search(page.read_text("utf-8"))
            self.assertIsNone(found, page.name)

    def test_pages_and_program_say_it_in_plain_words(self) -> None:
        words = r"mend(s|ed|ing)?|surely|one word too many|imagination|(it|that|what|which) is no(?! longer)"
        odd = re.compile(rf"(?i)\b({words})\b")
        for page in (*PAGES, ROOT / "gpt_image.py", ROOT / ".env.example"):
            for number, line in enumerate(page.read_text("utf-8").split("\n"), 1):
                self.assertIsNone(odd.search(line), f"{page.name}:{number}")

    def test_no_page_holds_a_key(self) -> None:
        for page in (*PAGES, ROOT / ".env.example"):
            self.assertIsNone(re.search(r"\bsk-[A-Za-z0-9]{8,}", page.read_text("utf-8")), page.name)

    def test_lines_of_the_pages_end_plainly(self) -> None:
        for page in PAGES:
            for number, line in enumerate(page.read_text("utf-8").split("\n"), 1):
                self.assertEqual(line, line.rstrip(), f"{page.name}:{number}")


class Writer(DocumentTest):
    """Writes anew what is generated; run by hand, not as a test."""

    def runTest(self) -> None:
        reference.write_pages()
        for page in PAGES:
            lines, shift, before = page.read_text("utf-8").split("\n"), 0, None
            for block in blocks(page):
                new = None
                if block.language == "console":
                    new = self.transcript(block)
                elif block.language == "json" and before and page.name == "output.md":
                    new = self.example(before)
                if new is not None and steady("\n".join(new)) != steady("\n".join(block.lines)):
                    start = block.line - 1 + shift
                    lines[start : start + len(block.lines)] = new
                    shift += len(new) - len(block.lines)
                before = block
            page.write_text("\n".join(lines), "utf-8")


def load_tests(loader: unittest.TestLoader, tests: unittest.TestSuite, pattern: str | None) -> unittest.TestSuite:
    """Leaves the writer out of the tests."""
    kept = unittest.TestSuite()
    for suite in tests:
        kept.addTests(test for test in suite if not isinstance(test, Writer))  # type: ignore[union-attr]
    return kept


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        raise SystemExit(not unittest.TextTestRunner(verbosity=0).run(Writer()).wasSuccessful())
    unittest.main()
