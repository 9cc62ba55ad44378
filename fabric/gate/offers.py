"""Answers about models: what is offered to whom, and what a caller has for each. Changes nothing."""

from typing import Final

from fabric.charging.catalogue import Plan
from fabric.gate import keys, limit_answers, limits, lora, models, package_answers
from fabric.gate.core import Core
from fabric.gate.key_scopes import KeyScope
from fabric.gate.questions import LimitsOf
from fabric.gate.state import Key, Model
from fabric.gate.views import CallerView, Entitlement, ModelView
from fabric.ledger.scopes import Service, Use
from fabric.units import INT64_MAX, AccountId, KeyId

STANDARD: Final = 0
PRIORITY: Final = 1
DEDICATED: Final = 2


def to(core: Core, account_id: AccountId | None) -> list[ModelView]:
    """What an account may ask for; the operator (None) sees all."""
    known = account_id is not None and account_id in core.state.accounts
    price_microcny = core.plan_of(account_id).price_microcny_per_ct if account_id is not None and known else 0
    offered = [model for model in core.state.models.values() if models.visible_to(model, account_id)]
    return [_view(model, price_microcny=price_microcny) for model in offered]


def caller(core: Core, key_id: KeyId, now_us: int) -> CallerView | None:
    """All that a gateway must know of a key: whose it is, how far it counts, and what there is for each model."""
    key = core.state.keys.get(key_id)
    if key is None:
        return None
    account_id = key.account_id
    plan, most_uhs = core.plan_of(account_id), _most_uhs(core, key, now_us)
    offered = [model for model in core.state.models.values() if models.visible_to(model, account_id)]
    return CallerView(
        key_id=key.key_id,
        account_id=account_id,
        secret_sha256=key.secret_sha256,
        operator=key.operator,
        revoked=bool(keys.dead(core, key)),
        expires_at_us=key.expires_at_us,
        limited=key.limit_uhs is not None or limits.narrows(core, key),
        may_call=KeyScope.MODELS in keys.scopes_of(core, key),
        role=keys.role_of(core, key).value,
        project=keys.project_of(key),
        member=key.member,
        tags=keys.tags_of(core, key),
        dead=keys.dead(core, key),
        suspended=keys.suspended(core, key),
        plan=plan.name,
        tier_rank=max(tier_rank(each) for each in core.plans_of(account_id)),
        price_microcny_per_ct=plan.price_microcny_per_ct,
        name=key.name,
        limit_uhs=key.limit_uhs,
        spent_uhs=key.spent_uhs,
        held_uhs=key.held_uhs,
        limits=tuple(limit_answers.asked(core, LimitsOf(account_id=account_id, key_id=key_id), now_us)),
        requests_per_min=key.requests_per_min,
        tokens_per_min=key.tokens_per_min,
        free_uhs=min(most_uhs, core.book.free(account_id, now_us=now_us)),
        models=tuple(
            Entitlement(
                model=model.spec.name,
                free_uhs=min(
                    _most_uhs(core, key, now_us, model.spec.name),
                    core.book.free(account_id, now_us=now_us, use=use_of(home, model.spec.name)),
                ),
                covered=home.spec.dedicated_to == account_id,
                packaged=bool(
                    core.book.packages
                    and package_answers.free_of(core, account_id, now_us, use=use_of(home, model.spec.name))
                ),
            )
            for model in offered
            for home in (lora.home_of(core, model),)
        ),
        packages=package_answers.free_of(core, account_id, now_us) if core.book.packages else (),
    )


def _most_uhs(core: Core, key: Key, now_us: int, *models: str) -> int:
    """What the limits of the key and its account leave for calls of these models; none named = of any."""
    found = limits.room(core, key.account_id, key.key_id, now_us=now_us, models=models)
    return INT64_MAX if found is None else found.left_uhs


def use_of(home: Model, name: str) -> Use:
    """What a hold for a model of that name is for, wherever its replica runs.

    Args:
        home: whose replicas serve it.
        name: the model's.
    """
    return Use(service=Service.INFERENCE, accelerators=home.spec.accelerators, models=(name,))


def tier_rank(plan: Plan) -> int:
    """Who goes first under load, by what the plan promises."""
    if plan.dedicated:
        return DEDICATED
    return PRIORITY if plan.queue == "priority" else STANDARD


def _view(model: Model, *, price_microcny: int) -> ModelView:
    spec, price = model.spec, model.prices[-1]
    return ModelView(
        name=spec.name,
        source=spec.source,
        parent=spec.parent,
        accelerators=spec.accelerators,
        devices=spec.devices,
        replicas_min=spec.replicas_min,
        replicas_max=spec.replicas_max,
        ttft_objective_us=spec.ttft_objective_us,
        dedicated_to=spec.dedicated_to,
        max_context=spec.max_context,
        engine=spec.engine,
        engine_args=spec.engine_args,
        rates=price.rates,
        rate_version=price.version,
        price_microcny_per_ct=price_microcny,
        offered_at_us=model.offered_at_us,
        changed=model.changed,
    )
