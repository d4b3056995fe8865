"""Tables of accuracy: the starter, splits, what each part of training brings."""

from figures.table import NONE, Table, difference, interval, percent, points, result, tested


def overview() -> Table:
    """README: what the shipped starter has, and what it is compared with."""
    names = ("starter.json", "random-split.json", "distillation.json", "folds-quick.json")
    starter, random_split, distillation, folds = map(result, names)
    metrics, int8 = starter["metrics"], starter["variants"]["int8"]
    worst = int8["gate"]["checks"]["disagreement"]
    test = metrics["student"]["test"]
    where = f"{test['tiles']:,} test tiles of {test['groups']} unseen groups"
    folder = result("folder.json")["sets"]["768"]
    rates = folder["tiles_per_second"]
    rows = [
        [f"starter, FP32; {where}", *tested(test), names[0]],
        ["starter, INT8 in ONNX Runtime; same tiles", *tested(int8["test"]), names[0]],
        ["its CNN teacher; same tiles", *tested(metrics["teacher"]["test"]), names[0]],
        [
            "student without a teacher; same tiles",
            *tested(distillation["metrics"]["student"]["test"]),
            names[2],
        ],
        [
            "same recipe, **random** split: test tiles have copies in training",
            *tested(random_split["metrics"]["student"]["test"]),
            names[1],
        ],
        [
            f"recipe `quick`; five folds, {folds['data']['groups']} groups",
            *tested(folds["metrics"]["student"]["test"]),
            names[3],
        ],
        [
            f"labels that INT8 changes, {int8['gate']['tiles']:,} gate tiles",
            percent(worst["loss"], 2),
            f"worst case {percent(worst['high'], 2)} (90 %)",
            names[0],
        ],
        [
            f"folder run, {folder['files']:,} files of 768 px, 2 CPU cores",
            f"{rates['f edgelung early exit']:.0f} tiles/s",
            f"{folder['ways']['f edgelung early exit']['times_a']:.1f} × timm",
            "folder.json",
        ],
    ]
    rows = [[*row[:3], f"[{row[3]}]({row[3]})"] for row in rows]
    header = ["what", "balanced accuracy, or as said", "95 % interval", "file"]
    return Table(header, rows, {})


def starter() -> Table:
    """The shipped starter, model by model."""
    content = result("starter.json")
    metrics, openvino = content["metrics"], content["infer_openvino_on_test"]
    models = [
        ("teacher tf_efficientnet_lite2", metrics["teacher"], NONE),
        ("student FP32", metrics["student"], NONE),
    ]
    rows = [
        [
            name,
            percent(model["val"]["balanced_accuracy"]),
            *tested(model["test"]),
            percent(model["test"]["accuracy"]),
            agreement,
        ]
        for name, model, agreement in models
    ]
    for name, text in (("int8", "student INT8"), ("int8-early-exit", "INT8 with an early exit")):
        test, infer = content["variants"][name]["test"], openvino[name]
        rows += [
            [
                f"{text}, ONNX Runtime",
                NONE,
                *tested(test),
                percent(test["accuracy"]),
                percent(test["agreement_with_fp32"], 2),
            ],
            [
                f"{text}, OpenVINO",
                NONE,
                percent(infer["labelled"]["balanced_accuracy"]),
                NONE,
                percent(infer["labelled"]["accuracy"]),
                percent(infer["verify"]["agreement"], 2),
            ],
        ]
    header = ["model", "validation, balanced", "test, balanced", "95 % interval", "test, accuracy"]
    return Table([*header, "same label as FP32"], rows, {"starter.json": content})


def starter_classes() -> Table:
    """Recall and errors of the starter by class."""
    content = result("starter.json")
    classes = content["metrics"]["classes"]
    test = content["metrics"]["student"]["test"]
    rows = [
        [name, percent(recall), percent(precision), *map(str, confusion)]
        for name, recall, precision, confusion in zip(
            classes, test["recall"], test["precision"], test["confusion"], strict=True
        )
    ]
    header = ["true class", "recall", "precision", *(f"predicted {name}" for name in classes)]
    return Table(header, rows, {"starter.json": content})


