"""`edgelung serve`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgelung import RESEARCH_USE_ONLY
from edgelung.cli.command import report
from edgelung.cli.model import (
    AllowUnsignedOption,
    TrustOption,
    UnknownOption,
    UnknownTiles,
    if_passed,
    open_model,
    warn_of_gate,
)
from edgelung.cli.options import (
    MODEL,
    OUTPUT,
    BatchSizeOption,
    CoverageOption,
    DeviceOption,
    EngineOption,
    MinConfidenceOption,
    PrecisionOption,
    StrictSizeOption,
    ThreadsOption,
    chosen,
    named_path,
)
from edgelung.serving import IMAGES_MODEL

if TYPE_CHECKING:
    from edgelung.artifacts.bundle import Bundle
    from edgelung.inference.session import LoadedEngines, Options
    from edgelung.serving.limits import Limits
    from edgelung.serving.service import Service

ACCESS, LIMITS = "Access", "Limits"
PORT = 8000  # where clients of the Open Inference Protocol look


def serve(
    bundle: Annotated[
        Path | None,
        typer.Argument(
            parser=named_path,
            metavar="BUNDLE",
            help="Bundle that `edgelung export` wrote.  [default: the starter that comes with "
            "edgelung]",
        ),
    ] = None,
    engine: EngineOption = None,
    precision: PrecisionOption = None,
    trust: TrustOption = None,
    allow_unsigned: AllowUnsignedOption = False,
    name: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            rich_help_panel=MODEL,
            help="Name of the model for images in URLs; that for tiles is NAME_tiles.",
        ),
    ] = IMAGES_MODEL,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            rich_help_panel=ACCESS,
            help="Address to listen on. One that other machines reach needs --token-file or "
            "--tls-client-ca.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            min=0, max=65535, metavar="N", rich_help_panel=ACCESS, help="Port; 0: any that is free."
        ),
    ] = PORT,
    token_file: Annotated[
        Path | None,
        typer.Option(
            parser=named_path,
            metavar="FILE",
            rich_help_panel=ACCESS,
            help="Answer only requests with the token in this file, as `Authorization: Bearer "
            "TOKEN`. Only you may be able to read the file.",
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            parser=named_path,
            metavar="PEM",
            rich_help_panel=ACCESS,
            help="Certificate of the service, which then speaks only HTTPS. Needs --tls-key.",
        ),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(
            parser=named_path,
            metavar="PEM",
            rich_help_panel=ACCESS,
            help="Private key of --tls-cert, without a password.",
        ),
    ] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(
            parser=named_path,
            metavar="PEM",
            rich_help_panel=ACCESS,
            help="Answer only clients with a certificate that one of these signed.",
        ),
    ] = None,
    max_tiles: Annotated[
        int,
        typer.Option(
            min=1,
            max=65536,
            metavar="N",
            rich_help_panel=LIMITS,
            help="Tiles of all requests that may wait or run. A request beyond that gets 429.",
        ),
    ] = 256,
    max_mb: Annotated[
        int,
        typer.Option(
            min=1,
            max=512,
            metavar="MIB",
            rich_help_panel=LIMITS,
            help="Largest body of a request in MiB, also when decompressed.",
        ),
    ] = 64,
    deadline: Annotated[
        float,
        typer.Option(
            min=0.1,
            max=3600,
            metavar="SECONDS",
            rich_help_panel=LIMITS,
            help="Seconds for a request, from its header to its answer.",
        ),
    ] = 30,
    min_confidence: MinConfidenceOption = None,
    strict_size: StrictSizeOption = None,
    unknown: UnknownOption = UnknownTiles.MARK,
    coverage: CoverageOption = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            rich_help_panel=OUTPUT,
            help="Print the URL and the models as one line of JSON on standard output.",
        ),
    ] = False,
    batch_size: BatchSizeOption = None,
    threads: ThreadsOption = None,
    device: DeviceOption = None,
) -> None:
    """How do other programs get predictions over the network?

    Answers encoded images with rows, and tensors by the Open Inference Protocol v2, until Ctrl-C or
    SIGTERM. Only this machine can reach it, unless you say otherwise. Research use only.
    """
    from edgelung.artifacts.trust import choose_trust
    from edgelung.cli.defaults import read_defaults
    from edgelung.core.extras import load_extra
    from edgelung.inference.session import Options, check_coverage, open_engines

    for module in ("uvicorn", "uvloop", "httptools", "starlette", "prometheus_client"):
        load_extra(module, "edgelung serve", "serve")
    from edgelung.serving import access
    from edgelung.serving.limits import MIB, Limits
    from edgelung.serving.server import Server

    _check_name(name)
    token = None if token_file is None else access.read_token(token_file)
    tls = access.parse_tls(tls_cert, tls_key, tls_client_ca)
    address = access.resolve(host)
    access.check_address(address, token, tls)
    context = None if tls is None else tls.context()
    defaults = read_defaults(bundle)
    model = bundle or (Path(defaults.model) if defaults.model else None)
    opened = open_model(model, choose_trust(trust, allow_unsigned))
    options = Options(
        engine=chosen(engine, defaults.engine),
        precision=chosen(precision, if_passed(opened, defaults.precision)),
        batch_size=batch_size or defaults.batch_size,
        threads=threads or defaults.threads,
        min_confidence=defaults.min_confidence if min_confidence is None else min_confidence,
        strict_size=bool(defaults.strict_size if strict_size is None else strict_size),
        keep_unknown=unknown is UnknownTiles.KEEP,
        coverage=coverage,
        gpu=device,
    )
    check_coverage(opened, coverage)
    warn_of_gate(opened, options.precision)
    limits = Limits(tiles=max_tiles, body_bytes=max_mb * MIB, seconds=deadline)
    with access.bind(address, port) as bound, open_engines(opened, options, None) as engines:
        service = _make_service(opened, engines, options, name, limits)
        _report_start(service, engines, access.url_of(bound, tls), as_json=as_json)
        if token and tls is None and not access.is_loopback(address):
            report("without TLS, others on the network can read the token; add --tls-cert")
        Server(service, token, context).run_until_signal(bound)
    report("stopped: every request that was accepted has its answer")


def _check_name(name: str) -> None:
    """Refuse a name that a URL cannot hold as it is, before the bundle is loaded."""
    from edgelung.serving.service import is_model_name

    if not is_model_name(name):
        raise typer.BadParameter(
            f"--name {name} cannot stand in a URL; expected up to 64 letters, digits, . _ -, the "
            "first and the last a letter, a digit or _"
        )


def _make_service(
    bundle: "Bundle",
    engines: "LoadedEngines",
    options: "Options",
    name: str,
    limits: "Limits",
) -> "Service":
    from edgelung.inference.session import label_rule
    from edgelung.serving.metrics import ServiceMetrics
    from edgelung.serving.service import Service

    return Service(
        bundle,
        engines,
        label_rule(bundle, engines.chosen.variant, options),
        name,
        limits,
        ServiceMetrics(),
    )


def _report_start(service: "Service", engines: "LoadedEngines", url: str, *, as_json: bool) -> None:
    """Say where the service is and what answers there."""
    from edgelung.core.errors import visible
    from edgelung.core.terminal import out
    from edgelung.evaluation.concerns import bundle_concerns

    engine, variant = engines.chosen.engine, engines.chosen.variant
    signed = service.bundle.signature.text
    concerns = [concern.text for concern in bundle_concerns(service.bundle.manifest)]
    if as_json:
        started = {
            "url": url,
            "models": list(service.models),
            "bundle_sha256": service.bundle.sha256,
            "precision": variant.precision,
            "engine": engine.name,
            "device": engine.device,
            "signed": signed,
            "concerns": concerns,
            "note": RESEARCH_USE_ONLY,
        }
        print(json.dumps(started, ensure_ascii=False), flush=True)
        return
    lines = [
        *concerns,
        f"serving   {url}",
        f"models    {', '.join(service.models)}",
        f"engine    {engine.name} {variant.precision} on {engine.device} ({engines.chosen.reason})",
        f"signed    {signed}",
        RESEARCH_USE_ONLY,
    ]
    for line in lines:
        out().print(visible(line))
