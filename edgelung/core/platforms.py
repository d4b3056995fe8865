"""Which operating systems the command line runs on: Linux, in WSL2 too."""

NAMES = {"win32": "Windows", "cygwin": "Windows (Cygwin)", "darwin": "macOS"}


def refusal(platform: str) -> str:
    """Why the command line does not run on a platform (`sys.platform`), in one line; '' if it does.

    It was never tested elsewhere, and what keeps other users away from cache and outputs needs
    Linux.
    """
    if platform == "linux":
        return ""
    if platform in ("win32", "cygwin"):
        remedy = "Install WSL2 (`wsl --install`), then install and run edgelung in it"
    else:
        remedy = "Run it on Linux, or in a Linux container"
    found = NAMES.get(platform, platform)
    return f"edgelung: found {found}; expected Linux, or Windows through WSL2. {remedy}"
