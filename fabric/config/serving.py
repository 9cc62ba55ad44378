"""The `serving:` section of a cluster file: where the endpoint listens, and which models are offered from the start.

A rate is written in H100-seconds per million LLM tokens, which is the same number as µHs for one: `output: 400` means
that a million completion tokens cost 400 H100-seconds, or 0.11 compute tokens.
"""

import re
from decimal import Decimal
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Discriminator, Field, PlainValidator, PositiveInt, Tag, model_validator
from pydantic_core import PydanticCustomError

from fabric.accelerators import canonical_accelerator
from fabric.charging.rates import RATE_MAX_UHS_PER_MTOK, Rate
from fabric.config import engines
from fabric.config.sections import ListenAddress, Name, Port, Seconds, Section, TlsFiles, host_and_port, is_loopback
from fabric.errors import InvalidAmount
from fabric.gate.models import ENGINE_ARGS
from fabric.gate.serving_events import ModelSpec
from fabric.units import AMOUNT_UHS_MAX, AccountId, parse_ct

GATEWAYS_MAX: Final = 64
_NAME: Final = "name"
_DECIMAL: Final = re.compile(r"\d{1,10}(\.\d{1,6})?", re.ASCII)
ORIGIN_PATTERN: Final = r"^(\*|https?://[^\s/?#]+/?)$"
MODEL_PATTERN: Final = r"^[A-Za-z0-9]([A-Za-z0-9._/-]{0,126}[A-Za-z0-9])?$"


def _rate(given: Any) -> int:
    """µHs per 10⁶ LLM tokens of a decimal in H100-seconds."""
    good = isinstance(given, int | str) and not isinstance(given, bool) and _DECIMAL.fullmatch(str(given))
    uhs = int(Decimal(str(given)) * 1_000_000) if good else -1
    if not 0 <= uhs <= RATE_MAX_UHS_PER_MTOK:
        raise PydanticCustomError(
            "rate", 'H100-seconds per million LLM tokens: a whole number or in quotes, such as "0.5", at most 1000000'
        )
    return uhs


def _tokens(given: Any) -> int:
    try:
        uhs = int(parse_ct(given))
    except InvalidAmount:
        uhs = AMOUNT_UHS_MAX + 1
    if uhs > AMOUNT_UHS_MAX:
        raise PydanticCustomError("tokens", 'tokens as a whole number or in quotes, such as "12.5", up to 10000000')
    return uhs


def _accelerator(given: Any) -> str:
    if not isinstance(given, str) or not given.strip():
        raise PydanticCustomError("accelerator", "the name of an accelerator, such as H100, A100 or 910B")
    return canonical_accelerator(given)


RateNumber = Annotated[int, PlainValidator(_rate)]
Accelerator = Annotated[str, PlainValidator(_accelerator)]


def _engine(given: Any) -> Any:
    """A name alone is an engine without options."""
    return {_NAME: given} if isinstance(given, str) else given


class RateSection(Section):
    """What a model costs on one type of accelerator, in H100-seconds per million LLM tokens."""

    accelerator: Accelerator | None = None
    """None = any."""
    input: RateNumber
    cached: RateNumber | None = None
    """Of the prompt, from the engine's prefix cache; None = as `input`."""
    output: RateNumber
    reasoning: RateNumber | None = None
    """None = as `output`."""

    def built(self, model: str = "") -> Rate:
        return Rate(
            model=model,
            accelerator=self.accelerator or "",
            input_uhs_per_mtok=self.input,
            cached_uhs_per_mtok=self.input if self.cached is None else self.cached,
            output_uhs_per_mtok=self.output,
            reasoning_uhs_per_mtok=self.output if self.reasoning is None else self.reasoning,
        )


class ReplicasSection(Section):
    """Between how many replicas a model is scaled; from 0: none while nobody asks."""

    min: Annotated[int, Field(ge=0, le=1000)] = 0
    max: Annotated[int, Field(ge=1, le=1000)] = 1

    @model_validator(mode="after")
    def _in_order(self) -> "ReplicasSection":
        if self.min > self.max:
            raise PydanticCustomError("replicas", "min of at most max")
        return self


