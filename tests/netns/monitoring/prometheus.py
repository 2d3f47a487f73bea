"""A real Prometheus server in a namespace."""

import json
import math
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import pytest
import yaml

from lbguard.lab.netns import Namespace
from tests.deploy.charts import ROOT
from tests.netns.service.guarded import wait_until

SCRAPE = "500ms"
"""How often is scraped, and rules are evaluated."""

_ADDRESS = "127.0.0.1:9090"


class Prometheus:
    """Scrapes targets with the rules of this repository; use it as a context manager.

    Args:
        namespace: where it runs; it listens on loopback only.
        directory: for its configuration and data.
        targets: address of the metrics by name of the pod.
    """

    def __init__(self, namespace: Namespace, directory: Path, targets: Mapping[str, str]) -> None:
        found = shutil.which("prometheus")
        if found is None:
            pytest.skip("Prometheus is missing: apt-get install prometheus")
        self._namespace = namespace
        self._log_path = directory / "prometheus.log"
        config = directory / "prometheus.yaml"
        config.write_text(
            yaml.safe_dump(
                {
                    "global": {"scrape_interval": SCRAPE, "scrape_timeout": SCRAPE, "evaluation_interval": SCRAPE},
                    "rule_files": [str(path) for path in sorted((ROOT / "deploy/prometheus").glob("*.yaml"))],
                    "scrape_configs": [
                        {
                            "job_name": "lbguard",
                            "static_configs": [
                                {"targets": [address], "labels": {"namespace": "trench-a", "pod": pod}}
                                for pod, address in targets.items()
                            ],
                        }
                    ],
                }
            )
        )
        self._command = namespace.command(
            found,
            f"--config.file={config}",
            f"--storage.tsdb.path={directory / 'prometheus'}",
            f"--web.listen-address={_ADDRESS}",
            "--log.level=warn",
        )
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        try:
            wait_until(self._ready, "a Prometheus that is ready")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def get(self, path: str, **parameters: str) -> Any:
        """Ask the API; return the data of the answer."""
        url = f"http://{_ADDRESS}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with self._namespace.entered():
            try:
                with urllib.request.urlopen(url, timeout=20) as answer:
                    body = json.load(answer)
            except urllib.error.HTTPError as error:
                body = json.load(error)
        assert body["status"] == "success", (parameters, body)
        return body["data"]

    def value(self, expr: str) -> float | None:
        """Return the value of an expression that has one series now, or None when it has none."""
        result = self.get("query", query=expr)["result"]
        assert len(result) <= 1, result
        return float(result[0]["value"][1]) if result else None

    def values(self, expr: str, start: float, end: float) -> list[float]:
        """Return all that an expression says of a time (seconds since the epoch), without what is no number."""
        data = self.get("query_range", query=expr, start=f"{start:.3f}", end=f"{end:.3f}", step=SCRAPE)
        found = [float(text) for series in data["result"] for _, text in series["values"]]
        return [value for value in found if math.isfinite(value)]

    def _ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log_path.read_text()
        try:
            with self._namespace.entered(), urllib.request.urlopen(f"http://{_ADDRESS}/-/ready", timeout=5):
                return True
        except OSError:
            return False
