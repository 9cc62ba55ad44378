"""What calls of a language model came to: the figures of those who count."""

import msgspec

from fabric.charging.records import Cdr


class Served(msgspec.Struct, frozen=True, array_like=True):
    """Calls of one model, for accounts on one plan."""

    calls: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    charged_uhs: int = 0
    written_off_uhs: int = 0

    def with_call(self, record: Cdr) -> "Served":
        """One more."""
        return Served(
            self.calls + 1,
            self.prompt_tokens + record.prompt_tokens,
            self.cached_tokens + record.cached_tokens,
            self.completion_tokens + record.completion_tokens,
            self.charged_uhs + record.charged_uhs,
            self.written_off_uhs + record.absorbed_uhs,
        )

    def since(self, before: "Served") -> "Served":
        """What has come to it."""
        return Served(
            self.calls - before.calls,
            self.prompt_tokens - before.prompt_tokens,
            self.cached_tokens - before.cached_tokens,
            self.completion_tokens - before.completion_tokens,
            self.charged_uhs - before.charged_uhs,
            self.written_off_uhs - before.written_off_uhs,
        )
