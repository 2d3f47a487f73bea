import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def contents(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): path.read_text()
        for path in sorted(directory.rglob("*"))
        if path.suffix in {".py", ".pyi"}
    }


def test_the_committed_code_is_what_the_protocol_generates(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / "scripts/generate-proto"), "--out", str(tmp_path)], check=True)
    fresh = contents(tmp_path)
    assert "v1/lbguard_pb2.py" in fresh
    assert contents(ROOT / "lbguard/api/gen") == fresh, "run scripts/generate-proto"
