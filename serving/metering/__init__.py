"""What a call used and who pays for it, kept until the ledger has it. Knows no engine."""
