"""A hook for fault tests: kill this process at a named point.

Nothing sets `OAKUM_FAULT` outside tests. `OAKUM_FAULT=store.after_payload` dies at the first visit of that point,
`OAKUM_FAULT=store.after_payload:3` at the third. The count still to go is kept in the variable itself, so child
processes go on from it.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "OAKUM_FAULT"


def fault_point(name: str) -> None:
    """Kill this process with SIGKILL when `OAKUM_FAULT` asks for it at the point `name`; otherwise return.

    Raises:
        ValueError: the variable names this point with a count that is not a whole number.
    """
    wanted = os.environ.get(VARIABLE)
    if not wanted:
        return
    point, _, count = wanted.partition(":")
    if point != name:
        return
    remaining = int(count or "1")
    if remaining > 1:
        os.environ[VARIABLE] = f"{point}:{remaining - 1}"
        return
    os.kill(os.getpid(), signal.SIGKILL)
