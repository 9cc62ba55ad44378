"""Of the model: what records say of whose work they are of, and what it was marked with; by lists of its own."""

from hypothesis.stateful import invariant, precondition, rule

from fabric.gate.instructions import Accepted
from fabric.gate.questions import KeyOf
from fabric.gate.serving_events import CallUsed, ModelSpec, OfferModel, RecordCalls
from tests.gate.driver import picks
from tests.gate.model_calls import rate
from tests.gate.model_organisations import TAGS, OrganisationRules


class TagRules(OrganisationRules):
    """Keys of projects and members are used, whatever has become of these; what that costs is nothing here."""

    @precondition(lambda self: self.member_keys)
    @rule(pick=picks, tags=TAGS)
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

    @invariant()
    def a_key_gives_its_projects_tags_and_its_own(self):
        for key_id, (account, project, _) in list(self.member_keys.items())[-4:]:
            own = self.given_tags[key_id]
            names = [tag.split("=")[0] for tag in own]
            given = [tag for tag in self.given_tags.get((account, project), []) if tag.split("=")[0] not in names]
            assert self.gate.ask(KeyOf(key_id=key_id), self.latest).tags == (*given, *own)
