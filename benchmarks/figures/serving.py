"""The table of the service under load."""

from figures.table import Table, result

FILE = "serve.json"


def serve() -> Table:
    """The service and one as people write it, by the number of clients."""
    content = result(FILE)
    rows = [
        [
            f"**{name}**" if name == "edgelung serve" else name,
            str(load["clients"]),
            f"{load['requests_per_second']:.0f}",
            f"{load['p50_ms']:.0f} ms",
            f"{load['p99_ms']:.0f} ms",
        ]
        for name, loads in content["loads"].items()
        for load in loads
    ]
    folder = content["folder_run_tiles_per_second"]
    half, one = content["half_load"], content["one_client_p50_ms"]
    note = (
        f"Beside it, the folder run on the same images: {min(folder):.0f} to {max(folder):.0f} "
        f"tiles/s. At half load ({half['requests_per_second']:.0f} tiles/s, {half['clients']} "
        f"clients that pause), 99 % of the answers take at most {half['p99_ms']:.0f} ms, which is "
        f"{half['p99_ms'] / one:.1f} times the median of a single client."
    )
    header = ["service", "clients", "tiles/s", "median", "99 % of the answers within"]
    return Table(header, rows, {FILE: content}, note)


TABLES = {"serve": serve}
