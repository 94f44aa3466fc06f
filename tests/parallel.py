"""Runs the tests in several processes: `python3 -m unittest` comes here by `load_tests` of the package.

Each worker is a `python3 -m tests.parallel` that reads names of tests, a line of JSON at a time, and answers each line
with what became of them. That is told to unittest's own result, so that dots, counts, tracebacks and the exit code are
those of one process. Where that does not pay (one core, few tests) or was not tried (Windows), the run is a plain one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import unittest
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Set, Tuple

ROOT = Path(__file__).resolve().parent.parent
FEW = 30  # tests that are run here and now
WAITING = 1  # more workers than cores: some tests wait for a clock
MEMORY, ROOM = "/dev/shm", 1 << 30  # a disk in memory, and the bytes it must have free to be used
OPTIONS = ("failfast", "buffer", "tb_locals")  # of a result
Outcome = List[Any]  # the name of a method of a result, three names of the test, and what else the method is told


def modules(pattern: str) -> List[str]:
    """Returns the names of the test modules whose files match."""
    return [f"tests.{path.stem}" for path in sorted(Path(__file__).parent.glob(pattern))]


def cases(tests: Iterable[Any]) -> Iterator[unittest.TestCase]:
    """Yields the tests of nested suites."""
    for test in tests:
        if isinstance(test, unittest.TestSuite):
            yield from cases(test)
        else:
            yield test


def has_fixture(kind: type) -> bool:
    """Tells whether the tests of a class share something that is made once for all of them."""
    return "setUpClass" in {name for base in kind.__mro__[: -len(unittest.TestCase.__mro__)] for name in vars(base)}


class Portions:
    """The names of tests in portions for one worker: each by itself, but a class with a fixture as a whole.

    A worker goes on with its module for as long as there is more of it, since another has to be imported first.
    """

    def __init__(self, tests: Iterable[unittest.TestCase]) -> None:
        portions: Dict[Any, List[str]] = {}
        for test in tests:
            portions.setdefault(type(test) if has_fixture(type(test)) else test.id(), []).append(test.id())
        self.left: Dict[str, List[List[str]]] = {}
        for names in portions.values():
            self.left.setdefault(names[0].split(".")[1], []).insert(0, names)
        self.begun: Set[str] = set()

    def next(self, module: str) -> List[str]:
        """Takes a portion of this module or of one that nobody began, or helps where most is left; [] is the end."""
        if not self.left.get(module):
            fresh = [name for name in self.left if name not in self.begun]
            module = fresh[0] if fresh else max(self.left, key=lambda name: len(self.left[name]), default="")
        self.begun.add(module)
        return self.left[module].pop() if self.left.get(module) else []


class InWorker(Exception):
    """A traceback that was written in a worker."""


class Told(unittest.TestCase):
    """A test that ran in a worker, by its names."""

    def __init__(self, name: str, words: str, description: Optional[str]) -> None:
        super().__init__()
        self.name, self.words, self.description = name, words, description

    def runTest(self) -> None:
        """Makes this a test; it has been run elsewhere."""

    def id(self) -> str:
        return self.name

    def __str__(self) -> str:
        return self.words

    def shortDescription(self) -> Optional[str]:
        return self.description


class Recorder(unittest.TestResult):
    """Notes all that a result is told, in a form that JSON can carry."""

    def __init__(self, options: Dict[str, Any]) -> None:
        super().__init__()
        vars(self).update(options)
        self.outcomes: List[Outcome] = []

    def note(self, method: str, test: Any, *more: Any) -> None:
        """Notes one call of a method."""
        self.outcomes.append([method, test.id(), str(test), test.shortDescription(), *more])

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self.note("startTest", test)

    def stopTest(self, test: unittest.TestCase) -> None:
        super().stopTest(test)
        self.note("stopTest", test)

    def addSuccess(self, test: unittest.TestCase) -> None:
        self.note("addSuccess", test)

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self.note("addSkip", test, reason)

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        super().addUnexpectedSuccess(test)
        self.note("addUnexpectedSuccess", test)

    def addExpectedFailure(self, test: unittest.TestCase, err: Any) -> None:
        super().addExpectedFailure(test, err)
        self.note("addExpectedFailure", test, self.expectedFailures[-1][1])

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        super().addError(test, err)
        self.note("addError", test, self.errors[-1][1])

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        super().addFailure(test, err)
        self.note("addFailure", test, self.failures[-1][1])

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        if err:
            failed = issubclass(err[0], test.failureException)
            (self.addFailure if failed else self.addError)(subtest, err)

    def addDuration(self, test: unittest.TestCase, elapsed: float) -> None:
        self.note("addDuration", test, elapsed)


def tell(result: unittest.TestResult, outcomes: Iterable[Outcome]) -> None:
    """Tells a result what a worker noted."""
    for method, name, words, description, *more in outcomes:
        if method in ("addError", "addFailure", "addExpectedFailure"):
            more = [(InWorker, InWorker("\n" + more[0].rstrip()), None)]
        if hasattr(result, method):  # addDuration came with Python 3.12
            getattr(result, method)(Told(name, words, description), *more)


class Worker:
    """A process that runs tests by their names."""

    def __init__(self, result: unittest.TestResult, temporary: str) -> None:
        command = [sys.executable, *(f"-W{option}" for option in sys.warnoptions), "-m", "tests.parallel"]
        # In a session of its own, since Ctrl-C is for the parent to hear.
        self.process = subprocess.Popen(
            [*command, json.dumps({name: getattr(result, name, False) for name in OPTIONS})], text=True, cwd=ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "TMPDIR": temporary}, start_new_session=True,
        )  # fmt: skip

    def run(self, names: List[str]) -> List[Outcome]:
        """Returns the outcomes of some tests; that of a worker which died over them is an error."""
        assert self.process.stdin and self.process.stdout
        with contextlib.suppress(OSError):
            self.process.stdin.write(json.dumps(names) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if line.endswith("\n"):
            outcomes: List[Outcome] = json.loads(line)
            return outcomes
        words = f"the process that ran it ended with code {self.process.wait()}"
        more: Tuple[Tuple[str, ...], ...] = (("startTest",), ("addError", words), ("stopTest",))
        return [[method, name, name, None, *text] for name in names for method, *text in more]

    def end(self, at_once: bool) -> None:
        """Lets the process come to its end, or makes it."""
        assert self.process.stdin and self.process.stdout
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        if at_once:
            self.process.send_signal(signal.SIGINT)  # so that what the test began is taken away
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.process.stdout.close()


class ParallelSuite(unittest.TestSuite):
    """A suite whose tests are run by workers, as many as there are cores and one more."""

    def run(self, result: unittest.TestResult, debug: bool = False) -> unittest.TestResult:
        tests = list(cases(self))
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if debug or cores < 2 or len(tests) < FEW or os.name != "posix":
            return super().run(result, debug)
        unittest.TestSuite(test for test in tests if not test.id().startswith("tests.")).run(result)  # none: not loaded
        portions = Portions(test for test in tests if test.id().startswith("tests."))
        with tempfile.TemporaryDirectory(dir=memory()) as temporary:
            self.share(portions, result, cores + WAITING, temporary)
        return result

    def share(self, portions: Portions, result: unittest.TestResult, count: int, temporary: str) -> None:
        """Has workers run the portions, and returns when all is done; Ctrl-C ends them."""
        lock = threading.Lock()
        workers: List[Worker] = []

        def next_names(last: List[str]) -> List[str]:
            with lock:
                return [] if result.shouldStop else portions.next(last[0].split(".")[1] if last else "")

        def drive() -> None:
            worker = None
            names = next_names([])
            while names:
                if worker is None or worker.process.returncode is not None:
                    worker = Worker(result, temporary)
                    workers.append(worker)
                outcomes = worker.run(names)
                with lock:
                    tell(result, outcomes)
                names = next_names(names)

        pool, interrupted = ThreadPoolExecutor(count), True
        try:
            for future in [pool.submit(drive) for _ in range(count)]:
                future.result()
            interrupted = False
        finally:
            result.shouldStop = result.shouldStop or interrupted
            for worker in workers:
                worker.end(interrupted)
            pool.shutdown()


def memory() -> Optional[str]:
    """Returns a folder in memory if there is one with room, since the tests write many small files."""
    with contextlib.suppress(OSError):
        return MEMORY if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM else None
    return None


def work() -> None:
    """Runs what each line of standard input names, and answers on standard output, which the tests do not get to see."""
    options = json.loads(sys.argv[1])
    with os.fdopen(os.dup(0)) as orders, os.fdopen(os.dup(1), "w") as answers, open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(2, 1)
        if not sys.warnoptions:
            warnings.simplefilter("default")
        for line in orders:
            recorder = Recorder(options)
            unittest.defaultTestLoader.loadTestsFromNames(json.loads(line)).run(recorder)
            answers.write(json.dumps(recorder.outcomes) + "\n")
            answers.flush()


if __name__ == "__main__":
    work()
