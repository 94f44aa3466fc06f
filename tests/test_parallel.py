"""The runner: what happens to a test in a worker is told as if it had run here."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import unittest
from pathlib import Path
from typing import Tuple

from tests.support import ROOT, ProgramTest

MODULE = '''
import os, time, unittest
from pathlib import Path

class Good(unittest.TestCase):
    def test_passes(self):
        """A sentence."""
    def test_skipped(self):
        self.skipTest("no need")
    @unittest.expectedFailure
    def test_expected(self):
        self.fail("as expected")
    def test_speaks(self):
        print("words on standard output")
        self.assertEqual(os.read(0, 1), b"")

class Shared(unittest.TestCase):
    made = 0
    @classmethod
    def setUpClass(cls):
        Shared.made += 1
    def test_one(self):
        self.assertEqual(self.made, 1)
    def test_two(self):
        self.assertEqual(self.made, 1)

class Bad(unittest.TestCase):
    def test_fails(self):
        for number in range(3):
            with self.subTest(number=number):
                self.assertNotEqual(number, 1, "no ones")
    def test_raises(self):
        raise ValueError("of its own")
    @unittest.expectedFailure
    def test_unexpected(self):
        pass
    def test_crashes(self):
        os._exit(0)
    def test_hangs(self):
        Path("hanging").write_text("")
        try:
            time.sleep(60)
        finally:
            Path("ended").write_text("")
'''


@unittest.skipUnless(os.name == "posix", "elsewhere the tests run one after the other")
class ParallelTest(ProgramTest):
    """The runner with a small package of tests."""

    def setUp(self) -> None:
        super().setUp()
        Path("tests").mkdir()
        for name in ("__init__.py", "parallel.py"):
            shutil.copy(ROOT / "tests" / name, "tests")
        Path("tests/test_small.py").write_text(MODULE, "utf-8")

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Starts unittest in the folder of the package, as if it had two cores."""
        code = "import os, tests.parallel, unittest; os.sched_getaffinity = lambda _: {0, 1}; tests.parallel.FEW = tests.parallel.WAITING = 0; unittest.main(None)"
        env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.Popen([sys.executable, "-S", "-c", code, *words], text=True, env=env, stderr=subprocess.PIPE)

    def run_tests(self, *words: str) -> Tuple[int, str]:
        """Returns the exit code and the words of a run."""
        process = self.start(*words)
        err = process.communicate(timeout=20)[1]
        return process.returncode, err

    def test_good_tests_are_named_and_counted_as_in_one_process(self) -> None:
        code, err = self.run_tests("-v", "-k", "Good", "-k", "Shared")
        self.assertEqual(code, 0, err)
        self.assertIn("Ran 6 tests in", err)
        self.assertIn("OK (skipped=1, expected failures=1)", err)
        for line in (r"test_passes \(.*\)\nA sentence. \.\.\. ok\n", r"test_skipped \(.*\) \.\.\. skipped 'no need'"):
            self.assertRegex(err, line)

    def test_whatever_goes_wrong_fails_the_run_and_the_others_go_on(self) -> None:
        Path("tests/test_broken.py").write_text("import no_such_module\n", "utf-8")
        bad = ("fails", "raises", "unexpected", "crashes", "broken")
        code, err = self.run_tests(*(word for name in bad for word in ("-k", f"*{name}*")), "-k", "Good")
        self.assertEqual(code, 1, err)
        self.assertIn("FAILED (failures=1, errors=3, skipped=1, expected failures=1, unexpected successes=1)", err)
        for words in ("Ran 9 tests in", "FAIL: test_fails", "(number=1)", "no ones", "ERROR: test_raises",
                      "ValueError: of its own", "in test_raises", "ERROR: tests.test_small.Bad.test_crashes",
                      "the process that ran it ended with code 0", "No module named 'no_such_module'"):  # fmt: skip
            self.assertIn(words, err)

    def test_it_ends_at_the_first_failure_when_asked_to(self) -> None:
        Path("tests/test_small.py").write_text(MODULE.replace("def test_hangs", "def hangs"), "utf-8")
        code, err = self.run_tests("-f", "-k", "Bad", "-k", "Shared")
        self.assertEqual(code, 1, err)
        self.assertRegex(err, r"Ran [1-5] tests? in")

    def test_ctrl_c_ends_it_and_the_test_that_was_running(self) -> None:
        process = self.start("-k", "test_hangs")
        self.addCleanup(process.kill)
        until = time.monotonic() + 10
        while not Path("hanging").exists():
            self.assertLess(time.monotonic(), until)
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=10)[1]
        self.assertNotEqual(process.returncode, 0, err)
        self.assertTrue(Path("ended").exists())


if __name__ == "__main__":
    unittest.main()
