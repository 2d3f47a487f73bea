import os
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


def test_our_own_protocol_passes_the_standard_lint(tmp_path: Path) -> None:
    proto = tmp_path / "proto/lbguard/v1/lbguard.proto"
    proto.parent.mkdir(parents=True)
    given = (ROOT / "lbguard/api/proto/lbguard/v1/lbguard.proto").read_text()

    def lint(text: str) -> subprocess.CompletedProcess[str]:
        proto.write_text(text)
        rules = '{"version": "v2", "lint": {"use": ["STANDARD"]}}'
        argv = [str(Path(sys.executable).parent / "buf"), "lint", str(tmp_path / "proto"), "--config", rules]
        environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
        return subprocess.run(argv, capture_output=True, text=True, env=environment, timeout=60, check=False)

    done = lint(given)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = lint(given.replace("package lbguard.v1;", "package lbguard;"))
    assert "should be suffixed with a correctly formed version" in wrong.stdout
