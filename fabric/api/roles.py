"""Who may what at the doors: one table, a row for each call, with the roles that may ask for it. What isn't in it is for nobody.

A customer's key needs the row, and one of the scopes of the call (`grpc_server.CALLS`): a role says what somebody is, scopes
what one key of that one is for.
"""

from typing import Final

from fabric.gate.roles import Role


def _of(words: str) -> frozenset[Role]:
    return frozenset(Role(word) for word in words.split())


_OWNER: Final = _of("owner admin")
_WORKERS: Final = _of("owner developer admin")
_CUSTOMERS: Final = _of("owner billing developer read-only")
_BUYERS: Final = _of("owner billing admin operator-billing")
_READERS: Final = _CUSTOMERS | _of("admin support auditor")
_CONTENT: Final = _CUSTOMERS | _of("admin support")
"""What customers' jobs wrote: not for auditors, who look at books."""
_BOOKS: Final = _READERS | _of("operator-billing")
_CASHIERS: Final = _of("admin operator-billing")
_DESKS: Final = _of("admin operator-billing support auditor")
_MACHINES: Final = _of("admin support auditor")
_HOLDERS: Final = _WORKERS | _of("replica")
_ADMIN: Final = _of("admin")
_AGENT: Final = _of("agent")
_GATEWAY: Final = _of("gateway")
_REPLICA: Final = _of("replica")

ROLES: Final[dict[str, frozenset[Role]]] = {
    "Submit": _WORKERS | _AGENT,
    "Quote": _CONTENT,
    "GetJob": _READERS | _AGENT,
    "ListJobs": _READERS | _AGENT,
    "Why": _READERS,
    "WatchJobs": _READERS | _AGENT,
    "Cancel": _WORKERS | _of("support agent"),
    "Pause": _WORKERS | _of("support"),
    "Resume": _WORKERS | _of("support"),
    "SaveNow": _WORKERS | _of("support"),
    "ListCheckpoints": _READERS,
    "ListShards": _CONTENT,
    "FetchCheckpoint": _CONTENT,
    "RollBack": _WORKERS,
    "DeleteCheckpoints": _WORKERS,
    "Fork": _WORKERS,
    "RaiseLimit": _WORKERS,
    "Logs": _CONTENT,
    "Result": _CONTENT | _AGENT,
    "Artifact": _CONTENT,
    "PutBlob": _WORKERS,
    "Balance": _BOOKS,
    "TopUp": _BUYERS,
    "BuyBundle": _BUYERS,
    "Subscribe": _BUYERS,
    "Unsubscribe": _BUYERS,
    "Usage": _BOOKS,
    "Statement": _BOOKS,
    "Prices": _BOOKS,
    "Receipts": _BOOKS,
    "Export": _BOOKS,
    "ExportFocus": _BOOKS,
    "LogCheckpoint": _BOOKS,
    "Authorize": _HOLDERS,
    "UpdateHold": _HOLDERS,
    "SettleHold": _HOLDERS,
    "ReleaseHold": _HOLDERS,
    "RecordCalls": _ADMIN | _REPLICA,
    "KeepUsage": _ADMIN | _REPLICA,
    "ListModels": _READERS | _GATEWAY | _AGENT,
    "OfferModel": _ADMIN,
    "ScaleModel": _ADMIN,
    "WithdrawModel": _ADMIN,
    "ReportServing": _ADMIN | _GATEWAY | _AGENT,
    "WatchServing": _ADMIN | _GATEWAY | _AGENT,
    "CallerOf": _ADMIN | _GATEWAY,
    "CreateKey": _WORKERS,
    "ListKeys": _READERS,
    "RevokeKey": _CUSTOMERS | _of("admin support"),
    "SetLimit": _OWNER,
    "ListLimits": _BOOKS,
    "GetOrganisation": _BOOKS,
    "CreateProject": _OWNER,
    "CloseProject": _OWNER,
    "AddMember": _OWNER,
    "SetRole": _OWNER,
    "RemoveMember": _OWNER,
    "OpenAccount": _CASHIERS,
    "SuspendAccount": _CASHIERS,
    "ResumeAccount": _CASHIERS,
    "CloseAccount": _CASHIERS,
    "SetShare": _ADMIN,
    "SetCohort": _ADMIN,
    "GetPolicy": _MACHINES,
    "SetPolicy": _ADMIN,
    "ListQuotas": _MACHINES,
    "SetQuota": _ADMIN,
    "Grant": _CASHIERS,
    "VoidLot": _CASHIERS,
    "RecordPayment": _CASHIERS,
    "CreditInvoice": _CASHIERS,
    "ListAccounts": _DESKS,
    "ListNodes": _MACHINES,
    "ListLeases": _MACHINES,
    "DrainNode": _ADMIN,
    "ClosePeriod": _CASHIERS,
    "ListOpenUsage": _of("admin operator-billing auditor"),
    "CloseUsage": _CASHIERS,
    "AskPayment": _BUYERS,
    "GetPayment": _BOOKS,
    "ListPayments": _BOOKS,
    "SetAutoTopUp": _BUYERS,
    "BookPayment": _CASHIERS,
    "RefundPayment": _CASHIERS,
    "ListSuspense": _of("admin operator-billing auditor"),
    "SettleSuspense": _CASHIERS,
    "ReconcilePayments": _CASHIERS,
    "PaymentNotice": _GATEWAY,
    "AddEndpoint": _WORKERS,
    "ListEndpoints": _WORKERS | _of("support auditor"),
    "RemoveEndpoint": _WORKERS,
    "RotateSecret": _WORKERS,
    "TestEndpoint": _WORKERS,
    "ListDeliveries": _WORKERS | _of("support auditor"),
    "Redeliver": _WORKERS,
}
"""By call of the gRPC door."""
WHEN_SUSPENDED: Final = frozenset(name for name, row in ROLES.items() if Role.READ_ONLY in row) | {
    "AskPayment",
    "TopUp",
}
"""What the keys of a suspended account may still ask for: they look, and pay."""
