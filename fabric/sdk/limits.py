"""Limits that reset, of keys and of the account: what is left of them, and setting them."""

from fabric.client.client import Client, new_request_id
from fabric.client.limits import terms_of
from fabric.wire import fabric_pb2 as pb


class LimitCalls:
    """The part of a connection that is about limits."""

    client: Client

    def limits(self, key_id: str = "") -> list[pb.Limit]:
        """Limits that reset: of one key and the account, or ("") all that the key in use may see.

        Each has its `period` (day, week, month, life), `unit` (ct, cny, llm) and, in µHs, 10⁻⁶ CNY or LLM tokens, its `amount`,
        and what is `used`, `held` and `left` in this period; `resets_at_us` is when the next one begins.
        """
        return list(self.client.call(pb.ListLimitsRequest(key_id=key_id), pb.ListLimitsReply).limits)

    def set_limit(
        self,
        amount: str | int,
        *,
        per: str,
        key_id: str = "",
        project: str = "",
        member: str = "",
        unit: str = "ct",
        zone: str = "",
        starts_on: int = 0,
        warning: bool = False,
    ) -> None:
        """Limit what a key, a project, a member or else the account may use in each period from now on; one that was there is
        replaced.

        Args:
            amount: in the unit; an integer or a decimal string.
            per: day, week, month or life.
            key_id: whose use is counted.
            project: or that of all its keys.
            member: or that of all its keys.
            unit: ct (compute tokens), cny, or llm (tokens of language models).
            zone: by whose calendar it resets, such as "Asia/Shanghai"; "" = UTC.
            starts_on: of a week the weekday (1 = Monday), of a month the day, in shorter months their last; 0 = the first.
            warning: refuse nothing, and tell of it once a period.

        Raises:
            InvalidRequest: no such period, unit or zone.
            PermissionDenied: the key in use sets no limits, or an operator has set this one.
        """
        terms = terms_of(amount, per=per, unit=unit, zone=zone, starts_on=starts_on, warning=warning)
        request = pb.SetLimitRequest(
            request_id=new_request_id(), key_id=key_id, project=project, member=member, terms=terms
        )
        self.client.call(request, pb.Accepted)

    def remove_limit(
        self,
        *,
        per: str,
        key_id: str = "",
        project: str = "",
        member: str = "",
        unit: str = "ct",
        warning: bool = False,
    ) -> None:
        """Take a limit away. `NotFound` if there is none of that period, unit and kind."""
        terms = terms_of("1", per=per, unit=unit, warning=warning)
        request = pb.SetLimitRequest(
            request_id=new_request_id(), key_id=key_id, project=project, member=member, terms=terms, remove=True
        )
        self.client.call(request, pb.Accepted)
