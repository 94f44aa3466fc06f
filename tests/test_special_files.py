"""Outputs that are no regular files are written to; proxies of another kind, and uploads that are answered early."""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import threading
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, List, Optional
from unittest import mock

import gpt_image
from tests import pictures
from tests.support import KEY, FakeTransport, ProgramTest, reply

A = pictures.picture(b"special", "png", 48, 32)
BODY = json.dumps({"data": [{"b64_json": base64.b64encode(A).decode()}]}).encode()


@unittest.skipUnless(hasattr(os, "mkfifo"), "needs FIFOs and devices")
class SpecialFiles(ProgramTest):
    """Devices, FIFOs and links."""

    def call(self, *options: str, body: bytes = BODY) -> Any:
        """Makes a call that is answered with one picture."""
        return self.run_main("generations", "x", "--output", "p.png", *options, transport=FakeTransport(reply(body)))

    def test_a_fifo_gets_the_reply_or_the_picture_and_stays(self) -> None:
        for name, options, expected in (
            ("kept", ("--save-response", "kept"), BODY), ("p.png", ("--overwrite",), A),
            ("kept", ("--save-response", "kept", "--overwrite"), BODY),
        ):  # fmt: skip
            with self.subTest(options=options):
                for path in self.folder.iterdir():
                    path.unlink()
                os.mkfifo(name)
                with ThreadPoolExecutor(1) as pool:
                    read = pool.submit(Path(name).read_bytes)
                    ran = self.call_when_read(name, *options)
                    self.assertEqual((ran.code, read.result(5), Path(name).is_fifo()), (0, expected, True), ran.err)
                self.assertFalse([path for path in self.folder.iterdir() if path.name.startswith(".")])

    def call_when_read(self, name: str, *options: str) -> Any:
        """Makes a call once a FIFO has a reader."""
        for _ in range(2000):
            try:
                fd = os.open(name, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                time.sleep(0.001)
                continue
            ran = self.call(*options)
            os.close(fd)
            return ran
        raise AssertionError("no reader came")

    def test_a_fifo_that_nobody_reads_is_an_error_and_no_wait(self) -> None:
        os.mkfifo("p.png")
        ran = self.call("--overwrite")
        self.assertEqual((ran.code, ran.json["images"]), (7, []))
        self.assertEqual(Path(ran.json["saved_response"]).read_bytes(), BODY)
        self.assertTrue(Path("p.png").is_fifo())

    def test_a_fifo_is_a_name_that_exists(self) -> None:
        os.mkfifo("p.png")
        self.assertEqual(self.call().code, 7)

    def test_a_device_is_written_to_also_by_root(self) -> None:
        before = os.stat("/dev/null")
        for name in ("/dev/null", "link"):
            if name == "link":
                os.symlink("/dev/null", "link")
            for options in ((), ("--overwrite",)):
                if Path("p.png").exists():
                    Path("p.png").unlink()
                with self.subTest(name=name, options=options):
                    ran = self.call("--save-response", name, *options)
                    self.assertEqual((ran.code, ran.json["saved_response"]), (0, name), ran.err)
        after = os.stat("/dev/null")
        self.assertEqual((before.st_mode, before.st_rdev), (after.st_mode, after.st_rdev))
        self.assertTrue(os.path.islink("link"))

    def test_a_link_is_written_through(self) -> None:
        for name, target, expected, options in (
            ("p.png", "real.png", A, ("--overwrite",)),
            ("kept", "real.json", BODY, ("--overwrite", "--save-response", "kept")),
        ):
            for there in (True, False):
                with self.subTest(name=name, there=there):
                    for path in self.folder.iterdir():
                        path.unlink()
                    if there:
                        Path(target).write_bytes(b"old")
                    os.symlink(target, name)
                    ran = self.call(*options)
                    self.assertEqual((ran.code, Path(target).read_bytes()), (0, expected), ran.err)
                    self.assertEqual(os.readlink(name), target)

    def test_a_full_device_loses_nothing(self) -> None:
        if not os.path.exists("/dev/full"):
            self.skipTest("no /dev/full")
        ran = self.call("--save-response", "/dev/full")
        self.assertEqual(ran.code, 0)
        self.assertEqual(Path(ran.json["saved_response"]).read_bytes(), BODY)
        Path(ran.json["saved_response"]).unlink()


class Proxies(ProgramTest):
    """What stands in http_proxy."""

    def test_a_proxy_that_is_no_http_proxy_is_refused_before_a_connection(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(0.01)
            port = server.getsockname()[1]
            for proxy in (f"socks5://127.0.0.1:{port}", f"SOCKS5H://me:pass-word-1@127.0.0.1:{port}", f"ftp://127.0.0.1:{port}"):
                for url, name in (("http://127.0.0.2:9/v1", "http_proxy"), ("https://host.example/v1", "https_proxy")):
                    with self.subTest(proxy=proxy, url=url), mock.patch.dict(os.environ, {name: proxy, "no_proxy": ""}):
                        ran = self.run_main(
                            "generations", "x", "--base-url", url, "--output", "p.png", transport=gpt_image.send
                        )
                        self.assertEqual((ran.code, ran.error["rule"]), (3, "proxy"), ran.err)
                        self.assertIs(ran.error["may_be_billed"], False)
                        self.assertNotIn("pass-word-1", ran.out + ran.err)
                        self.assert_no_key(ran)
                        self.assertRaises(socket.timeout, server.accept)

    def test_a_proxy_for_other_hosts_or_without_a_scheme_is_none_of_it(self) -> None:
        for proxies in ({"http_proxy": "socks5://127.0.0.1:1", "no_proxy": "127.0.0.1"}, {"https_proxy": "socks5://127.0.0.1:1"}):
            with self.subTest(proxies), mock.patch.dict(os.environ, {"no_proxy": "", **proxies}):
                ran = self.run_main("generations", "x", "--output", f"{len(proxies)}.png", gateway=self.gateway())
                self.assertEqual(ran.code, 0, ran.err)


class AnsweredEarly(ProgramTest):
    """A server that answers in the middle of an upload and takes no more of it."""

    def serve(self, head: bytes, context: Optional[ssl.SSLContext] = None) -> str:
        """Starts a server that reads 1000 bytes, answers, and then neither reads nor closes until the test ends."""
        server = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(server.close)
        held: List[socket.socket] = []

        def close() -> None:
            for sock in held:
                sock.close()

        def run() -> None:
            while True:
                try:
                    sock = server.accept()[0]
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                    sock = context.wrap_socket(sock, server_side=True) if context else sock
                except OSError:
                    return
                held.append(sock)
                sock.recv(1000)
                sock.sendall(head)

        self.addCleanup(close)
        threading.Thread(target=run, daemon=True).start()
        return f"http{'s' if context else ''}://127.0.0.1:{server.getsockname()[1]}/v1"

    def test_its_answer_is_read_at_once(self) -> None:
        Path("in.png").write_bytes(pictures.picture(b"large", "png", 1600, 1600) + bytes(20 << 20))
        for status, body in ((413, b"too large"), (401, b'{"error": {"message": "No."}}')):
            with self.subTest(status=status), mock.patch.object(gpt_image, "PATIENCE", 0.05):
                url = self.serve(b"HTTP/1.1 %d No\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))
                before = time.monotonic()
                argv = ("edits", "x", "--image", "in.png", "--output", "p.png", "--base-url", url, "--timeout", "20", "--no-validate")
                ran = self.run_main(*argv, transport=gpt_image.send, env={"OPENAI_API_KEY": KEY})
                self.assertEqual((ran.code, ran.error["status"], ran.error["may_be_billed"]), (4, status, False), ran.err)
                self.assertLess(time.monotonic() - before, 10)
                self.assertEqual(ran.json["attempts"], 1)

    def test_an_interim_reply_is_no_answer(self) -> None:
        Path("in.png").write_bytes(pictures.picture(b"large", "png", 1600, 1600) + bytes(12 << 20))
        server = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(server.close)

        def run() -> None:
            with server.accept()[0] as sock:
                head = sock.recv(1000)
                sock.sendall(b"HTTP/1.1 102 Processing\r\n\r\n")
                time.sleep(0.3)
                while b"\r\n\r\n" not in head:
                    head += sock.recv(1 << 20)
                head, _, body = head.partition(b"\r\n\r\n")
                length = int([line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")][0].split()[1])
                got = len(body)
                while got < length:
                    got += len(sock.recv(1 << 20))
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY))

        threading.Thread(target=run, daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        argv = ("edits", "x", "--image", "in.png", "--output", "p.png", "--base-url", url, "--timeout", "5", "--no-validate")
        with mock.patch.object(gpt_image, "PATIENCE", 0.05):
            ran = self.run_main(*argv, transport=gpt_image.send)
        self.assertEqual((ran.code, Path("p.png").read_bytes()), (0, A), ran.err)


@unittest.skipUnless(hasattr(os, "mkfifo"), "needs links")
class LinksToOtherDisks(ProgramTest):
    """A link may lead to another disk."""

    def test_a_full_disk_behind_a_link_leaves_what_was_there(self) -> None:
        os.mkdir("far")
        Path("far/t.png").write_bytes(b"old")
        os.symlink("far/t.png", "p.png")
        whole, replace = gpt_image.write_all, os.replace

        def across(source: str, target: str) -> None:
            if os.path.dirname(os.path.abspath(source)) != os.path.dirname(os.path.abspath(target)):
                raise OSError(18, "Invalid cross-device link")
            replace(source, target)

        def full(file: Any, data: bytes) -> None:
            if "far" in str(file.name):
                raise OSError(28, "No space left on device")
            whole(file, data)

        for disk, code, expected in ((full, 7, b"old"), (whole, 0, A)):
            with mock.patch.object(os, "replace", across), mock.patch.object(gpt_image, "write_all", disk):
                ran = self.run_main("generations", "x", "--output", "p.png", "--overwrite", transport=FakeTransport(reply(BODY)))
            self.assertEqual((ran.code, Path("far/t.png").read_bytes()), (code, expected), ran.err)
            self.assertEqual((os.listdir("far"), os.path.islink("p.png")), (["t.png"], True))


if __name__ == "__main__":
    unittest.main()
