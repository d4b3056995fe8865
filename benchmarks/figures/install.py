"""Table of the offline installation."""

from figures.table import Table, result


def wheelhouse() -> Table:
    """What the wheelhouse weighs, and the CPU time until the starter has predicted."""
    content = result("wheelhouse.json")
    rows = [
        [
            f"Python {row['python']}",
            f"{row['install_cpu_seconds']:.0f} s",
            f"{row['installed_bytes'] / 1e6:,.0f} MB",
            f"{row['first_infer_cpu_seconds']:.1f} s for {row['rows_ok']} tiles",
        ]
        for row in content["installs"]
    ]
    folder = content["wheelhouse"]
    name, size = max(folder["largest"].items(), key=lambda item: int(item[1]))
    parts = {"edgelung": folder["ours"], "pycuda": folder["built_here"]}
    sizes = [
        f"{title} {max(sizes.values()) / 1e6:.1f} MB" for title, sizes in parts.items() if sizes
    ]
    sizes.append(f"{name.partition('-')[0]} {size / 1e6:.0f} MB for each Python")
    total = f"{folder['wheels']} wheels, {folder['bytes'] / 1e6:,.0f} MB"
    note = f"The folder for both Pythons: {total} ({', '.join(sizes)})."
    header = ["", "installation, CPU time", "installed", "first `infer`, CPU time"]
    return Table(header, rows, {"wheelhouse.json": content}, note)


TABLES = {"wheelhouse": wheelhouse}
