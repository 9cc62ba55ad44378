"""Whatever others have put into names, references, errors and logs: no command hands it to the terminal as it is."""

import json
import re
from pathlib import Path

import msgspec
import pytest
import typer
from google.protobuf.message import Message
from typer.testing import CliRunner

from fabric.audit.records import Balances, Line, Statement
from fabric.cli import app
from fabric.client.client import Client
from fabric.errors import FabricError, NotFound
from fabric.gate.organisation_views import MemberView, OrganisationView, ProjectView
from fabric.gate.payment_views import NoticeView, PaymentView, SuspenseView
from fabric.gate.questions import Prices
from fabric.results import pack_value
from fabric.wire import decode_error, encode_error, format_key
from fabric.wire import fabric_pb2 as pb
from tests.doors.conftest import CATALOGUE, TARIFFS

HOSTILE = "ev\x1b[2Jil\x1b]0;t\x07\x9b31m\u202egnp.exe\u200b\u2028\x00\x7f\r\nerror: all is paid"
JOB = "job-" + "a" * 20
FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
ON_THIS_MACHINE = {"up", "down", "doctor", "calibrate serving", "audit export"}
"""They ask no fabric, but this machine, or an endpoint; an export is bytes as they are, JSON with nothing but base64."""
FACTS = (
    "voided_uhs", "receivable_microcny", "price_microcny", "free_uhs", "amount_uhs", "amount_microcny",
    "matched", "missing_here", "missing_there", "different", "credit_note",
)  # fmt: skip
LINES = {"logs", "run", "audit checkpoint"}
"""They show text of several lines, which are its own."""
ANSWERS = {
    "job_id": JOB,
    "state": "failed",
    "facts_json": json.dumps({"x": HOSTILE, **dict.fromkeys(FACTS, 1)}),
    "tier": HOSTILE,
    **dict.fromkeys(("meta_json", "in_force_json", "filed_json"), json.dumps({HOSTILE: {HOSTILE: HOSTILE}})),
}


def filled(message: Message, *, depth=3) -> Message:
    """The message with something hostile wherever there is room for a text."""
    for field in message.DESCRIPTOR.fields:
        name = field.name
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            getattr(message, name)[HOSTILE] = 1
        elif field.message_type is not None:
            if depth:
                part = getattr(message, name)
                filled(part.add() if field.is_repeated else part, depth=depth - 1)
        elif field.type == field.TYPE_STRING:
            text = ANSWERS.get(name, HOSTILE)
            getattr(message, name).append(text) if field.is_repeated else setattr(message, name, text)
        elif field.type == field.TYPE_BYTES:
            setattr(message, name, pack_value(HOSTILE))
        elif field.is_repeated:
            getattr(message, name).extend([1, 1, 1, 1])
        else:
            setattr(message, name, 1)
    return message


def soiled(value):
    """The same for a document."""
    if isinstance(value, dict):
        return {name: soiled(each) for name, each in value.items()}
    if isinstance(value, list):
        return [soiled(each) for each in value]
    return f"{value}{HOSTILE}" if isinstance(value, str) else value


ENDPOINT = {
    "endpoint_id": "e", "url": "u", "kinds": ["k"], "made_at_us": 1, "secrets": 1, "failing_since_us": 0, "ended": "x",
}  # fmt: skip
DOCUMENTS = {
    "StatementRequest": Statement(
        account_id="a", from_us=0, until_us=None, opening=Balances(), closing=Balances(), from_size=0, from_root="",
        until_size=0, until_root="", records=(),
        lines=(Line(at_us=1, kind="k", ref="r", amount_uhs=1, held_uhs=1, cny_microcny=1, transfer_id=1, seq=1),),
    ),
    "GetOrganisationRequest": OrganisationView(
        organisation="a", wallets=("a",), projects=(ProjectView(project="p", name="n", wallet="a", opened_at_us=1),),
        members=(MemberView(member="m", name="n", role="owner", joined_at_us=1),),
    ),
    "PricesRequest": Prices(tariffs=TARIFFS, catalogue=CATALOGUE),
    "ListPaymentsRequest": {
        "payments": [
            PaymentView(
                payment_id="p", account_id="a", provider="stripe", provider_ref="r", state="paid", aside=False, auto=False,
                amount_uhs=1, price_microcny=1, currency="CNY", asked_at_us=1, until_us=2, paid_at_us=1, lot_id="l",
                refunded_microcny=0, charged_back_microcny=0, refunds_due_microcny=0,
            )
        ],
        "notices": [NoticeView(at_us=1, what="w", about="p", text="t")],
    },
    "ListSuspenseRequest": [
        SuspenseView(
            suspense_id="s", provider="stripe", provider_ref="r", payment_id="p", account_id="a", amount=1, currency="CNY",
            why="other_amount", at_us=1, settled="", reason="",
        )
    ],
    "AddEndpointRequest": {"endpoint": ENDPOINT, "secret": "s"},
    "ListEndpointsRequest": [ENDPOINT, {**ENDPOINT, "failing_since_us": 1, "ended": ""}],
    "RotateSecretRequest": {"endpoint": ENDPOINT, "secret": "s"},
    "TestEndpointRequest": {"notice_id": "n"},
    "ListDeliveriesRequest": [
        {
            "notice_id": "n", "kind": "k", "subject": "s", "text": "t", "at_us": 1, "state": "due", "tries": 1,
            "last_at_us": 1, "next_at_us": 1, "answer": "a",
        }
    ],
}  # fmt: skip


