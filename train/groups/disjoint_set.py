"""Disjoint sets: what belongs together once links are known."""


class Forest:
    """Disjoint sets of 0…count−1, by their lowest member."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def root(self, item: int) -> int:
        """The lowest member of the item's set."""
        while self._parent[item] != item:
            self._parent[item] = item = self._parent[self._parent[item]]
        return item

    def join(self, first: int, second: int) -> None:
        """Make one set of two."""
        low, high = sorted((self.root(first), self.root(second)))
        self._parent[high] = low
