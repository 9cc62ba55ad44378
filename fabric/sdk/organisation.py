"""A customer's organisation: which wallet pays for which project, and who may act for it."""

import json
from collections.abc import Sequence
from typing import Any

from fabric.client.client import Client, new_request_id
from fabric.wire import fabric_pb2 as pb
from fabric.wire import format_key, hash_secret, make_secret


class Organisation:
    """The organisation of the account that the client's key is of. What changes it is for owners."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def show(self) -> dict[str, Any]:
        """Its `wallets`, `projects` and `members`, as JSON has them; times in µs since the epoch."""
        found: dict[str, Any] = json.loads(self._client.call(pb.GetOrganisationRequest(), pb.Document).json)
        return found

    def create_project(self, project: str, *, wallet: str, name: str = "", tags: Sequence[str] = ()) -> None:
        """Make a project that this wallet of the organisation pays for, and no other, ever.

        Args:
            project: its name, of 1 to 64 of A-Z, a-z, 0-9 and '-_.@+'.
            wallet: the account that pays.
            name: what it is shown as.
            tags: what all its jobs and calls are marked with, such as "cost-centre=4711": at most 8, of 512 bytes together.

        Raises:
            InvalidRequest: `unknown_wallet`: it is none of the organisation's; `invalid_name`; `invalid_tags`.
            Conflict: `project_exists`.
            PermissionDenied: the key isn't an owner's.
        """
        request = pb.CreateProjectRequest(
            request_id=new_request_id(), project=project, wallet=wallet, name=name, tags=tags
        )
        self._client.call(request, pb.Accepted)

    def close_project(self, project: str) -> None:
        """Close a project: its keys are dead from now on, what runs goes on."""
        self._client.call(pb.CloseProjectRequest(request_id=new_request_id(), project=project), pb.Accepted)

    def invite(self, member: str, *, role: str, project: str = "", name: str = "") -> str:
        """Let somebody in, and make its first key, which is what it signs in with: it is told once.

        Args:
            member: its name, such as an address.
            role: owner, billing, developer or read-only.
            project: what the key works for; "" = what the client's key does.
            name: what it is shown as.

        Raises:
            Conflict: `member_exists`, or `member_left`: a name is never given again.
            PermissionDenied: the key isn't an owner's, or may do less than that role.
        """
        request = pb.AddMemberRequest(request_id=new_request_id(), member=member, role=role, name=name)
        self._client.call(request, pb.Accepted)
        secret = make_secret()
        key = pb.CreateKeyRequest(
            request_id=new_request_id(),
            secret_sha256=hash_secret(secret),
            name=f"{member}'s first",
            member=member,
            project=project,
        )
        return format_key(self._client.call(key, pb.CreateKeyReply).key_id, secret)

    def set_role(self, member: str, role: str) -> None:
        """Give a member another role: it holds for all its keys at once.

        Raises:
            Conflict: `last_owner`: an organisation keeps one.
        """
        self._client.call(pb.SetRoleRequest(request_id=new_request_id(), member=member, role=role), pb.Accepted)

    def remove(self, member: str) -> None:
        """Remove a member: its keys are dead at once.

        Raises:
            Conflict: `last_owner`: an organisation keeps one.
        """
        self._client.call(pb.RemoveMemberRequest(request_id=new_request_id(), member=member), pb.Accepted)
