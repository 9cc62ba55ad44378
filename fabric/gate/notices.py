"""What accounts and the operator are to hear of: the newest of each, kept with the journal."""

from typing import Final

from fabric.gate.core import Core
from fabric.gate.payment_state import Notice
from fabric.units import AccountId

KEPT: Final = 100
"""Of one account; the operator's are as many more."""
OPERATORS: Final = AccountId("")


def tell(core: Core, account_id: AccountId, what: str, about: str, text: str, *, operator: bool = False) -> None:
    """Tell an account, and the operator too where it is to act; an account that nobody knows is the operator's business."""
    notice = Notice(at_us=core.now_us, what=what, about=about, text=text)
    for whose in dict.fromkeys((account_id, OPERATORS) if operator else (account_id,)):
        own = core.state.till.notices.setdefault(whose, [])
        own.append(notice)
        del own[:-KEPT]
