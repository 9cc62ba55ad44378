"""What the doctor says of storage."""

from fabric.config.cluster import load_cluster
from fabric.doctor import diagnose


def test_the_doctor_says_how_much_the_jobs_of_an_account_may_keep(tmp_path):
    file = tmp_path / "x.yaml"
    nodes = "[{node: a, accelerator: H100, devices: 1}]"
    kept = "{account_bytes: 3221225472, account_values: 7000, checkpoint_bytes: 1610612736}"
    file.write_text(f"name: x\nray: {{mode: local, nodes: {nodes}}}\nstorage: {kept}\n")
    (finding,) = [finding for finding in diagnose(load_cluster(file)) if finding.name == "storage"]
    for said in ("3 GiB", "7,000 values", "1.5 GiB in one checkpoint"):
        assert said in finding.found