@pytest.fixture
def hostile(monkeypatch, tmp_path):
    """A fabric that answers everything, with what others have put there."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("FABRIC_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("FABRIC_API_KEY", format_key("k", "5" * 64))
    monkeypatch.chdir(tmp_path)

    class Stream(list):
        cancel = list.clear

    def stream(_, request, reply):
        return Stream(answers(request, reply))

    def answers(request, reply):
        if isinstance(request, pb.WatchJobsRequest):
            yield pb.JobUpdate(revision=1)
        if isinstance(request, pb.ReceiptsRequest):
            yield pb.Document(
                json=json.dumps({"seq": HOSTILE, "tree_size": 1, "leaf_hash": HOSTILE, "proof": []}).encode()
            )
            return
        yield filled(reply())

    def fetch(_, request):
        found = DOCUMENTS.get(type(request).__name__)
        return json.dumps(soiled(msgspec.to_builtins(found))).encode() if found is not None else pack_value(HOSTILE)

    def call(door, request, reply, **_):
        return pb.Document(json=fetch(door, request)) if reply is pb.Document else filled(reply())

    monkeypatch.setattr(Client, "call", call)
    monkeypatch.setattr(Client, "stream", stream)
    monkeypatch.setattr(Client, "collect", lambda self, request, reply: list(stream(self, request, reply)))
    monkeypatch.setattr(Client, "fetch", fetch)
    monkeypatch.setattr(Client, "fetch_into", lambda self, request, file: file.write(HOSTILE.encode()))
    monkeypatch.setattr(Client, "logs", lambda *_, **__: iter([pb.LogChunk(attempt=1, data=f"{HOSTILE}\n".encode())]))
    monkeypatch.setattr(Client, "put_blob", lambda *_: "0" * 64)


def commands(group, words=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name), command


COMMANDS = {
    " ".join(words): (words, command)
    for words, command in commands(typer.main.get_command(app))
    if " ".join(words) not in ON_THIS_MACHINE
}
WORDS = {
    "job_id": JOB, "tokens": "1", "amount": "1", "limit": "1", "words": "true", "command": "true", "devices": "1",
    "replicas": "1:1", "period": "2027-01", "lifetime": "1",
}  # fmt: skip


def arguments(command, tmp_path):
    """A value for each of a command's parameters that must have one."""
    needed = [parameter for parameter in command.params if parameter.required]
    for parameter in sorted(needed, key=lambda parameter: not parameter.opts[0].startswith("-")):
        value = str(tmp_path / "file") if parameter.name == "file" else WORDS.get(parameter.name, "1")
        yield from (parameter.opts[0], value) if parameter.opts[0].startswith("-") else (value,)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("as_json", [False, True])
def test_no_command_hands_control_characters_to_the_terminal(hostile, tmp_path, monkeypatch, name, as_json):
    words, command = COMMANDS[name]
    has_json = any("--json" in parameter.opts for parameter in command.params)
    if as_json and not has_json:
        return
    if name == "top":
        monkeypatch.setitem(ANSWERS, "state", "running")
        monkeypatch.setattr("time.sleep", _interrupt)
    given = [*words, *arguments(command, tmp_path), *(["--json"] if as_json else [])]
    done = CliRunner().invoke(app, given)
    assert done.exception is None or isinstance(done.exception, SystemExit), (given, done.exception)
    said = done.stdout + done.stderr
    assert not FORBIDDEN.search(said.replace("\n", "")), (given, said)
    assert "Usage:" not in done.stderr, (given, done.stderr)
    if not as_json and name not in LINES:
        assert not any(line.startswith("error: all is paid") for line in said.splitlines()), (given, said)


def _interrupt(_):
    raise KeyboardInterrupt


def test_a_jobs_own_output_passes_where_its_own_key_reads_it_and_never_to_an_operator(monkeypatch, hostile):
    red = b"\x1b[31mred\r\n"
    monkeypatch.setattr(Client, "logs", lambda *_, **__: iter([pb.LogChunk(attempt=1, data=red)]))

    def shown(*words, key_id, operator):
        job = pb.Job(job_id=JOB, key_id=key_id, shown_to_operator=operator)
        monkeypatch.setattr(Client, "call", lambda *_, **__: job)
        return CliRunner().invoke(app, ["logs", JOB, *words]).stdout

    assert shown(key_id="k", operator=False).startswith("\x1b[31mred")
    assert shown(key_id="other", operator=False) == "\\x1b[31mred\n"
    assert shown("--raw", key_id="other", operator=False).startswith("\x1b[31mred")
    assert shown("--raw", key_id="k", operator=True) == "\\x1b[31mred\n"
    assert shown("--raw", "-a", "acme", key_id="k", operator=False) == "\\x1b[31mred\n"


def test_an_error_that_comes_over_the_wire_is_fit_for_a_terminal():
    found = decode_error(encode_error(NotFound(f"no job {HOSTILE}", name=HOSTILE)))
    assert not FORBIDDEN.search(found.message.replace("\n", ""))
    assert found.facts["name"] == HOSTILE, "programs get what was said"
    assert isinstance(found, FabricError)


def test_json_that_is_printed_still_says_what_it_said(hostile):
    done = CliRunner().invoke(app, ["keys", "ls", "--json"])
    assert json.loads(done.stdout)[0]["name"] == HOSTILE


def test_every_place_where_commands_write_is_the_one_that_looks_at_what_it_writes():
    allowed = {("output.py", "print("), ("jobs.py", "sys.stdout.writelines("), ("audit.py", "sys.stdout.write(")}
    found = set()
    for path in (Path(__file__).parents[2] / "fabric/cli").glob("*.py"):
        for call in re.findall(r"(?<![\w.])(?:print\(|sys\.std\w+\.write\w*\(|typer\.echo\()", path.read_text()):
            found.add((path.name, call))
    assert found == allowed
