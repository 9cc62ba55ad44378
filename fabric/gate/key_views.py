"""Keys and organisations as they are shown: views built from the state, which they never change."""

from fabric.gate import keys, limit_answers, organisations
from fabric.gate.core import Core
from fabric.gate.organisation_views import KeyView, MemberView, OrganisationView, ProjectView
from fabric.gate.state import Key
from fabric.units import AccountId


def organisation(core: Core, account_id: AccountId) -> OrganisationView | None:
    """Whose the account is."""
    if account_id not in core.state.accounts:
        return None
    found = organisations.of(core, account_id)
    projects, members = _good_keys(core, found.wallets)
    accounts = [core.state.accounts[wallet] for wallet in found.wallets]
    own = [
        ProjectView(
            project=each.account_id,
            name=each.name,
            wallet=each.account_id,
            opened_at_us=each.opened_at_us,
            keys=projects.get(each.account_id, 0),
        )
        for each in accounts
    ]
    others = [
        ProjectView(
            project=each.project,
            name=each.name,
            wallet=each.wallet,
            opened_at_us=each.opened_at_us,
            closed_at_us=each.closed_at_us,
            tags=each.tags,
            keys=projects.get(each.project, 0),
        )
        for each in found.projects.values()
    ]
    return OrganisationView(
        organisation=found.organisation,
        wallets=tuple(found.wallets),
        projects=(*own, *others),
        members=tuple(
            MemberView(
                member=each.member,
                name=each.name,
                role=each.role.value,
                joined_at_us=each.joined_at_us,
                left_at_us=each.left_at_us,
                keys=members.get(each.member, 0),
            )
            for each in found.members.values()
        ),
    )


def key(core: Core, key: Key, now_us: int) -> KeyView:
    """A key, as whoever may see it does."""
    found = organisations.of(core, key.account_id)
    return KeyView(
        key_id=key.key_id,
        account_id=key.account_id,
        secret_sha256=key.secret_sha256,
        name=key.name,
        operator=key.operator,
        limit_uhs=key.limit_uhs,
        spent_uhs=key.spent_uhs,
        requests_per_min=key.requests_per_min,
        tokens_per_min=key.tokens_per_min,
        expires_at_us=key.expires_at_us,
        revoked=key.revoked,
        scopes=tuple(sorted(scope.value for scope in keys.scopes_of(core, key))),
        held_uhs=key.held_uhs,
        limits=limit_answers.of(core, key.account_id, f"key/{key.key_id}", now_us),
        role=keys.role_of(core, key).value,
        project=keys.project_of(key),
        member=key.member,
        dead=keys.dead(core, key),
        suspended=keys.suspended(core, key),
        organisation=found.organisation,
        wallets=tuple(found.wallets) if len(found.wallets) > 1 else (),
        tags=keys.tags_of(core, key),
    )


def _good_keys(core: Core, wallets: list[AccountId]) -> tuple[dict[str, int], dict[str, int]]:
    """How many keys still count, by project and by member."""
    projects: dict[str, int] = {}
    members: dict[str, int] = {}
    for wallet in wallets:
        for each in core.keys_of.get(wallet, ()):
            if each.operator or keys.dead(core, each) or (each.expires_at_us or core.now_us + 1) <= core.now_us:
                continue
            projects[keys.project_of(each)] = projects.get(keys.project_of(each), 0) + 1
            members[each.member] = members.get(each.member, 0) + 1
    return projects, members