def starter_gate() -> Table:
    """What the gate found of the starter's INT8."""
    content = result("starter.json")
    gate = content["variants"]["int8"]["gate"]
    rows = [
        [name, *(percent(check[key], 2) for key in ("loss", "low", "high", "limit"))]
        for name, check in gate["checks"].items()
    ]
    header = ["loss", "measured", "best case", "worst case", "limit"]
    return Table(header, rows, {"starter.json": content})


def splits() -> Table:
    """The same recipe by groups and at random."""
    groups, mixed = result("starter.json"), result("random-split.json")
    rows = [
        [name, role, *tested(content["metrics"][role]["test"])]
        for name, content in (("by group", groups), ("at random", mixed))
        for role in ("teacher", "student")
    ]
    sources = {"starter.json": groups, "random-split.json": mixed}
    return Table(["split", "model", "test, balanced", "95 % interval"], rows, sources)


def comparisons() -> Table:
    """Paired differences to the starter's student on the same test tiles."""
    names = ("starter.json", "distillation.json", "training-nvidia-h200.json")
    starter, alone, h200 = map(result, names)
    seed, card = starter["second_seed"], h200["recipe starter from the labels alone"]
    rows = [
        [
            "labels alone, on a CPU",
            *tested(alone["metrics"]["student"]["test"]),
            points(alone["difference"]),
            interval(alone["difference_interval"], points),
        ],
        [
            "labels alone, on an H200",
            percent(card["balanced_accuracy"]),
            interval(card["interval"]),
            points(card["minus_the_starter"]),
            interval(card["minus_the_starter_interval"], points),
        ],
        [
            f"another seed of the student (commit {seed['commit']})",
            percent(seed["balanced_accuracy"]),
            interval(seed["interval"]),
            points(seed["minus_seed_0"]),
            interval(seed["minus_seed_0_interval"], points),
        ],
    ]
    header = ["student", "test, balanced", "95 % interval", "minus the starter, points", "95 %"]
    return Table(header, rows, dict(zip(names, (starter, alone, h200), strict=True)))


def outside() -> Table:
    """Confidence on tissue that the starter does not know."""
    content = result("starter.json")
    found = content["outside"]
    tests = content["metrics"]["student"]["test"]["tiles"]
    rows = [
        [
            f"lung test tiles (n = {tests:,})",
            f"{found['median_confidence_on_test']:.3f}",
            percent(found["share_above_0.9_on_test"]),
        ],
        [
            f"colon tiles (n = {found['tiles']})",
            f"{found['median_confidence']:.3f}",
            percent(found["share_above_0.9"]),
        ],
    ]
    header = ["tiles", "median confidence", "confidence above 0.9"]
    return Table(header, rows, {"starter.json": content})


def quick() -> Table:
    """Recipe quick on real tiles, from training to inference."""
    content = result("real-tiles-cpu.json")
    teacher = content["teacher"]["test"]["balanced_accuracy"]
    rows = [["teacher tf_efficientnet_lite0", NONE, percent(teacher), NONE, NONE, NONE]]
    for row in content["test"]:
        verdict = content["gate"][row["precision"]]["verdict"]
        size = content["bytes"][row["precision"]] / 1e6
        rows.append(
            [
                f"student {row['precision'].upper()}",
                row["engine"],
                percent(row["balanced_accuracy"], 2),
                percent(row["agreement_with_onnxruntime_fp32"], 2),
                f"{verdict}, {size:.1f} MB",
                f"{row['tiles_per_second']:.0f}",
            ]
        )
    header = ["model", "engine", "test, balanced", "same label as FP32", "gate, file", "tiles/s"]
    return Table(header, rows, {"real-tiles-cpu.json": content})


