"""A real exporter process, fed and scraped."""

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from monitoring.exporter import END, END_AFTER_SCRAPE, ip_address
from monitoring.metric_definitions import METRICS, PREFIX
from motionmae.config import Config
from motionmae.errors import UserError
from motionmae.runs.end_reason import EndReason
from motionmae.runs.events import Kind
from tests.monitoring.runs import Exporter, FedRun, config_of, label_of, settings_of
from tests.training.launch import free_port, wait_until

Scraped = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
        return answer.read().decode()


def values(text: str) -> Scraped:
    return {
        (sample.name.removeprefix(PREFIX), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def feed(run: FedRun) -> None:
    """Two ranks' steps 1 to 4, with everything that training can announce."""
    run.event(Kind.READY, 0, total_steps=10)
    for step in (1, 2, 3, 4):
        run.metrics(step, **{"source_samples/toy": 2 * step})
    explained = {"explained_space": 0.4, "explained_time": 0.1, "loss": 1.5, "loss_space": 0.5, "loss_time": 1.0}
    run.event(Kind.VALIDATION, 3, **explained, seconds=2.5, is_best=True, top1=25.0, top5=75.0, knn=50.0)
    run.event(Kind.CHECKPOINT, 4, path="step4", bytes=1000, seconds=3.0, blocking=1.0)
    run.event(Kind.NONFINITE, 4, cause="loss")
    run.event(Kind.CORRUPT_SAMPLE, 4, reasons={"decode": 2})


def test_the_exporter_exposes_exactly_the_defined_metrics(tmp_path: Path):
    config = config_of(tmp_path / "runs")
    run = FedRun(config, tmp_path, ranks=2)
    feed(run)
    with Exporter(settings_of(config, tmp_path), tmp_path / "log") as exporter:
        address = exporter.address()
        wait_until(lambda: b"xid" in scrape(address).encode(), "the fake XID")
        text = scrape(address)
        found = values(text)
        families = {family.name for family in text_string_to_metric_families(text)}
        assert families == {metric.full_name.removesuffix("_total") for metric in METRICS.values()}

        def value(name: str, **labels: str) -> float:
            return found[name, tuple(sorted(labels.items()))]

        assert value("step") == 4
        assert value("progress_ratio") == 0.4
        assert value("eta_seconds") == 3.0
        assert value("loss", component="space") == 0.25
        assert value("clips_total") == 32
        assert value("source_samples_total", source="toy") == 8
        assert value("validation_loss", component="total") == 1.5
        assert value("validation_explained_ratio", head="time") == 0.1
        assert value("validation_accuracy_ratio", by="top1") == 0.25
        assert value("validation_best_step") == value("validation_last_step") == 3
        assert value("validation_duration_seconds") == 2.5
        assert value("flops_total") == 32e9
        assert value("mfu_ratio") == pytest.approx(16e9 / 2e12)
        assert value("phase_seconds_total", rank="1", phase="forward") == 1.0
        assert value("checkpoint_duration_seconds", op="save", blocking="false") == 2.0
        assert value("nonfinite_steps_total", kind="loss") == 1
        assert value("corrupt_samples_total", reason="decode") == 2
        assert value("step_duration_seconds_bucket", le="0.5") == 4
        assert value("step_duration_seconds_bucket", le="0.3") == 0
        assert value("run_info", slurm_job_id="7", git_sha="abc", world_size="2", config_hash="def") == 1
        assert value("gpu_power_watts", gpu="0", UUID="GPU-aaaa") == 650.5
        assert value("gpu_throttle_active", gpu="0", UUID="GPU-aaaa", reason="power_cap") == 1
        assert value("gpu_xid_events_total", gpu="0", UUID="GPU-aaaa", xid="31") == 1
        # what the second GPU does not know is left out: no error, no sentinel
        assert not any(name == "gpu_energy_joules_total" and ("gpu", "1") in labels for name, labels in found)
        assert not any(name == "gpu_ecc_errors_total" and ("gpu", "1") in labels for name, labels in found)
        parts = [seconds for (name, _), seconds in found.items() if name in ("productive_seconds", "badput_seconds")]
        assert sum(parts) > 0

        for secret in (str(tmp_path), os.environ.get("HOME", "/root"), "runs/", "PATH", "python"):
            assert secret not in text
        if shutil.which("promtool"):
            linted = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
            assert (linted.returncode, linted.stderr) == (0, "")


def test_counters_continue_after_a_restart_and_an_end_without_a_word_is_lost(tmp_path: Path):
    config = config_of(tmp_path / "runs")
    first = FedRun(config, tmp_path)
    feed(first)
    second = FedRun(config, tmp_path, "b")
    second.event(Kind.STOP, 4, reason=EndReason.PREEMPTED)
    FedRun(config, tmp_path, "c").event(Kind.READY, 4, total_steps=10)
    with Exporter(settings_of(config, tmp_path), tmp_path / "log") as exporter:
        found = values(scrape(exporter.address()))
    restarts = {labels[0][1]: value for (name, labels), value in found.items() if name == "restarts_total"}
    assert restarts == {"preempted": 1, "stopped": 0, "hung": 0, "failed": 0, "lost": 1}
    assert found["corrupt_samples_total", (("reason", "decode"),)] == 2
    assert found["nonfinite_steps_total", (("kind", "loss"),)] == 1
    assert found["clips_total", ()] == 0
    assert found["run_state", (("state", "training"),)] == 1


def test_it_answers_while_ranks_hang_and_shows_the_snapshot_age(tmp_path: Path):
    config = config_of(tmp_path / "runs")
    sleeper = subprocess.Popen(["sleep", "60"])
    FedRun(config, tmp_path)
    snapshot = json.loads((tmp_path / "0.json").read_text())
    (tmp_path / "0.json").write_text(json.dumps({**snapshot, "pid": sleeper.pid, "time": time.time() - 900}))
    (tmp_path / "1.json").write_text('{"rank": 1, "torn')
    with Exporter(settings_of(config, tmp_path), tmp_path / "log") as exporter:
        sleeper.send_signal(signal.SIGSTOP)
        found = values(scrape(exporter.address()))
        assert 900 <= found["snapshot_age_seconds", (("rank", "0"),)] < 990
        assert found["rank_alive", (("rank", "0"),)] == 1
        sleeper.kill()
        sleeper.wait()
        assert values(scrape(exporter.address()))["rank_alive", (("rank", "0"),)] == 0


@pytest.mark.parametrize(("word", "stays"), [(END, False), (END_AFTER_SCRAPE, False), ("", True)])
def test_the_target_file_is_removed_after_an_orderly_end_only(word: str, stays: bool, tmp_path: Path):
    config = config_of(tmp_path / "runs")
    (tmp_path / "runs/.sd").mkdir(parents=True)
    label = label_of(tmp_path / "runs")
    earlier = [{"targets": ["h:1"], "labels": {"run": label, "instance": f"{label}/1"}}]  # of an attempt on two nodes
    (tmp_path / f"runs/.sd/{label}-1.json").write_text(json.dumps(earlier))
    with Exporter(settings_of(config, tmp_path), tmp_path / "log") as exporter:
        published = json.loads(Path(tmp_path / f"runs/.sd/{label}-0.json").read_text()) if exporter.address() else None
        assert published[0]["labels"] == {"run": label, "instance": f"{label}/0"}
        assert not (tmp_path / f"runs/.sd/{label}-1.json").exists()
        exporter.stdin.write(f"{word}\n" if word else "")
        exporter.stdin.close()
        assert exporter.process.wait(30) == 0
    assert (tmp_path / f"runs/.sd/{label}-0.json").exists() == stays


@pytest.mark.parametrize("word", [END, ""])
def test_the_gpu_driver_is_closed_when_the_trainer_ends(word: str, tmp_path: Path):
    config = config_of(tmp_path / "runs")
    with Exporter(settings_of(config, tmp_path), tmp_path / "log") as exporter:
        exporter.address()
        exporter.stdin.write(f"{word}\n" if word else "")
        exporter.stdin.close()
        assert exporter.process.wait(30) == 0
    assert "NVML is left in order" in (tmp_path / "log").read_text()


def test_a_finished_run_waits_for_the_last_scrape(tmp_path: Path):
    config = config_of(tmp_path / "runs")
    run = FedRun(config, tmp_path)
    with Exporter(settings_of(config, tmp_path), tmp_path / "log") as exporter:
        address = exporter.address()
        scrape(address)
        run.event(Kind.FINISH, 10)
        exporter.stdin.write(f"{END_AFTER_SCRAPE}\n")
        exporter.stdin.flush()
        time.sleep(0.5)
        assert exporter.process.poll() is None
        assert values(scrape(address))["run_state", (("state", "finished"),)] == 1
        assert exporter.process.wait(30) == 0


def test_an_old_attempt_does_not_withdraw_the_target_of_a_new_one(tmp_path: Path):
    config = config_of(tmp_path / "runs")
    with Exporter(settings_of(config, tmp_path), tmp_path / "log") as exporter:
        exporter.address()
        path = tmp_path / f"runs/.sd/{label_of(tmp_path / 'runs')}-0.json"
        path.write_text("of the new attempt")
        exporter.stdin.write(f"{END}\n")
        exporter.stdin.flush()
        assert exporter.process.wait(30) == 0
    assert path.read_text() == "of the new attempt"


def test_the_next_free_port_is_used_and_none_is_a_warning(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = config_of(tmp_path / "runs", port=port, ports=20)
        with Exporter(settings_of(config, tmp_path), tmp_path / "log") as exporter:
            assert port < int(exporter.address().rpartition(":")[2]) < port + 20
        alone = config_of(tmp_path / "runs", port=port, ports=1)
        with Exporter(settings_of(alone, tmp_path), tmp_path / "log") as exporter:
            assert exporter.process.wait(30) == 1
    said = (tmp_path / "log").read_text()
    assert f"node 0 has no metrics (port {port} of 127.0.0.1 is in use: set monitoring.ports=11 to " in said
    assert "training continues" in said


def test_two_people_with_one_folder_one_name_and_one_range_of_ports_get_two_targets(tmp_path: Path):
    shared = {"discovery": tmp_path / "sd", "port": free_port()}
    found = []
    with ExitStack() as stack:
        for person in ("ann", "ben"):
            settings = settings_of(config_of(tmp_path / person / "runs", **shared), tmp_path / person)
            exporter = stack.enter_context(Exporter(settings, tmp_path / f"{person}.log"))
            found.append(exporter.address())
        targets = [json.loads(path.read_text())[0] for path in (tmp_path / "sd").glob("*.json")]
    assert len(set(found)) == 2
    assert {target["targets"][0] for target in targets} == set(found)
    labels = {label_of(tmp_path / person / "runs") for person in ("ann", "ben")}
    assert {target["labels"]["run"] for target in targets} == labels
    assert len(labels) == 2


def test_it_answers_without_a_writable_discovery_folder(tmp_path: Path):
    config = config_of(tmp_path / "runs", port=0)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/.sd").write_text("a file where a folder should be")
    with Exporter(settings_of(config, tmp_path), tmp_path / "log") as exporter:
        wait_until(lambda: "no target file in" in (tmp_path / "log").read_text(), "the warning")
        address = (tmp_path / "log").read_text().split("http://")[1].split("/")[0]
        assert "motionmae_node_info" in scrape(address)
        assert exporter.process.poll() is None


def test_it_listens_on_the_configured_interface_only(tmp_path: Path):
    config = config_of(tmp_path / "runs", address="lo")
    with Exporter(settings_of(config, tmp_path), tmp_path / "log") as exporter:
        assert exporter.address().startswith("127.0.0.1:")
        port = exporter.address().rpartition(":")[2]
        with pytest.raises(OSError, match="refused"):
            scrape(f"127.0.0.2:{port}")
    assert ip_address("lo") == "127.0.0.1"
    with pytest.raises(OSError, match="network interface nosuch0 has no IPv4 address"):
        ip_address("nosuch0")
    for everywhere in ("0.0.0.0", "::", ""):
        with pytest.raises(UserError, match="not all of them"):
            Config().updated({"monitoring.address": everywhere})


def test_tls(tmp_path: Path):
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*words, *names], check=True, capture_output=True)
    config = config_of(tmp_path / "runs", tls_certificate=certificate, tls_key=key)
    with Exporter(settings_of(config, tmp_path), tmp_path / "log") as exporter:
        address = exporter.address()
        context = ssl.create_default_context(cafile=str(certificate))
        with urllib.request.urlopen(f"https://{address}/metrics", context=context, timeout=30) as answer:
            assert b"motionmae_node_info" in answer.read()
        published = json.loads((tmp_path / f"runs/.sd/{label_of(tmp_path / 'runs')}-0.json").read_text())
        assert published[0]["labels"]["__scheme__"] == "https"
    with pytest.raises(UserError, match="or neither"):
        Config().updated({"monitoring.tls_key": "key.pem"})
