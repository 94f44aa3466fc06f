"""The wire: what is tried again and how often, what may have been billed, and the only way the key takes."""

from __future__ import annotations

import base64
import contextlib
import email.utils
import gzip
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
import tracemalloc
import zlib
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple
from unittest import mock

import gpt_image
from tests import pictures
from tests.support import KEY, FakeTransport, ProgramTest, Ran, reply

SMALL = ("--model", "small", "--size", "48x32")  # a model the tables do not know takes any size
PICTURE = pictures.picture(b"wire", "png", 48, 32)
GOOD = json.dumps({"created": 1, "data": [{"b64_json": base64.b64encode(PICTURE).decode()}]}).encode()
DOWN = {"error": {"message": "Sorry!", "type": "server_error", "code": None}}
PROXY_NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


def refusal(code: Optional[str], type: str = "requests") -> Dict[str, Any]:
    """Returns the API's error object."""
    return {"error": {"message": "No.", "type": type, "param": None, "code": code}}


class Raw:
    """A loopback server that does one thing with each connection, and keeps the head of each request."""

    def __init__(self, deed: Callable[[socket.socket, bytes], None], context: Optional[ssl.SSLContext] = None) -> None:
        self.deed, self.context, self.connections = deed, context, 0
        self.heads: List[bytes] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        """Serves one connection after the other until it is closed."""
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            with contextlib.suppress(OSError), sock:
                sock.settimeout(5)
                if self.context:
                    sock = self.context.wrap_socket(sock, server_side=True)
                with sock:
                    self.deed(sock, self.head(sock))

    def head(self, sock: socket.socket) -> bytes:
        """Reads a request to the end of its announced body and keeps its head."""
        data = b""
        while b"\r\n\r\n" not in data:
            block = sock.recv(65536)
            if not block:
                return b""
            data += block
        head, _, body = data.partition(b"\r\n\r\n")
        self.heads.append(head)
        length = re.search(rb"(?i)content-length: *([0-9]+)", head)
        while length and len(body) < int(length.group(1)):
            body += sock.recv(65536)
        return head

    def close(self) -> None:
        """Stops listening."""
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(2)


