"""What the doctor says of whoever takes payments."""

import pytest

from fabric.config.cluster import load_cluster
from fabric.doctor import Health, diagnose


@pytest.mark.parametrize(("section", "said"), [("stripe", "payments are asked about"), ("alipay", "is no RSA key")])
def test_a_provider_of_payments_is_looked_at(tmp_path, closed_port, section, said):
    keys = {
        "stripe": "{api_key: sk_x, webhook_secret: whsec_x, return_url: 'https://op.example'}",
        "alipay": "{app_id: '2021000000000001', private_key: x, alipay_public_key: x,"
        " notify_url: 'https://op.example/payments/alipay', return_url: 'https://op.example'}",
    }
    file = tmp_path / "cluster.yaml"
    file.write_text(
        f"name: x\nray: {{mode: join, address: '127.0.0.1:{closed_port}'}}\npayments: {section}\n{section}: {keys[section]}\n"
    )
    (finding,) = [finding for finding in diagnose(load_cluster(file)) if finding.name == "payments"]
    assert said in finding.found
    assert finding.health is (Health.WARN if section == "stripe" else Health.FAIL)
    assert "sk_x" not in finding.found
