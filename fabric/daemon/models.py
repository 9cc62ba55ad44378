"""What `fabric up` does for metered inference before its host starts: offer the models of the cluster file, and see to it
that the operator's own account can pay for their leases.
"""

import asyncio
import socket
from typing import Any, Final

import structlog

from fabric.api.gate_port import GatePort
from fabric.config.serving import ModelSection, ServingConfig
from fabric.gate.events import Grant
from fabric.gate.questions import BalanceOf, ModelsOf
from fabric.gate.serving_events import OfferModel
from fabric.gate.views import ModelView
from fabric.server.gate_handle import decide
from fabric.units import AccountId

FUND_EVERY_S: Final = 30.0
_EVERYWHERE: Final = ("0.0.0.0", "::")  # noqa: S104 - recognised, not listened at

log = structlog.get_logger()


async def settle_in(port: GatePort, config: ServingConfig, *, operator: AccountId) -> None:
    """Tokens for the replicas, and every model of the file that isn't offered just so already.

    Raises:
        FabricError: one can't be offered, and why.
    """
    await fund(port, operator, config.funds)
    offered: Any = await port.ask(ModelsOf())
    views = {view.name: view for view in offered}
    for model in sorted(config.models, key=lambda model: bool(model.parent)):  # adapters come after what they run on
        if not _stands(views.get(model.name), model):
            await decide(port, OfferModel(spec=model.spec(), rates=model.built_rates()))


async def keep_funded(port: GatePort, account_id: AccountId, funds_uhs: int) -> None:
    """Fill the operator's own account up again and again."""
    while True:
        await asyncio.sleep(FUND_EVERY_S)
        try:
            await fund(port, account_id, funds_uhs)
        except Exception as error:  # noqa: BLE001 - the next turn may find the gate well
            log.warning("not_funded", error=f"{type(error).__name__}: {error}")


async def fund(port: GatePort, account_id: AccountId, funds_uhs: int) -> None:
    """What the operator spends on itself is counted like anybody's use, and costs nobody anything: so there is enough of
    it. Filled up when less than half is free.
    """
    balance: Any = await port.ask(BalanceOf(account_id=account_id))
    if balance.free_uhs * 2 < funds_uhs:
        await decide(port, Grant(account_id=account_id, amount_uhs=funds_uhs - balance.free_uhs))


def endpoint_of(config: ServingConfig) -> str:
    """The base URL for clients."""
    host = "localhost" if config.host in (*_EVERYWHERE, "127.0.0.1", "::1") else config.host
    shown = f"[{host}]" if ":" in host else host
    scheme = "http" if config.tls == "plain" else "https"
    return config.endpoint or f"{scheme}://{shown}:{config.port}/v1"


def located(config: ServingConfig | None, *, any_port: bool) -> ServingConfig | None:
    """The same at a port that is known, because several gateways share it: where any will do, one that is free now.

    With `any_port` it is beside another fabric of the same file, whose port for metrics isn't there for it.
    """
    if config is None or not (any_port or config.port == 0):
        return config
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((config.host, 0))
        port = probe.getsockname()[1]
    found = config.model_copy(update={"listen": f"{config.listen.rpartition(':')[0]}:{port}"})
    return found.model_copy(update={"admin_port": None}) if any_port else found


def _stands(view: ModelView | None, model: ModelSection) -> bool:
    """Whether the model is offered as the file says."""
    if view is None:
        return False
    spec = model.spec()
    same = all(getattr(view, name) == getattr(spec, name) for name in spec.__struct_fields__)
    numbers = [(rate.accelerator, rate.numbers) for rate in view.rates]
    return same and (not model.rates or numbers == [(rate.accelerator, rate.numbers) for rate in model.built_rates()])
