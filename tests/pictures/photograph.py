"""Take a picture of a page: PYTHONPATH=tests python tests/pictures/photograph.py PAGE.html OUT.webp HEIGHT

The page is opened in Chromium, in the dark theme, 1200 pixels wide.
"""

from __future__ import annotations

import base64
import sys
import tempfile
from pathlib import Path

from harness.page_runs import offline, opened


def photograph(page: Path, out: Path, height: int) -> None:
    """Write the picture, as WebP."""
    with tempfile.TemporaryDirectory() as profile, offline(Path(profile)) as tab:
        tab.theme("dark")
        tab.call("Emulation.setDeviceMetricsOverride", width=1200, height=height, deviceScaleFactor=1, mobile=False)
        opened(tab, page.resolve())
        out.write_bytes(base64.b64decode(tab.call("Page.captureScreenshot", format="webp", quality=85)["data"]))


if __name__ == "__main__":
    photograph(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
