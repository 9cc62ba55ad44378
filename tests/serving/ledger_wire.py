"""The stand-in ledger for a replica in a process of its own: JSON lines over a loopback socket, one message at a time."""

import asyncio
import json
import socketserver
import threading

import msgspec

from fabric.errors import FabricError, InsufficientTokens, NotFound, Unavailable
from serving.calls import Call, Granted

KINDS = {"insufficient_tokens": InsufficientTokens, "hold_ended": NotFound, "not_found": NotFound}


class LedgerServer:
    """In the test's process: serves a `LedgerStandIn` from a thread, and can be cut off."""

    def __init__(self, ledger):
        self.ledger, self.lock = ledger, threading.RLock()
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                for line in self.rfile:
                    if not outer.ledger.reachable:
                        return
                    self.wfile.write(json.dumps(outer.answer(json.loads(line))).encode() + b"\n")

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, said):
        kind = said.pop("kind")
        said["calls"] = tuple(msgspec.convert(each, Call) for each in said.get("calls", ()))
        led = self.ledger
        try:
            with self.lock:
                if kind == "authorize":
                    got = led.do_authorize(
                        said["hold_id"], said["account_id"], said["amount_uhs"], said["minimum_uhs"], said["ttl_us"]
                    )
                elif kind == "update":
                    got = led.do_update(
                        said["hold_id"],
                        said["account_id"],
                        said["seq"],
                        said["calls"],
                        said["more_uhs"],
                        said["minimum_uhs"],
                        said["ttl_us"],
                    )
                elif kind == "settle":
                    got = led.do_settle(said["hold_id"], said["account_id"], said["seq"], said["calls"])
                else:
                    got = led.do_record(said["account_id"], said["calls"])
        except FabricError as error:
            return {"error": error.code, "message": error.message, "facts": error.facts}
        return {"granted": msgspec.to_builtins(got)}

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class WireLedger:
    """In the replica's process: a `SliceLedger` over that socket."""

    def __init__(self, port):
        self.port = port

    async def _ask(self, kind, **said):
        said["calls"] = msgspec.to_builtins(list(said.get("calls", ())))
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 24)
        except OSError as error:
            raise Unavailable(str(error)) from error
        try:
            writer.write(json.dumps({"kind": kind, **said}).encode() + b"\n")
            line = await reader.readline()
        except OSError as error:
            raise Unavailable(str(error)) from error
        finally:
            writer.close()
        if not line:
            raise Unavailable("cut off")
        answer = json.loads(line)
        if "error" in answer:
            raise KINDS[answer["error"]](answer["message"], **answer["facts"])
        return msgspec.convert(answer["granted"], Granted | None)

    async def authorize(self, **said):
        return await self._ask("authorize", **said)

    async def update(self, **said):
        return await self._ask("update", **said)

    async def settle(self, **said):
        await self._ask("settle", **said)

    async def record(self, **said):
        await self._ask("record", **said)
