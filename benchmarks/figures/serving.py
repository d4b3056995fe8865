"""The tables of the service under load, and of a cluster."""

from figures.table import Table, result

FILE, SCALE = "serve.json", "scale.json"


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


def scale() -> Table:
    """One process and a Ray cluster on one machine, and what the model says of many."""
    content = result(SCALE)
    rows = [
        [
            way["name"],
            f"{way['wall']['start']:.1f} s",
            f"{1000 * way['wall']['per_tile']:.2f} ms",
            f"{1000 * way['cpu']['per_tile']:.2f} ms",
        ]
        for way in content["ways"]
    ]
    model = content["model"]
    note = (
        f"One process that keeps a run can feed {model['machines_that_the_one_process_can_feed']} "
        f"machines of {model['cores_per_machine']} cores like these (a model, {model['formula']})."
    )
    header = ["way", "start", "a tile", "CPU of the process that keeps the run, a tile"]
    return Table(header, rows, {SCALE: content}, note)


TABLES = {"serve": serve, "scale": scale}
