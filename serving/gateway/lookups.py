"""What is read rather than asked of a model: the models there are, the caller's own key and balance, and what a call cost."""

from typing import Any

from fabric.errors import NotFound
from serving.gateway import accounts
from serving.gateway.cards import card
from serving.gateway.directory import Board, ModelFacts
from serving.gateway.exchange import Exchange
from serving.gateway.generations import Generations
from serving.gateway.keys import Caller
from serving.gateway.routes import CREDITS, KEY
from serving.gateway.upstream import Upstream


async def look_up(
    exchange: Exchange, caller: Caller, named: str, *, board: Board, generations: Generations, upstream: Upstream
) -> dict[str, Any]:
    """The answer to a GET.

    Args:
        exchange: the request.
        caller: who asks.
        named: the model or the call that its path names, if any.
        board: what is offered.
        generations: the calls of the last day.
        upstream: asks a replica of a call whose client left.

    Raises:
        NotFound: `model_not_found` or `call_not_found`.
        Unavailable: the replica that knows what the call cost can't be asked.
    """
    if exchange.route is not None and exchange.route.surface == "models":
        return _models(caller, named, board)
    if exchange.route is CREDITS:
        return accounts.credits_of(caller.key)
    if exchange.route is KEY:
        return accounts.key_of(caller.key)
    asked = named or exchange.scope.get("query_string", b"").decode("latin-1")
    call_id = accounts.call_named(asked)
    one = await generations.find(caller.account_id, call_id) if call_id else None
    if one is None:
        raise NotFound(
            "no such call of yours was answered here in the last day: name the `x-request-id` of its answer; older ones are"
            " in `fabric usage`",
            code="call_not_found",
        )
    charged_uhs = one.charged_uhs if one.charged_uhs is not None else await upstream.charge(one)
    return accounts.generation(one, charged_uhs=charged_uhs)


def _models(caller: Caller, named: str, board: Board) -> dict[str, Any]:
    if named:
        caller.entitlement(named)
        return _card(caller, named, board)
    return {"object": "list", "data": [_card(caller, name, board) for name in sorted(caller.callable())]}


def _card(caller: Caller, name: str, board: Board) -> dict[str, Any]:
    model = board.models.get(name) or ModelFacts(name=name)
    return card(model, price_microcny_per_ct=caller.key.price_microcny_per_ct)
