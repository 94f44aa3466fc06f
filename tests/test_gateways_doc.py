"""Each line of references/gateways.md holds: its scenario is played, or its dry run shows what it says."""

from __future__ import annotations

import re
import unittest

from tests import pictures
from tests.gateway import SCENARIOS
from tests.support import ROOT
from tests.test_docs import Command, DocumentTest, blocks, commands

PAGE = ROOT / "references" / "gateways.md"
COMMANDS = [command for block in blocks(PAGE) if block.language == "sh" for command in commands(block)]


class GatewaysTest(DocumentTest):
    """The commands of the page are run as they stand."""

    def check_call(self, command: Command) -> None:
        """Plays a command against its scenario: every picture is on disk and whole, or the exit code is as said."""
        ran = self.run_documented(command)
        self.assertEqual(ran.code, command.exit, ran.err)
        self.assert_no_key(ran)
        self.assertEqual(ran.json["ok"], command.exit == 0)
        self.assertEqual(bool(ran.json["images"]), command.exit == 0)
        for image in ran.json["images"]:
            with open(image["path"], "rb") as file:
                self.assertEqual(getattr(pictures.measure(file.read()), "format", ""), image["format"])

    def test_every_command_with_a_scenario_ends_as_the_page_says(self) -> None:
        calls = [command for command in COMMANDS if command.scenario]
        for number, command in enumerate(calls):
            with self.subTest(command.where, scenario=command.scenario):
                at = command.argv.index("--output") + 1
                argv = [*command.argv[:at], f"{number}-{command.argv[at]}", *command.argv[at + 1 :]]
                self.check_call(command._replace(argv=argv))
        self.assertGreater(len(calls), 30)

    def test_every_dry_run_shows_what_the_page_says(self) -> None:
        runs = [command for command in COMMANDS if not command.scenario]
        for command in runs:
            with self.subTest(command.where):
                self.assertIn("--dry-run", command.argv)
                self.assertTrue(command.shows or command.exit)
                ran = self.run_main(*command.argv)
                self.assertEqual(ran.code, command.exit, ran.err)
                self.assertIn(command.shows, ran.out)
        self.assertGreater(len(runs), 10)

    def test_every_scenario_of_the_tables_is_played_by_a_command(self) -> None:
        names, played = {row.name for row in SCENARIOS}, {command.scenario for command in COMMANDS}
        table = PAGE.read_text("utf-8").split("| what they do | scenario |")[1].split("\n\n")[0]
        for name in re.findall(r"`([a-z0-9-]+)`", table.replace("`generating`", "")):
            if "-" in name or name in names:
                self.assertIn(name, played)


if __name__ == "__main__":
    unittest.main()
