"""Settings of recording: group `recording`, environment `LBGUARD_RECORDING__...`."""

from pathlib import Path

from pydantic import BaseModel, Field

from lbguard.settings.fields import GROUP, Duration, FilePath, number, seconds


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
