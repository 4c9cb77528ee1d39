"""Guards on the repository's shape."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_operator_folder_is_no_package() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists(), (
        "operator/__init__.py would shadow the standard library's `operator` for programs started in the root"
    )


def test_standard_library_operator_wins_in_the_root() -> None:
    code = "import operator; assert operator.__file__.endswith('operator.py'), operator.__file__"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_requirements_name_no_index() -> None:
    for file in (ROOT / "requirements").glob("*.txt"):
        text = file.read_text()
        assert "--index-url" not in text
        assert "--extra-index-url" not in text
        assert "--hash=sha256:" in text
