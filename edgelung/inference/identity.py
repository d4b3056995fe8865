"""What a run is: everything its rows depend on. A stopped run resumes only as the same run."""

from msgspec import Struct, field

from edgelung.core import typed_json
from edgelung.core.errors import EdgelungError
from edgelung.core.precision import Precision
from edgelung.core.typed_json import Json
from edgelung.engines.names import EngineName


class Identity(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a run is, as it stands in its journal. A subclass has the fields."""

    def to_json(self) -> dict[str, Json]:
        """The identity as plain values, keyed as in the journal."""
        content: dict[str, Json] = typed_json.plain(self)
        return content

    def difference(self, before: dict[str, Json]) -> str:
        """The first difference, such as '--tile-um was 112 and is 100 now'; '' if there is none.

        `before` is not typed: an older edgelung may have written other keys.
        """
        now = self.to_json()
        for key in before | now:
            if now.get(key) != before.get(key):
                return f"{key} was {before.get(key)} and is {now.get(key)} now"
        return ""

    def check_same(self, before: dict[str, Json]) -> None:
        """Raise EdgelungError that names the first difference to the journal's identity."""
        if difference := self.difference(before):
            raise EdgelungError(
                f"cannot resume: {difference}, so the rows would not be of one run; repeat the "
                "first command, or --restart to begin anew"
            )


class RunIdentity(Identity, frozen=True, kw_only=True, omit_defaults=True):
    """The identity of a run over files; also in the options of its summary.

    Attributes:
        packages: versions of what decodes, resizes and computes.
        bundle: SHA-256 of bundle.json.
        floating_point: what the engine computes floating point in.
        inputs: the folders, absolute.
        listing: the list of files: its SHA-256, or where it came from; None without a list.
        watch, strict_size, follow_links, keep_unknown: True if asked for, else None.
        shard: 'K/N' if only a part of the files is predicted.
    """

    edgelung: str
    packages: dict[str, str]
    bundle: str
    engine: EngineName = field(name="--engine")
    precision: Precision = field(name="--precision")
    floating_point: str = field(name="floating point")
    batch_size: int = field(name="--batch-size")
    verify: bool = field(name="--verify")
    verify_every: int = field(name="--verify-every")
    min_confidence: float | None = field(name="--min-confidence")
    prebuilt: str | None = field(name="--prebuilt")
    inputs: list[str]
    listing: str | None = field(name="--files")
    subset: str | None = field(name="--subset")
    watch: bool | None = field(name="--watch", default=None)
    strict_size: bool | None = field(name="--strict-size", default=None)
    follow_links: bool | None = field(name="--follow-links", default=None)
    keep_unknown: bool | None = field(name="--unknown keep", default=None)
    coverage: float | None = field(name="--coverage", default=None)
    shard: str | None = field(name="--shard", default=None)
