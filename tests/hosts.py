"""Hosts on one machine, as Linux namespaces: each with a network, a process table, a name and a /tmp of its own.

They are on one switch, to which this machine is connected as well. All of it ends with the processes that hold the
namespaces, and these with the test, however that ends.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

NEEDED = ("ip", "nsenter", "setpriv", "unshare")
HOLD = """
ip link set lo up && mount -t tmpfs tmpfs /tmp && hostname "$1" && echo "$2" > /tmp/names &&
mount --bind /tmp/names /etc/hosts && echo ready && exec sleep infinity
"""


def _ip(*arguments: object) -> None:
    subprocess.run(["ip", *map(str, arguments)], check=True, capture_output=True, text=True)


class Host:
    """A machine of its own, in so far as namespaces go.

    Attributes:
        address: of the network, where all hosts are.
    """

    def __init__(self, name: str, address: str, names: str) -> None:
        self.name, self.address = name, address
        hold = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "--uts", "--pid", "--mount-proc"]
        hold += ["--kill-child", "sh", "-c", HOLD, "hold", name, names]
        self._holder = subprocess.Popen(hold, stdout=subprocess.PIPE, text=True)
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "ready\n":
            self.end()
            pytest.skip("namespaces are not allowed here")
        self.first = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text().split()[0]

    def command(self, *command: str) -> list[str]:
        """What runs a command there."""
        return ["nsenter", "--target", self.first, "--net", "--mount", "--uts", "--pid", "--", *command]

    def path(self, path: str) -> Path:
        """A file of the host, as it is seen from here."""
        return Path(f"/proc/{self.first}/root{path}")

    def end(self) -> None:
        """Pull the plug: all that runs there is killed."""
        self._holder.kill()
        self._holder.communicate()


class Network:
    """Hosts on a switch, which is a host that has nothing but a bridge.

    Attributes:
        address: of this machine.
    """

    def __init__(self, names: tuple[str, ...], stack: ExitStack) -> None:
        unique = uuid.uuid4().int
        subnet = f"10.{64 + unique % 64}.{unique // 64 % 256}"
        self.address = f"{subnet}.254"
        addresses = {name: f"{subnet}.{number}" for number, name in enumerate(names, 1)}
        table = "\n".join(f"{address} {name}" for name, address in {"localhost": "127.0.0.1", **addresses}.items())
        self._switch = Host("switch", "", table)
        stack.callback(self._switch.end)
        self._on_switch("link", "add", "bridge", "type", "bridge")
        self._on_switch("link", "set", "bridge", "up")
        here = f"sibcl{unique % 16**8:08x}"
        self._plug(here, None, self.address)
        self._hosts = {}
        for name, address in addresses.items():
            self._hosts[name] = host = Host(name, address, table)
            stack.callback(host.end)
            self._plug(name, host, address)
            subprocess.run(host.command("ip", "route", "add", "default", "via", self.address), check=True)

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    def _on_switch(self, *arguments: object) -> None:
        subprocess.run(self._switch.command("ip", *map(str, arguments)), check=True, capture_output=True)

    def _plug(self, port: str, host: Host | None, address: str) -> None:
        inside, name = (["netns", host.first], "eth0") if host else ([], port)
        peer = ["peer", "name", port, "netns", self._switch.first]
        _ip("link", "add", "name", name, *inside, "type", "veth", *peer)
        self._on_switch("link", "set", "dev", port, "master", "bridge", "up")
        for arguments in (("address", "add", f"{address}/24", "dev", name), ("link", "set", "dev", name, "up")):
            subprocess.run(host.command("ip", *arguments) if host else ["ip", *arguments], check=True)

    def cut(self, name: str) -> None:
        """Take a host off the network; nothing on it is told."""
        self._on_switch("link", "set", "dev", name, "down")

    def mend(self, name: str) -> None:
        """Undo `cut`."""
        self._on_switch("link", "set", "dev", name, "up")


@contextmanager
def network(*names: str) -> Iterator[Network]:
    """Hosts of these names; skips where they cannot be made."""
    if os.getuid() != 0:
        pytest.skip("hosts in namespaces are for root")
    if missing := [program for program in NEEDED if not shutil.which(program)]:
        pytest.skip(f"needs {', '.join(missing)}: apt-get install iproute2 util-linux")
    with ExitStack() as stack:
        yield Network(names, stack)
