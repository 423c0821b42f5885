"""What a killed driver cannot do any more: end the last processes of the Ray that it started.

The kernel ends Ray's servers with their driver, and workers notice that within seconds. Ray's two agents first try for
a minute to tell the head, which is gone, what happened. A waiting shell ends them instead.
"""

from __future__ import annotations

import subprocess

import psutil

# A pipe to the driver comes to its end with the driver, however that ends. Process ids may have been used again since.
_SCRIPT = """
read -r line
sleep 2
for id in "$@"; do
    if grep -qs '^ray::' "/proc/$id/comm"; then kill -9 "$id"; fi
done
"""


class AgentGuard:
    """Waits beside the driver, and ends what is left of Ray's agents after it; on Linux."""

    def __init__(self) -> None:
        """Find the agents of the Ray that this process has just started, and begin to wait."""
        family = psutil.Process().children(recursive=True)
        agents = [str(process.pid) for process in family if _name_of(process).startswith(("ray::D", "ray::R"))]
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT, "oakum-guard", *agents],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def dismiss(self) -> None:
        """End the waiting: Ray was stopped in good order."""
        self._shell.kill()
        self._shell.communicate()


def _name_of(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.Error:
        return ""
