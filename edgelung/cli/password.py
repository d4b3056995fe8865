"""The password of a private key: from the environment or the terminal, never from an option.

The command line of a process can be read by every user of the machine.
"""

import os
import sys
from pathlib import Path

from edgelung.artifacts.keys import PASSWORD_ENVIRONMENT
from edgelung.core.errors import EdgelungError, visible


def read_password(path: Path, *, new: bool = False) -> str:
    """Return the password of the key in `path`; a `new` one is asked for twice.

    Raises:
        EdgelungError: if there is neither the variable nor a terminal, or the password is empty or
            was typed differently.
    """
    if (password := os.environ.get(PASSWORD_ENVIRONMENT)) is None:
        if not sys.stdin or not sys.stdin.isatty():
            raise EdgelungError(
                f"the key {path} needs a password, and there is no terminal to ask for it; set "
                f"{PASSWORD_ENVIRONMENT}"
            )
        import getpass

        password = getpass.getpass(f"Password of {visible(str(path))}: ")
        if new and password != getpass.getpass("The same again: "):
            raise EdgelungError("the two passwords differ; run the same command again")
    if not password:
        raise EdgelungError(f"the password of {path} is empty; expected one or more characters")
    return password
