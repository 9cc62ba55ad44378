"""What was found to use devices without a lease."""

import msgspec


class Unleased(msgspec.Struct, frozen=True, kw_only=True):
    """Something that held an accelerator without a lease, and was removed."""

    kind: str
    """placement_group | actor | task | process"""
    id: str
    name: str
    node_id: str = ""
