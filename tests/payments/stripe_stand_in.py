"""A stateful stand-in for Stripe's API, as far as Checkout, payment intents, refunds and disputes go.

Of our own, because `localstripe` knows no Checkout sessions. It is asked by Stripe's official library over HTTP, keeps what
it was told, answers the same key with the same thing, and signs its notices as Stripe does.
"""

import hashlib
import hmac
import itertools
import json
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

SECRET = "whsec_of_the_stand_in"
KEY = "sk_test_of_the_stand_in"


def nested(pairs):
    """`a[b][0][c]=1` as dictionaries."""
    found = {}
    for name, value in pairs:
        first, *rest = name.replace("]", "").split("[")
        at = found
        for one, following in zip([first, *rest], rest, strict=False):
            at = at.setdefault(one, {})
            del following
        at[([first, *rest])[-1]] = value
    return found


class StripeStandIn:
    """What it has, and what the world does to it."""

    def __init__(self):
        self.sessions, self.intents, self.refunds, self.disputes = {}, {}, {}, []
        self.by_key, self.asked, self.down = {}, defaultdict(int), False
        self.declines = False
        self.numbers = itertools.count(1)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    # -- what the world does ---------------------------------------------------------------------------------------------

    def pays(self, session_id):
        """The customer pays on the page; the notice of it."""
        session = self.sessions[session_id]
        intent = self.intent(
            session["amount_total"], session["currency"], session["metadata"], customer="cus_1", method="pm_1"
        )
        session |= {"payment_status": "paid", "status": "complete", "payment_intent": intent["id"]}
        return self.notice("checkout.session.completed", session)

    def expires(self, session_id):
        self.sessions[session_id] |= {"status": "expired"}
        return self.notice("checkout.session.expired", self.sessions[session_id])

    def fails(self, session_id):
        """A bank's payment that takes days has failed."""
        return self.notice("checkout.session.async_payment_failed", self.sessions[session_id])

    def gives_back(self, intent_id, amount):
        """Somebody refunds it in the dashboard."""
        charge = self.intents[intent_id]["latest_charge"]
        charge["amount_refunded"] += amount
        return self.notice("charge.refunded", charge)

    def disputes_it(self, intent_id, status="needs_response"):
        intent = self.intents[intent_id]
        intent["latest_charge"]["disputed"] = True
        self.disputes = [each for each in self.disputes if each["payment_intent"] != intent_id]
        dispute = {
            "id": "dp_1", "object": "dispute", "amount": intent["amount"], "currency": intent["currency"],
            "status": status, "payment_intent": intent_id,
        }  # fmt: skip
        self.disputes.append(dispute)
        what = "funds_reinstated" if status == "won" else "funds_withdrawn"
        return self.notice(f"charge.dispute.{what}", dispute)

    def notice(self, kind, about, *, at=None, secret=SECRET):
        """(headers, body) of a webhook, signed."""
        body = json.dumps(
            {"id": f"evt_{next(self.numbers)}", "object": "event", "type": kind, "data": {"object": about}}
        ).encode()
        at = int(time.time()) if at is None else at
        signed = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
        return {"stripe-signature": f"t={at},v1={signed}"}, body

    # -- its API ---------------------------------------------------------------------------------------------------------

    def intent(self, amount, currency, metadata, *, customer=None, method=None, status="succeeded"):
        name = f"pi_{next(self.numbers)}"
        charge = {
            "id": f"ch_{name}", "object": "charge", "amount": amount, "amount_refunded": 0, "disputed": False,
            "payment_intent": name, "metadata": metadata, "currency": currency,
        }  # fmt: skip
        self.intents[name] = {
            "id": name, "object": "payment_intent", "amount": amount, "currency": currency, "metadata": metadata,
            "amount_received": amount if status == "succeeded" else 0, "status": status, "customer": customer,
            "payment_method": method, "latest_charge": charge if status == "succeeded" else None,
        }  # fmt: skip
        return self.intents[name]

    def answer(self, method, path, form):  # noqa: PLR0911 - a route each
        """(status, what)."""
        match method, path.strip("/").split("/")[1:]:
            case "POST", ["checkout", "sessions"]:
                item = form["line_items"]["0"]["price_data"]
                name = f"cs_{next(self.numbers)}"
                self.sessions[name] = {
                    "id": name, "object": "checkout.session", "status": "open", "payment_status": "unpaid",
                    "amount_total": int(item["unit_amount"]), "currency": item["currency"], "payment_intent": None,
                    "metadata": form["metadata"], "client_reference_id": form["client_reference_id"],
                    "url": f"https://checkout.stripe.com/{name}", "expires_at": int(form["expires_at"]),
                }  # fmt: skip
                return 200, self.sessions[name]
            case "GET", ["checkout", "sessions", name]:
                session = dict(self.sessions[name])
                if "payment_intent" in form.get("expand", {}).values() and session["payment_intent"]:
                    session["payment_intent"] = self.intents[session["payment_intent"]]
                return 200, session
            case "GET", ["payment_intents", name]:
                return 200, self.intents[name]
            case "GET", ["payment_intents"]:
                return 200, listed(list(self.intents.values()), "/v1/payment_intents")
            case "POST", ["payment_intents"]:
                status = "requires_payment_method" if self.declines else "succeeded"
                made = self.intent(
                    int(form["amount"]), form["currency"], form["metadata"],
                    customer=form["customer"], method=form["payment_method"], status=status,
                )  # fmt: skip
                if self.declines:
                    return 402, error("card_error", "card_declined", payment_intent=made)
                return 200, made
            case "POST", ["refunds"]:
                charge = self.intents[form["payment_intent"]]["latest_charge"]
                if charge["amount_refunded"] + int(form["amount"]) > charge["amount"]:
                    return 400, error("invalid_request_error", "charge_already_refunded")
                charge["amount_refunded"] += int(form["amount"])
                name = f"re_{next(self.numbers)}"
                self.refunds[name] = {"id": name, "object": "refund", "status": "succeeded", **form}
                return 200, self.refunds[name]
            case "GET", ["disputes"]:
                mine = [each for each in self.disputes if each["payment_intent"] == form["payment_intent"]]
                return 200, listed(mine, "/v1/disputes")
        return 404, error("invalid_request_error", "resource_missing")

    def handler(self):
        here = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self.reply("GET", urlsplit(self.path).query)

            def do_POST(self):
                self.reply("POST", self.rfile.read(int(self.headers.get("content-length", 0))).decode())

            def reply(self, method, form):
                here.asked[method, urlsplit(self.path).path] += 1
                key = self.headers.get("idempotency-key")
                if here.down:
                    status, found = 503, error("api_error", "down")
                elif self.headers["authorization"] != f"Bearer {KEY}":
                    status, found = 401, error("invalid_request_error", "bad_key")
                elif key is not None and key in here.by_key:
                    before, (status, found) = here.by_key[key]
                    if before != form:
                        status, found = 400, error("idempotency_error", "other_parameters")
                else:
                    status, found = here.answer(method, urlsplit(self.path).path, nested(parse_qsl(form)))
                    if key is not None:
                        here.by_key[key] = form, (status, found)
                body = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        return Handler


def listed(found, url):
    return {"object": "list", "data": found, "has_more": False, "url": url}


def error(kind, code, **more):
    return {"error": {"type": kind, "code": code, "message": code, **more}}
