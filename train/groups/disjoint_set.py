"""Disjoint sets (union-find)."""


class DisjointSet:
    """Disjoint sets of the integers 0 … count − 1, each represented by its lowest member."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def find(self, item: int) -> int:
        """The lowest member of the item's set."""
        while self._parent[item] != item:
            self._parent[item] = item = self._parent[self._parent[item]]
        return item

    def union(self, first: int, second: int) -> None:
        """Merge the sets of two items."""
        low, high = sorted((self.find(first), self.find(second)))
        self._parent[high] = low
