"""Gives each process of a run a network namespace of its own, as if on a host of its own; needs root and Linux."""

import os
import subprocess
from types import TracebackType

BRIDGE, NETWORK = "basisnetbr", "10.91.77"
COORDINATOR = f"{NETWORK}.1"  # address of process 0


class Namespaces:
    """Namespaces that a bridge joins; process i has the address NETWORK.(i + 1). Use as a context manager.

    Args:
      count: number of processes.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def __enter__(self) -> "Namespaces":
        if os.geteuid():
            raise PermissionError("only root can make network namespaces; run this as root.")
        self._remove()
        _ip(f"link add {BRIDGE} type bridge", f"link set {BRIDGE} up")
        for number in range(self.count):
            space = f"basisnet{number}"
            _ip(
                f"netns add {space}",
                f"link add {space} type veth peer name eth0 netns {space}",
                f"link set {space} master {BRIDGE} up",
                f"-n {space} address add {NETWORK}.{number + 1}/24 dev eth0",
                f"-n {space} link set eth0 up",
                f"-n {space} link set lo up",
            )
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._remove()

    def cut(self, number: int) -> None:
        """Takes a process off the bridge: what it and the others send each other is lost, without an error."""
        _ip(f"link set basisnet{number} nomaster")

    def mend(self, number: int) -> None:
        """Puts a process on the bridge again."""
        _ip(f"link set basisnet{number} master {BRIDGE}")

    def enter(self) -> str:
        """Returns what bash puts before a command to run it in the namespace of process $number.

        The host's name in there is its address, which is what Gloo looks for.
        """
        hostname = f"hostname {NETWORK}.$((number + 1))"
        return (
            f'nsenter --net="/run/netns/basisnet$number" unshare --uts bash -c "{hostname}; "\'exec "$@"\' with_address'
        )

    def _remove(self) -> None:
        names = [f"netns delete basisnet{number}" for number in range(self.count)]
        for words in (*names, f"link delete {BRIDGE}"):
            subprocess.run(["ip", *words.split()], stderr=subprocess.DEVNULL, check=False)


def _ip(*commands: str) -> None:
    for words in commands:
        subprocess.run(["ip", *words.split()], check=True)
