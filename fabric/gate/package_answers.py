"""What can be seen of packages of LLM tokens: views, which change nothing."""

from fabric.charging.packages import weights_of
from fabric.charging.rates import MTOK
from fabric.gate.core import Core
from fabric.gate.package_views import PackageLotView, PackageRoom, PackageView
from fabric.ledger import packages as ledgers
from fabric.ledger.lots import Lot
from fabric.ledger.scopes import Scope, Use
from fabric.ledger.state import Ledger
from fabric.units import AccountId, family_of


def of_account(core: Core, account_id: AccountId, now_us: int) -> tuple[PackageView, ...]:
    """All that an account has ever had of packages, by asset: what is left, used and expired."""
    found = []
    for asset, package in core.book.packages.items():
        account = package.accounts.get(account_id)
        if account is None:
            continue
        lots = [package.lots[lot_id] for lot_id in account.owned]
        live = [
            lot for lot in (package.lots[lot_id] for lot_id in account.burning) if lot.held_uhs or lot.alive(now_us)
        ]
        free, late = sum(_free(lot, now_us) for lot in lots), sum(lot.free_uhs - _free(lot, now_us) for lot in lots)
        found.append(
            PackageView(
                asset=asset,
                family=family_of(asset),
                weights=weights_of(asset) or (),
                granted=sum(lot.granted_uhs for lot in lots),
                free=free,
                held=account.held_uhs,
                used=sum(lot.captured_uhs for lot in lots),
                expired=sum(lot.expired_uhs for lot in lots) + late,
                voided=sum(lot.voided_uhs for lot in lots),
                worth_uhs=sum(
                    worth_uhs(core, asset, lot.terms.scope, _free(lot, now_us) + lot.held_uhs) for lot in live
                ),
                lots=tuple(_lot(core, package, lot, now_us) for lot in live),
            )
        )
    return tuple(found)


def free_of(core: Core, account_id: AccountId, now_us: int, *, use: Use | None = None) -> tuple[PackageRoom, ...]:
    """What an account has free of packages now, for a use or (None) whatever it is for."""
    found = []
    for package in core.book.packages.values():
        free = ledgers.free(package, account_id, now_us=now_us, use=use)
        if free:
            found.append(PackageRoom(asset=package.asset, held=0, free=free))
    return tuple(found)


def worth_uhs(core: Core, asset: str, scope: Scope, units: int) -> int:
    """The most that calls would cost in compute tokens which so much of a package can pay for; 0 where no model of it is offered."""
    weights, most = weights_of(asset), 0
    for model in core.state.models.values() if weights is not None and units else ():
        if model.withdrawn or (scope.models and model.spec.name not in scope.models):
            continue
        for rate in model.prices[-1].rates:
            for weight, each in zip(weights or (), rate.numbers, strict=True):
                most = max(most, units * each // (weight * MTOK) if weight else 0)
    return most


def _lot(core: Core, package: Ledger, lot: Lot, now_us: int) -> PackageLotView:
    free = _free(lot, now_us)
    return PackageLotView(
        lot_id=lot.lot_id,
        origin=lot.terms.origin.value,
        granted=lot.granted_uhs,
        free=free,
        held=lot.held_uhs,
        used=lot.captured_uhs,
        effective_at_us=lot.effective_at_us,
        expires_at_us=lot.expires_at_us,
        scope=lot.terms.scope.text,
        price_microcny=lot.terms.price_microcny,
        worth_uhs=worth_uhs(core, package.asset, lot.terms.scope, free + lot.held_uhs),
    )


def _free(lot: Lot, now_us: int) -> int:
    return lot.free_uhs if lot.alive(now_us) else 0
