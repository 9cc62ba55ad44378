"""The independent verifier: does an audit export prove what it says?

A second implementation, on purpose: it imports nothing of the product, only the standard library and `cryptography`, so
that whoever doubts a bill can read these lines and run them anywhere, offline. `fabric audit verifier > verify.py` writes
them as one file, module by module as they stand here:

    python verify.py EXPORT --key VERIFIER_KEY [--witnessed OLDER_CHECKPOINT]
    python verify.py EXPORT --key VERIFIER_KEY --earlier OLDER_EXPORT
    python verify.py RECEIPTS --receipts --key VERIFIER_KEY [--witnessed OLDER_CHECKPOINT]

Without --key it shows that the export is whole and unchanged since *somebody* signed it, and ends with 3; with the
operator's published key, that the operator did. With a checkpoint that was kept earlier it also shows that nothing before
it was rewritten. What the entries say is reckoned again: no charge but by counters, rates and curve, no capture without a
hold, no lot that expires before its time.

Where to read: `exports` (an export's lines) and `receipts` hold `notes` (signatures) and `tree` (hashes) against each
other, `policy` against witnesses and `compare` against an export of before; `books` adds up what the entries say, `lots`, `sales`,
`calls`, `rates`, `leases` and `jobs` reckon it again, and `numbers` tells whether something is left out.
"""

from .check import Lines
from .command import main
from .exports import checkpoint_of, verify_export
from .notes import size_of
from .receipts import verify_receipts
from .report import Report, Wrong

__all__ = ["Lines", "Report", "Wrong", "checkpoint_of", "main", "size_of", "verify_export", "verify_receipts"]