def ablation() -> Table:
    """What each part of recipe quick brings in four epochs."""
    content = result("ablation.json")
    rows = []
    for name, variant in content["variants"].items():
        seeds = list(variant["seeds"].values())
        rows.append(
            [
                name,
                ", ".join(percent(seed["val"]) for seed in seeds),
                "; ".join(difference(seed) for seed in seeds if "difference" in seed) or NONE,
                ", ".join(percent(seed["test"]) for seed in seeds),
            ]
        )
    header = ["student, four epochs", "validation, seeds 0 and 1", "minus the first, points (95 %)"]
    return Table([*header, "test"], rows, {"ablation.json": content})


def earlier_starter() -> Table:
    """The shipped starter and the one before, on groups that neither saw in training."""
    content = result("starter.json")
    rows = [
        [
            f"{name}: {found['tiles']:,} in {found['groups']} groups",
            percent(found["earlier"]),
            percent(found["present"]),
            interval(found["difference_interval"], points),
        ]
        for name, found in content["against_the_earlier_starter"].items()
        if isinstance(found, dict)
    ]
    header = ["tiles of groups that neither saw", "earlier starter", "present starter"]
    return Table([*header, "95 % of the difference, points"], rows, {"starter.json": content})


def colours() -> Table:
    """Two students on tiles in other colours."""
    content = result("ablation.json")
    rows = []
    for name, variant in content["colours"].items():
        found = variant["seeds"]["0"]
        keys = ("val", "val_other_colours", "test", "test_other_colours")
        rows.append([name, *(percent(found[key]) for key in keys)])
        machine = found["machine"]  # not the machine of the other variants
    header = ["student, four epochs", "validation", "in other colours", "test", "in other colours"]
    return Table(header, rows, {"ablation.json": {"machine": machine}})


def set_differences() -> Table:
    """How often the intervals of two simulated sets do not overlap."""
    content = result("set-differences.json")
    few, many = content["hard_groups_if_different"]
    rows = [
        [
            str(row["groups"]),
            f"{percent(min(chance), 0)} to {percent(max(chance), 0)}",
            percent(row["different"], 0),
        ]
        for row in content["rows"]
        for chance in [row["by_chance"].values()]
    ]
    header = ["groups per class", "sets of one kind", "sets of different kinds"]
    hard = [float(share) for share in content["rows"][0]["by_chance"]]
    note = (
        f"Simulated pairs of sets whose intervals do not overlap ({content['pairs']} pairs a "
        f"figure). Sets of one kind have {percent(min(hard), 0)} to {percent(max(hard), 0)} of "
        f"hard groups, those of different kinds {percent(few, 0)} and {percent(many, 0)}:"
    )
    return Table(header, rows, {"set-differences.json": content}, note)


def hash_groups() -> Table:
    """What splits by several kinds of groups leave in training of the tissue that they test."""
    content = result("hash-groups.json")
    kind = content["hash"]
    names = {
        "hash": f"average hash, at most {kind['distance']} bits differ",
        "tile by tile": "none: tile by tile",
        "published": "published groups (LC25000-clean)",
        "edgelung": "edgelung's groups",
    }
    rows = []
    for name, text in names.items():
        sizes = content["groups"].get(name)
        shares = content["splits"][name]["edgelung"], content["splits"][name]["published"]
        rows.append(
            [
                text,
                f"{sizes['groups']:,}" if sizes else NONE,
                *(percent(share["mean"]) for share in shares),
            ]
        )
    header = ["groups that the split keeps whole", "groups", "by edgelung's groups"]
    return Table([*header, "by the published groups"], rows, {"hash-groups.json": content})


TABLES = {
    "hash-groups": hash_groups,
    "overview": overview,
    "starter": starter,
    "starter-classes": starter_classes,
    "starter-gate": starter_gate,
    "splits": splits,
    "comparisons": comparisons,
    "outside": outside,
    "quick": quick,
    "ablation": ablation,
    "earlier-starter": earlier_starter,
    "colours": colours,
    "set-differences": set_differences,
}