def answers(body: bytes = GOOD, status: str = "200 OK", extra: bytes = b"") -> Callable[[socket.socket, bytes], None]:
    """Returns what answers every request alike."""

    def deed(sock: socket.socket, _: bytes) -> None:
        sock.sendall(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n%b\r\n" % (status.encode(), len(body), extra) + body)

    return deed


class WireTest(ProgramTest):
    """A generation over a wire of some sort; the proxies of whoever runs the tests are out of the way."""

    def setUp(self) -> None:
        super().setUp()
        clean = {name: value for name, value in os.environ.items() if name.lower() not in PROXY_NAMES}
        patch = mock.patch.dict(os.environ, clean, clear=True)
        patch.start()
        self.addCleanup(patch.stop)

    def raw(self, deed: Callable[[socket.socket, bytes], None], context: Optional[ssl.SSLContext] = None) -> Raw:
        """Starts a raw server that ends with the test."""
        server = Raw(deed, context)
        self.addCleanup(server.close)
        return server

    def make(self, *options: str, **how: Any) -> Ran:
        """Makes one picture, or fails to, and leaves no picture behind for the next try."""
        ran = self.run_main("generations", "A lake", *SMALL, "--output", "p.png", *options, **how)
        for name in self.files():
            if name.startswith("p"):
                Path(name).unlink()
        return ran

    def at(self, url: str, *options: str) -> Ran:
        """Makes one picture by way of real sockets."""
        return self.make("--base-url", url, *options, transport=gpt_image.send)

    def played(self, *replies: Any, options: Tuple[str, ...] = ()) -> Tuple[Ran, FakeTransport]:
        """Makes one picture against canned replies."""
        fake = FakeTransport(*replies)
        self.sleeps.clear()
        return self.make(*options, transport=fake), fake


class WhichStatusesAreTriedAgain(WireTest):
    """Contract 6, the table of statuses."""

    # status, code, tries with the default of two retries, may have been billed
    ROWS: Tuple[Tuple[int, Optional[str], int, bool], ...] = (
        (400, "invalid_value", 1, False),
        (401, "invalid_api_key", 1, False),
        (403, None, 1, False),
        (404, "model_not_found", 1, False),
        (408, None, 3, False),
        (409, "conflict", 3, False),
        (413, None, 1, False),
        (422, None, 1, False),
        (429, "rate_limit_exceeded", 3, False),
        (429, "slow_down", 3, False),
        (429, "insufficient_quota", 1, False),
        (429, "credit_balance_exhausted", 1, False),
        (429, "organization_spend_limit_exceeded", 1, False),
        (429, "project_spend_limit_exceeded", 1, False),
        (429, "organization_usage_limit_exceeded", 1, False),
        (429, "billing_hard_limit_reached", 1, False),
        (500, None, 3, False),
        (502, None, 1, True),
        (503, "overloaded", 3, False),
        (504, None, 1, True),
        (520, None, 1, True),
        (521, None, 1, True),
        (522, None, 1, True),
        (523, None, 1, True),
        (524, None, 1, True),
    )

    def test_each_status_is_tried_as_often_as_the_contract_says(self) -> None:
        for status, code, tries, billed in self.ROWS:
            with self.subTest(status=status, code=code):
                ran, fake = self.played(*[reply(refusal(code), status) for _ in range(3)])
                self.assertEqual(len(fake.requests), tries)
                self.assertEqual(ran.json["attempts"], tries)
                self.assertEqual(len(self.sleeps), tries - 1)
                self.assertEqual(ran.code, 5 if status >= 500 else 4)
                self.assertEqual(ran.error["status"], status)
                self.assertEqual(ran.error["may_be_billed"], billed)
                self.assertEqual(ran.error["code"], code)

    def test_what_may_have_been_billed_is_tried_again_only_when_the_user_says_so(self) -> None:
        for status in (502, 504, 520, 521, 522, 523, 524):
            with self.subTest(status=status):
                ran, fake = self.played(*[reply(DOWN, status) for _ in range(3)], options=("--retry-billable",))
                self.assertEqual(len(fake.requests), 3)
                self.assertTrue(ran.error["may_be_billed"])

    def test_an_interrupt_before_another_try_was_sent_costs_nothing(self) -> None:
        class Interrupted(FakeTransport):
            def __call__(self, request: gpt_image.Request, *more: Any) -> Any:
                if not self.replies:  # while it connects
                    raise KeyboardInterrupt
                return super().__call__(request, *more)

        fake = Interrupted(reply(refusal(None, "slow_down"), 429))
        ran = self.run_main("generations", "x", "--output", "p.png", transport=fake)
        self.assertEqual((ran.code, ran.error["may_be_billed"]), (130, False), ran.err)

    def test_the_users_leave_does_not_extend_to_what_is_never_tried_again(self) -> None:
        for status, code in ((400, None), (401, None), (429, "insufficient_quota"), (307, None)):
            with self.subTest(status=status):
                _, fake = self.played(*[reply(refusal(code), status) for _ in range(3)], options=("--retry-billable",))
                self.assertEqual(len(fake.requests), 1)

    def test_a_money_code_is_known_by_its_type_too(self) -> None:
        _, fake = self.played(*[reply(refusal(None, "insufficient_quota"), 429) for _ in range(3)])
        self.assertEqual(len(fake.requests), 1)

    def test_max_retries_is_the_number_of_further_tries(self) -> None:
        for retries in (0, 1, 4):
            with self.subTest(retries=retries):
                replies = [reply(DOWN, 503) for _ in range(6)]
                _, fake = self.played(*replies, options=("--max-retries", str(retries)))
                self.assertEqual(len(fake.requests), retries + 1)

    def test_no_retries_means_none_whatever_the_server_says(self) -> None:
        for headers in ({}, {"x-should-retry": "true"}, {"retry-after-ms": "1"}):
            with self.subTest(headers=headers):
                replies = [reply(DOWN, 503, headers) for _ in range(2)]
                _, fake = self.played(*replies, options=("--max-retries", "0", "--retry-billable"))
                self.assertEqual(len(fake.requests), 1)

    def test_each_try_sends_the_whole_body_again(self) -> None:
        _, fake = self.played(reply(DOWN, 500), reply(DOWN, 503), reply(GOOD))
        self.assertEqual(len(set(fake.bodies)), 1)
        self.assertEqual(json.loads(fake.bodies[0])["prompt"], "A lake")

    def test_each_retry_is_announced_with_its_reason(self) -> None:
        ran, _ = self.played(reply(refusal("slow_down"), 429), reply(DOWN, 503), reply(GOOD))
        self.assertEqual(ran.code, 0)
        for words in ("429", "503", "2 of 3", "3 of 3"):
            self.assertIn(words, ran.err)

    def test_a_server_that_forbids_another_try_does_not_undo_the_bill(self) -> None:
        fake = FakeTransport(reply({}, 504, {"x-should-retry": "false"}))
        ran = self.run_main("generations", "A lake", "--output", "bill.png", transport=fake)
        self.assertEqual((ran.code, ran.error["may_be_billed"], len(fake.requests)), (5, True, 1))

    def test_an_error_body_of_any_shape_is_no_traceback(self) -> None:
        odd: Tuple[bytes, ...] = (b"", b"null", b"[]", b'"No."', b"5", b"{", b'{"error": null}', b'{"error": "No."}', b'{"error": []}')
        odd += (b'{"error": {"message": {"a": 1}, "code": ["b"], "type": 5}}', b'{"message": "No."}', b"\xff\xfe\x00")
        odd += (b'{"error": {"message": "No.", "moderation_details": {"categories": 5, "moderation_stage": []}}}',)
        odd += (b'{"error": {"message": "No.", "moderation_details": {"categories": {"a": 1}}}}',)
        odd += (b'{"error": {"message": "\\ud800", "code": "\\ud800"}}', b'{"error": ' * 2000)
        for body in odd:
            with self.subTest(body=body[:80]):
                ran, _ = self.played(reply(body, 400))
                self.assertEqual((ran.code, ran.json and ran.error["status"]), (4, 400))


class HowLongItWaits(WireTest):
    """Contract 6, the waits."""

    def wait_after(self, headers: Dict[str, str], status: int = 503) -> float:
        """Returns the wait before the second try."""
        ran, _ = self.played(reply(DOWN, status, headers), reply(GOOD))
        self.assertEqual(ran.code, 0)
        return self.sleeps[0]

    def test_the_servers_wait_is_obeyed(self) -> None:
        for headers, seconds in (
            ({"retry-after-ms": "20"}, 0.02),
            ({"retry-after-ms": "1500.5"}, 1.5005),
            ({"retry-after-ms": "0"}, 0),
            ({"Retry-After": "7"}, 7),
            ({"Retry-After": "0"}, 0),
            ({"Retry-After": "120"}, 120),
            ({"Retry-After": "1.5"}, 1.5),
            ({"retry-after-ms": "250", "Retry-After": "9"}, 0.25),
        ):
            with self.subTest(headers=headers):
                self.assertAlmostEqual(self.wait_after(headers), seconds)

    def test_the_servers_wait_may_be_a_date(self) -> None:
        for ahead in (5, 90):
            with self.subTest(ahead=ahead):
                date = email.utils.formatdate(time.time() + ahead, usegmt=True)
                self.assertAlmostEqual(self.wait_after({"Retry-After": date}), ahead, delta=2)

    def test_a_date_that_has_passed_is_no_wait(self) -> None:
        self.assertEqual(self.wait_after({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}), 0)

    def test_more_than_two_minutes_are_never_waited(self) -> None:
        far = email.utils.formatdate(time.time() + 4000, usegmt=True)
        for headers in ({"Retry-After": "121"}, {"retry-after-ms": "120001"}, {"Retry-After": far}):
            with self.subTest(headers=headers):
                ran, fake = self.played(*[reply(refusal("slow_down"), 429, headers) for _ in range(3)])
                self.assertEqual(ran.code, 4)
                self.assertLessEqual(max(self.sleeps, default=0), 8)
                self.assertLessEqual(len(fake.requests), 3)

    def test_a_wait_that_is_no_time_counts_as_none(self) -> None:
        odd = ("soon", "", "-5", "1e9999", "nan", "inf", "1.2.3", "Wed, 99 Oct 2015", "Mon, 01 Jan 99999 00:00:00 GMT")
        for name in ("Retry-After", "retry-after-ms"):
            for value in odd:
                with self.subTest(name=name, value=value):
                    ran, _ = self.played(reply(DOWN, 503, {name: value}), reply(GOOD))
                    self.assertIn(ran.code, (0, 5))
                    self.assertTrue(all(0 <= wait <= 120 for wait in self.sleeps), self.sleeps)

    def test_without_word_from_the_server_the_wait_doubles_up_to_eight_seconds(self) -> None:
        for _ in range(5):
            ran, _ = self.played(*[reply(DOWN, 503) for _ in range(11)], options=("--max-retries", "10"))
            self.assertEqual(len(self.sleeps), 10)
            for number, wait in enumerate(self.sleeps):
                most = min(0.5 * 2**number, 8)
                self.assertTrue(0.75 * most <= wait <= most, (number, wait))

    def test_the_waits_differ_so_that_many_clients_do_not_come_back_at_once(self) -> None:
        waits = set()
        for _ in range(8):
            self.played(reply(DOWN, 503), reply(GOOD))
            waits.add(self.sleeps[0])
        self.assertGreater(len(waits), 1)

    def test_should_retry_says_yes(self) -> None:
        for status in (400, 404, 422, 429):
            with self.subTest(status=status):
                ran, fake = self.played(reply(refusal(None), status, {"x-should-retry": "true"}), reply(GOOD))
                self.assertEqual((ran.code, len(fake.requests)), (0, 2))

    def test_should_retry_says_no(self) -> None:
        for status in (408, 409, 429, 500, 503):
            with self.subTest(status=status):
                ran, fake = self.played(reply(refusal(None), status, {"x-should-retry": "false"}))
                self.assertEqual(len(fake.requests), 1)
                self.assertFalse(ran.error["may_be_billed"])

    def test_should_retry_never_outvotes_money(self) -> None:
        _, fake = self.played(*[reply(refusal("insufficient_quota"), 429, {"x-should-retry": "true"})] * 2)
        self.assertEqual(len(fake.requests), 1)


class ConnectionsThatFail(WireTest):
    """What surely did not run is tried again; what may have run is not."""

    def assert_unsent(self, ran: Ran) -> None:
        """Asserts three tries, and that nothing was billed."""
        self.assertEqual((ran.code, ran.json["attempts"], len(self.sleeps)), (5, 3, 2), ran.err)
        self.assertFalse(ran.error["may_be_billed"])
        self.assertEqual(self.files(), [])

    def test_a_refused_connection_is_tried_again_and_costs_nothing(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        self.assert_unsent(self.at(f"http://127.0.0.1:{port}/v1"))

    def test_a_name_that_does_not_resolve_is_tried_again_and_costs_nothing(self) -> None:
        ran = self.at("https://no-such-host.invalid/v1")
        self.assert_unsent(ran)
        self.assertIn("no-such-host.invalid", ran.error["message"])

    def test_a_failed_tls_handshake_is_tried_again_and_costs_nothing(self) -> None:
        server = self.raw(lambda sock, head: None)
        server.head = lambda sock: b""  # type: ignore[method-assign]
        server.deed = lambda sock, head: sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        self.assert_unsent(self.at(f"https://127.0.0.1:{server.port}/v1"))
        self.assertEqual(server.connections, 3)

    def test_a_certificate_nobody_vouches_for_is_refused(self) -> None:
        server = self.raw(answers(), self.tls())
        self.assert_unsent(self.at(f"https://127.0.0.1:{server.port}/v1"))
        self.assertEqual(server.heads, [])

    def test_a_certificate_for_another_name_is_refused(self) -> None:
        server = self.raw(answers(), self.tls("DNS:example.com"))
        with mock.patch.dict(os.environ, {"SSL_CERT_FILE": "cert.pem"}):
            self.assert_unsent(self.at(f"https://127.0.0.1:{server.port}/v1"))
        self.assertEqual(server.heads, [])

    def test_ssl_cert_file_is_honoured(self) -> None:
        server = self.raw(answers(), self.tls())
        with mock.patch.dict(os.environ, {"SSL_CERT_FILE": "cert.pem"}):
            ran = self.at(f"https://127.0.0.1:{server.port}/v1")
        self.assertEqual(ran.code, 0, ran.err)
        self.assertIn(f"Authorization: Bearer {KEY}".encode(), server.heads[0])

    def tls(self, names: str = "IP:127.0.0.1") -> ssl.SSLContext:
        """Returns a server's context with a certificate of its own, or skips the test."""
        program = shutil.which("openssl")
        if not program:
            self.skipTest("no openssl")
        words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -keyout key.pem -out cert.pem"
        command = [program, *words.split(), "-subj", "/CN=test", "-addext", f"subjectAltName={names}"]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if done.returncode:
            self.skipTest("openssl makes no certificate")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain("cert.pem", "key.pem")
        Path("key.pem").unlink()
        self.addCleanup(lambda: Path("cert.pem").unlink() if Path("cert.pem").exists() else None)
        return context

    def files(self, folder: str = ".") -> List[str]:
        """Returns the files below a folder, without the certificate."""
        return [name for name in super().files(folder) if name != "cert.pem"]

    def test_a_fault_after_sending_may_be_billed_and_is_not_tried_again(self) -> None:
        for scenario in ("close-before-reply", "reset-before-reply", "hang"):
            with self.subTest(scenario=scenario):
                gateway = self.gateway(scenario)
                ran = self.make("--timeout", "0.2", gateway=gateway)
                self.assertEqual((ran.code, gateway.posts, ran.json["attempts"]), (5, 1, 1))
                self.assertTrue(ran.error["may_be_billed"])
                self.assertIn("billed", ran.err)

    def test_a_fault_after_sending_is_tried_again_when_the_user_says_so(self) -> None:
        for scenario in ("close-before-reply", "reset-before-reply", "hang"):
            with self.subTest(scenario=scenario):
                gateway = self.gateway(scenario)
                ran = self.make("--timeout", "0.1", "--retry-billable", gateway=gateway)
                self.assertEqual((ran.code, gateway.posts), (5, 3))
                self.assertTrue(ran.error["may_be_billed"])

    def test_once_a_2xx_has_begun_nothing_is_sent_again(self) -> None:
        for scenario in ("cut-in-mid-picture", "hang-in-mid-picture", "short-content-length", "garbage", "error-in-200"):
            with self.subTest(scenario=scenario):
                gateway = self.gateway(scenario)
                ran = self.make("--timeout", "0.1", "--retry-billable", gateway=gateway)
                self.assertEqual((gateway.posts, self.sleeps), (1, []))
                self.assertTrue(ran.error["may_be_billed"])

    def test_a_reply_that_is_no_http_is_a_fault_and_no_traceback(self) -> None:
        odd: Tuple[bytes, ...] = (b"", b"hello\r\n\r\n", b"HTTP/1.1 abc OK\r\n\r\n", b"HTTP/1.1 99999 OK\r\n\r\n", b"\x00" * 200)
        odd += (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 300 + b"\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70000)
        odd += (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"SSH-2.0-OpenSSH_9.6\r\n")
        odd += (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\nContent-Encoding: gzip\r\n\r\nno gzip at all",)
        odd += (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: -7\r\n\r\n{}")
        odd += (b"HTTP/1.1 304 Not Modified\r\n\r\n", b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 999 What\r\n\r\n")
        server = self.raw(lambda sock, head: None)
        for data in odd:
            with self.subTest(data=data[:60]):
                server.deed = lambda sock, head, data=data: sock.sendall(data)  # type: ignore[misc]
                ran = self.at(f"http://127.0.0.1:{server.port}/v1", "--timeout", "0.3")
                self.assertIn(ran.code, (4, 5, 6), ran.err)
                self.assertIsNotNone(ran.json)


class BytesThatCount(WireTest):
    """The timeout is the wait for the next byte."""

    def test_comments_and_blank_lines_keep_a_call_alive(self) -> None:
        for options in (("--stream",), ()):
            with self.subTest(options=options):
                gateway = self.gateway("keep-alive", delay=0.8)
                ran = self.make("--timeout", "0.3", *options, gateway=gateway)
                self.assertEqual((ran.code, gateway.posts), (0, 1), ran.err)

    def test_silence_of_that_length_does_not(self) -> None:
        gateway = self.gateway("hang-in-mid-picture")
        started = time.monotonic()
        ran = self.make("--timeout", "0.2", gateway=gateway)
        self.assertLess(time.monotonic() - started, 2)
        self.assertEqual(ran.code, 5)
        self.assertIn("timed out", ran.error["message"])

    def test_interim_replies_are_skipped(self) -> None:
        gateway = self.gateway("interim-102")
        self.assertEqual(self.make(gateway=gateway).code, 0)
        heads = (b"102 Processing", b"103 Early Hints\r\nLink: </x>", b"100 Continue", b"199 Own")
        for head in heads:
            with self.subTest(head=head):
                interim = b"HTTP/1.1 " + head + b"\r\n\r\n"

                def deed(sock: socket.socket, _: bytes, interim: bytes = interim) -> None:
                    sock.sendall(interim * 3)
                    answers()(sock, b"")

                server = self.raw(deed)
                self.assertEqual(self.at(f"http://127.0.0.1:{server.port}/v1").code, 0)

    def test_a_compressed_reply_is_understood(self) -> None:
        gateway = self.gateway("gzip")
        ran = self.run_main("generations", "A lake", *SMALL, "--output", "z.png", gateway=gateway)
        self.assertEqual(ran.code, 0)
        self.assertEqual(Path("z.png").read_bytes(), gateway.pictures[0])
        for packed, name in ((gzip.compress(GOOD), b"gzip"), (zlib.compress(GOOD), b"deflate"), (gzip.compress(GOOD), b"GZIP")):
            with self.subTest(name=name):
                server = self.raw(answers(packed, extra=b"Content-Encoding: " + name + b"\r\n"))
                self.assertEqual(self.at(f"http://127.0.0.1:{server.port}/v1").code, 0)

    def test_a_compressed_error_is_understood(self) -> None:
        packed = gzip.compress(json.dumps(refusal("invalid_value")).encode())
        server = self.raw(answers(packed, "400 Bad Request", b"Content-Encoding: gzip\r\n"))
        self.assertEqual(self.at(f"http://127.0.0.1:{server.port}/v1").error["code"], "invalid_value")

    def test_a_compressed_reply_that_is_cut_is_a_failure(self) -> None:
        packed = gzip.compress(GOOD)[:-30]
        server = self.raw(answers(packed, extra=b"Content-Encoding: gzip\r\n"))
        ran = self.at(f"http://127.0.0.1:{server.port}/v1")
        self.assertEqual((ran.code, ran.error["may_be_billed"]), (5, True))

    def test_a_compressed_reply_does_not_unpack_in_memory(self) -> None:
        packed = gzip.compress(b"\n" * (24 << 20) + GOOD, 9)
        self.assertLess(len(packed), 200_000)
        server = self.raw(answers(packed, extra=b"Content-Encoding: gzip\r\n"))
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        ran = self.at(f"http://127.0.0.1:{server.port}/v1")
        peak = tracemalloc.get_traced_memory()[1]
        self.assertEqual(ran.code, 0, ran.err)
        self.assertLess(peak, 12 << 20)


class Uploads(WireTest):
    """An answer that comes while we are still sending."""

    big = b""

    @classmethod
    def setUpClass(cls) -> None:
        (head, tail), _ = pictures.large(b"upload", 20 << 20)
        cls.big = head + tail

    def test_an_early_refusal_is_reported_as_such(self) -> None:
        Path("big.png").write_bytes(self.big)
        for scenario, status in (("early-401", 401), ("early-413", 413)):
            for command in (("edits", "--image"), ("responses", "--input-image")):
                with self.subTest(scenario=scenario, route=command[0]):
                    gateway = self.gateway(scenario)
                    ran = self.run_main(command[0], "Snow", command[1], "big.png", "--output", "o.png", gateway=gateway)
                    self.assertEqual((ran.code, ran.error["status"]), (4, status), ran.err)
                    self.assertFalse(ran.error["may_be_billed"])
                    self.assertEqual(gateway.posts, 1)
                    self.assertLess(gateway.requests[0].body_bytes, len(self.big))

    def test_a_connection_cut_during_the_upload_cannot_have_been_billed(self) -> None:
        Path("big.png").write_bytes(self.big)
        server = self.raw(lambda sock, head: None)
        server.head = lambda sock: sock.recv(1000)  # type: ignore[method-assign]
        ran = self.run_main("edits", "Snow", "--image", "big.png", "--output", "o.png", "--base-url",
                            f"http://127.0.0.1:{server.port}/v1", transport=gpt_image.send)  # fmt: skip
        self.assertEqual((ran.code, ran.error["may_be_billed"], server.connections), (5, False, 3))

    def test_a_picture_that_is_gone_by_the_time_it_is_sent_is_no_fault_of_the_network(self) -> None:
        for change in ("removed", "shorter", "longer"):
            with self.subTest(change=change):
                Path("in.png").write_bytes(PICTURE)
                gateway = self.gateway("fault-503-once")

                def sleep(_: float, change: str = change) -> None:
                    if change == "removed":
                        with contextlib.suppress(FileNotFoundError):
                            Path("in.png").unlink()
                    else:
                        Path("in.png").write_bytes(PICTURE[:50] if change == "shorter" else PICTURE + b"more")

                self.sleeps = mock.Mock(append=sleep)
                ran = self.run_main("edits", "Snow", *SMALL, "--image", "in.png", "--output", "o.png", gateway=gateway)
                self.assertEqual((ran.code, ran.error["may_be_billed"]), (2, False), ran.err)
                self.assertIn("in.png", ran.error["message"])
                self.assertNotIn("o.png", self.files())


class Redirects(WireTest):
    """The key goes to the base URL's origin and nowhere else."""

    def test_a_redirect_is_refused_and_its_target_named(self) -> None:
        for scenario in ("redirect", "redirect-302", "redirect-same-origin"):
            with self.subTest(scenario=scenario):
                gateway = self.gateway(scenario)
                ran = self.make(gateway=gateway)
                target = gateway.origin + "/moved" if scenario.endswith("origin") else gateway.elsewhere.origin
                self.assertIn(target, ran.error["message"])
                self.assertEqual((ran.code, len(gateway.requests), gateway.elsewhere.requests), (5, 1, []))
                self.assertFalse(ran.error["may_be_billed"])

    def test_every_redirecting_status_is_refused(self) -> None:
        gateway = self.gateway()
        for status in (300, 301, 302, 303, 307, 308):
            with self.subTest(status=status):
                gateway.play(b"", status, headers=(("Location", gateway.elsewhere.origin + "/v1/images/generations"),))
                ran = self.make("--retry-billable", gateway=gateway)
                self.assertEqual((ran.code, ran.json["attempts"], gateway.elsewhere.requests), (5, 1, []))

    def test_a_redirect_to_anything_odd_is_no_traceback(self) -> None:
        targets = ("", "/", "//", "http://", "file:///etc/passwd", "http://[", "http://user:word@host/x", "\x1b[31m", "a:b")
        for target in targets:
            with self.subTest(target=target):
                ran, _ = self.played(reply(b"", 302, {"Location": target}))
                self.assertEqual(ran.code, 5)
                self.assertNotIn("\x1b", ran.err)
                self.assertNotIn("user:word", ran.err + ran.out)

    def test_the_free_calls_are_not_redirected_either(self) -> None:
        gateway = self.gateway("redirect")
        ran = self.run_main("config", "--check", gateway=gateway)
        self.assertEqual((ran.code, gateway.elsewhere.requests), (5, []))
        ran = self.run_main("resume", "resp_1234567", "--output", "r.png", gateway=gateway)
        self.assertEqual((ran.code in (5, 8), gateway.elsewhere.requests), (True, []))


class Proxies(WireTest):
    """Proxies are honoured as Python does."""

    def test_a_proxy_for_http_gets_the_call(self) -> None:
        proxy = self.raw(answers())
        for name in ("http_proxy", "HTTP_PROXY"):
            if name == "HTTP_PROXY" and os.name == "nt":
                continue
            with self.subTest(name=name), mock.patch.dict(os.environ, {name: f"http://127.0.0.1:{proxy.port}"}):
                proxy.heads.clear()
                ran = self.at("http://pictures.test/v1")
                self.assertEqual(ran.code, 0, ran.err)
                self.assertTrue(proxy.heads[0].startswith(b"POST http://pictures.test/v1/images/generations HTTP/1.1"))

    def test_a_proxy_for_https_gets_a_tunnel_and_no_key(self) -> None:
        proxy = self.raw(answers(b"", "403 Forbidden"))
        with mock.patch.dict(os.environ, {"https_proxy": f"http://user:pass-word-1@127.0.0.1:{proxy.port}"}):
            ran = self.at("https://pictures.test/v1", "--header", "X-Own: yes")
        self.assertEqual((ran.code, ran.error["may_be_billed"]), (5, False))
        self.assertTrue(proxy.heads[0].startswith(b"CONNECT pictures.test:443 "))
        for head in proxy.heads:
            self.assertNotIn(KEY.encode(), head)
            self.assertNotIn(b"X-Own", head)
        self.assertIn(b"Proxy-Authorization: Basic ", proxy.heads[0].replace(b"Proxy-authorization", b"Proxy-Authorization"))
        self.assertNotIn("pass-word-1", ran.out + ran.err)

    def test_no_proxy_is_honoured(self) -> None:
        proxy = self.raw(answers())
        gateway = self.gateway()
        names = {"http_proxy": f"http://127.0.0.1:{proxy.port}", "no_proxy": "127.0.0.1"}
        with mock.patch.dict(os.environ, names):
            self.assertEqual(self.make(gateway=gateway).code, 0)
        self.assertEqual((proxy.connections, gateway.posts), (0, 1))

    def test_a_proxy_that_is_down_costs_nothing(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        with mock.patch.dict(os.environ, {"http_proxy": f"http://127.0.0.1:{port}"}):
            ran = self.at("http://pictures.test/v1")
        self.assertEqual((ran.code, ran.error["may_be_billed"], ran.json["attempts"]), (5, False, 3))


class Headers(WireTest):
    """What goes along with a call."""

    def sent(self, *options: str, **how: Any) -> Dict[str, List[str]]:
        """Returns the headers of a call as the gateway received them, names in lower case."""
        gateway = self.gateway()
        self.make(*options, gateway=gateway, **how)
        found: Dict[str, List[str]] = {}
        for name, value in gateway.requests[0].headers:
            found.setdefault(name.lower(), []).append(value)
        return found

    def test_the_key_goes_as_a_bearer_once(self) -> None:
        self.assertEqual(self.sent()["authorization"], [f"Bearer {KEY}"])

    def test_the_user_agent_is_our_own_and_can_be_replaced(self) -> None:
        self.assertNotIn("urllib", self.sent()["user-agent"][0].lower())
        self.assertEqual(self.sent("--header", "User-Agent: mine/2")["user-agent"], ["mine/2"])
        self.assertEqual(self.sent("--header", "user-agent: mine/2")["user-agent"], ["mine/2"])

    def test_organization_and_project_come_from_options_or_the_environment(self) -> None:
        self.assertNotIn("openai-organization", self.sent())
        found = self.sent("--organization", "org-1", "--project", "proj-1")
        self.assertEqual((found["openai-organization"], found["openai-project"]), (["org-1"], ["proj-1"]))
        found = self.sent(env={"OPENAI_ORG_ID": "org-2", "OPENAI_PROJECT_ID": "proj-2"})
        self.assertEqual((found["openai-organization"], found["openai-project"]), (["org-2"], ["proj-2"]))

    def test_every_header_stands_once(self) -> None:
        found = self.sent("--header", "Accept: text/plain", "--header", "X-Mine: a", "--header", "x-mine: b")
        self.assertEqual({name: values for name, values in found.items() if len(values) != 1}, {})
        self.assertEqual(found["x-mine"], ["b"])

    def test_the_length_is_announced_and_no_chunks_are_sent(self) -> None:
        found = self.sent()
        self.assertIn("content-length", found)
        self.assertNotIn("transfer-encoding", found)

    def test_an_azure_key_goes_in_its_own_header(self) -> None:
        gateway = self.gateway()
        ran = self.make("--header", f"api-key: {KEY}", gateway=gateway, env={"OPENAI_API_KEY": ""})
        self.assertEqual(ran.code, 0)
        self.assertEqual(gateway.requests[0].header("Authorization"), "")

    def test_the_query_of_the_base_url_stays_at_the_end(self) -> None:
        gateway = self.gateway()
        self.make("--base-url", gateway.url + "?api-version=preview", gateway=gateway)
        self.assertEqual(gateway.requests[0].path, "/v1/images/generations?api-version=preview")

    def test_connections_are_kept_alive_by_tcp(self) -> None:
        seen: List[Tuple[Any, ...]] = []
        real = socket.socket.setsockopt

        def spy(sock: Any, *options: Any) -> None:
            seen.append(options)
            real(sock, *options)

        gateway = self.gateway()
        with mock.patch.object(socket.socket, "setsockopt", spy):
            self.make(gateway=gateway)
        self.assertIn((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), seen)


class OneCallOneConnection(WireTest):
    """Nothing runs beside the call that was asked for."""

    def test_a_call_is_one_request_on_one_connection(self) -> None:
        gateway = self.gateway()
        self.make(gateway=gateway)
        self.assertEqual((gateway.connections, len(gateway.requests)), (1, 1))

    def test_what_is_refused_before_sending_opens_no_connection(self) -> None:
        gateway = self.gateway()
        Path("taken.png").write_bytes(b"mine")
        for options in (("--dry-run",), ("--curl",), ("--output", "taken.png"), ("--n", "11"), ("--quality", "best", "--model", "gpt-image-2")):
            with self.subTest(options=options):
                self.run_main("generations", "A lake", *SMALL, *options, gateway=gateway)
        self.assertEqual(gateway.connections, 0)
        self.assertEqual(Path("taken.png").read_bytes(), b"mine")
