"""A stateful stand-in for Alipay's gateway: it checks the signature of every request, and signs every answer and notice.

Key pairs are made for each of them, so nothing here could be believed anywhere else.
"""

import base64
import io
import json
import threading
import zipfile
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlencode, urlsplit

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256

APP_ID = "2021000000000001"
HEADER = (
    "支付宝交易号,商户订单号,业务类型,商品名称,创建时间,完成时间,门店编号,门店名称,操作员,终端号,对方账户,订单金额（元）,"
    "商家实收（元）,支付宝红包（元）,集分宝（元）,支付宝优惠（元）,商家优惠（元）,券核销金额（元）,券名称,商家红包消费金额（元）,"
    "卡消费金额（元）,退款批次号/请求号,服务费（元）,分润（元）,备注"
)


def row(trade_no, name, kind, amount, request=""):
    """A line of the daily bill, in its columns."""
    at = "2026-11-30 10:00:00"
    return (
        f"{trade_no}\t,{name}\t,{kind},tokens,{at},{at},,,,,a**@b.cn,{amount},{amount},0.00,0.00,0.00,0.00,0.00,,"
        f"0.00,0.00,{request},-0.01,0.00,"
    )


def pair():
    return rsa.generate_private_key(public_exponent=65_537, key_size=2_048)


def pem_of(key):
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def public_of(key):
    """As Alipay shows it: the base64 alone."""
    der = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(der).decode()


def content(form):
    return "&".join(f"{name}={value}" for name, value in sorted(form.items()) if value).encode()


def signed(key, raw):
    return base64.b64encode(key.sign(raw, padding.PKCS1v15(), SHA256())).decode()


class AlipayStandIn:
    """Trades as it has them."""

    def __init__(self):
        self.ours, self.theirs = pair(), pair()
        self.trades, self.refunds, self.rows = {}, {}, []
        self.down, self.signs_with = False, self.theirs
        self.asked = defaultdict(int)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    # -- what the world does ---------------------------------------------------------------------------------------------

    def opens(self, url):
        """A customer follows the link; the trade's number of ours."""
        form = dict(parse_qsl(urlsplit(url).query))
        self.check(form)
        assert form["method"] == "alipay.trade.page.pay"
        asked = json.loads(form["biz_content"])
        name = asked["out_trade_no"]
        self.trades.setdefault(
            name,
            {
                "trade_no": f"2026{len(self.trades):012}",
                "status": "WAIT_BUYER_PAY",
                "amount": asked["total_amount"],
                "back": 0,
            },
        )
        return name

    def pays(self, name):
        trade = self.trades[name]
        trade["status"] = "TRADE_SUCCESS"
        self.rows.append(row(trade["trade_no"], name, "交易", trade["amount"]))
        return self.notice(name)

    def closes(self, name):
        self.trades[name]["status"] = "TRADE_CLOSED"
        return self.notice(name)

    def gives_back(self, name, fen, request="by-hand"):
        trade = self.trades[name]
        if request not in self.refunds:
            self.refunds[request] = fen
            trade["back"] += fen
            self.rows.append(row(trade["trade_no"], name, "退款", f"-{fen / 100:.2f}", request))
            if trade["back"] == round(float(trade["amount"]) * 100):
                trade["status"] = "TRADE_CLOSED"
        return self.notice(name)

    def notice(self, name, *, key=None, **changed):
        """The body of a notification."""
        trade = self.trades[name]
        form = {
            "notify_type": "trade_status_sync", "app_id": APP_ID, "charset": "utf-8", "version": "1.0",
            "out_trade_no": name, "trade_no": trade["trade_no"], "trade_status": trade["status"],
            "total_amount": trade["amount"], "subject": "2 个 token", "passback_params": "",
            **({"refund_fee": f"{trade['back'] / 100:.2f}"} if trade["back"] else {}),
            **changed,
        }  # fmt: skip
        return urlencode({**form, "sign_type": "RSA2", "sign": signed(key or self.theirs, content(form))}).encode()

    # -- its gateway -----------------------------------------------------------------------------------------------------

    def check(self, form):
        form = dict(form)
        signature = base64.b64decode(form.pop("sign"))
        self.ours.public_key().verify(signature, content(form), padding.PKCS1v15(), SHA256())
        assert (form["app_id"], form["sign_type"]) == (APP_ID, "RSA2")

    def answer(self, method, asked):
        trade = self.trades.get(asked.get("out_trade_no"))
        if method == "alipay.data.dataservice.bill.downloadurl.query":
            if not self.rows:
                return {"code": "40004", "sub_code": "isp.bill_not_exist"}
            return {"code": "10000", "bill_download_url": f"{self.url}/bill.zip"}
        if trade is None:
            return {"code": "40004", "sub_code": "ACQ.TRADE_NOT_EXIST", "sub_msg": "交易不存在"}
        known = {"code": "10000", "out_trade_no": asked["out_trade_no"], "trade_no": trade["trade_no"]}
        if method == "alipay.trade.refund":
            self.gives_back(asked["out_trade_no"], round(float(asked["refund_amount"]) * 100), asked["out_request_no"])
            return {**known, "refund_fee": f"{trade['back'] / 100:.2f}", "fund_change": "Y"}
        return {**known, "trade_status": trade["status"], "total_amount": trade["amount"]}

    def bill(self):
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w") as folder:
            table = "\n".join(["#支付宝业务明细查询", "#账号：[...]", HEADER, *self.rows, "#----列表结束----", ""])
            folder.writestr("1_业务明细(汇总).csv", "#汇总\n合计,1\n".encode("gb18030"))
            folder.writestr("1_业务明细.csv", table.encode("gb18030"))
        return made.getvalue()

    def handler(self):
        here = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.say(200, here.bill())

            def do_POST(self):
                form = dict(parse_qsl(self.rfile.read(int(self.headers["content-length"])).decode()))
                here.asked[form["method"]] += 1
                if here.down:
                    self.say(502, b"<html>bad gateway</html>")
                    return
                try:
                    here.check(form)
                except InvalidSignature:
                    found = {"code": "40002", "sub_code": "isv.invalid-signature"}
                else:
                    found = here.answer(form["method"], json.loads(form["biz_content"]))
                inner = json.dumps(found, ensure_ascii=False)
                name = form["method"].replace(".", "_") + "_response"
                self.say(200, f'{{"{name}":{inner},"sign":"{signed(here.signs_with, inner.encode())}"}}'.encode())

            def say(self, status, body):
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        return Handler
