"""The identity of a run, which several test modules share."""

from edgelung.core.precision import Precision
from edgelung.engines.names import EngineName
from edgelung.inference.identity import RunIdentity

IDENTITY = RunIdentity(
    edgelung="0.2.0",
    packages={"numpy": "2"},
    bundle="b",
    engine=EngineName.OPENVINO,
    precision=Precision.INT8,
    floating_point="fp32",
    batch_size=2,
    verify=False,
    verify_every=1,
    min_confidence=None,
    prebuilt=None,
    inputs=["x"],
    listing=None,
    subset=None,
)
