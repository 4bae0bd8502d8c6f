"""Private names of httpx that have no public counterpart.

The only module of the command line that uses such names, each with the reason.
`tests/condastore/test_cli_private.py` fails when a release changes one of them, and says
what to do.
"""

from __future__ import annotations

import sys
from typing import Any, cast


def skip_command_line_of_httpx() -> None:
    """Make `import httpx` do without its own command line, which it handles as not installed.

    That imports click, rich and pygments where they are installed, and doubles the time.
    """
    sys.modules.setdefault("httpx._main", cast("Any", None))