class ModelSection(Section):
    """A model that is offered whenever the fabric starts."""

    name: Annotated[str, Field(pattern=MODEL_PATTERN)]
    """What clients ask for."""
    source: Annotated[str, Field(min_length=1, max_length=500)]
    """A directory on the nodes, `archive:KEY`, or `job:ID` of the job that made it."""
    parent: Annotated[str, Field(pattern=MODEL_PATTERN)] | None = None
    """The model that this one is a LoRA adapter of: it runs in that one's replicas, which need the engine's `enable-lora`."""
    accelerators: Annotated[tuple[Accelerator, ...], Field(strict=False)] = ()
    """Best first; none = any."""
    devices: Annotated[int, Field(ge=1, le=64)] = 1
    replicas: ReplicasSection = ReplicasSection()
    ttft_objective_ms: Annotated[int, Field(ge=1, le=3_600_000)] | None = None
    dedicated_to: Name | None = None
    """The account whose own cell it runs on, and who alone sees it."""
    max_context: Annotated[int, Field(ge=1)] | None = None
    rates: Annotated[tuple[RateSection, ...], Field(strict=False)] = ()
    """None = those of the tariffs; of an adapter, its parent's."""
    engine: Annotated[dict[str, str | int | bool], BeforeValidator(_engine)] = Field(default_factory=dict)
    """What runs it: its name, or options of it such as max-num-seqs, with its name under `name`; vllm if not said."""

    @model_validator(mode="after")
    def _known_engine(self) -> "ModelSection":
        unknown = sorted(set(self.engine) - ENGINE_ARGS - {_NAME})
        if unknown:
            facts = {"unknown": ", ".join(unknown), "known": ", ".join(sorted(ENGINE_ARGS | {_NAME}))}
            raise PydanticCustomError("unknown_keys", "unknown keys {unknown}; allowed are {known}", facts)
        if self.parent is not None and _NAME in self.engine:
            raise PydanticCustomError("engine", "no engine for an adapter: it runs in its parent's")
        if flaw := engines.flaw_of(self.engine_name, self.source):
            raise PydanticCustomError("engine", "an engine that can serve it: {flaw}", {"flaw": flaw})
        return self

    @property
    def engine_name(self) -> str:
        """What runs it."""
        return str(self.engine.get(_NAME, engines.DEFAULT))

    def spec(self) -> ModelSpec:
        return ModelSpec(
            name=self.name,
            source=self.source,
            parent=self.parent or "",
            accelerators=self.accelerators,
            devices=self.devices,
            replicas_min=self.replicas.min,
            replicas_max=self.replicas.max,
            ttft_objective_us=None if self.ttft_objective_ms is None else self.ttft_objective_ms * 1_000,
            dedicated_to=None if self.dedicated_to is None else AccountId(self.dedicated_to),
            max_context=self.max_context,
            engine=self.engine_name,
            engine_args=tuple((name, _plain(value)) for name, value in sorted(self.engine.items()) if name != _NAME),
        )

    def built_rates(self) -> tuple[Rate, ...]:
        return tuple(rate.built(self.name) for rate in self.rates)


class GatewayLimits(Section):
    """What one caller may ask of the endpoint."""

    requests_per_s: PositiveInt = 100
    """Of one account at each gateway, however many keys it makes; beyond: 429 with Retry-After."""
    wait_s: Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)] = 120.0
    """How long a request may wait for a replica."""
    connections_per_address: PositiveInt = 4096
    """Of one client's address, at once; more where clients come through a load balancer. One in four may be without a key."""


class ServingConfig(Section):
    """The OpenAI-compatible endpoint, and the replicas behind it."""

    listen: ListenAddress = "127.0.0.1:7480"
    endpoint: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = None
    """The URL that clients use, where it isn't the one that follows from `listen`: behind a load balancer, say."""
    gateways: Annotated[int, Field(ge=1, le=GATEWAYS_MAX)] = 1
    """Processes behind the address: about one for a thousand requests a second."""
    ingress: Literal["haproxy", "none"] | None = None
    """`haproxy`: one before all gateways, which checks them, drains, and holds slow clients off. `none`: gateways share the
    port. None = haproxy where there are several.
    """
    tls: Annotated[
        Annotated[Literal["auto", "plain"], Tag("word")] | Annotated[TlsFiles, Tag("files")],
        Discriminator(lambda given: "files" if isinstance(given, dict | TlsFiles) else "word"),
    ] = "auto"
    """`auto`: the fabric's own certificate. `plain`: HTTP without it, on loopback only."""
    origins: Annotated[
        tuple[Annotated[str, Field(pattern=ORIGIN_PATTERN)], ...], Field(strict=False, max_length=100)
    ] = ()
    """Whose pages may ask from a browser (CORS), such as `https://app.example`; `*` = all. A key in a page is everybody's who
    opens it. None = no page may.
    """
    admin_port: Port | None = None
    """Metrics for Prometheus, on loopback: of the first gateway, the next ones one higher each, then the ingress. None =
    none.
    """
    grace_s: Seconds = 20.0
    """How long streams may take to finish when the fabric goes down."""
    funds: Annotated[int, PlainValidator(_tokens)] = Field(default="10000", validate_default=True)
    """The operator's own account, which pays for the replicas' leases, is filled up to so many tokens."""
    models: Annotated[tuple[ModelSection, ...], Field(strict=False)] = ()
    limits: GatewayLimits = GatewayLimits()

    @model_validator(mode="after")
    def _fits_together(self) -> "ServingConfig":
        names = [model.name for model in self.models]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise PydanticCustomError("twice", "every model name once; twice is {names}", {"names": ", ".join(twice)})
        if self.tls == "plain" and not is_loopback(self.host):
            raise PydanticCustomError("plain", "tls: plain only where listen is on loopback, such as 127.0.0.1")
        return self

    @property
    def has_ingress(self) -> bool:
        """Whether HAProxy stands before the gateways."""
        return self.gateways > 1 if self.ingress is None else self.ingress == "haproxy"

    @property
    def tls_files(self) -> TlsFiles | None:
        """The operator's own certificate, where there is one."""
        return None if isinstance(self.tls, str) else self.tls

    @property
    def host(self) -> str:
        return host_and_port(self.listen)[0]

    @property
    def port(self) -> int:
        """0 = any free port."""
        return host_and_port(self.listen)[1]


def _plain(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
