"""The settings of recording: group `recording`, environment `LBGUARD_RECORDING__...`."""

from pathlib import Path

from pydantic import BaseModel, Field

from lbguard.settings.fields import GROUP, Duration, FilePath, number, seconds


class RecordingSettings(BaseModel):
    """Recording of the engine's inputs and decisions, in files for `lbguard replay` and `lbguard tune`."""

    model_config = GROUP
    enabled: bool = Field(
        default=False, description="Record everything that decisions rest on; addresses and names, no secrets."
    )
    directory: FilePath = Field(
        default=Path("/var/lib/lbguard/recording"),
        description="Where the files go, oldest deleted first; made if it is not there. Best not shared with others.",
    )
    max_file: int = number(
        16 * 2**20, "bytes", "A file is at most this large; a new one is begun before.", low=2**20, high=2**32
    )
    max_files: int = number(16, "files", "At most this many files are kept.", low=2, high=10_000)
    flush: Duration = seconds(1.0, "What was recorded is in the file after this at the latest.", low=0.1, high=60)
    queue_limit: int = number(
        262_144,
        "entries",
        "At most this many entries wait to be written; more means a gap, and a new file after it.",
        low=1024,
        high=2**24,
    )
