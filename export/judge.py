"""Every variant against full precision: the gate decides on validation, the test set reports."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgelung.artifacts.results import Limits
from edgelung.core.system import available_cores
from edgelung.core.terminal import progress
from edgelung.core.typed_json import plain
from edgelung.engines.openvino import OpenVinoEngine
from edgelung.evaluation.gate import LIMITS, gate
from edgelung.evaluation.intervals import intervals
from edgelung.evaluation.metrics import agreement, evaluate
from edgelung.export.calibrate import HALF_LIMIT
from edgelung.export.graph import FP8, build_graph, linear_names, quantized_products
from edgelung.export.predict import Probabilities, predict, predict_in, speeds
from edgelung.export.quantize import Plan
from edgelung.export.sensitivity import TILES, runs, sensitivity
from edgelung.export.student import Student
from edgelung.export.tiles import TileSet
from edgelung.tiles.reader import ReaderSpec

Say = Callable[[str], None]
SPEED_TILES = 32


@dataclass
class Judge:
    """Writes variants into `folder` and says what they are worth.

    `probabilities`: of each variant on the gate and test tiles, for the report.
    """

    folder: Path
    student: Student
    temperature: float
    spec: ReaderSpec
    gate_tiles: TileSet
    test: TileSet
    limits: Limits = LIMITS
    say: Say = lambda text: None
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    probabilities: dict[str, dict[str, Probabilities]] = field(default_factory=dict)

    def full_precision(self) -> None:
        """The reference of all the others."""
        graph = build_graph(self.student, temperature=self.temperature)
        found = self._write("fp32", graph)
        metrics = plain(evaluate(found, self.gate_tiles.labels))
        verdict = {"verdict": "reference", "reasons": [], **metrics}
        self._enter("fp32", found, verdict, base="fp32")

    def half_precision(self, peak: float) -> None:
        """Typed FP16; `peak`: the largest activation that full precision met."""
        found = self._write(
            "fp16", build_graph(self.student, temperature=self.temperature, half=True)
        )
        verdict = self.judge(found)
        check_half_range(verdict, peak)
        self._enter("fp16", found, verdict, base="fp16")

    def int8(
        self, plan: Plan, calibration: TileSet, refine: Callable[[Plan], Plan] | None = None
    ) -> dict[str, Any]:
        """INT8 on an FP32 base, and the same with an FP16 base; returns the sensitivity ranking.

        Where the gate does not let INT8 through, `refine` may train it; if that is not enough, the
        most sensitive parts of what was not trained go back to floating point, as few as it takes,
        in both variants.
        """
        ranking = self._sensitivity(plan, calibration)
        found = self._write("int8", plan.graph(self.temperature))
        verdict = self._judge_int8(found)
        given_back: list[str] = []
        if verdict["verdict"] != "pass" and not self._could_pass():
            if refine:
                self.say("not trained: on so few gate tiles nothing could pass")
        elif verdict["verdict"] != "pass":
            looks = 1
            if refine:
                self.say(f"int8 gate: {verdict['verdict']}; training it")
                trained, looks = refine(plan), 2
                attempt = self._write("int8", trained.graph(self.temperature))
                judged = self._judge_int8(attempt, looks)
                self.say(f"int8 after training: {judged['verdict']}")
                if judged["verdict"] == "pass":
                    plan, found, verdict = trained, attempt, judged
            if verdict["verdict"] != "pass":
                mended = self._give_back(plan, calibration, ranking, looks)
                if mended:
                    given_back, found, verdict = mended
                else:  # as it was judged first
                    onnx.save(plan.graph(self.temperature), self.folder / "model.int8.onnx")
        about: dict[str, Any] = {"calibration": dict(plan.about)}
        self._enter("int8", found, verdict, base="fp32", given_back=given_back, **about)
        back = [name for name in given_back if name in linear_names(plan.student)]
        if verdict["verdict"] != "pass":
            self.say("INT8 did not pass; what did is offered in its place")
        found = self._write("int8-fp16", plan.graph(self.temperature, True, frozenset(back)))
        verdict = self.judge(found, verdict["looks"])
        check_half_range(verdict, plan.peak)
        self._enter("int8-fp16", found, verdict, base="fp16", given_back=back, **about)
        return ranking

    def fp8(self, plan: Plan) -> None:
        """FP8 (E4M3) on an FP16 base, for GPUs that have it (SM 89 and later)."""
        found = self._write("fp8", plan.graph(self.temperature, half=True, eight_bit=FP8))
        verdict = self.judge(found)
        check_half_range(verdict, plan.peak)
        about: dict[str, Any] = {"given_back": [], "calibration": dict(plan.about)}
        self._enter("fp8", found, verdict, base="fp16", **about)

    def judge(self, found: Probabilities, looks: int = 1) -> dict[str, Any]:
        """The gate's verdict on probabilities of the gate tiles (N, classes)."""
        reference = self.probabilities["fp32"]["gate"]
        return self._gate(found, reference, self.gate_tiles, looks)

    def _gate(
        self, found: Probabilities, reference: Probabilities, tiles: TileSet, looks: int = 1
    ) -> dict[str, Any]:
        groups = [tile.group for tile in tiles.tiles]
        names = self.student.classes
        result = gate(
            found, reference, tiles.labels, groups, limits=self.limits, looks=looks, classes=names
        )
        return {"looks": looks, **plain(result)}

    def _judge_int8(self, found: Probabilities, looks: int = 1) -> dict[str, Any]:
        """The verdict on model.int8.onnx in ONNX Runtime, which gave `found`, and in OpenVINO."""
        verdict = self.judge(found, looks)
        if verdict["verdict"] == "pass":
            self._judge_in_openvino(found, verdict)
        return verdict

    def _judge_in_openvino(self, found: Probabilities, verdict: dict[str, Any]) -> None:
        """Judge INT8 as OpenVINO computes it too, which runs it where there is no GPU.

        With BF16 beside INT8 where this CPU has that, else or if that does not pass in FP32: what
        is entered as passed is what `infer` may run. What passes in neither does not pass.
        """
        verdict["openvino"] = None
        for bf16 in (True, False):
            try:
                graph = self.folder / "model.int8.onnx"
                engine = OpenVinoEngine(graph, available_cores(), latency=True, bf16=bf16)
            except Exception:  # not installed, or it does not take the graph: nor will `infer`
                return
            there = predict_in(engine, self.gate_tiles, self.spec, "int8, gate, openvino")
            judged, same = self.judge(there, verdict["looks"]), agreement(there, found)
            verdict["openvino"] = {
                "verdict": judged["verdict"],
                "floating_point": engine.float_type,
                "same_label_as_onnxruntime": same.agreement,
                "largest_probability_difference": same.max_probability_difference,
            }
            if judged["verdict"] == "pass":
                return
            if engine.float_type == "fp32":
                break
        verdict["verdict"] = judged["verdict"]
        verdict["reasons"] += [f"in OpenVINO: {reason}" for reason in judged["reasons"]]

    def _could_pass(self) -> bool:
        """Whether the gate tiles are enough for full precision itself to pass."""
        return bool(self.judge(self.probabilities["fp32"]["gate"])["verdict"] == "pass")

    def _give_back(
        self, plan: Plan, calibration: TileSet, ranking: dict[str, Any], looks: int
    ) -> tuple[list[str], Probabilities, dict[str, Any]] | None:
        """The fewest parts, most sensitive first, without which INT8 passes; None if it takes more
        than half of them.

        How many is estimated on the calibration tiles, so that the gate's tiles are looked at a
        few times only; every look is counted, and costs confidence.
        """
        order = [part["name"] for part in ranking["linears"]]
        most = len(order) // 2
        reference = predict(
            build_graph(self.student, temperature=self.temperature), calibration, self.spec, "fp32"
        )

        def promising(count: int) -> bool:
            graph = plan.graph(self.temperature, given_back=frozenset(order[:count]))
            found = predict(graph, calibration, self.spec, f"without {count}")
            checks = self._gate(found, reference, calibration).get("checks", {})
            return bool(checks) and all(c["loss"] <= c["limit"] for c in checks.values())

        count = max(1, _fewest(promising, most))
        while True:
            looks += 1
            back = order[:count]
            graph = plan.graph(self.temperature, given_back=frozenset(back))
            found = self._write("int8", graph)
            verdict = self._judge_int8(found, looks)
            self.say(f"int8 without {count} of {len(order)} parts: {verdict['verdict']}")
            if verdict["verdict"] == "pass":
                return back, found, verdict
            if count == most:
                return None
            count = min(2 * count, most)

    def _sensitivity(self, plan: Plan, calibration: TileSet) -> dict[str, Any]:
        few = calibration.every(TILES)
        tiles = np.concatenate(list(few.batches(self.spec, available_cores())))
        with progress("sensitivity", runs(plan)) as advance:
            return sensitivity(plan, tiles, available_cores(), advance)

    def _write(self, name: str, graph: onnx.ModelProto) -> Probabilities:
        """Save a variant; its probabilities of the gate tiles."""
        path = self.folder / f"model.{name}.onnx"
        onnx.save(graph, path)
        return predict(path, self.gate_tiles, self.spec, f"{name}, gate")

    def _enter(
        self,
        name: str,
        found: Probabilities,
        verdict: dict[str, Any],
        base: str,
        **about: Any,
    ) -> None:
        path = self.folder / f"model.{name}.onnx"
        few = self.gate_tiles.every(SPEED_TILES)
        bf16 = (verdict.get("openvino") or {}).get("floating_point") == "bf16"
        entry = {
            "file": path.name,
            "bytes": path.stat().st_size,
            "base": base,
            "meant_for": "GPU" if base == "fp16" else "CPU",
            "quantized_linears": quantized_products(onnx.load(path)),
            "judged_by": "onnxruntime CPU",
            "tiles_per_second": speeds(path, next(few.batches(self.spec, available_cores())), bf16),
            "gate": verdict,
            **about,
        }
        self.variants[name] = entry
        self.probabilities[name] = {"gate": found}
        if name != "fp32":
            self.say(f"{name} gate: {verdict['verdict']} {'; '.join(verdict['reasons'])}".rstrip())
        if len(self.test) == 0:
            return
        on_test = predict(path, self.test, self.spec, f"{name}, test")
        if np.isfinite(on_test).all():
            self.probabilities[name]["test"] = on_test
            entry["test"] = self._report(on_test)

    def _report(self, found: Probabilities) -> dict[str, Any]:
        truth, groups = self.test.labels, [tile.group for tile in self.test.tiles]
        reference = self.probabilities["fp32"]["test"]
        return {
            **plain(evaluate(found, truth)),
            "intervals": plain(
                intervals(found.argmax(axis=1), truth, groups, len(self.student.classes))
            ),
            "agreement_with_fp32": float((found.argmax(1) == reference.argmax(1)).mean()),
        }


def check_half_range(verdict: dict[str, Any], peak: float) -> None:
    """Fail a variant on an FP16 base where an activation nears FP16's largest value.

    CPU runtimes compute FP16 graphs in FP32, so the gate's probabilities show rounding but cannot
    show an overflow; the largest activation that full precision met on the tiles can.
    """
    verdict["largest_activation"] = peak
    if peak > HALF_LIMIT:
        verdict["verdict"] = "fail"
        verdict["reasons"].append(f"an activation of {peak:.0f} is too near FP16's limit of 65504")


def _fewest(holds: Callable[[int], bool], most: int) -> int:
    """The least count in 0…most for which `holds` is true, by doubling and halving; `most` if
    none is, taking it that more never harm."""
    if holds(0):
        return 0
    low, high = 0, 1
    while high < most and not holds(high):
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
