"""Of the model: what records say of whose work they are of, and what it was marked with; by lists of its own."""

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from fabric.gate.instructions import Accepted
from fabric.gate.serving_events import CallUsed, ModelSpec, OfferModel, RecordCalls
from tests.gate.driver import picks
from tests.gate.model_calls import rate
from tests.gate.model_organisations import OrganisationRules

OWN = st.lists(st.sampled_from(["team=red", "team=blue", "app=x", "exp7"]), max_size=3, unique=True)


class TagRules(OrganisationRules):
    """Keys of projects and members are used, whatever has become of these; what that costs is nothing here."""

    @precondition(lambda self: self.member_keys)
    @rule(pick=picks, tags=OWN)
    def marked_call(self, pick, tags):
        key_id, (account, project, member) = sorted(self.member_keys.items())[pick % len(self.member_keys)]
        if not self.state.models:
            spec = ModelSpec(name="marked", source="/m", accelerators=("H100",))
            assert isinstance(self.ask(OfferModel(spec=spec, rates=(rate(1, 1, 1, 1),))), Accepted)
        used = CallUsed(
            call_id=self.name("t"), model="marked", accelerator="H100", prompt_tokens=7, started_at_us=self.latest,
            ended_at_us=self.latest, ended="stop", key_id=key_id, covered=True, tags=tuple(tags),
        )  # fmt: skip
        assert isinstance(self.ask(RecordCalls(account_id=account, calls=(used,))), Accepted)
        (record,) = self.decisions[-1].records
        assert (record.project, record.member, record.tags) == (project, member, tuple(tags))
        assert record.charged_uhs == 0
