"""`fabric calibrate serving` against a stand-in endpoint: what it counted, and rates that can be offered as they are."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.doors.test_serving_calls import offer


class StandInEndpoint(BaseHTTPRequestHandler):
    """Counts what it is asked for, and produces nothing."""

    asked, refuse = [], 0

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.path, self.headers["Authorization"], body))
        prompt, answer = len(body["prompt"]), body["max_tokens"]
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "prompt_tokens_details": {"cached_tokens": prompt // 4},
        }
        said = {"error": {"message": "no tokens left: top up"}} if self.refuse else {"usage": usage}
        text = json.dumps(said).encode()
        self.send_response(self.refuse or 200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint():
    StandInEndpoint.asked, StandInEndpoint.refuse = [], 0
    with ThreadingHTTPServer(("127.0.0.1", 0), StandInEndpoint) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join(10)


WORDS = ("calibrate", "serving", "tiny", "--streams", 4, "--prompt", 16, "--answer", 8, "--seconds", 0.2, "-a", "acme")


def test_what_was_measured_becomes_rates_that_can_be_offered(run, house, endpoint, tmp_path):
    offer(house, devices=2)
    said = json.loads(run(*WORDS, "--endpoint", endpoint, "--json", key=house.root).output)
    (rate,) = said["rates"]
    prompts, answers = said["measured"]["prompt"], said["measured"]["completion"]
    for seen, kind in ((prompts, "input"), (answers, "output")):
        exact = seen["elapsed_us"] * 2 * 10**6 / seen["tokens"]
        assert abs(int(rate[f"{kind}_uhs_per_mtok"]) - exact) <= 1, "2 devices of weight 1, for as long"
    bodies = [body for _, _, body in StandInEndpoint.asked]
    assert prompts["tokens"] == sum(12 for body in bodies if len(body["prompt"]) == 16), "cached ones don't count"
    assert len({tuple(body["prompt"]) for body in bodies if len(body["prompt"]) == 16}) > 1
    assert {path for path, _, _ in StandInEndpoint.asked} == {"/v1/completions"}
    (used,) = {key for _, key, _ in StandInEndpoint.asked}
    keys = json.loads(run("keys", "ls", "--json", key=house.acme).output)
    assert [key["revoked"] for key in keys if used.startswith(f"Bearer fab_{key['key_id']}_")] == [True]
    file = tmp_path / "rates.json"
    file.write_text(json.dumps(said))
    run("ops", "models", "offer", "tiny", "/m", "--accelerator", "H100", "--rates", file, key=house.root)
    (model,) = json.loads(run("models", "--json").output)
    assert (model["rate_version"], model["rates"][0]["input_uhs_per_mtok"]) == (2, rate["input_uhs_per_mtok"])


def test_people_see_a_table_in_both_units(run, house, endpoint):
    offer(house)
    shown = run(*WORDS, "--endpoint", endpoint, key=house.root).output
    assert "tiny on H100" in shown
    assert "H100-s/M" in shown


@pytest.mark.parametrize(
    ("words", "code", "found"),
    [
        (("calibrate", "serving", "none"), 5, "there is no model"),
        (("calibrate", "serving", "tiny"), 8, "no gateway is up"),
        (("calibrate", "serving", "tiny", "-a", "acme", "--endpoint", "http://127.0.0.1:9/v1"), 8, "doesn't answer"),
        (
            ("calibrate", "serving", "tiny", "--endpoint", "ENDPOINT", "--accelerator", "B200", "--seconds", 0.1),
            2,
            "no weight",
        ),
    ],
)
def test_what_can_not_be_measured_is_told(run, house, endpoint, words, code, found):
    offer(house)
    words = [endpoint if word == "ENDPOINT" else word for word in words]
    assert found in run(*words, key=house.root, code=code).stderr


def test_a_refusal_of_the_endpoint_is_told_in_its_words(run, house, endpoint):
    offer(house)
    StandInEndpoint.refuse = 402
    assert "no tokens left: top up" in run(*WORDS, "--endpoint", endpoint, key=house.root, code=4).stderr


def test_a_customer_pays_with_its_own_key(run, house, endpoint):
    offer(house)
    run(*WORDS, "--endpoint", endpoint)
    assert {key for _, key, _ in StandInEndpoint.asked} == {f"Bearer {house.acme}"}


def test_the_account_that_pays_must_be_there(run, house, endpoint):
    offer(house)
    words = ("calibrate", "serving", "tiny", "--endpoint", endpoint)
    assert "there is no account 'operator'" in run(*words, key=house.root, code=5).stderr
