"""A second host: a network namespace with a link of its own to this one."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, timeout=30)


def why_not() -> str:
    """Why namespaces cannot be made here; empty where they can."""
    if shutil.which("ip") is None:
        return "there is no `ip` command to make network namespaces with"
    probe = f"octavo-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, timeout=30)
    if made.returncode != 0:
        return f"network namespaces are not allowed here: {made.stderr.strip()}"
    link = f"oct{os.getpid()}"
    veth = subprocess.run(["ip", "link", "add", link, "type", "veth", "peer", "name", f"{link}p"], capture_output=True, text=True)
    if veth.returncode == 0:
        run("ip", "link", "del", link)
    run("ip", "netns", "del", probe)
    return "" if veth.returncode == 0 else f"veth pairs are not allowed here: {veth.stderr.strip()}"


@dataclass
class OtherHost:
    """Host 1, and its link.

    Attributes:
        here, there: the addresses of the two ends.
    """

    name: str
    link: str
    here: str
    there: str
    folder: Path

    def cut(self) -> None:
        """Nothing passes the link any more, and neither end is told."""
        run("ip", "link", "set", self.link, "down")

    def mend(self) -> None:
        run("ip", "link", "set", self.link, "up")

    @contextlib.contextmanager
    def running(self, *command: str) -> Iterator[subprocess.Popen[bytes]]:
        """A process over there; its output is in ``log``."""
        with (self.folder / "host-1.log").open("ab") as out:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.name, *command], stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)
            process.terminate()
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def serving(self, *flags: str) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
        """Octavo over there."""
        return self.running(sys.executable, "-m", "octavo.entrypoints.api_server", *flags)

    def log(self) -> str:
        return (self.folder / "host-1.log").read_text(errors="replace")


@contextlib.contextmanager
def other_host(folder: Path) -> Iterator[OtherHost]:
    """Make it; it is gone at the end."""
    tag = f"{random.Random(os.urandom(8)).randrange(2**24):06x}"
    name, link = f"octavo-{tag}", f"oct{tag}"
    net = f"10.{random.randrange(64, 250)}.{random.randrange(250)}"
    host = OtherHost(name, link, f"{net}.1", f"{net}.2", folder)
    run("ip", "netns", "add", name)
    try:
        run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "address", "add", f"{host.here}/24", "dev", link)
        run("ip", "link", "set", link, "up")
        for words in (("address", "add", f"{host.there}/24", "dev", "eth0"), ("link", "set", "eth0", "up"), ("link", "set", "lo", "up")):
            run("ip", "-n", name, *words)
        yield host
    finally:
        run("ip", "netns", "del", name)
        subprocess.run(["ip", "link", "del", link], capture_output=True, timeout=30)
