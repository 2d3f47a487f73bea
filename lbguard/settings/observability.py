"""Settings of what lbguard says about itself: log, metrics, traces, recording."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from lbguard.settings.fields import (
    GROUP,
    LIVE,
    CollectorAddress,
    Duration,
    FilePath,
    Listen,
    number,
    seconds,
)
from lbguard.settings.notation import COLLECTOR_EXAMPLES


class LogSettings(BaseModel):
    """Content and format of the log."""

    model_config = GROUP
    format: Literal["auto", "json", "text"] = Field(
        default="auto", description="JSON lines, readable text, or auto: text on a terminal and JSON otherwise."
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least severe level logged.", json_schema_extra=LIVE
    )


class MetricsSettings(BaseModel):
    """The endpoint for Prometheus and the health checks."""

    model_config = GROUP
    listen: Listen = Field(
        default=":9464",
        description="Address of /metrics, /healthz, /readyz and a page for people, IPv4 and IPv6; empty turns it off.",
        json_schema_extra={"unit": "host:port"},
    )
    per_target: Literal["off", "active", "all"] = Field(
        default="all",
        description=(
            "Targets with series of their own (six each). all: each; active: each from its first loss on; off: none."
            " Streams have their sums in any case."
        ),
    )


class TracingSettings(BaseModel):
    """Traces of incidents for OpenTelemetry; needs the extra `otel`."""

    model_config = GROUP
    endpoint: CollectorAddress = Field(
        default="",
        description=(
            "Collector that gets a trace of each incident (OTLP over gRPC); https verifies it by the system's"
            " authorities. Empty: no traces."
        ),
        json_schema_extra={"unit": "address", "allowed": COLLECTOR_EXAMPLES},
    )


class RecordingSettings(BaseModel):
    """Recording of the engine's inputs and decisions, in files for `lbguard replay` and `lbguard tune`."""

    model_config = GROUP
    enabled: bool = Field(
        default=False, description="Record every input of the decisions: addresses and names, no secrets."
    )
    directory: FilePath = Field(
        default=Path("/var/lib/lbguard/recording"),
        description="Directory of the files; made if it is missing. The oldest files are deleted first. Other programs"
        " should not use it.",
    )
    max_file: int = number(
        16 * 2**20, "bytes", "The largest size of a file; a new one is begun before.", low=2**20, high=2**32
    )
    max_files: int = number(16, "files", "At most this many files are kept.", low=2, high=10_000)
    flush: Duration = seconds(1.0, "Recorded entries are in the file after at most this time.", low=0.1, high=60)
    queue_limit: int = number(
        262_144,
        "entries",
        "The most entries that wait to be written; beyond it there is a gap, and a new file begins.",
        low=1024,
        high=2**24,
    )
