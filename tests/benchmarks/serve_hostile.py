"""The server among peers that do not go on: what an ordinary request gets meanwhile, and when they are let go; figures as JSON.

    python tests/benchmarks/serve_hostile.py --peers 1100

Peers that open and say nothing more, that send a head or a body and stop, drip, or never read an answer. While each kind is there
/health and a completion are asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
from serve_load import resident_mb, start

HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
SILENT = json.dumps({"model": "small", "prompt": "To", "max_tokens": 300, "stream": True, "logprobs": 20}).encode()
KINDS = {
    "nothing sent": b"",
    "half a head": HEAD + b"x-a: ",
    "no body": HEAD + b"content-length: 1000\r\n\r\n",
    "half a body": HEAD + b"content-length: 4000000\r\n\r\n" + b" " * 100_000,
    "answer not read": HEAD + b"content-length: %d\r\n\r\n" % len(SILENT) + SILENT,
}


def held(process: subprocess.Popen[str]) -> int:
    """Sockets that the server holds. A peer that reads nothing would not see that it was let go."""
    found = 0
    for entry in os.scandir(f"/proc/{process.pid}/fd"):
        with suppress(OSError):
            found += os.readlink(entry.path).startswith("socket:")
    return found


def ordinary(address: str) -> dict[str, Any]:
    """What others get meanwhile."""
    began, found = time.perf_counter(), {}
    body = {"model": "small", "prompt": "To", "max_tokens": 5}
    for name, method, path in (("health", "GET", "/health"), ("completion", "POST", "/v1/completions")):
        try:
            options = {"json": body} if method == "POST" else {}
            found[name] = str(httpx.request(method, address + path, timeout=30, **options).status_code)
        except httpx.HTTPError as error:
            found[name] = type(error).__name__
    return {**found, "seconds": round(time.perf_counter() - began, 2)}


def crowd(process: subprocess.Popen[str], address: str, sent: bytes, count: int, patience_s: float) -> dict[str, Any]:
    """What becomes of `count` peers that send this and no more."""
    port, peers = int(address.rsplit(":", 1)[1]), []
    before = held(process)
    for _ in range(count):
        peer = socket.socket()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        peer.settimeout(5)
        peers.append(peer)
        try:
            peer.connect(("127.0.0.1", port))
            peer.sendall(sent)
        except OSError:
            continue
    found: dict[str, Any] = {"others": ordinary(address), "held": held(process) - before}
    deadline = time.monotonic() + patience_s
    while (left := held(process) - before) > 0 and time.monotonic() < deadline:
        time.sleep(0.5)
    found[f"held_after_{patience_s:g}_s"] = left
    for peer in peers:
        peer.close()
    time.sleep(0.5)
    return {**found, "others_afterwards": ordinary(address)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=1100)
    parser.add_argument("--patience", type=float, default=20, help="seconds")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        process, address = start(Path(name))
        try:
            report: dict[str, Any] = {"server_mb_at_start": resident_mb(process), "alone": ordinary(address)}
            for kind, sent in KINDS.items():
                report[kind] = crowd(process, address, sent, options.peers, options.patience)
                report[kind]["server_mb"] = resident_mb(process)
        finally:
            process.terminate()
            _, log = process.communicate(timeout=20)
    print(json.dumps({**report, "tracebacks": log.count("Traceback"), "load": os.getloadavg()}, indent=1))


if __name__ == "__main__":
    main()
