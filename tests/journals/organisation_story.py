"""Of the story: a company with two wallets, its projects and members."""

from typing import Any

from fabric.gate.account_events import (
    AddMember,
    CloseAccount,
    CloseProject,
    CreateKey,
    CreateProject,
    OpenAccount,
    RemoveMember,
    ResumeAccount,
    SetRole,
    SuspendAccount,
)
from fabric.gate.events import Cancel, Submit, TopUp
from fabric.gate.instructions import Refusal
from fabric.gate.roles import Role
from tests.gate.world import S, spec


def organise(told: Any) -> None:
    """Each of its events; the last owner stays, and who has left submits nothing."""
    kim: dict[str, Any] = {"account_id": "kim"}
    lab: dict[str, Any] = {"account_id": "kim-lab"}
    told.tell(
        OpenAccount(name="Kim", plan="starter", **kim),
        OpenAccount(name="Lab", plan="post", organisation="kim", **lab),
        CreateProject(project="lab", wallet="kim-lab", request_id="lab", **kim),
        AddMember(member="olga", role=Role.OWNER, **kim),
        AddMember(member="dan", role=Role.DEVELOPER, name="Dan", **kim),
        CreateKey(key_id="k-olga", secret_sha256="1" * 64, member="olga", **kim),
        CreateKey(key_id="k-lab", secret_sha256="2" * 64, project="lab", member="dan", made_with="k-olga", **lab),
        Submit(job_id="of-lab", key_id="k-lab", spec=spec(100 * S), **lab),
        Cancel(job_id="of-lab", **lab),
        SetRole(member="dan", role=Role.BILLING, by_key="k-olga", **kim),
    )
    told.tell(RemoveMember(member="olga", **kim), kind=Refusal)
    told.tell(RemoveMember(member="dan", by_key="k-olga", **kim), CloseProject(project="lab", **kim))
    told.tell(
        SuspendAccount(reason="unpaid", organisation=True, **kim),
        ResumeAccount(organisation=True, **kim),
        TopUp(amount_uhs=50 * S, **kim),
        CloseAccount(reason="asked to", balance="refund", organisation=True, **kim),
    )
    told.tell(Submit(job_id="of-dan", key_id="k-lab", spec=spec(100 * S), **lab), kind=Refusal)
