"""Where the repository and the test data are. Helpers, no tests."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("NOPAD_DATA") or ROOT.parent / "shared" / "data")
